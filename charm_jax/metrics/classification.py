"""Compute metrics of each finding and their means (scikit-learn, NumPy; not jitted).

An undefined value is None and left out of means, which name and count what they lack.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from charm_jax.metrics.result import AtThreshold, FindingResult, GroupResult, Mean

ECE_BINS = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """One finding over the images whose label is known.

    Attributes:
        truth: 1 or 0.
        logits: their order gives AUROC and average precision: float32 sigmoids tie near 0 and 1.
        probability: calibrated, 0 ... 1; NaN throughout for none.
        at: decisions at a threshold on the probability.
    """

    truth: Int[np.ndarray, " images"]
    logits: Num[np.ndarray, " images"]
    probability: Float[np.ndarray, " images"]
    at: AtThreshold = dataclasses.field(default_factory=AtThreshold)

    def gives(self, needs: str) -> bool:
        """Whether a metric with these needs is defined."""
        if needs == "order":
            return bool(0 < np.sum(self.truth == 1) < len(self.truth))
        if needs == "threshold":
            return self.at.threshold is not None
        return len(self.truth) > 0 and not bool(np.isnan(self.probability).any())


def _auroc(known: Known) -> float:
    from sklearn.metrics import roc_auc_score  # over a second, which a first step need not wait

    return float(roc_auc_score(known.truth, known.logits))


def _average_precision(known: Known) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(known.truth, known.logits))


def brier(known: Known) -> float:
    """Compute the Brier score, the mean of (probability - truth)²."""
    return float(np.mean((known.probability - known.truth) ** 2))


def ece_equal_width(known: Known) -> float:
    """Compute the expected calibration error over 15 bins of equal width, 0 ... 1.

    It is Σ (share of the images in a bin) · abs(frequency of positives - mean probability), cut as
    in scikit-learn's `calibration_curve`. At low prevalence nearly all images are in the first bin.
    """
    return _ece(known, _bins(known.probability, np.linspace(0, 1, ECE_BINS + 1)))


def ece_equal_mass(known: Known) -> float:
    """Compute the expected calibration error over 15 quantiles; equal probabilities stay together.

    The formula is that of `ece_equal_width`.
    """
    return _ece(known, equal_mass_bins(known.probability))


def equal_mass_bins(probability: Float[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """Return the bin of each image among 15 quantiles, 0 ... 14."""
    return _bins(probability, np.quantile(probability, np.linspace(0, 1, ECE_BINS + 1)))


def _bins(probability: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges[1:-1], probability)


def _ece(known: Known, bins: np.ndarray) -> float:
    gaps = np.bincount(bins, weights=known.truth - known.probability, minlength=ECE_BINS)
    return float(np.sum(np.abs(gaps)) / len(known.truth))


class Metric(NamedTuple):
    """Describe a metric of one finding, which has a mean over the findings.

    Attributes:
        compute: is called where `needs` are met; None for undefined.
        label: short name for people.
        needs: ``order`` of the scores of both classes, a ``threshold``, or calibrated
            ``probabilities``.
        has_interval: whether `bootstrap` resamples it, into a field of ``FindingResult``.
    """

    compute: Callable[[Known], float | None]
    label: str
    needs: str
    has_interval: bool = False


# In the order of texts and tables.
METRICS = {
    "auroc": Metric(_auroc, "AUROC", "order", has_interval=True),
    "average_precision": Metric(_average_precision, "AP", "order", has_interval=True),
    "sensitivity": Metric(lambda known: known.at.sensitivity, "sensitivity", "threshold"),
    "specificity": Metric(lambda known: known.at.specificity, "specificity", "threshold"),
    "ppv": Metric(lambda known: known.at.ppv, "PPV", "threshold"),
    "npv": Metric(lambda known: known.at.npv, "NPV", "threshold"),
    "f1": Metric(lambda known: known.at.f1, "F1", "threshold"),
    "brier": Metric(brier, "Brier", "probabilities"),
    "ece_equal_width": Metric(ece_equal_width, "ECE (equal width)", "probabilities"),
    "ece_equal_mass": Metric(ece_equal_mass, "ECE (equal mass)", "probabilities"),
}


def _values(known: Known, *needs: str) -> dict[str, float | None]:
    """Compute the metrics with such needs; None for undefined."""
    return {
        name: metric.compute(known) if known.gives(metric.needs) else None
        for name, metric in METRICS.items()
        if metric.needs in needs
    }


# Lowest prevalence in training of each group; `rare_finding` selects cases of the tail.
GROUPS = {"head": 0.05, "medium": 0.02, "tail": 0.0}


def auroc_by_finding(
    scores: np.ndarray, labels: np.ndarray, findings: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Compute each finding's AUROC, U / (n₊ n₋) with ties counted ½, over its known labels.

    Args:
        scores: Logits or probabilities, `[images, findings]`; only their order matters.
        labels: 1, 0 or -1 (unknown), `[images, findings]`.
        findings: Names of the columns.

    Returns:
        name → {"auroc": 0 … 1, or None without both classes, "positives": int, "negatives": int,
        "unknown": int}.

    Raises:
        ValueError: If the shapes do not agree, a score is not finite or a label is none of these.
    """
    check_scores(scores, labels, findings)
    result = {}
    for column, name in enumerate(findings):
        known = _known(scores, labels, column)
        result[name] = {
            "auroc": _auroc(known) if known.gives("order") else None,
            **_counts(known, len(labels)),
        }
    return result


