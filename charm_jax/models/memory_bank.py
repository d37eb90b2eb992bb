"""The memory bank: stored feature vectors, written first-in-first-out and read by cosine top-k."""

from collections.abc import Callable
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int8, Int32

_NORM_EPS = 1e-12  # torch.nn.functional.normalize divides by max(norm, eps)
_NO_ID = -1
_DEFAULT = -1.0  # configs have fixed types: "the rule's default" has to be a number too


# JAX rebuilds these with other leaves (batched arrays, shapes, booleans), which a type checker at
# run time would refuse; the annotations say what the functions below take and give.
@no_type_check
@struct.dataclass
class MemoryBank:
    """N remembered training cases, a ring that is full once `count` reaches N.

    Attributes:
        features: Stored features; empty slots are zero vectors.
        labels: 1 present, 0 absent, -1 unknown; -1 throughout in empty slots.
        case_ids: Case stored in each slot, -1 for an empty slot.
        patient_ids: Patient of that case, -1 for an empty slot.
        cursor: Slot that the next stored row takes, 0 … N - 1.
        count: Filled slots, 0 … N.
    """

    features: Float[Array, "slots dim"]
    labels: Int8[Array, "slots findings"]
    case_ids: Int32[Array, " slots"]
    patient_ids: Int32[Array, " slots"]
    cursor: Int32[Array, ""]
    count: Int32[Array, ""]


@no_type_check
@struct.dataclass
class Retrieved:
    """What a batch of queries read from the bank, best match first.

    Attributes:
        features: Sum over the top k of cosine x stored feature; the weights are not normalised.
        indices: Slots of the top k.
        similarities: Cosines, -1 … 1; 0 for slots that are, or count as, empty.
        valid: False for slots that are, or count as, empty; those add nothing to `features`.
    """

    features: Float[Array, "batch dim"]
    indices: Int32[Array, "batch k"]
    similarities: Float[Array, "batch k"]
    valid: Bool[Array, "batch k"]


Threshold = float | Float[Array, ""]
Prevalence = Float[Array, " findings"] | tuple[float, ...]
Rule = Callable[..., Bool[Array, " batch"]]


