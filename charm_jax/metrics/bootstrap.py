"""Resample whole patients: distributions of metrics, of means and of rates (NumPy; not jitted)."""

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse

from charm_jax.metrics.classification import auroc_by_finding, check_scores

RESAMPLES = 1000  # the fewest for a number to be reported
LEVEL = 0.95
_CHUNK = 32  # resamples at a time: the working set is images x 32 counts of 4 bytes
_DEFINED = 0.95  # share of the resamples that must have both classes; three patients of each do


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Metrics of each finding under each resample; NaN where it lacks a class.

    Attributes:
        auroc: 0 … 1.
        average_precision: 0 … 1.
    """

    auroc: Float[np.ndarray, "resamples findings"]
    average_precision: Float[np.ndarray, "resamples findings"]


def resampled(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Compute AUROC and average precision under draws of patients with replacement.

    Images of one patient are not independent, so whole patients are drawn. The draws depend on the
    patients and the seed alone, so two models scored on the same images can be compared by the
    differences of their values.

    Args:
        scores: Logits or probabilities, `[images, findings]`; only their order matters.
        labels: 1, 0 or -1 (unknown), `[images, findings]`.
        patients: Patient of each image, `[images]`; numbers or strings.
        resamples: How many draws.
        seed: Seed of the draws.

    Returns:
        The values; all NaN for a single patient, since every draw is the same.

    Raises:
        ValueError: If the shapes do not agree, a score is not finite, a label is none of these,
            there is no image, or `resamples` is below 1.
    """
    check_scores(scores, labels)
    if len(patients) != len(scores):
        raise ValueError(f"{len(patients)} patients for {len(scores)} images")
    if resamples < 1 or len(patients) == 0:
        raise ValueError(
            f"{resamples} resamples of {len(patients)} images; use one or more of each"
        )
    if len(np.unique(patients)) == 1:
        nothing = np.full((resamples, scores.shape[1]), np.nan)
        return Resampled(nothing, nothing)
    columns = [_Ranked(scores[:, f], labels[:, f]) for f in range(scores.shape[1])]
    chunks = [  # findings x 2 x resamples
        [column.under(weights) for column in columns]
        for weights in _image_draws(patients, resamples, seed)
    ]
    values = np.concatenate(chunks, axis=2)
    return Resampled(values[:, 0].T, values[:, 1].T)


def auroc_and_draws(
    scores: np.ndarray, labels: np.ndarray, patients: np.ndarray
) -> Float[np.ndarray, "draws findings"]:
    """Return each finding's AUROC: of the images as they are, then under ``RESAMPLES`` draws.

    The draws are of the same patients for all scores of the same images. NaN where a class is
    absent.
    """
    drawn = resampled(scores, labels, patients).auroc
    names = [*map(str, range(labels.shape[1]))]
    entries = auroc_by_finding(scores, labels, names).values()
    return np.concatenate([np.array([[entry["auroc"] for entry in entries]], float), drawn])


