"""Fill an empty bank with images, as training does or by class."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int8

from charm_jax.inference import changes, explain
from charm_jax.inference.changes import Embedded
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models import memory_bank
from charm_jax.models.charm import Cases
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.vote import Vote
from charm_jax.runs.data import Data
from data_pipelines.tables import splits

_SEED = 0


def refill(model: LoadedModel, data: Data, rows: np.ndarray) -> tuple[MemoryBank, dict[str, Any]]:
    """Fill an empty bank from rows of a data set.

    A bank whose cases vote takes all rows that fit, otherwise as ``balanced`` chooses. Any other is
    filled as training does: the run's rule selects from random batches of the last stage's size,
    with the run's prevalences. The last batch is filled up with images of the one before, since the
    rule compares with the whole batch; these are not written twice.

    Differs: training stores features computed with batch statistics; these are computed with the
    running ones, as evaluation reads the bank.

    Returns:
        The bank, whose ids are those of the data's table, and its description.
    """
    votes = isinstance(model.network, Vote)
    order = np.random.Generator(np.random.PCG64(_SEED)).permutation(rows)
    slots = len(model.state.memory.case_ids)
    chosen = order[balanced(data.table.labels[order], slots)] if votes else order
    read = changes.embed(model, data, chosen)
    memory, selected = (_all if votes else _by_rule)(model, data, chosen, read)
    ids, patients = np.asarray(memory.case_ids), np.asarray(memory.patient_ids)
    return memory, {
        **data.table.origin,
        "rule": "balanced" if votes else model.settings.model.rarity,
        "images": len(rows),
        "images_sha256": splits.part_summary(data.table, rows)["sha256"],
        "selected": selected,
        "cases": len(np.unique(ids[ids >= 0])),
        "patients": len(np.unique(patients[ids >= 0])),
    }


def balanced(labels: Int8[np.ndarray, "cases findings"], slots: int) -> Int[np.ndarray, " chosen"]:
    """Choose at most ``slots`` cases: all that fit, else N / (F + 1) of each finding.

    The rarest finding chooses first, cases without a finding last; slots that are left go to the
    first of the other cases.
    """
    if len(labels) <= slots:
        return np.arange(len(labels))
    groups = [*(labels == 1).T, (labels != 1).all(axis=1)]
    groups[:-1] = sorted(groups[:-1], key=np.count_nonzero)
    taken = np.zeros(len(labels), bool)
    for group in groups:
        wanted = max(slots // len(groups) - np.count_nonzero(group & taken), 0)
        taken[np.flatnonzero(group & ~taken)[:wanted]] = True
    taken[np.flatnonzero(~taken)[: slots - np.count_nonzero(taken)]] = True
    return np.flatnonzero(taken)


def _all(
    model: LoadedModel, data: Data, rows: np.ndarray, read: Embedded
) -> tuple[MemoryBank, int]:
    cases = _cases(data, rows, read, np.arange(len(rows)))
    every = jnp.ones(len(rows), bool)
    written = memory_bank.write(
        _empty(model), read.stored, cases.labels, cases.case_ids, cases.patient_ids, every
    )
    return written, len(rows)


def _by_rule(
    model: LoadedModel, data: Data, rows: np.ndarray, read: Embedded
) -> tuple[MemoryBank, int]:
    memory, selected = _empty(model), 0
    batch = min(model.settings.stages[model.settings.stage_names[-1]].batch_size, len(rows))
    write = model.jit(explain.write_selected)
    for start in range(0, len(rows), batch):
        taken = min(start, len(rows) - batch) + np.arange(batch)
        cases = _cases(data, rows, read, taken)
        memory, kept = write(memory, read.stored[taken], cases, jnp.asarray(taken >= start))
        selected += int(kept)
    return memory, selected


def _empty(model: LoadedModel) -> MemoryBank:
    old = model.state.memory
    return memory_bank.empty(*old.features.shape, old.labels.shape[1])


def _cases(data: Data, rows: np.ndarray, read: Embedded, taken: np.ndarray) -> Cases:
    """Return the ids that some of the read rows have in the data's table."""
    return Cases(
        labels=read.cases.labels[taken],
        case_ids=jnp.asarray(rows[taken], jnp.int32),
        patient_ids=jnp.asarray(data.table.patients[rows[taken]]),
    )