def empty(size: int, dim: int, num_findings: int) -> MemoryBank:
    """Makes a bank of `size` empty slots for features of length `dim`.

    Raises:
        ValueError: If `size`, `dim` or `num_findings` is below 1.
    """
    if min(size, dim, num_findings) < 1:
        raise ValueError(
            f"a memory bank needs at least one slot, feature and finding, "
            f"not size={size}, dim={dim}, num_findings={num_findings}"
        )
    # Every leaf is a buffer of its own: shared ones could not be donated.
    return MemoryBank(
        features=jnp.zeros((size, dim), jnp.float32),
        labels=jnp.full((size, num_findings), -1, jnp.int8),
        case_ids=jnp.full((size,), _NO_ID, jnp.int32),
        patient_ids=jnp.full((size,), _NO_ID, jnp.int32),
        cursor=jnp.zeros((), jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def norm_deviation(features: Float[Array, "batch dim"]) -> Float[Array, " batch"]:
    """Computes abs(‖q‖ - μ) / μ, μ the batch mean of ‖q‖: the reference's "rarity score".

    Differs: 0 where the reference divides 0 by 0 (a batch of zero vectors).
    """
    norms = jnp.linalg.norm(jax.lax.stop_gradient(features), axis=-1)
    mean = jnp.mean(norms)
    return jnp.abs(norms - mean) / jnp.where(mean > 0, mean, 1.0)


def norm_inlier(
    features: Float[Array, "batch dim"],
    labels: Int8[Array, "batch findings"],
    *,
    threshold: Threshold,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Keeps features whose norm is *near* the batch mean: relative deviation below `threshold`.

    Source: the published notebook, with which the published AUC table was made. It keeps the
    common features, not the rare ones. Zero vectors are never kept in a batch of zero vectors
    (the reference compares NaN there, with the same outcome).
    """
    del labels, prevalence
    return (norm_deviation(features) < threshold) & jnp.any(features != 0)


def norm_outlier(
    features: Float[Array, "batch dim"],
    labels: Int8[Array, "batch findings"],
    *,
    threshold: Threshold,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Keeps features whose norm is *far* from the batch mean: deviation above `threshold`.

    Source: the paper's text.
    """
    del labels, prevalence
    return norm_deviation(features) > threshold


def angle_outlier(
    features: Float[Array, "batch dim"],
    labels: Int8[Array, "batch findings"],
    *,
    threshold: Threshold,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Keeps features with 1 - cos(q, mean vector of the batch) above `threshold` (range 0 … 2).

    Source: the paper's overview figure. A zero vector has cosine 0 with everything.
    """
    del labels, prevalence
    mean = jnp.mean(features, axis=0, keepdims=True)
    return 1.0 - jnp.sum(_normalise(features) * _normalise(mean), axis=-1) > threshold


def rare_finding(
    features: Float[Array, "batch dim"],
    labels: Int8[Array, "batch findings"],
    *,
    threshold: Threshold,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Keeps cases that carry a finding whose `prevalence` (0 … 1) is below `threshold`.

    Differs: not in the reference. Labels are known in training, so 'rare' can mean rare.
    """
    del features
    rare = jnp.asarray(prevalence, jnp.float32) < threshold
    return jnp.any((labels == 1) & rare[None, :], axis=-1)


SELECTION_RULES: dict[str, Rule] = {
    "norm_inlier": norm_inlier,
    "norm_outlier": norm_outlier,
    "angle_outlier": angle_outlier,
    "rare_finding": rare_finding,
}

DEFAULT_THRESHOLD: dict[str, float] = {
    "norm_inlier": 0.2,
    "norm_outlier": 0.2,
    "angle_outlier": 0.2,
    "rare_finding": 0.02,
}


def resolve_threshold(rule: str, threshold: float) -> float:
    """Gives the threshold to run `rule` with: `threshold` itself, or for -1.0 the rule's default.

    Raises:
        ValueError: If the rule is unknown, or the threshold is negative (but for -1.0) or NaN.
    """
    if rule not in SELECTION_RULES:
        raise ValueError(
            f"unknown selection rule {rule!r}; choose one of {', '.join(SELECTION_RULES)}"
        )
    if threshold == _DEFAULT:
        return DEFAULT_THRESHOLD[rule]
    if not threshold >= 0:
        raise ValueError(
            f"the threshold of rule {rule!r} is {threshold}; "
            f"use a number from 0 up, or {_DEFAULT} for the default {DEFAULT_THRESHOLD[rule]}"
        )
    return threshold


def select(
    features: Float[Array, "batch dim"],
    labels: Int8[Array, "batch findings"],
    *,
    rule: str,
    threshold: float,
    prevalence: Prevalence,
) -> Bool[Array, " batch"]:
    """Says which rows of a batch the named rule stores; `threshold` -1.0 is the rule's default.

    Raises:
        ValueError: If the rule is unknown, or the threshold is negative (but for -1.0) or NaN.
    """
    tau = resolve_threshold(rule, threshold)
    return SELECTION_RULES[rule](features, labels, threshold=tau, prevalence=prevalence)


def write(
    bank: MemoryBank,
    features: Float[Array, "batch dim"],
    labels: Int8[Array, "batch findings"],
    case_ids: Int32[Array, " batch"],
    patient_ids: Int32[Array, " batch"],
    keep: Bool[Array, " batch"],
) -> MemoryBank:
    """Stores the rows marked by `keep` at cursor, cursor + 1, … modulo N, in batch order.

    Where more than N are marked the last N remain; where none is, the bank comes back unchanged.
    Gradients do not pass: the stored features are constants. Case ids are 0 or more, since a slot
    with case id -1 reads as empty.

    Differs: the reference drops the rows that do not fit before the end of the array.
    """
    size = bank.features.shape[0]
    rank = jnp.cumsum(keep, dtype=jnp.int32) - 1
    selected = jnp.sum(keep, dtype=jnp.int32)
    lasting = keep & (rank >= selected - size)
    # Rows that are not stored aim beyond the end, each at a place of its own, and are dropped:
    # so all targets differ and the scatter is deterministic and order-free.
    beyond = size + jnp.arange(keep.shape[0], dtype=jnp.int32)
    target = jnp.where(lasting, (bank.cursor + rank) % size, beyond)

    def put(stored: Array, rows: Array) -> Array:
        rows = jax.lax.stop_gradient(rows).astype(stored.dtype)
        return stored.at[target].set(rows, mode="drop", unique_indices=True)

    return MemoryBank(
        features=put(bank.features, features),
        labels=put(bank.labels, labels),
        case_ids=put(bank.case_ids, case_ids),
        patient_ids=put(bank.patient_ids, patient_ids),
        cursor=(bank.cursor + selected) % size,
        count=jnp.minimum(size, bank.count + selected),
    )


def retrieve(
    bank: MemoryBank,
    queries: Float[Array, "batch dim"],
    k: int,
    *,
    exclude_case_ids: Int32[Array, " batch"],
    exclude_patient_ids: Int32[Array, " batch"] | None = None,
) -> Retrieved:
    """Reads r = Σ cos(q, m_j) m_j over the min(k, N) slots with the highest cosine.

    Empty slots compete with similarity 0 and add nothing; so does every slot that holds the
    query's own case and, with `exclude_patient_ids`, every slot of the query's patient. An id of
    -1 means "none" and excludes nothing. Of equal cosines the lowest slot wins. Gradients reach
    `queries` through the cosines only; the bank is a constant. Memory is linear in N.

    Differs: the reference leaves out slots whose cosine equals 1.0 exactly, which hangs on
    rounding; here cases are told apart by id.

    Raises:
        ValueError: If `k` is negative; 0 reads nothing.
    """
    if k < 0:
        raise ValueError(f"k is {k}; the number of cases to retrieve is 0 or more")
    stored = jax.lax.stop_gradient(bank.features)
    unit_queries = _normalise(queries.astype(stored.dtype))
    usable = _usable(bank, exclude_case_ids, exclude_patient_ids)

    # HIGHEST: TF32 is off by about 1e-3, enough to swap neighbours.
    similarity = jnp.matmul(
        jax.lax.stop_gradient(unit_queries), stored.T, precision=jax.lax.Precision.HIGHEST
    )
    # Divided here and not in the bank, of which there would be a second copy.
    similarity = similarity / _norms(stored).reshape(1, -1)
    _, indices = jax.lax.top_k(jnp.where(usable, similarity, 0.0), min(k, stored.shape[0]))
    valid = jnp.take_along_axis(usable, indices, axis=1)

    # Taking the k cosines anew keeps the [batch, N] matrix out of the backward pass.
    nearest = stored[indices]
    cosine = jnp.sum(unit_queries[:, None, :] * _normalise(nearest), axis=-1)
    cosine = jnp.where(valid, cosine, 0.0)
    return Retrieved(
        features=jnp.sum(cosine[:, :, None] * nearest, axis=1),
        indices=indices,
        similarities=cosine,
        valid=valid,
    )


def _usable(
    bank: MemoryBank,
    case_ids: Int32[Array, " batch"],
    patient_ids: Int32[Array, " batch"] | None,
) -> Bool[Array, "batch slots"]:
    filled = bank.case_ids != _NO_ID
    usable = filled[None, :] & (bank.case_ids[None, :] != case_ids[:, None])
    if patient_ids is None:
        return usable
    # A stored case of an unknown patient (-1) is not "the same patient" as an unknown query.
    same_patient = bank.patient_ids[None, :] == patient_ids[:, None]
    return usable & ~(same_patient & (patient_ids != _NO_ID)[:, None])


def _normalise(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    return x / _norms(x)


def _norms(x: Float[Array, "... dim"]) -> Float[Array, "... 1"]:
    # max() inside the root: the derivative of a norm at 0 is NaN.
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.sqrt(jnp.maximum(squared, _NORM_EPS**2))
