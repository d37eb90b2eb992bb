"""DeLong's variance of AUROC, of several findings and of paired differences (NumPy; not jitted).

It assumes independent images: where patients have several, its intervals are too narrow.
"""

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.stats import norm, rankdata

from charm_jax.metrics.classification import check_scores


def influence(
    scores: Num[np.ndarray, "images findings"], labels: Int[np.ndarray, "images findings"]
) -> Float[np.ndarray, "images findings"]:
    """Compute each image's share in the deviation of each AUROC.

    Sums of products over the images are DeLong's covariances (DeLong et al., 1988), by midranks in
    n log n time (Sun and Xu, 2014): of two findings, or of two models on the same images.

    Args:
        scores: Logits or probabilities; only their order matters.
        labels: 1, 0 or -1 (unknown).

    Returns:
        The shares: 0 for images with an unknown label; NaN for a finding with fewer than two images
        of a class, where the variance is undefined.

    Raises:
        ValueError: If the shapes do not agree, a score is not finite or a label is none of these.
    """
    check_scores(scores, labels)
    return np.stack(
        [_influence(scores[:, f], labels[:, f]) for f in range(scores.shape[1])], axis=1
    )


def _influence(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    positive, negative = labels == 1, labels == 0
    m, n = int(positive.sum()), int(negative.sum())
    if min(m, n) < 2:
        return np.full(len(scores), np.nan)
    known = labels >= 0
    ranks = np.zeros(len(scores))
    ranks[known] = rankdata(scores[known])
    beaten = (ranks[positive] - rankdata(scores[positive])) / n
    beating = 1 - (ranks[negative] - rankdata(scores[negative])) / m
    auroc = beaten.mean()
    shares = np.zeros(len(scores))
    shares[positive] = (beaten - auroc) / np.sqrt(m * (m - 1))
    shares[negative] = (beating - auroc) / np.sqrt(n * (n - 1))
    return shares


def macro(shares: Float[np.ndarray, "images findings"]) -> Float[np.ndarray, " images"]:
    """Average the shares over the findings that have a variance; NaN if none has."""
    defined = ~np.isnan(shares).any(axis=0)
    if not defined.any():
        return np.full(len(shares), np.nan)
    return shares[:, defined].mean(axis=1)


def interval(
    value: float | None,
    shares: Float[np.ndarray, " images"],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    level: float = 0.95,
) -> tuple[float | None, float | None]:
    """Compute the normal interval around a value, cut at its bounds.

    Args:
        value: An AUROC, a mean or a difference; None if undefined.
        shares: Result of `influence` or `macro`, or a difference of two.
        bounds: Limits of the value: 0 and 1, or -1 and 1 for a difference.
        level: Coverage, between 0 and 1.

    Returns:
        (low, high); (None, None) without a variance.
    """
    if value is None or np.isnan(shares).any():
        return None, None
    half = float(norm.ppf((1 + level) / 2) * np.sqrt(np.sum(shares**2)))
    return max(value - half, bounds[0]), min(value + half, bounds[1])
