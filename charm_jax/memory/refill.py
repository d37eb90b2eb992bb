"""Fill an empty bank with a site's images, as training does."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from charm_jax.inference import explain
from charm_jax.inference.loaded import LoadedModel
from charm_jax.memory import changes
from charm_jax.models import memory_bank
from charm_jax.models.charm import Cases
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.runs.data import Data
from data_pipelines.tables import splits

_SEED = 0


def refill(model: LoadedModel, data: Data, rows: np.ndarray) -> tuple[MemoryBank, dict[str, Any]]:
    """Write rows of a site's data to an empty bank, batch by batch, in random order.

    The run's rule selects from each batch of the last stage's size, with the run's prevalences. The
    last batch is filled up with images of the one before, since the rule compares with the whole
    batch; these are not written twice.

    Differs: training stores features computed with batch statistics; these are computed with the
    running ones, as evaluation reads the bank.

    Returns:
        The bank, whose ids are those of the site's table, and its description.
    """
    rows = np.random.Generator(np.random.PCG64(_SEED)).permutation(rows)
    site = changes.embed(model, data, rows)
    old = model.state.memory
    memory = memory_bank.empty(*old.features.shape, old.labels.shape[1])
    batch = min(model.settings.stages[model.settings.stage_names[-1]].batch_size, len(rows))
    write = model.jit(explain.write_selected)
    selected = 0
    for start in range(0, len(rows), batch):
        taken = min(start, len(rows) - batch) + np.arange(batch)
        cases = Cases(
            labels=site.cases.labels[taken],
            case_ids=jnp.asarray(rows[taken], jnp.int32),
            patient_ids=jnp.asarray(data.table.patients[rows[taken]]),
        )
        memory, kept = write(memory, site.fused[taken], cases, jnp.asarray(taken >= start))
        selected += int(kept)
    ids, patients = np.asarray(memory.case_ids), np.asarray(memory.patient_ids)
    return memory, {
        "source": data.table.source,
        "simulated": data.table.simulated,
        "patients_known": data.table.patients_known,
        "rule": model.settings.model.rarity,
        "images": len(rows),
        "images_sha256": splits.part_summary(data.table, rows)["sha256"],
        "selected": selected,
        "cases": len(np.unique(ids[ids >= 0])),
        "patients": len(np.unique(patients[ids >= 0])),
    }
