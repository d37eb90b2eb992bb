"""Refuse a training that the device's memory cannot hold, before images are loaded."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from charm_jax.config import build
from charm_jax.distributed import mesh
from charm_jax.models.state import begin_stage
from charm_jax.train import setup
from charm_jax.train.plan import Plan
from charm_jax.train.setup import Experiment
from data_pipelines.errors import InputError
from data_pipelines.loading.resident import ResidentCases


def check_memory(experiment: Experiment, plans: Iterable[Plan]) -> None:
    """Compile the largest training step from shapes and check that the device can hold it.

    Raises:
        InputError: it cannot; with the batch size that it can.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")  # of a GPU alone
    if limit is None:
        return
    plan = max(plans, key=lambda plan: (not plan.freeze_trunk, plan.batch_size))
    memory = _lowered(experiment, plan).compile().memory_analysis()
    working = memory.temp_size_in_bytes
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if working + kept <= limit:
        return
    fits = int(max(limit - kept, 0) / working * plan.batch_size)
    fits -= fits % jax.device_count()
    remedies = [f"--config.stages.{plan.stage}.batch_size={fits}"] if fits else []
    if experiment.settings.data.resident:
        remedies.append("--config.data.resident=False")
    raise InputError(
        f"Stage {plan.phase} needs {(working + kept) / 2**30:.1f} GiB of the device with batches "
        f"of {plan.batch_size}, and JAX may take {limit / 2**30:.1f} GiB: set "
        f"{' or '.join(remedies or ['a smaller --config.data.image_size'])}."
    )


def _lowered(experiment: Experiment, plan: Plan) -> Any:
    """Lower the step of a phase; once compiled, it is in the cache when training asks for it."""
    settings, data, over = experiment.settings, experiment.data, mesh.mesh()
    peak = settings.stages[plan.stage].peak_lr
    optimizer = setup.make_optimizer(experiment, plan, peak)
    new, key = build.state_shapes(experiment.model, settings), jax.random.key(0)
    state = jax.eval_shape(
        lambda new: begin_stage(new, optimizer, key, freeze_trunk=plan.freeze_trunk), new
    )
    side, findings = settings.data.image_size, len(data.table.findings)
    of = jax.ShapeDtypeStruct
    cases = ResidentCases(
        of((len(data.seen), side, side, 1), np.uint8),
        of((len(data.seen), findings), np.int8),
        of((len(data.seen),), np.int32),
        of((len(data.table.images),), np.int32),
    )
    whole = mesh.replicated_sharding(over) if over else SingleDeviceSharding(jax.devices()[0])
    state, cases = jax.tree.map(
        lambda leaf: of(leaf.shape, leaf.dtype, sharding=whole), (state, cases)
    )
    rows = plan.batch_size // jax.process_count()
    batch = {
        "image": np.zeros((rows, side, side, 1), np.uint8),
        "labels": np.zeros((rows, findings), np.int8),
        "case_id": np.zeros(rows, np.int32),
        "patient_id": np.zeros(rows, np.int32),
    }
    step = setup.compile_train_step(
        experiment, plan, peak, cases if settings.data.resident else None
    )
    return step.lower(state, batch)
