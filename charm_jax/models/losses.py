"""Compute multi-label losses on logits; labels are 1, 0 or -1 (unknown, ignored).

Everything is computed from log-sigmoids, so losses and gradients are finite for any logit that
float32 holds comfortably (abs(z) of 80 and more).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from charm_jax.models.shapes import Labels, Logits, Scalar

Known = Bool[Array, "batch findings"]
Loss = Callable[[Logits, Labels], Scalar]
# The loss of each entry, of logits and targets that are 1 or 0.
EntryLoss = Callable[[Logits, Logits], Logits]


def binary_cross_entropy(logits: Logits, labels: Labels) -> Scalar:
    """Compute the mean binary cross-entropy over known entries, in nats (0 if none is known)."""
    known, targets = _split(logits, labels)
    return mean_over_known(optax.losses.sigmoid_binary_cross_entropy(logits, targets), known)


def focal(logits: Logits, labels: Labels, *, gamma: float = 2.0) -> Scalar:
    """Compute the mean of (1 - p_t)^γ · BCE over known entries (0 if none is known).

    Source: arXiv 1708.02002, equation 4; α = 1 on both classes, as in the reference.
    """
    known, targets = _split(logits, labels)
    return mean_over_known(_focal(logits, targets, gamma), known)


def asymmetric(
    logits: Logits,
    labels: Labels,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    shift: float = 0.05,
) -> Scalar:
    """Compute the published asymmetric loss: probability shift, *sum* over known entries.

    -Σ [y log p (1 - p)^γ₊ + (1 - y) log(1 - p_m) p_m^γ₋] with p_m = max(p - shift, 0).

    Source: arXiv 2009.14119, equations 5 to 7.
    Differs: the reference takes the mean and no shift; that is `asymmetric_reference`.
    """
    known, targets = _split(logits, labels)
    values = _asymmetric(logits, targets, gamma_neg, gamma_pos, shift)
    return sum_over_known(values, known)


def asymmetric_reference(
    logits: Logits, labels: Labels, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0
) -> Scalar:
    """Compute the reference's asymmetric loss: no probability shift, *mean* over known entries.

    Differs: the reference clamps p to [1e-8, 1 - 1e-8] before the logarithm, which in float32
    leaves 1 - p = 0 from a logit of 17 on (infinite or NaN). Here the arithmetic is exact; where
    the reference is finite and abs(z) is at most 10 only its own rounding of 1 - p differs.
    """
    known, targets = _split(logits, labels)
    return mean_over_known(_asymmetric(logits, targets, gamma_neg, gamma_pos), known)


def mean_over_known(values: Logits, known: Known) -> Scalar:
    """Compute the mean of the known entries (0 if none is known)."""
    count = jnp.sum(known, dtype=values.dtype)
    return sum_over_known(values, known) / jnp.maximum(count, 1.0)


def sum_over_known(values: Logits, known: Known) -> Scalar:
    """Compute the sum of the known entries."""
    return jnp.sum(jnp.where(known, values, 0.0))


def _focal(logits: Logits, targets: Logits, gamma: float = 2.0) -> Logits:
    # optax: alpha=None is no weighting; alpha=1 would drop the negatives.
    return optax.losses.sigmoid_focal_loss(logits, targets, alpha=None, gamma=gamma)


def _asymmetric(
    logits: Logits,
    targets: Logits,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    shift: float = 0.0,
) -> Logits:
    if shift:
        shifted = jnp.maximum(jax.nn.sigmoid(logits) - shift, 0.0)
        # 1 - p_m, from the other tail: at least `shift`, so the log stays finite.
        log_not_shifted = jnp.log(jnp.minimum(jax.nn.sigmoid(-logits) + shift, 1.0))
        negative = -log_not_shifted * shifted**gamma_neg
    else:
        negative = _positive(-logits, gamma_neg)
    return targets * _positive(logits, gamma_pos) + (1.0 - targets) * negative


LOSSES: dict[str, Loss] = {
    "bce": binary_cross_entropy,
    "focal": focal,
    "asymmetric": asymmetric,
    "asymmetric_reference": asymmetric_reference,
}
SUMMED = ("asymmetric",)  # those that add up a batch, where the others take its mean
# The same by entry, for weights and targets between 0 and 1 (imbalance.py).
ENTRY_LOSSES: dict[str, EntryLoss] = {
    "bce": optax.losses.sigmoid_binary_cross_entropy,
    "focal": _focal,
    "asymmetric": partial(_asymmetric, shift=0.05),
    "asymmetric_reference": _asymmetric,
}


def _split(logits: Logits, labels: Labels) -> tuple[Known, Logits]:
    # An unknown label becomes 0 before the loss sees it: -1 would give NaN in focal's logarithm,
    # and a NaN that is masked afterwards still poisons the gradient.
    known = labels >= 0
    return known, jnp.where(known, labels, 0).astype(logits.dtype)


def _positive(logits: Logits, gamma: float) -> Logits:
    """Compute -log(p) (1 - p)^gamma; of negated logits, a negative's -log(1 - p) p^gamma."""
    return -jax.nn.log_sigmoid(logits) * jnp.exp(gamma * jax.nn.log_sigmoid(-logits))
