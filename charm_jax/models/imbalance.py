"""Weigh and shift multi-label losses by the class counts of the training split.

Each finding is a binary problem of its own with n₊ known labels present and n₋ absent.
With weights w, shifts s and a target y between 0 and 1, an entry's loss is

    y w₊ l(z + s₊, 1) + (1 - y) w₋ l(z + s₋, 0)

where l is the loss of an entry (``losses.ENTRY_LOSSES``). Unknown labels count nowhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from charm_jax.models.losses import (
    ENTRY_LOSSES,
    LOSSES,
    SUMMED,
    Loss,
    mean_over_known,
    sum_over_known,
)
from charm_jax.models.shapes import Labels, Logits, Scalar

PerFinding = Float[np.ndarray, " findings"]


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Count the known labels of each finding, present and absent."""

    present: Int[np.ndarray, " findings"]
    absent: Int[np.ndarray, " findings"]


def class_counts(labels: Int[np.ndarray, "n findings"]) -> ClassCounts:
    """Count labels that are 1, 0 or -1 (unknown)."""
    return ClassCounts((labels == 1).sum(0), (labels == 0).sum(0))


def _no_weights(counts: ClassCounts) -> tuple[PerFinding, PerFinding]:
    return np.ones(len(counts.present)), np.ones(len(counts.present))


def positive_weights(counts: ClassCounts) -> tuple[PerFinding, PerFinding]:
    """Return w₊ = n₋ / n₊ (1 where a count is 0) and w₋ = 1.

    Source: ``pos_weight`` of PyTorch's ``BCEWithLogitsLoss``; up to a factor of a finding, the
    weights of Wang et al., arXiv 1705.02315, equation 1, with counts of the split, not of a batch.
    """
    both = (counts.present > 0) & (counts.absent > 0)
    ratio = np.where(both, counts.absent / np.maximum(counts.present, 1), 1.0)
    return ratio, np.ones(len(ratio))


def effective_number_weights(
    counts: ClassCounts, *, beta: float = 0.9999
) -> tuple[PerFinding, PerFinding]:
    """Return w₊ = w₋, in proportion to (1 - β) / (1 - β^n₊), with a mean of 1 over the findings.

    A finding without positives counts as one with a single positive.

    Source: Cui et al., arXiv 1901.05555, equations 2 and 4; a finding's weight is that of all its
    entries, as for their sigmoid.
    """
    weights = (1 - beta) / (1 - beta ** np.maximum(counts.present, 1).astype(float))
    weights /= weights.mean()
    return weights, weights


def ldam_shifts(counts: ClassCounts, *, max_margin: float = 3.0) -> tuple[PerFinding, PerFinding]:
    """Return s₊ = -Δ₊ and s₋ = Δ₋ with the margins Δ = C / n^(1/4); the largest is ``max_margin``.

    A count of 0 is taken as 1.

    Source: Cao et al., arXiv 1906.07413, equations 9 and 10, for two classes of each finding.
    Differs: there, logits are 30 times a cosine and the largest margin is 0.5 of the cosine, a
    quarter of its range; here they are not normalised, and 3 is about as much of theirs.
    """
    present, absent = (
        np.maximum(count, 1).astype(float) ** -0.25 for count in (counts.present, counts.absent)
    )
    scale = max_margin / max(present.max(), absent.max())
    return -scale * present, scale * absent


def prior_shifts(counts: ClassCounts, *, tau: float = 1.0) -> tuple[PerFinding, PerFinding]:
    """Return s₊ = s₋ = τ log(π / (1 - π)), π = (n₊ + ½) / (n₊ + n₋ + 1).

    A prediction is made without the shift, so that it is that of balanced classes.

    Source: Menon et al., arXiv 2007.07314, equation 10, for two classes of each finding. The
    halves keep π of a finding with one class inside 0 and 1.
    """
    shift = tau * np.log((counts.present + 0.5) / (counts.absent + 0.5))
    return shift, shift


Rule = Callable[[ClassCounts], tuple[PerFinding, PerFinding]]
# Weights of positives and negatives, and what is added to their logits in the cross-entropy.
CLASS_WEIGHTS: dict[str, Rule] = {
    "none": _no_weights,
    "positive": positive_weights,
    "effective": effective_number_weights,
}
SHIFTED_LOSSES: dict[str, Rule] = {"ldam": ldam_shifts, "logit_adjusted": prior_shifts}


def needs_counts(name: str, weights: str) -> bool:
    """Whether a loss depends on class counts."""
    return name in SHIFTED_LOSSES or weights != "none"


def unshifted(name: str) -> str:
    """Return the name of a loss without the shifts."""
    return "bce" if name in SHIFTED_LOSSES else name


def make_loss(
    name: str,
    counts: ClassCounts | None = None,
    *,
    weights: str = "none",
    smoothing: float = 0.0,
    mixed: bool = False,
) -> Loss:
    """Return the loss of a stage; ``LOSSES[name]`` itself where nothing is added to it.

    Args:
        name: in ``LOSSES`` or ``SHIFTED_LOSSES``.
        counts: of the training split, where ``needs_counts``.
        weights: in ``CLASS_WEIGHTS``.
        smoothing: ε of label smoothing, 0 to below 1: a target y becomes (1 - ε) y + ε / 2
            (Szegedy et al., arXiv 1512.00567, section 7, for two classes of each finding).
        mixed: whether labels may lie between 0 and 1.
    """
    if not (needs_counts(name, weights) or smoothing or mixed):
        return LOSSES[name]
    entry = ENTRY_LOSSES[unshifted(name)]
    reduced = sum_over_known if name in SUMMED else mean_over_known
    scales, shifts = ([jnp.full((1, 1), value)] * 2 for value in (1.0, 0.0))
    if counts is not None:
        scales = [_row(values) for values in CLASS_WEIGHTS[weights](counts)]
    if name in SHIFTED_LOSSES:
        shifts = [_row(values) for values in SHIFTED_LOSSES[name](counts)]

    def loss(logits: Logits, labels: Labels) -> Scalar:
        known = labels >= 0
        targets = jnp.where(known, labels, 0).astype(logits.dtype)
        targets = (1 - smoothing) * targets + smoothing / 2
        present, absent = (
            entry(logits + shift, jnp.full_like(logits, kind)) * scale
            for kind, shift, scale in zip((1, 0), shifts, scales, strict=True)
        )
        return reduced(targets * present + (1 - targets) * absent, known)

    return loss


def _row(values: PerFinding) -> Float[Array, "1 findings"]:
    return jnp.asarray(values, jnp.float32)[None]


def describe(name: str, weights: str, counts: ClassCounts) -> dict[str, Any]:
    """Return counts, weights and shifts by finding, as lists; ``loss`` of ``split.json``."""
    described = {"present": counts.present, "absent": counts.absent}
    for kind, rule in (
        ("weights", CLASS_WEIGHTS[weights]),
        ("shifts", SHIFTED_LOSSES.get(name)),
    ):
        if rule not in (None, _no_weights):
            both = zip(("present", "absent"), rule(counts), strict=True)
            described |= {f"{kind}_{label}": np.round(values, 6) for label, values in both}
    return {key: values.tolist() for key, values in described.items()}