def summarise(scores: np.ndarray, labels: np.ndarray, findings: Sequence[str]) -> dict[str, Any]:
    """Compute {"macro_auroc", "findings", "undefined"}, ready for JSON: undefined is None.

    Arguments and errors are those of `auroc_by_finding`; "undefined" names the findings without
    an AUROC, which are left out of the mean.
    """
    by_finding = auroc_by_finding(scores, labels, findings)
    return {
        "macro_auroc": mean(entry["auroc"] for entry in by_finding.values()),
        "findings": by_finding,
        "undefined": [name for name, entry in by_finding.items() if entry["auroc"] is None],
    }


def auroc_and_ap(
    scores: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    findings: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Compute AUROC and average precision, which need only the order of the scores.

    Arguments, errors and result are those of `auroc_by_finding`, with "average_precision" added:
    Σ (R_n - R_{n-1}) P_n, like AUROC undefined without both classes.
    """
    result = auroc_by_finding(scores, labels, findings)
    for column, entry in enumerate(result.values()):
        known = _known(scores, labels, column)
        defined = entry["auroc"] is not None
        entry["average_precision"] = _average_precision(known) if defined else None
    return result


def _known(
    logits: np.ndarray, labels: np.ndarray, column: int, probabilities: np.ndarray | None = None
) -> Known:
    """Return a column over its known labels."""
    rows = labels[:, column] >= 0
    probability = np.full(rows.sum(), np.nan)
    if probabilities is not None:
        probability = probabilities[rows, column]
    return Known(truth=labels[rows, column], logits=logits[rows, column], probability=probability)


def _counts(known: Known, images: int) -> dict[str, int]:
    positives = int(np.sum(known.truth == 1))
    return {
        "positives": positives,
        "negatives": len(known.truth) - positives,
        "unknown": images - len(known.truth),
    }


def per_finding(
    logits: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    findings: Sequence[str],
    probabilities: Float[np.ndarray, "images findings"],
    thresholds: Float[np.ndarray, " findings"],
    operating_points: Mapping[str, Float[np.ndarray, " findings"]] | None = None,
) -> dict[str, FindingResult]:
    """Compute the metrics of each finding over its known labels, without intervals.

    Args:
        logits: Their order gives AUROC and average precision: float32 sigmoids tie near 0 and 1.
        labels: 1, 0 or -1 (unknown).
        findings: Names of the columns.
        probabilities: Calibrated, for Brier score and calibration errors; NaN where there are none.
        thresholds: On these; at or above is positive. NaN for none.
        operating_points: Further thresholds, by name.

    Raises:
        ValueError: As `auroc_by_finding`.
    """
    check_scores(logits, labels, findings)
    result = {}
    for column, name in enumerate(findings):
        known = _known(logits, labels, column, probabilities)
        decided = _decide(known, float(thresholds[column]))
        more = _values(known, "order", "probabilities")
        own = {key: more.pop(key) for key in list(more) if hasattr(FindingResult, key)}
        result[name] = FindingResult(
            **vars(decided) | own | {"more": decided.more | more},
            **_counts(known, len(labels)),
            prevalence=float(np.mean(known.truth == 1)) if len(known.truth) else None,
            operating_points={
                point: _decide(known, float(values[column]))
                for point, values in (operating_points or {}).items()
            },
        )
    return result


def _decide(known: Known, threshold: float) -> AtThreshold:
    """Count the decisions at a threshold, and compute the further metrics that need one."""
    at = at_threshold(known.probability, known.truth, threshold)
    values = _values(dataclasses.replace(known, at=at), "threshold")
    more = {key: value for key, value in values.items() if not hasattr(at, key)}
    return dataclasses.replace(at, more=more)


def at_threshold(
    probability: Float[np.ndarray, " images"], truth: Int[np.ndarray, " images"], threshold: float
) -> AtThreshold:
    """Count the decisions at a threshold; a ratio is None without what it divides by.

    Args:
        probability: At or above the threshold is called positive.
        truth: 1 or 0.
        threshold: NaN for none, which leaves all undefined.
    """
    if np.isnan(threshold):
        return AtThreshold()
    called, positive = probability >= threshold, truth == 1
    tp, fn = int(np.sum(called & positive)), int(np.sum(~called & positive))
    fp, tn = int(np.sum(called & ~positive)), int(np.sum(~called & ~positive))
    return AtThreshold(
        threshold=threshold,
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        sensitivity=_ratio(tp, tp + fn),
        specificity=_ratio(tn, tn + fp),
        ppv=_ratio(tp, tp + fp),
        npv=_ratio(tn, tn + fn),
        f1=_ratio(2 * tp, 2 * tp + fn + fp),
    )


def macro(by_finding: Mapping[str, FindingResult]) -> dict[str, Mean]:
    """Average each of `METRICS` over the findings that define it, without intervals."""
    result = {}
    for metric in METRICS:
        values = {name: entry.value(metric) for name, entry in by_finding.items()}
        undefined = tuple(name for name, value in values.items() if value is None)
        result[metric] = Mean(
            value=mean(values.values()), findings=len(values) - len(undefined), undefined=undefined
        )
    return result


def by_prevalence(
    by_finding: Mapping[str, FindingResult], prevalence: Mapping[str, float | None] | None
) -> dict[str, GroupResult] | None:
    """Average AUROC and average precision over findings of like prevalence, without intervals.

    Args:
        by_finding: Result of `per_finding`.
        prevalence: Share of the training images with each finding, 0 … 1; None where unknown. A
            finding that is unknown, or that no training image has, at 0, is in no group.

    Returns:
        "head" (5 % and above), "medium" (2 to 5 %), "tail" (below 2 %) → means; None where no
        prevalence is known.
    """
    if prevalence is None or not any(prevalence.values()):
        return None
    result = {}
    ceiling = np.inf
    for group, floor in GROUPS.items():
        names = tuple(
            name for name in by_finding if prevalence[name] and floor <= prevalence[name] < ceiling
        )
        entries = [by_finding[name] for name in names]
        result[group] = GroupResult(
            findings=names,
            auroc=mean(entry.auroc for entry in entries),
            average_precision=mean(entry.average_precision for entry in entries),
            undefined=tuple(name for name in names if by_finding[name].auroc is None),
        )
        ceiling = floor
    return result


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values; None over nothing."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def check_scores(
    scores: np.ndarray, labels: np.ndarray, findings: Sequence[str] | None = None
) -> None:
    """Check whether scores, labels and names belong together.

    Raises:
        ValueError: If the shapes do not agree, a score is not finite or a label is not 1, 0 or -1.
    """
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} have to be one [images, findings]"
        )
    if findings is not None and len(findings) != scores.shape[1]:
        raise ValueError(f"{len(findings)} finding names for {scores.shape[1]} columns of scores")
    if not np.all(np.isfinite(scores)):
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"the score in row {row}, column {column} is {scores[row, column]}")
    if not np.all(np.isin(labels, (-1, 0, 1))):
        row, column = np.argwhere(~np.isin(labels, (-1, 0, 1)))[0]
        raise ValueError(
            f"the label in row {row}, column {column} is {labels[row, column]}; use 0, 1 or -1"
        )
