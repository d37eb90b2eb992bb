"""Estimate the prevalence among unlabelled images, and correct probabilities for it (NumPy).

A calibrated probability holds for the prevalence of the images that it was calibrated on. Where
only the prevalence differs (label shift: images with a finding look as they did), the probabilities
themselves tell it and can be corrected, without a label (Saerens, Latinne and Decaestecker, 2002,
Neural Computation 14:21-41). Each finding is a problem of two classes of its own.
"""

import numpy as np
from jaxtyping import Bool, Float

_HALVINGS = 50  # of an interval of length 1: beyond the digits that are shown


def correct(
    probabilities: Float[np.ndarray, "images findings"],
    prior: Float[np.ndarray, " findings"],
    counted: Bool[np.ndarray, "images findings"] | None = None,
) -> tuple[Float[np.ndarray, " findings"], Float[np.ndarray, "images findings"]]:
    """Estimate the prevalence q by maximum likelihood and correct the probabilities for it.

    With a = s / p and b = (1 - s) / (1 - p), the ratios of the probabilities s to the prior p, q
    maximises Σ log(q a + (1 - q) b), and the corrected probability is q a / (q a + (1 - q) b):
    equations 2.4 and 2.9 of the paper.

    Differs: the paper climbs to q by EM. The likelihood is concave in its one unknown, so bisection
    of its slope finds the same q here, in a fixed number of steps; EM takes thousands where scores
    hardly separate.

    Args:
        probabilities: calibrated, 0 ... 1; NaN throughout for a finding without.
        prior: prevalence where they were calibrated, 0 ... 1.
        counted: images whose prevalence is estimated, at least one for each finding; None for all.

    Returns:
        q, 0 ... 1, and the corrected probabilities. Both are NaN for a finding without these and
        without a prior between 0 and 1. q is the prior where every score that counts equals it.
    """
    usable = (prior > 0) & (prior < 1) & ~np.isnan(probabilities).any(axis=0)
    estimated, corrected = np.full(len(prior), np.nan), np.full(probabilities.shape, np.nan)
    s, p = probabilities[:, usable].astype(np.float64), prior[usable]
    a, b = s / p, (1 - s) / (1 - p)
    counts = np.ones(s.shape, bool) if counted is None else counted[:, usable]

    def slope(q: np.ndarray) -> np.ndarray:
        return np.sum(counts * (a - b) / (q * a + (1 - q) * b), axis=0)

    low, high = np.zeros(len(p)), np.ones(len(p))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rises = slope(middle) > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    flat = np.all(np.isclose(a, b) | ~counts, axis=0)
    q = np.where(flat, p, (low + high) / 2)
    estimated[usable] = q
    corrected[:, usable] = q * a / (q * a + (1 - q) * b)
    return estimated, corrected
