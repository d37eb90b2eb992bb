"""The learning-rate range test: raise the rate on a copy of the state, and pick a peak."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from charm_jax.config.cli import say
from charm_jax.distributed import mesh, processes
from charm_jax.models.state import TrainState, begin_stage
from charm_jax.runs import folder
from charm_jax.train import optim, setup
from charm_jax.train.plan import Plan
from charm_jax.train.setup import Experiment
from data_pipelines.errors import InputError

STEPS = 100
FIRST, LAST = 1e-7, 10.0  # rates
B1 = 0.9
_SMOOTHING = 0.98
_BRINK = 5  # last steps, which are left out
_DIVERGED = 4.0  # times the lowest smoothed loss


def rates() -> optax.Schedule:
    """Return the rate by step: exponential from ``FIRST``, to reach ``LAST`` after ``STEPS``.

    Source: Smith, arXiv 1506.01186; numbers of fastai's ``lr_find``.
    """
    return lambda step: FIRST * (LAST / FIRST) ** (jnp.asarray(step, jnp.float32) / STEPS)


def range_test(experiment: Experiment, plan: Plan, state: TrainState) -> dict[str, Any] | None:
    """Run the range test of a phase; None if it needs none.

    The config may give the rate, a phase that goes on keeps its test, and the cycles of
    ``fine_tune`` share that of the first. A phase that begins ignores what an earlier run left.

    Args:
        experiment: of the run.
        plan: of the phase.
        state: in the phase.

    Returns:
        ``peak_lr``, and the ``rates`` and ``losses`` of the steps; nothing is written.

    Raises:
        InputError: the loss falls at no rate.
    """
    keys = experiment.settings.stages[plan.stage]
    if not keys.find_lr:
        return None
    shared = _tested(experiment, plan) != plan.phase
    if processes.broadcast_from_first(_path(experiment, plan).exists) and (shared or state.step):
        return None
    say(f"Range test of stage {plan.phase}: {STEPS} steps on a copy.")
    shares = optim.geometric(1 / keys.lr_spread, 1.0)
    optimizer = optim.adamw(rates(), B1, share=shares, clip_norm=keys.clip_norm)
    step = setup.compile_test_step(experiment, plan, optimizer)
    longer = dataclasses.replace(plan, epochs=-(-STEPS // plan.steps_per_epoch))
    begun = begin_stage(state, optimizer, state.rng, freeze_trunk=plan.freeze_trunk)
    begun = mesh.replicated(begun, mesh.mesh())
    with contextlib.closing(setup.training_batches(experiment, longer, 0)) as batches:
        tried, losses = sweep(begun, batches, step)
    peak, finite = suggest(tried, losses), np.isfinite(losses)
    if peak is None:
        key = f"--config.stages.{plan.stage}"
        raise InputError(
            f"The range test of stage {plan.phase} found no rate at which the loss falls: give one "
            f"({key}.find_lr=False {key}.peak_lr={keys.peak_lr:.2g} --config.resume=force)."
        )
    return {"peak_lr": peak, "rates": tried[finite].tolist(), "losses": losses[finite].tolist()}


def _tested(experiment: Experiment, plan: Plan) -> str:
    """Return the phase whose range test counts for a phase."""
    if experiment.settings.stages[plan.stage].schedule != "fine_tune":
        return plan.phase
    phases = experiment.settings.phases.items()
    return next(phase for phase, (stage, _) in phases if stage == plan.stage)


def _path(experiment: Experiment, plan: Plan) -> Path:
    return experiment.directory / f"range_test_{_tested(experiment, plan)}.json"


def peak_rate(experiment: Experiment, plan: Plan, test: dict[str, Any] | None) -> float:
    """Return the ``peak_lr`` of a phase: the config's, or that of its range test.

    Args:
        experiment: of the run.
        plan: of the phase.
        test: a range test that was just run, which becomes ``range_test_<phase>.json`` and
            ``.png`` in the run's folder; None to read these.
    """
    keys = experiment.settings.stages[plan.stage]
    if not keys.find_lr:
        return keys.peak_lr
    path = _path(experiment, plan)

    def first() -> float:
        if test is not None:
            from charm_jax.report import curves

            title = f"{experiment.title}\nrange test of stage {plan.phase}"
            curves.draw_sweep(path.with_suffix(".png"), title, **test)
            folder.write_json(path, test)
        return folder.read_json(path)["peak_lr"]

    peak = processes.broadcast_from_first(first)
    say(f"Peak rate of stage {plan.phase} by its range test: {peak:.2e} ({path}).")
    return peak


def sweep(
    state: TrainState, batches: Iterator[Any], train_step: Callable
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Train a copy of a state while the rate rises, until the loss diverges.

    Args:
        state: to copy; its optimizer must follow ``rates``.
        batches: at least ``STEPS``.
        train_step: compiled; the copy is donated to it.

    Returns:
        The rates, and the losses smoothed by a bias-corrected moving average, up to the first that
        is NaN or above 4 times the lowest.
    """
    state = jax.tree.map(jnp.copy, state)
    average, tried, smoothed = 0.0, [], []
    for step in range(STEPS):
        state, metrics = train_step(state, next(batches))
        loss = float(metrics["loss"])
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        value = average / (1 - _SMOOTHING ** (step + 1))
        tried.append(float(metrics["rate"]))
        smoothed.append(value)
        if math.isnan(value) or value > _DIVERGED * min(smoothed):
            break
    return np.array(tried), np.array(smoothed)


def suggest(
    tried: Float[np.ndarray, " steps"], losses: Float[np.ndarray, " steps"]
) -> float | None:
    """Return the ``valley`` of a sweep without its first tenth and its last 5 steps.

    Losses fall by chance at the start and diverge at the end. A loss that is NaN ends the sweep
    without dropping steps before it, except the last 5 of a whole one.

    Source: fastai's ``lr_find``.
    """
    end = len(losses) - _BRINK
    if len(losses) and math.isnan(losses[-1]):
        end = min(len(losses) - 1, STEPS - _BRINK)
    kept = slice(STEPS // 10, max(end, 0))
    return valley(tried[kept], losses[kept])


def valley(tried: Float[np.ndarray, " steps"], losses: Float[np.ndarray, " steps"]) -> float | None:
    """Return the rate in the middle of the longest fall of the losses; None without one.

    The longest fall is the longest subsequence in which each loss is lower than the one before.
    Its middle avoids both the flat start and the brink of divergence.

    Source: fastai's ``valley`` rule, whose rounding of the middle is kept.
    Differs: where no loss is below an earlier one, that rule returns the first rate.
    """
    length = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        length[i] += max((length[j] for j in range(i) if losses[j] > losses[i]), default=0)
    if not len(losses) or length.max() < 2:
        return None
    end = int(length.argmax())
    longest = int(length[end])
    return float(tried[end - longest + longest // 3 + longest // 6])