def resampled_means(
    values: Float[np.ndarray, "cases measures"],
    groups: Int[np.ndarray, " cases"],
    patients: Shaped[np.ndarray, " cases"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "resamples groups measures"]:
    """Compute the means of each group of cases under draws of patients with replacement.

    Args:
        values: NaN, for undefined, makes the means of its group undefined.
        groups: Group of each case, 0 to the number of groups less 1.
        patients: Patient of each case; numbers or strings.
        resamples: How many draws.
        seed: Seed of the draws.

    Returns:
        The means; NaN where no case of a group is drawn, and for a single patient.
    """
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    if len(np.unique(patients)) == 1:
        return np.full((resamples, len(members), values.shape[1]), np.nan)
    chunks = []
    for weights in _image_draws(patients, resamples, seed):
        sums = np.stack([weights[rows].T @ values[rows] for rows in members], axis=1)
        drawn = np.stack([weights[rows].sum(0) for rows in members], axis=1)[..., None]
        chunks.append(np.where(drawn > 0, sums / np.maximum(drawn, 1), np.nan))
    return np.concatenate(chunks)


def totals(
    values: Shaped[np.ndarray, "images columns"],
    patients: Shaped[np.ndarray, " images"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "resamples columns"]:
    """Sum each column under the draws of `resampled`.

    Ratios of these sums are rates with their spread: sensitivity is the true positives over the
    positives.

    Args:
        values: Numbers or booleans.
        patients: Patient of each image; numbers or strings.
        resamples: How many draws.
        seed: Seed of the draws.

    Returns:
        The sums; all NaN for a single patient, since every draw is the same.
    """
    names, cluster = np.unique(patients, return_inverse=True)
    if len(names) == 1:
        return np.full((resamples, values.shape[1]), np.nan)
    images = np.arange(len(values))
    member = sparse.csr_array((np.ones(len(values)), (cluster, images)))
    of_patient = member @ values.astype(np.float64)
    drawn = [counts.T @ of_patient for counts in _draws(len(names), resamples, seed)]
    return np.concatenate(drawn)


def _image_draws(
    patients: Shaped[np.ndarray, " images"], resamples: int, seed: int
) -> Iterator[Int[np.ndarray, "images some"]]:
    """Yield how often each resample has each image, some resamples at a time."""
    names, cluster = np.unique(patients, return_inverse=True)
    for counts in _draws(len(names), resamples, seed):
        yield counts[cluster]


def _draws(
    patients: int, resamples: int, seed: int
) -> Iterator[Int[np.ndarray, "patients resamples"]]:
    """Yield how often each draw holds each patient, some draws at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        counts = [
            np.bincount(rng.integers(patients, size=patients), minlength=patients)
            for _ in range(min(_CHUNK, resamples - start))
        ]
        yield np.stack(counts, axis=1).astype(np.int32)


def ratio(part: Float[np.ndarray, "..."], whole: Float[np.ndarray, "..."]) -> np.ndarray:
    """Divide sums; NaN where the divisor is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def macro(values: Float[np.ndarray, "resamples findings"]) -> Float[np.ndarray, " resamples"]:
    """Average over the findings that a resample defines; NaN where it defines none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(values, axis=1)


def interval(
    values: Float[np.ndarray, " resamples"], level: float = LEVEL
) -> tuple[float | None, float | None]:
    """Compute the percentile interval of resampled values.

    Returns:
        (low, high); (None, None) where fewer than 95 % of the resamples define the value.

    Raises:
        ValueError: If `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}; use a number between 0 and 1, such as 0.95")
    defined = values[~np.isnan(values)]
    if len(defined) < _DEFINED * len(values):
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Ranked:
    """The scores of one finding, sorted once; a resample is then two cumulative sums."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray):
        positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        self.positives = positives[np.argsort(-scores[positives], kind="stable")]
        self.negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        falling, rising = scores[self.positives], scores[self.negatives]
        self.below = np.searchsorted(rising, falling, side="left")
        self.not_above = np.searchsorted(rising, falling, side="right")
        # For each positive, how many positives score as high or higher.
        self.reached = np.searchsorted(-falling, -falling, side="right")

    def under(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute both metrics under each column of `weights`, `[images, resamples]`.

        AUROC is Mann-Whitney's. Average precision is the precision at each positive's score,
        averaged over the positives, which is the step integral of scikit-learn.
        """
        negative = _cumulative(weights[self.negatives])
        drawn = weights[self.positives]
        positive = _cumulative(drawn)
        all_positive, all_negative = positive[-1].astype(np.int64), negative[-1].astype(np.int64)
        below = negative[self.below]
        # A tie is half a win: the negatives below and those not above, halved.
        wins = below.astype(np.int64) + negative[self.not_above]
        doubled_u = np.sum(drawn * wins, axis=0)
        pairs = all_positive * all_negative
        auroc = np.where(pairs > 0, doubled_u / np.maximum(2 * pairs, 1), np.nan)
        found = positive[self.reached]
        called = found + negative[-1] - below
        gained = np.sum(drawn * (found / np.maximum(called, 1)), axis=0)
        precision = np.where(pairs > 0, gained / np.maximum(all_positive, 1), np.nan)
        return auroc, precision


def _cumulative(weights: np.ndarray) -> np.ndarray:
    total = np.zeros((len(weights) + 1, weights.shape[1]), np.int32)
    np.cumsum(weights, axis=0, out=total[1:])
    return total
