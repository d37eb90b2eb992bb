"""Estimate what a training takes from a few steps of each phase, compiled and timed."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from charm_jax.distributed import mesh
from charm_jax.inference.rows import largest_batch, predict_rows
from charm_jax.models.state import TrainState
from charm_jax.train import setup
from charm_jax.train.log import peak_memory
from charm_jax.train.plan import Plan
from charm_jax.train.setup import Experiment

_STEPS, _SECONDS = 20, 30  # timed at most, of a phase
_FIRST = 2  # steps that are not timed: they compile, and find batches that are ready
_BATCHES = 4  # of validation


def estimate(
    experiment: Experiment, plans: Mapping[str, Plan], begin: Callable[[str], TrainState]
) -> dict[str, Any]:
    """Train some steps of each phase and validate some batches; the weights are thrown away.

    Images are read as in training, so that a slow disk counts.

    Args:
        begin: returns the state at the beginning of a phase.

    Returns:
        ``hours`` of training and validation in all; ``compile_hours`` of them; ``phases`` with
        ``steps``, ``seconds_per_step``, ``images_per_second``, and ``validation_seconds`` of an
        epoch; ``memory_gib``, the peak of the device, or of the process where the device has no
        memory of its own; and ``checkpoints_gib``, at most, on the disk.
    """
    settings = experiment.settings
    evaluate = setup.compile_eval_step(experiment)
    phases, seconds, compiling, saved = {}, 0.0, 0.0, 0
    for phase, plan in plans.items():
        state = begin(phase)
        saved = max(saved, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        first, step, state = _time_steps(experiment, plan, state)
        second, validation = _time_validation(experiment, plan, state, evaluate)
        phases[phase] = {
            "steps": plan.steps,
            "seconds_per_step": round(step, 4),
            "images_per_second": round(plan.batch_size / step, 1),
            "validation_seconds": round(validation, 2),
        }
        compiling += first + second
        seconds += plan.steps * step + plan.epochs * validation
    return {
        "hours": round((seconds + compiling) / 3600, 3),
        "compile_hours": round(compiling / 3600, 3),
        "phases": phases,
        "memory_gib": round(peak_memory() or 0.0, 2),
        "checkpoints_gib": round((settings.checkpoint.keep + 1) * len(plans) * saved / 2**30, 3),
    }


def _time_steps(
    experiment: Experiment, plan: Plan, state: TrainState
) -> tuple[float, float, TrainState]:
    """Return the seconds of the first step and of one of the others, and the last state."""
    peak = experiment.settings.stages[plan.stage].peak_lr
    step = setup.compile_train_step(experiment, plan, peak)
    longer = dataclasses.replace(plan, epochs=-(-(_FIRST + _STEPS) // plan.steps_per_epoch))
    state, times = mesh.replicated(state, mesh.mesh()), []
    with contextlib.closing(setup.training_batches(experiment, longer, 0)) as batches:
        began = time.perf_counter()
        for batch in itertools.islice(batches, _FIRST + _STEPS):
            state, _ = jax.block_until_ready(step(state, batch))
            began, before = time.perf_counter(), began
            times.append(began - before)
            if sum(times[_FIRST:]) > _SECONDS:
                break
    return times[0], float(np.mean(times[_FIRST:])), state


def _time_validation(
    experiment: Experiment, plan: Plan, state: TrainState, evaluate: Callable
) -> tuple[float, float]:
    """Return the seconds of the first batch and of all validation images of a phase."""
    settings, data = experiment.settings, experiment.data
    rows, batch = data.split.rows(plan.stage, "val"), largest_batch(settings)
    times = []
    for some in (rows[:batch], rows[: _BATCHES * batch]):
        began = time.perf_counter()
        resident = settings.data.resident
        predict_rows(state, evaluate, data, some, batch, "validation", resident=resident)
        times.append(time.perf_counter() - began)
    return times[0], times[1] * len(rows) / len(some)
