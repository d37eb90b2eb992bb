"""The memory bank: stored feature vectors, written first-in-first-out and read by cosine top-k."""

from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int8, Int32

_NORM_EPS = 1e-12  # torch.nn.functional.normalize divides by max(norm, eps)
_NO_ID = -1


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
    unit_queries = normalise(queries.astype(stored.dtype))
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
    cosine = jnp.sum(unit_queries[:, None, :] * normalise(nearest), axis=-1)
    cosine = jnp.where(valid, cosine, 0.0)
    return Retrieved(
        features=jnp.sum(cosine[:, :, None] * nearest, axis=1),
        indices=indices,
        similarities=cosine,
        valid=valid,
    )


def forget(bank: MemoryBank, case_ids: Int32[Array, " forgotten"]) -> MemoryBank:
    """The bank without the given cases, each with every slot that it has.

    The remaining slots close up, the oldest first, from slot 0 on; the cursor stands behind the
    youngest. So the bank is the one that would be if only the remaining rows had ever been
    written: later writes fill the empty slots before they take the place of the oldest. (Holes
    in the ring would be skipped by the cursor while remembered cases are overwritten.)

    Args:
        bank: as it is.
        case_ids: any number, in the bank or not; -1 forgets nothing.
    """
    size, dim = bank.features.shape
    kept = (bank.case_ids != _NO_ID) & ~jnp.isin(bank.case_ids, case_ids)
    # In a ring that has gone round, the slot under the cursor is the oldest.
    age = (jnp.arange(size, dtype=jnp.int32) - bank.cursor) % size
    order = jnp.argsort(jnp.where(kept, age, size), stable=True)
    count = jnp.sum(kept, dtype=jnp.int32)
    filled = jnp.arange(size) < count

    def closed_up(stored: Array, nothing: Array) -> Array:
        rows = filled.reshape(-1, *[1] * (stored.ndim - 1))
        return jnp.where(rows, stored[order], nothing)

    nothing = empty(size, dim, bank.labels.shape[1])
    return MemoryBank(
        features=closed_up(bank.features, nothing.features),
        labels=closed_up(bank.labels, nothing.labels),
        case_ids=closed_up(bank.case_ids, nothing.case_ids),
        patient_ids=closed_up(bank.patient_ids, nothing.patient_ids),
        cursor=count % size,
        count=count,
    )


def mask_case(bank: MemoryBank, case_id: Int32[Array, ""]) -> MemoryBank:
    """The bank to a reader that may not see one case: its slots read as empty, where they are.

    Reading gives what reading after ``forget`` does, and nothing is moved, so that a vmap over
    many cases shares one copy of the features. It is for reading only. A case id of -1 changes
    nothing.
    """
    return bank.replace(case_ids=jnp.where(bank.case_ids == case_id, _NO_ID, bank.case_ids))


def mask_all(bank: MemoryBank) -> MemoryBank:
    """The bank to a reader that may see no case; for reading only."""
    return bank.replace(case_ids=jnp.full_like(bank.case_ids, _NO_ID))


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


def normalise(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """Scale vectors to length 1; zero vectors stay zero and have finite gradients."""
    return x / _norms(x)


def _norms(x: Float[Array, "... dim"]) -> Float[Array, "... 1"]:
    # max() inside the root: the derivative of a norm at 0 is NaN.
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.sqrt(jnp.maximum(squared, _NORM_EPS**2))
