"""AUROC by finding, macro AUROC and its interval, on NumPy arrays (scikit-learn; not jitted)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

_CHUNK = 32  # resamples at a time: the working set is images x 32 counts of 4 bytes


def auroc_by_finding(
    scores: np.ndarray, labels: np.ndarray, findings: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Computes each finding's AUROC, U / (n₊ n₋) with ties counted ½, over its known labels.

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
    _check(scores, labels)
    if len(findings) != scores.shape[1]:
        raise ValueError(f"{len(findings)} finding names for {scores.shape[1]} columns of scores")
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


def macro_auroc(by_finding: dict[str, dict[str, Any]]) -> tuple[float | None, list[str]]:
    """Averages the AUROCs of `auroc_by_finding` over the findings that have one.

    Returns:
        The mean (None if no finding has an AUROC) and the names of the findings left out.
    """
    defined = [entry["auroc"] for entry in by_finding.values() if entry["auroc"] is not None]
    undefined = [name for name, entry in by_finding.items() if entry["auroc"] is None]
    return (float(np.mean(defined)) if defined else None), undefined


def summarise(scores: np.ndarray, labels: np.ndarray, findings: Sequence[str]) -> dict[str, Any]:
    """Computes {"macro_auroc", "findings", "undefined"}, ready for JSON: undefined is None.

    Arguments and errors are those of `auroc_by_finding`.
    """
    by_finding = auroc_by_finding(scores, labels, findings)
    macro, undefined = macro_auroc(by_finding)
    return {"macro_auroc": macro, "findings": by_finding, "undefined": undefined}


def macro_auroc_interval(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float | None, float | None]:
    """Computes the percentile interval of the macro AUROC by patient-cluster bootstrap.

    Images of one patient are not independent, so whole patients are drawn.

    Args:
        scores: As in `auroc_by_finding`.
        labels: As in `auroc_by_finding`.
        patients: Patient of each image, `[images]`; numbers or strings.
        resamples: Number of bootstrap samples, at least 1,000 for a number to be reported.
        seed: Seed of the draws.
        level: Coverage, between 0 and 1.

    Returns:
        (low, high); (None, None) if no finding has both classes in any resample.

    Raises:
        ValueError: As `auroc_by_finding`; or if `patients` has another length or is empty,
            `resamples` is below 1 or `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}; use a number between 0 and 1, such as 0.95")
    macros = resampled_macro_auroc(scores, labels, patients, resamples=resamples, seed=seed)
    macros = macros[~np.isnan(macros)]
    if not len(macros):
        return None, None
    low, high = np.quantile(macros, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_macro_auroc(
    scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    """Computes the macro AUROC of each of `resamples` draws of patients with replacement.

    The draws depend on the patients and the seed alone, so two models scored on the same images
    can be compared by the differences of their values. Findings without both classes in a resample
    are left out of its mean; a resample without any defined finding is NaN.

    Raises:
        ValueError: As `macro_auroc_interval`.
    """
    _check(scores, labels)
    if len(patients) != len(scores):
        raise ValueError(f"{len(patients)} patients for {len(scores)} images")
    if resamples < 1 or len(patients) == 0:
        raise ValueError(
            f"{resamples} resamples of {len(patients)} images; use one or more of each"
        )
    names, cluster = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    columns = [_Ranked(scores[:, f], labels[:, f]) for f in range(scores.shape[1])]
    chunks = []
    for start in range(0, resamples, _CHUNK):
        counts = [
            np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            for _ in range(min(_CHUNK, resamples - start))
        ]
        weights = np.stack(counts, axis=1).astype(np.int32)[cluster]
        aurocs = np.stack([column.aurocs(weights) for column in columns])
        defined = ~np.isnan(aurocs)
        total = np.sum(aurocs, axis=0, where=defined)
        number = np.sum(defined, axis=0)
        chunks.append(np.where(number > 0, total / np.maximum(number, 1), np.nan))
    return np.concatenate(chunks)


class _Ranked:
    """One finding's scores, sorted once; then a resample's AUROC is one cumulative sum."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray):
        self.positives = np.flatnonzero(labels == 1)
        negatives = np.flatnonzero(labels == 0)
        self.negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ordered = scores[self.negatives]
        self.below = np.searchsorted(ordered, scores[self.positives], side="left")
        self.not_above = np.searchsorted(ordered, scores[self.positives], side="right")

    def aurocs(self, weights: np.ndarray) -> np.ndarray:
        """Computes the Mann-Whitney AUROC under each column of `weights`, `[images, resamples]`."""
        cumulative = np.zeros((len(self.negatives) + 1, weights.shape[1]), np.int32)
        np.cumsum(weights[self.negatives], axis=0, out=cumulative[1:])
        positive = weights[self.positives]
        # A tie is half a win: the negatives below and those not above, halved.
        wins = cumulative[self.below].astype(np.int64) + cumulative[self.not_above]
        doubled_u = np.sum(positive * wins, axis=0)
        pairs = np.sum(positive, axis=0, dtype=np.int64) * cumulative[-1].astype(np.int64)
        return np.where(pairs > 0, doubled_u / np.maximum(2 * pairs, 1), np.nan)


def _check(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} have to be one [images, findings]"
        )
    if not np.all(np.isfinite(scores)):
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"the score in row {row}, column {column} is {scores[row, column]}")
    if not np.all(np.isin(labels, (-1, 0, 1))):
        row, column = np.argwhere(~np.isin(labels, (-1, 0, 1)))[0]
        raise ValueError(
            f"the label in row {row}, column {column} is {labels[row, column]}; use 0, 1 or -1"
        )
