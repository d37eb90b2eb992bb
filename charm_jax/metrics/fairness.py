"""Compare decisions between groups of patients: TPR, FPR and underdiagnosis (NumPy)."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped

from charm_jax.metrics import bootstrap, intervals
from charm_jax.metrics.intervals import EvalSet
from charm_jax.metrics.result import Estimate, FindingGaps, GroupGaps

UNKNOWN = "unknown"  # in no group


def gaps(
    evaluated: EvalSet,
    probabilities: Float[np.ndarray, "images findings"],
    thresholds: Float[np.ndarray, " findings"],
    specific: Float[np.ndarray, " findings"],
    attributes: Mapping[str, Shaped[np.ndarray, " images"]],
) -> dict[str, dict[str, GroupGaps]]:
    """Compute each group's rates minus those of all other groups of the attribute.

    For two groups it is the disparity of Seyyed-Kalantari et al. (2021, Pacific Symposium on
    Biocomputing, "CheXclusion"). Underdiagnosis is the share of the images with a finding that are
    called healthy, the FPR of "no finding" (Seyyed-Kalantari et al., 2021, Nature Medicine
    27:2176-2182).

    Differs: for more than two groups CheXclusion takes the difference from their median, which is
    one group's own rate. Its networks have an output for "no finding"; here it is called where no
    finding reaches its specific threshold.

    Args:
        evaluated: predictions and labels.
        probabilities: calibrated, 0 ... 1; NaN throughout for a finding without.
        thresholds: on these; NaN for none, which leaves a finding undefined.
        specific: thresholds below which an image is called healthy; at less specific ones hardly
            any image is, since each finding adds false alarms.
        attributes: result of ``summary.attributes``.

    Returns:
        attribute → group → result, with 95 % intervals over resampled patients; without attributes
        of fewer than two groups, and empty without thresholds.
    """
    if np.isnan(thresholds).all():
        return {}
    positive, negative = evaluated.labels == 1, evaluated.labels == 0
    called = probabilities >= thresholds
    sick = (positive & ~np.isnan(specific)).any(axis=1, keepdims=True)
    missed = sick & ~(probabilities >= specific).any(axis=1, keepdims=True)
    parts = [positive, positive & called, negative, negative & called, sick, missed]
    counts = np.concatenate(parts, axis=1)
    result = {}
    for attribute, values in attributes.items():
        groups = [str(value) for value in np.unique(values) if value != UNKNOWN]
        if len(groups) < 2:
            continue
        members = [values == group for group in groups]
        of_groups = np.concatenate([counts * member[:, None] for member in members], axis=1)
        drawn = bootstrap.totals(of_groups, evaluated.patients)
        own = of_groups.sum(axis=0, keepdims=True)
        # The first line is the value, the others are its resamples.
        rates = _rates(np.concatenate([own, drawn]), len(groups), ~np.isnan(thresholds))
        result[attribute] = {
            group: _group(
                evaluated.findings,
                int(members[index].sum()),
                {name: rate[:, index] for name, rate in rates.items()},
            )
            for index, group in enumerate(groups)
        }
    return result


def _rates(
    sums: Float[np.ndarray, "lines columns"], groups: int, decided: Shaped[np.ndarray, " findings"]
) -> dict[str, Float[np.ndarray, "lines groups ..."]]:
    """Compute the rates of each group and their gaps; NaN for undefined ones."""
    own = sums.reshape(len(sums), groups, -1)
    ends, found = len(decided) * np.arange(1, 5), []
    for counts in (own, own.sum(axis=1, keepdims=True) - own):
        *parts, sick, missed = np.split(counts, [*ends, -1], axis=2)
        positive, tp, negative, fp = (part * decided for part in parts)
        rates = {
            "tpr": bootstrap.ratio(tp, positive),
            "fpr": bootstrap.ratio(fp, negative),
            "underdiagnosis": bootstrap.ratio(missed, sick),
        }
        found.append(rates)
    own, rest = found
    return own | {f"{name}_gap": own[name] - rest[name] for name in own}


def _group(
    findings: tuple[str, ...], n_images: int, rates: Mapping[str, Float[np.ndarray, "lines ..."]]
) -> GroupGaps:
    """Put the result of a group together."""
    undefined = np.isnan(rates["tpr_gap"][0]) | np.isnan(rates["fpr_gap"][0])
    means = {name: bootstrap.macro(rates[name][:, ~undefined]) for name in ("tpr_gap", "fpr_gap")}
    return GroupGaps(
        n_images=n_images,
        tpr_gap=_estimate(means["tpr_gap"]),
        fpr_gap=_estimate(means["fpr_gap"]),
        underdiagnosis=_estimate(rates["underdiagnosis"][:, 0]),
        underdiagnosis_gap=_estimate(rates["underdiagnosis_gap"][:, 0]),
        findings={
            name: FindingGaps(
                **{
                    rate: _estimate(rates[rate][:, column])
                    for rate in ("tpr", "fpr", "tpr_gap", "fpr_gap")
                }
            )
            for column, name in enumerate(findings)
        },
        undefined=tuple(name for name, lacks in zip(findings, undefined, strict=True) if lacks),
    )


def _estimate(lines: Float[np.ndarray, " lines"]) -> Estimate:
    if np.isnan(lines[0]):
        return Estimate()
    return Estimate(value=float(lines[0]), interval=intervals.spread(lines[1:]))
