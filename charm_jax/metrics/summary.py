"""Score an evaluated set: metrics, intervals, prevalence groups and subgroups (NumPy)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from charm_jax.metrics import (
    bootstrap,
    calibration,
    classification,
    fairness,
    intervals,
    prior_shift,
)
from charm_jax.metrics.fairness import UNKNOWN
from charm_jax.metrics.intervals import RANKED, ConfidenceIntervals, EvalSet
from charm_jax.metrics.result import PriorShift, Scores, SubgroupResult

# The youngest of each; the first are the children.
AGE_BANDS = {0: "0-17", 18: "18-39", 40: "40-59", 60: "60-79", 80: "80+"}
_OLDEST = 120  # beyond it a number of years is a mistake of the table


def age_bands(ages: Int[np.ndarray, " images"]) -> Shaped[np.ndarray, " images"]:
    """Return the age band of each image; "unknown" below 0 and above 120 years."""
    bands = np.array([UNKNOWN, *AGE_BANDS.values()])
    known = np.where(ages > _OLDEST, -1, ages)
    return bands[np.searchsorted(list(AGE_BANDS), known, side="right")]


def attributes(
    views: Shaped[np.ndarray, " images"],
    sexes: Shaped[np.ndarray, " images"],
    ages: Int[np.ndarray, " images"],
) -> dict[str, np.ndarray]:
    """Return each image's "view", "sex" and "age", without those known of no image."""
    every = {
        "view": np.where(views == "", UNKNOWN, views),
        "sex": np.where(sexes == "", UNKNOWN, sexes),
        "age": age_bands(ages),
    }
    return {name: values for name, values in every.items() if np.any(values != UNKNOWN)}


def score(
    evaluated: EvalSet,
    *,
    fitted: dict[str, Any],
    prevalence: Mapping[str, float | None] | None,
    attributes: Mapping[str, np.ndarray],
    method: str = "bootstrap",
) -> Scores:
    """Compute everything in ``metrics.json`` that depends on predictions.

    Args:
        evaluated: predictions and labels.
        fitted: result of ``calibration.fit`` on validation, or of ``calibration.nothing``.
        prevalence: share of the training images with each finding; None where unknown.
        attributes: result of ``attributes``.
        method: one of ``intervals.METHODS``.
    """
    probabilities = calibration.calibrated(evaluated.logits, fitted)
    thresholds = calibration.thresholds(fitted)
    by_finding = classification.per_finding(
        evaluated.logits,
        evaluated.labels,
        evaluated.findings,
        probabilities,
        thresholds,
        {point: calibration.thresholds(fitted, point) for point in calibration.OPERATING_POINTS},
    )
    ranked = ConfidenceIntervals(evaluated, method)
    rates = intervals.of_rates(evaluated, probabilities, thresholds)
    shifts = _prior_shifts(evaluated, fitted)
    for column, (name, entry) in enumerate(by_finding.items()):
        by_finding[name] = dataclasses.replace(
            entry,
            temperature=fitted["findings"][name]["temperature"],
            **{
                f"{metric}_interval": ranked.of_finding(metric, column, getattr(entry, metric))
                for metric in RANKED
            },
            **{f"{rate}_interval": around[column] for rate, around in rates.items()},
            prior_shift=shifts[column],
        )
    macro = classification.macro(by_finding)
    for metric in RANKED:
        interval = ranked.of_mean(metric, macro[metric].value)
        macro[metric] = dataclasses.replace(macro[metric], interval=interval)
    specific = calibration.thresholds(fitted, "specificity_95")
    groups = classification.by_prevalence(by_finding, prevalence)
    for name, group in (groups or {}).items():
        columns = [evaluated.findings.index(finding) for finding in group.findings]
        around = {
            f"{metric}_interval": ranked.of_mean(metric, getattr(group, metric), columns)
            for metric in RANKED
        }
        groups[name] = dataclasses.replace(group, **around)
    return Scores(
        macro_auroc=macro["auroc"].value,
        macro_auroc_interval=macro["auroc"].interval,
        interval_method={"auroc": method, "average_precision": "bootstrap"},
        findings=by_finding,
        undefined=macro["auroc"].undefined,
        macro=macro,
        groups=groups,
        subgroups=subgroups(evaluated, attributes),
        fairness=fairness.gaps(evaluated, probabilities, thresholds, specific, attributes),
    )


def _prior_shifts(evaluated: EvalSet, fitted: dict[str, Any]) -> list[PriorShift | None]:
    """Estimate the prevalence of each finding, and score the probabilities corrected for it."""
    probabilities, prior = calibration.platt_scaled(evaluated.logits, fitted)
    known = evaluated.labels >= 0
    # On the images that it is scored on, if any: reports mention a finding where it is likely, so
    # its prevalence is another among those than among all.
    counted = known | ~known.any(axis=0)
    estimated, corrected = prior_shift.correct(probabilities, prior, counted)
    shifts = []
    for column, (p, q) in enumerate(zip(prior, estimated, strict=True)):
        rows = known[:, column]
        truth, logits = evaluated.labels[rows, column], evaluated.logits[rows, column]
        before, after = (
            classification.Known(truth=truth, logits=logits, probability=scores[rows, column])
            for scores in (probabilities, corrected)
        )
        scores = {}
        if after.gives("probabilities"):
            scores = {
                "brier": classification.brier(before),
                "brier_corrected": classification.brier(after),
                "ece": classification.ece_equal_mass(before),
                "ece_corrected": classification.ece_equal_mass(after),
            }
        usable = not np.isnan(q)
        shifts.append(PriorShift(prior=float(p), estimated=float(q), **scores) if usable else None)
    return shifts


def subgroups(
    evaluated: EvalSet,
    attributes: Mapping[str, np.ndarray],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, SubgroupResult]]:
    """Compute the AUROCs of each subgroup's images among themselves.

    Args:
        evaluated: predictions and labels.
        attributes: result of ``attributes``.
        resamples: Draws of the subgroup's patients for the interval of its macro AUROC.
        seed: Seed of the draws.

    Returns:
        attribute → value → result.
    """
    result = {}
    for attribute, of_image in attributes.items():
        result[attribute] = {}
        for value in np.unique(of_image):
            rows = np.flatnonzero(of_image == value)
            z, truth, who = (
                array[rows] for array in (evaluated.logits, evaluated.labels, evaluated.patients)
            )
            summary = classification.summarise(z, truth, evaluated.findings)
            drawn = bootstrap.resampled(z, truth, who, resamples=resamples, seed=seed)
            result[attribute][str(value)] = SubgroupResult(
                n_images=len(rows),
                n_patients=len(np.unique(who)),
                macro_auroc=summary["macro_auroc"],
                macro_auroc_interval=bootstrap.interval(bootstrap.macro(drawn.auroc)),
                findings={n: entry["auroc"] for n, entry in summary["findings"].items()},
                undefined=tuple(summary["undefined"]),
            )
    return result
