"""A network on rows of a table, whose cases it knows by the ids of another."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from charm_jax.config import build
from charm_jax.models.state import TrainState
from charm_jax.runs import data as run_data
from charm_jax.runs.cases import Known


def part_outputs(
    state: TrainState,
    step: Callable,
    known: Known,
    config: ConfigDict,
    data: run_data.Data,
    rows: np.ndarray,
    title: str,
) -> dict[str, np.ndarray]:
    """What a step says of some rows, ``[n, ...]`` each, in their order.

    Args:
        state: the network.
        step: jitted, as ``eval_step``.
        known: the cases of the table, as the run that filled the bank knows them.
        config: of the data.
        data: that the rows are of.
        rows: ``[n]`` ids of the images.
        title: of the progress bar.
    """
    batch = build.evaluation_batch_size(config)
    batches = run_data.evaluation_batches(config, data, rows, batch)
    return build.evaluated(batches, rows, _as_known(step, known), state, title)


def _as_known(step: Callable, known: Known) -> Callable:
    """The step on batches whose ids are those of the run that filled the bank."""

    def renumbered(state: TrainState, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = batch["case_id"]
        ids = {"case_id": known.case_ids[rows], "patient_id": known.patient_ids[rows]}
        return step(state, batch | ids)

    return renumbered
