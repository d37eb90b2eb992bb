"""A run's ``calibration.json``: read, or fitted on its validation part by the same checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from charm_jax import calibration, run_data, runs
from charm_jax.checkpoints import tree_sha256
from charm_jax.command_line import say
from charm_jax.evaluation_subject import Subject
from charm_jax.state import TrainState
from data_pipelines import splits
from data_pipelines.errors import InputError

# The network on the given rows of the data that a config names.
Logits = Callable[[ConfigDict, run_data.Data, np.ndarray], np.ndarray]


def load_or_fit(
    subject: Subject, own: ConfigDict, given: run_data.Data, logits: Logits
) -> dict[str, Any] | None:
    """The thresholds and temperatures of what is evaluated.

    They are fitted where they are missing or of another network, on the validation part of the
    run's own data. Where these are not there any more, nothing can be fitted, which is said.

    Args:
        subject: what is evaluated.
        own: the run's config without what the evaluation changes in it, or that of the weights.
        given: the data that are evaluated, in use where their validation part is the run's.
        logits: the network.

    Returns:
        The content of ``calibration.json``, or None.
    """
    path = subject.folder / "calibration.json"
    identity = {"checkpoint": subject.checkpoint, "network_sha256": network_sha256(subject.state)}
    if subject.run is None:
        identity["split_sha256"] = _part(own, given)["sha256"]
    stored = read_stored(path)
    if stored is not None and identity.items() <= stored.items():
        return stored
    try:
        data = _own_data(subject, own, given)
        rows = _rows(own, data)
    except InputError as error:
        say(
            "warning: there are no thresholds and temperatures, since the validation part cannot "
            f"be evaluated: {error}"
        )
        return None
    z = logits(own, data, rows)
    identity["split_sha256"] = splits.part_summary(data.table, rows)["sha256"]
    fitted = identity | calibration.fit(z, data.table.labels[rows], data.table.findings)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, fitted)
    say(f"Thresholds and temperatures are fitted on {len(rows):,} validation images: {path}.")
    return fitted


def read_stored(path: Path) -> dict[str, Any] | None:
    """What an earlier evaluation left; a damaged file counts as none."""
    if not path.exists():
        return None
    try:
        return runs.read_json(path)
    except InputError:
        return None


def _own_data(subject: Subject, own: ConfigDict, given: run_data.Data) -> run_data.Data:
    """The given data if their validation part is the run's, otherwise those of its config."""
    if subject.trained is None:
        return given
    last = run_data.stage_names(own)[-1]
    if _part(own, given)["sha256"] == subject.trained["stages"][last]["val"]["sha256"]:
        return given
    data = run_data.load_data(own)
    runs.check_findings(subject.run, subject.trained["findings"], data.table)
    return data


def _part(own: ConfigDict, data: run_data.Data) -> dict[str, Any]:
    rows = data.split.stages[run_data.stage_names(own)[-1]]["val"]
    return splits.part_summary(data.table, rows)


def _rows(own: ConfigDict, data: run_data.Data) -> np.ndarray:
    return data.split.rows(run_data.stage_names(own)[-1], "val")


def network_sha256(state: TrainState) -> str:
    """Of all that makes a prediction: a name such as focal/123 may come again in a new run."""
    return tree_sha256(
        {
            "params": state.params,
            "batch_stats": state.batch_stats,
            "momentum": state.momentum,
            "memory": state.memory,
            "average": state.average,
        }
    )
