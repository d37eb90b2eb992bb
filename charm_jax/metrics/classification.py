"""Compute metrics of each finding and their means (scikit-learn, NumPy; not jitted).

An undefined value is None and left out of means, which name and count what they lack.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from charm_jax.metrics.result import AtThreshold, FindingResult, GroupResult, Mean

ECE_BINS = 15


class Metric(NamedTuple):
    """Describe a field of ``FindingResult`` that has a mean over the findings.

    Attributes:
        label: short name for people.
        needs: ``order`` of the scores alone, a ``threshold``, or calibrated ``probabilities``.
    """

    label: str
    needs: str


METRICS = {
    "auroc": Metric("AUROC", "order"),
    "average_precision": Metric("AP", "order"),
    "f1": Metric("F1", "threshold"),
    "sensitivity": Metric("sensitivity", "threshold"),
    "specificity": Metric("specificity", "threshold"),
    "ppv": Metric("PPV", "threshold"),
    "npv": Metric("NPV", "threshold"),
    "brier": Metric("Brier", "probabilities"),
    "ece_equal_width": Metric("ECE (equal width)", "probabilities"),
    "ece_equal_mass": Metric("ECE (equal mass)", "probabilities"),
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
    from sklearn.metrics import roc_auc_score  # over a second, which a first step need not wait

    check_scores(scores, labels, findings)
    result = {}
    for column, name in enumerate(findings):
        known = labels[:, column] >= 0
        truth = labels[known, column]
        positives = int(np.sum(truth == 1))
        negatives = len(truth) - positives
        auroc = None
        if positives and negatives:
            auroc = float(roc_auc_score(truth, scores[known, column]))
        result[name] = {
            "auroc": auroc,
            "positives": positives,
            "negatives": negatives,
            "unknown": len(labels) - len(truth),
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
    from sklearn.metrics import average_precision_score

    result = auroc_by_finding(scores, labels, findings)
    for column, entry in enumerate(result.values()):
        entry["average_precision"] = None
        if entry["auroc"] is not None:
            known = labels[:, column] >= 0
            value = average_precision_score(labels[known, column], scores[known, column])
            entry["average_precision"] = float(value)
    return result


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
    result = {}
    for column, (name, entry) in enumerate(auroc_and_ap(logits, labels, findings).items()):
        known = labels[:, column] >= 0
        truth, probability = labels[known, column], probabilities[known, column]
        result[name] = FindingResult(
            **entry,
            prevalence=float(np.mean(truth == 1)) if len(truth) else None,
            **vars(at_threshold(probability, truth, float(thresholds[column]))),
            **calibration_error(probability, truth),
            operating_points={
                point: at_threshold(probability, truth, float(values[column]))
                for point, values in (operating_points or {}).items()
            },
        )
    return result


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


def calibration_error(
    probability: Float[np.ndarray, " images"], truth: Int[np.ndarray, " images"]
) -> dict[str, float | None]:
    """Compute the calibration errors of one finding, 0 … 1.

    The expected calibration error is Σ (share of the images in a bin) · abs(frequency of
    positives - mean probability) over 15 bins, cut as in scikit-learn's `calibration_curve`.
    At low prevalence nearly all images are in the first bin of equal width; bins of equal mass are
    cut at quantiles, and equal probabilities stay together.

    Args:
        probability: 0 … 1, or NaN throughout for none, which leaves all undefined.
        truth: 1 or 0.

    Returns:
        "brier", "ece_equal_width" and "ece_equal_mass".
    """
    if not len(truth) or np.isnan(probability).any():
        return {"brier": None, "ece_equal_width": None, "ece_equal_mass": None}
    shares = np.linspace(0, 1, ECE_BINS + 1)
    return {
        "brier": float(np.mean((probability - truth) ** 2)),
        "ece_equal_width": _ece(probability, truth, shares),
        "ece_equal_mass": _ece(probability, truth, np.quantile(probability, shares)),
    }


def _ece(probability: np.ndarray, truth: np.ndarray, edges: np.ndarray) -> float:
    bins = np.searchsorted(edges[1:-1], probability)
    gaps = np.bincount(bins, weights=truth - probability, minlength=len(edges) - 1)
    return float(np.sum(np.abs(gaps)) / len(truth))


def macro(by_finding: Mapping[str, FindingResult]) -> dict[str, Mean]:
    """Average each of `METRICS` over the findings that define it, without intervals."""
    result = {}
    for metric in METRICS:
        values = {name: getattr(entry, metric) for name, entry in by_finding.items()}
        undefined = tuple(name for name, value in values.items() if value is None)
        result[metric] = Mean(
            value=mean(values.values()), findings=len(values) - len(undefined), undefined=undefined
        )
    return result


def by_prevalence(
    by_finding: Mapping[str, FindingResult], prevalence: Mapping[str, float] | None
) -> dict[str, GroupResult] | None:
    """Average AUROC and average precision over findings of like prevalence, without intervals.

    Args:
        by_finding: Result of `per_finding`.
        prevalence: Share of the training images with each finding, 0 … 1; None where unknown. A
            finding that no training image has, at 0, is in no group.

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
