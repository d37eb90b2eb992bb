"""Define the memory bank: a ring of stored features, read by cosine top-k."""

from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int8, Int32

from charm_jax.models.shapes import Vectors

_NORM_EPS = 1e-12  # torch.nn.functional.normalize divides by max(norm, eps)
_NO_ID = -1


@no_type_check  # JAX rebuilds it with leaves of other types
@struct.dataclass
class MemoryBank:
    """Hold up to N training cases in a ring.

    Attributes:
        features: zero vectors in empty slots.
        labels: 1 present, 0 absent, -1 unknown; -1 throughout in empty slots.
        case_ids: case in each slot, -1 for an empty slot.
        patient_ids: patient of that case, -1 for unknown or an empty slot.
        cursor: slot that the next stored row takes, 0 … N - 1.
        count: number of filled slots, 0 … N.
    """

    features: Float[Array, "slots dim"]
    labels: Int8[Array, "slots findings"]
    case_ids: Int32[Array, " slots"]
    patient_ids: Int32[Array, " slots"]
    cursor: Int32[Array, ""]
    count: Int32[Array, ""]


@no_type_check  # JAX rebuilds it with leaves of other types
@struct.dataclass
class Retrieved:
    """Hold the cases that a batch of queries read, best match first.

    Attributes:
        features: r, the sum over the top k of cosine x stored feature; None where labels are read.
        indices: slots of the top k.
        similarities: cosines, -1 … 1; 0 for empty and excluded slots.
        valid: False for empty and excluded slots, which add nothing to ``features``.
    """

    features: Float[Array, "batch dim"] | None
    indices: Int32[Array, "batch k"]
    similarities: Float[Array, "batch k"]
    valid: Bool[Array, "batch k"]


def empty(size: int, dim: int, num_findings: int) -> MemoryBank:
    """Create a bank of ``size`` empty slots for features of length ``dim``.

    Raises:
        ValueError: ``size``, ``dim`` or ``num_findings`` is below 1.
    """
    if min(size, dim, num_findings) < 1:
        raise ValueError(
            "a memory bank needs at least one slot, feature and finding, "
            f"not size={size}, dim={dim}, num_findings={num_findings}"
        )
    # Every leaf has its own buffer: shared ones could not be donated.
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
    features: Vectors,
    labels: Int8[Array, "batch findings"],
    case_ids: Int32[Array, " batch"],
    patient_ids: Int32[Array, " batch"],
    keep: Bool[Array, " batch"],
) -> MemoryBank:
    """Store the rows marked by ``keep`` at cursor, cursor + 1, … modulo N, in batch order.

    If more than N are marked, the last N remain. Stored features are constants: no gradient passes.
    Case ids must be 0 or more, since a slot with case id -1 reads as empty.

    Differs: the reference drops the rows that do not fit before the end of the array.
    """
    size = bank.features.shape[0]
    rank = jnp.cumsum(keep, dtype=jnp.int32) - 1
    selected = jnp.sum(keep, dtype=jnp.int32)
    lasting = keep & (rank >= selected - size)
    target = jnp.where(lasting, (bank.cursor + rank) % size, _beyond(size, keep))
    return _put(bank, target, selected, features, labels, case_ids, patient_ids)


def refresh(
    bank: MemoryBank,
    features: Vectors,
    labels: Int8[Array, "batch findings"],
    case_ids: Int32[Array, " batch"],
    patient_ids: Int32[Array, " batch"],
) -> MemoryBank:
    """Store every row; a case that the bank holds keeps its slot.

    New cases take the slots at cursor, cursor + 1, … modulo N, the oldest first, also one that this
    batch would refresh. Of a case that is twice in a batch the last row is stored, of new cases the
    last N. Stored features are constants. Rows with a case id below 0 are not stored.
    """
    size = bank.features.shape[0]
    same = bank.case_ids[None, :] == case_ids[:, None]
    slot, stored = jnp.argmax(same, axis=1).astype(jnp.int32), same.any(axis=1)
    again = jnp.triu(case_ids[:, None] == case_ids[None, :], 1).any(axis=1)
    keep = (case_ids >= 0) & ~again
    new = keep & ~stored
    rank = jnp.cumsum(new, dtype=jnp.int32) - 1
    added = jnp.sum(new, dtype=jnp.int32)
    replaced = (slot - bank.cursor) % size < added
    target = _beyond(size, keep)
    target = jnp.where(keep & stored & ~replaced, slot, target)
    target = jnp.where(new & (rank >= added - size), (bank.cursor + rank) % size, target)
    return _put(bank, target, added, features, labels, case_ids, patient_ids)


def _beyond(size: int, rows: Array) -> Int32[Array, " batch"]:
    """Return a slot beyond the end for each row, where it is dropped.

    As all targets differ, the scatter is deterministic.
    """
    return size + jnp.arange(rows.shape[0], dtype=jnp.int32)


