"""Fill a new state with the weights that a run begins with: a file's, or another run's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from charm_jax.config.cli import say
from charm_jax.distributed import processes
from charm_jax.inference.input_check import check_inputs
from charm_jax.models.state import TrainState, averaged
from charm_jax.runs import cases, folder
from charm_jax.runs.arguments import read_settings
from charm_jax.runs.checkpoints import network_sha256
from charm_jax.train.setup import Experiment
from charm_jax.weights import load
from charm_jax.weights.load import WeightFile
from data_pipelines.errors import InputError

# Keys that the arrays of a checkpoint depend on, and keys that they were only trained with.
_SHAPES = ("model.backbone", "model.charm", "model.channels")
_CHARM_SHAPES = ("model.memory", "model.fusion", "model.momentum_branch", "model.bank_size")
_HABITS = ("data.image_size", "data.value_range", "model.input_range", "model.retrieval_k")


def first_weights(
    experiment: Experiment, new: TrainState, split: dict[str, Any], source: str = ""
) -> tuple[TrainState, WeightFile | None]:
    """Fill a new state with first weights, and log what they are.

    Args:
        experiment: of the run.
        new: its new state.
        split: result of ``split_identity``.
        source: ``RUN`` or ``RUN:CHECKPOINT`` to take them from, not ``config.model.init_from``.

    Raises:
        InputError: in every process, if they are missing, unreadable or do not fit.
    """
    settings, data = experiment.settings, experiment.data
    if source:
        state, found = processes.broadcast_arrays_from_first(
            lambda: _of_run(experiment, new, split, source), lambda _: new
        )
        file = WeightFile(**found)
    else:
        state, file = processes.all_succeed(lambda: _of_file(experiment, new))
    notes = [load.describe(file)]
    if file is not None:
        rows = data.split.rows(settings.stage_names[0], "train")
        notes += processes.all_succeed(
            lambda: check_inputs(experiment.model, state, data, rows, settings.model)
        )
    for note in notes:
        say(note)
    return state, file


def _of_file(experiment: Experiment, new: TrainState) -> tuple[TrainState, WeightFile | None]:
    keys = experiment.settings.model
    return load.initial_weights(
        new,
        keys.init_from,
        keys.backbone,
        findings=experiment.data.table.findings,
        values=experiment.settings.told_by_weights,
        key=keys.init_key,
    )


def _of_run(
    experiment: Experiment, new: TrainState, split: dict[str, Any], source: str
) -> tuple[TrainState, dict[str, Any]]:
    """Return network and bank of a checkpoint in a new state, and the fields of a ``WeightFile``.

    Raises:
        InputError: there is no such run or checkpoint, or it is of another architecture.
    """
    settings = experiment.settings
    name, _, checkpoint = source.partition(":")
    run = folder.find(settings.directory.parent, name)
    theirs, ours = (folder.binding_keys(config) for config in (read_settings(run), settings))
    charm = settings.model.charm

    def changed(keys: Sequence[str]) -> str:
        return " ".join(f"--config.{k}={theirs[k]}" for k in keys if theirs[k] != ours[k])

    if other := changed(_SHAPES + _CHARM_SHAPES * charm):
        raise InputError(f"{run} is of another architecture: give {other}.")
    if other := changed(_HABITS[: None if charm else -1]):
        say(f"warning: the weights of {run} were trained with {other}: give that to keep to it.")
    meta: dict[str, Any] = {}

    def like(found: dict[str, Any]) -> TrainState:
        meta.update(found)
        weights = {"params": new.params, "batch_stats": new.batch_stats}
        return new.replace(average=weights if found["config"]["model"]["average"] else None)

    # A refitted classifier fits the running statistics, and not those of a batch.
    state, checkpoint, _ = folder.restore(run, checkpoint or "best", like, refit=False)
    state = averaged(state).replace(average=new.average, rng=new.rng)
    seen = meta["split"]
    folder.check_findings(run, seen["findings"], experiment.data.table)
    table, learned = experiment.data.table, experiment.data.seen
    if other := set(cases.trained_on(run)) - set(table.images[learned]):
        say(
            f"warning: {run} saw {len(other):,} other images, whose patients no evaluation will "
            "recognise."
        )
    if state.memory is not None and seen["cases"] != split["cases"]:
        say(f"warning: {run} numbers its cases differently: the memory bank starts empty.")
        state = state.replace(memory=new.memory)
    file = WeightFile(
        init_from=source,
        file=str(run / "checkpoints" / checkpoint),
        sha256=network_sha256(state),
        tensors=len(jax.tree.leaves(state.params)),
        left_out=[],
        notes=[],
    )
    return state, dataclasses.asdict(file)
