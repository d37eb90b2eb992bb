"""Cases taken out of the bank, for good or for one reader; the weights stay as they are."""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from charm_jax.models.memory_bank import MemoryBank, empty

_NO_ID = -1


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


def overlook(bank: MemoryBank, case_id: Int32[Array, ""]) -> MemoryBank:
    """The bank to a reader that may not see one case: its slots read as empty, where they are.

    Reading gives what reading after ``forget`` does, and nothing is moved, so that a vmap over
    many cases shares one copy of the features. It is for reading only. A case id of -1 changes
    nothing.
    """
    return bank.replace(case_ids=jnp.where(bank.case_ids == case_id, _NO_ID, bank.case_ids))


def overlook_all(bank: MemoryBank) -> MemoryBank:
    """The bank to a reader that may see no case; for reading only."""
    return bank.replace(case_ids=jnp.full_like(bank.case_ids, _NO_ID))
