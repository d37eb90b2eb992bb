"""What scores are worth, finding by finding and on average (scikit-learn, NumPy; not jitted).

What cannot be computed is None, named, left out of means, and counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

ECE_BINS = 15
# What `point_values` says beside counts; each has a mean over the findings.
METRICS = (
    *("auroc", "average_precision", "f1", "sensitivity", "specificity", "brier"),
    *("ece_equal_width", "ece_equal_mass"),
)
# By prevalence in the training part, the lowest of each; tail is what the rule `rare_finding`
# calls rare.
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


def ranking(
    scores: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    findings: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Compute AUROC and average precision, which need only the order of the scores.

    Arguments and errors are those of `auroc_by_finding`, and so is what is returned, with
    "average_precision" added: Σ (R_n - R_{n-1}) P_n, like AUROC undefined without both classes.
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


def point_values(
    logits: Num[np.ndarray, "images findings"],
    labels: Int[np.ndarray, "images findings"],
    findings: Sequence[str],
    probabilities: Float[np.ndarray, "images findings"],
    thresholds: Float[np.ndarray, " findings"],
) -> dict[str, dict[str, Any]]:
    """Compute all of `METRICS` for each finding, over its known labels.

    Args:
        logits: Their order gives AUROC and average precision: float32 sigmoids tie near 0 and 1.
        labels: 1, 0 or -1 (unknown).
        findings: Names of the columns.
        probabilities: Calibrated, for Brier score and calibration errors; NaN where there are none.
        thresholds: On these; at or above is positive. NaN for none.

    Returns:
        That of `ranking`, and to each "prevalence" and the other `METRICS`.

    Raises:
        ValueError: As `auroc_by_finding`.
    """
    result = ranking(logits, labels, findings)
    for column, entry in enumerate(result.values()):
        known = labels[:, column] >= 0
        truth = labels[known, column]
        entry["prevalence"] = float(np.mean(truth == 1)) if len(truth) else None
        probability = probabilities[known, column]
        entry |= at_threshold(probability, truth, float(thresholds[column]))
        entry |= calibration_error(probability, truth)
    return result


def at_threshold(
    probability: Float[np.ndarray, " images"], truth: Int[np.ndarray, " images"], threshold: float
) -> dict[str, float | None]:
    """Compute {"f1", "sensitivity", "specificity"}, 0 … 1; None without what they divide by.

    Args:
        probability: At or above the threshold is called positive.
        truth: 1 or 0.
        threshold: NaN for none, which leaves all undefined.
    """
    if np.isnan(threshold):
        return {"f1": None, "sensitivity": None, "specificity": None}
    called, positive = probability >= threshold, truth == 1
    hits, misses = int(np.sum(called & positive)), int(np.sum(~called & positive))
    alarms, passed = int(np.sum(called & ~positive)), int(np.sum(~called & ~positive))
    return {
        "f1": _ratio(2 * hits, 2 * hits + misses + alarms),
        "sensitivity": _ratio(hits, hits + misses),
        "specificity": _ratio(passed, passed + alarms),
    }


def calibration_error(
    probability: Float[np.ndarray, " images"], truth: Int[np.ndarray, " images"]
) -> dict[str, float | None]:
    """Compute {"brier", "ece_equal_width", "ece_equal_mass"} of one finding, 0 … 1.

    The expected calibration error is Σ (share of the images in a bin) · abs(their frequency of
    positives - their mean probability) over 15 bins, cut as in scikit-learn's `calibration_curve`.
    At low prevalence nearly all images are in the first bin of equal width; bins of equal mass are
    cut at quantiles, equal probabilities staying together.

    Args:
        probability: 0 … 1, or NaN throughout for none, which leaves all undefined.
        truth: 1 or 0.
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


def macro(by_finding: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Averages each of `METRICS` over the findings that have it.

    Args:
        by_finding: Of `point_values`.

    Returns:
        metric → {"value": the mean, None over nothing; "findings": how many are in it;
        "undefined": names of those that are not}.
    """
    result = {}
    for metric in METRICS:
        undefined = [name for name, entry in by_finding.items() if entry[metric] is None]
        result[metric] = {
            "value": mean(entry[metric] for entry in by_finding.values()),
            "findings": len(by_finding) - len(undefined),
            "undefined": undefined,
        }
    return result


def groups(
    by_finding: Mapping[str, Mapping[str, Any]], prevalence: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Averages AUROC and average precision over findings of like prevalence.

    Args:
        by_finding: Of `point_values`.
        prevalence: Of each finding in the training part, 0 … 1.

    Returns:
        "head" (5 % and above), "medium" (2 to 5 %), "tail" (below 2 %) → {"findings": names,
        "auroc", "average_precision", "undefined": names without them}.
    """
    result = {}
    ceiling = np.inf
    for group, floor in GROUPS.items():
        names = [name for name in by_finding if floor <= prevalence[name] < ceiling]
        entries = [by_finding[name] for name in names]
        result[group] = {
            "findings": names,
            "auroc": mean(entry["auroc"] for entry in entries),
            "average_precision": mean(entry["average_precision"] for entry in entries),
            "undefined": [name for name in names if by_finding[name]["auroc"] is None],
        }
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