def _put(
    bank: MemoryBank,
    target: Int32[Array, " batch"],
    added: Int32[Array, ""],
    features: Vectors,
    labels: Int8[Array, "batch findings"],
    case_ids: Int32[Array, " batch"],
    patient_ids: Int32[Array, " batch"],
) -> MemoryBank:
    def put(stored: Array, rows: Array) -> Array:
        rows = jax.lax.stop_gradient(rows).astype(stored.dtype)
        return stored.at[target].set(rows, mode="drop", unique_indices=True)

    size = bank.features.shape[0]
    return MemoryBank(
        features=put(bank.features, features),
        labels=put(bank.labels, labels),
        case_ids=put(bank.case_ids, case_ids),
        patient_ids=put(bank.patient_ids, patient_ids),
        cursor=(bank.cursor + added) % size,
        count=jnp.minimum(size, bank.count + added),
    )


def retrieve(
    bank: MemoryBank,
    queries: Vectors,
    k: int,
    *,
    exclude_case_ids: Int32[Array, " batch"],
    exclude_patient_ids: Int32[Array, " batch"] | None = None,
) -> Retrieved:
    """Read r = Σ cos(q, m_j) m_j over the min(k, N) slots with the highest cosine.

    Empty slots compete with similarity 0 and add nothing; so does every slot that holds the
    query's own case and, with ``exclude_patient_ids``, every slot of the query's patient. An id of
    -1 excludes nothing. Ties go to the lowest slot. Gradients reach ``queries`` through the cosines
    only; the bank is a constant. Memory is linear in N.

    Differs: the reference excludes slots whose cosine equals 1.0 exactly, which depends on
    rounding; here cases are told apart by id.

    Raises:
        ValueError: ``k`` is negative; 0 reads nothing.
    """
    if k < 0:
        raise ValueError(f"k is {k}: give the number of cases to retrieve, 0 or more")
    stored = jax.lax.stop_gradient(bank.features)
    unit_queries = normalise(queries.astype(stored.dtype))
    usable = may_read(bank, exclude_case_ids, exclude_patient_ids)

    # HIGHEST: TF32 is off by about 1e-3, enough to swap neighbours.
    similarity = jnp.matmul(
        jax.lax.stop_gradient(unit_queries), stored.T, precision=jax.lax.Precision.HIGHEST
    )
    # Dividing the product avoids a second, normalised copy of the bank.
    similarity = similarity / _norms(stored).reshape(1, -1)
    _, indices = jax.lax.top_k(jnp.where(usable, similarity, 0.0), min(k, stored.shape[0]))
    valid = jnp.take_along_axis(usable, indices, axis=1)

    # Computing the k cosines again keeps the [batch, N] matrix out of the backward pass.
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
    """Remove every slot of the given cases, as if they had never been written.

    The remaining slots move to slot 0 onwards, oldest first, and the cursor follows the youngest:
    later writes fill the empty slots before they replace the oldest. (The cursor would skip holes
    in the ring while overwriting stored cases.)

    Args:
        case_ids: any number of ids, in the bank or not; -1 removes nothing.
    """
    size, dim = bank.features.shape
    kept = (bank.case_ids != _NO_ID) & ~jnp.isin(bank.case_ids, case_ids)
    # In a full ring the slot under the cursor is the oldest.
    age = (jnp.arange(size, dtype=jnp.int32) - bank.cursor) % size
    order = jnp.argsort(jnp.where(kept, age, size), stable=True)
    count = jnp.sum(kept, dtype=jnp.int32)
    filled = jnp.arange(size) < count

    def closed_up(stored: Array, nothing: Array) -> Array:
        rows = filled.reshape(-1, *[1] * (stored.ndim - 1))
        return jnp.where(rows, stored[order], nothing)

    nothing = empty(size, dim, bank.labels.shape[1])
    names = ("features", "labels", "case_ids", "patient_ids")
    closed = {name: closed_up(getattr(bank, name), getattr(nothing, name)) for name in names}
    return MemoryBank(**closed, cursor=count % size, count=count)


def mask_case(bank: MemoryBank, case_id: Int32[Array, ""]) -> MemoryBank:
    """Mark the slots of a case as empty in place, for reading only.

    Retrieval gives the same as after ``forget``, but a vmap over many cases shares one copy of the
    features. A case id of -1 changes nothing.
    """
    return bank.replace(case_ids=jnp.where(bank.case_ids == case_id, _NO_ID, bank.case_ids))


def mask_all(bank: MemoryBank) -> MemoryBank:
    """Mark all slots as empty in place, for reading only."""
    return bank.replace(case_ids=jnp.full_like(bank.case_ids, _NO_ID))


def may_read(
    bank: MemoryBank, case_ids: Int32[Array, " batch"], patient_ids: Int32[Array, " batch"] | None
) -> Bool[Array, "batch slots"]:
    """Whether a query may read each slot: filled, of another case and, if given, patient."""
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
