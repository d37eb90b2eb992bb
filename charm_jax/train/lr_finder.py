"""The learning-rate range test: raise the rate on a copy of the state, and pick a peak."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
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


def peak_rate(experiment: Experiment, plan: Plan, state: TrainState) -> float:
    """Return the ``peak_lr`` of a phase: the config's, or that of a range test, made once.

    A range test writes ``range_test_<phase>.json`` and ``.png`` into the run's folder. The cycles
    of ``fine_tune`` share the test of the first.

    Raises:
        InputError: the loss falls at no rate.
    """
    keys = experiment.settings.stages[plan.stage]
    if not keys.find_lr:
        return keys.peak_lr
    tested = plan.phase
    if keys.schedule == "fine_tune":
        phases = experiment.settings.phases
        tested = next(phase for phase, (stage, _) in phases.items() if stage == plan.stage)
    path = experiment.directory / f"range_test_{tested}.json"
    if not processes.broadcast_from_first(path.exists):
        say(f"Range test of stage {plan.phase}: {STEPS} steps on a copy.")
        result = _range_test(experiment, plan, state)

        def write() -> None:
            from charm_jax.report import curves

            title = f"{experiment.title}\nrange test of stage {plan.phase}"
            curves.draw_sweep(path.with_suffix(".png"), title, **result)
            folder.write_json(path, result)

        processes.broadcast_from_first(write)
    peak = processes.broadcast_from_first(lambda: folder.read_json(path)["peak_lr"])
    say(f"Peak rate of stage {plan.phase} by its range test: {peak:.2e} ({path}).")
    return peak


def _range_test(experiment: Experiment, plan: Plan, state: TrainState) -> dict[str, Any]:
    keys = experiment.settings.stages[plan.stage]
    shares = optim.geometric(1 / keys.lr_spread, 1.0)
    optimizer = optim.adamw(rates(), B1, share=shares, clip_norm=keys.clip_norm)
    step = setup.compile_train_step(experiment, plan, optimizer)
    longer = dataclasses.replace(plan, epochs=-(-STEPS // plan.steps_per_epoch))
    begun = begin_stage(state, optimizer, state.rng, freeze_trunk=plan.freeze_trunk)
    begun = mesh.replicated(begun, mesh.mesh())
    with contextlib.closing(setup.training_batches(experiment, longer, 0)) as batches:
        tried, losses = sweep(begun, batches, step)
    peak, finite = suggest(tried, losses), np.isfinite(losses)
    if peak is None:
        raise InputError(
            f"The range test of stage {plan.phase} found no rate at which the loss falls: set "
            f"--config.stages.{plan.stage}.find_lr=False and peak_lr."
        )
    return {"peak_lr": peak, "rates": tried[finite].tolist(), "losses": losses[finite].tolist()}


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
