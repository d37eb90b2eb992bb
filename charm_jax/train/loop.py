"""Train one phase: epochs, validation, early stopping and checkpoints."""

import collections
import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from charm_jax.distributed.processes import all_gather
from charm_jax.models.state import TrainState
from charm_jax.train.log import RunLog
from charm_jax.train.plan import VALIDATION_SCORES, Plan, Progress

TrainStep = Callable[[TrainState, dict[str, np.ndarray]], tuple[TrainState, dict[str, jax.Array]]]


class NonFiniteLoss(Exception):
    """The loss of a step or of a validation is infinite or NaN."""

    def __init__(self, sentence: str, phase: str):
        super().__init__(sentence)
        self.phase = phase


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Everything that a phase calls.

    Attributes:
        train_step: compiled; the state is donated to it.
        begun: receives the state after the first step of an epoch, and its batch.
        batches: stream that starts at the state's step.
        validate: returns the validation scores of a state by name: ``loss``, ``auroc`` and ``ap``
            (None where undefined).
        log: receives steps and epochs; None in processes that do not write.
        save: saves a state and the progress at the same step.
        asked_to_stop: whether this process was asked to stop.
        agree: takes the step and what this process wants; returns what any process wants. All
            processes call it at the same steps.
        clock: seconds.
    """

    train_step: TrainStep
    begun: Callable[[TrainState, dict[str, np.ndarray]], None]
    batches: Iterator[dict[str, np.ndarray]]
    validate: Callable[[TrainState], dict[str, float | None]]
    log: RunLog | None
    save: Callable[[TrainState, Progress], None]
    asked_to_stop: Callable[[], bool]
    agree: Callable[[int, Sequence[bool]], Sequence[bool]]
    clock: Callable[[], float] = time.monotonic


@contextlib.contextmanager
def _thaw_at_end() -> Iterator[None]:
    """Let the garbage collector scan again what was frozen meanwhile."""
    try:
        yield
    finally:
        gc.unfreeze()


@_thaw_at_end()
def run_phase(
    state: TrainState, progress: Progress, plan: Plan, hooks: Hooks
) -> tuple[TrainState, Progress]:
    """Train to the last epoch or until validation stops improving; return the last state.

    Args:
        state: to start from; its step is the position in the phase.
        progress: at that step.

    Raises:
        NonFiniteLoss: with the step and the case ids of its batch.
        Interrupted: when asked to stop, after saving.
    """
    saved_at, saved_step = hooks.clock(), int(state.step)
    began = saved_at - progress.seconds
    while not progress.finished:
        first, end = int(state.step), (progress.epoch + 1) * plan.steps_per_epoch
        if hooks.log is not None:
            done = first - progress.epoch * plan.steps_per_epoch
            hooks.log.begin_epoch(plan, progress.epoch, done)
        pending: collections.deque = collections.deque()
        for step in range(first + 1, end + 1):
            batch = next(hooks.batches)
            state, metrics = hooks.train_step(state, batch)
            pending.append((step, metrics, batch["case_id"]))
            if step == first + 1:  # all is compiled
                hooks.begun(state, batch)
                # Each step makes the thousands of containers of a new state; scans of the whole
                # heap, modules and traces included, would take as long as everything else here.
                gc.collect()  # garbage that is frozen would stay
                gc.freeze()
            # One step stays in flight, so that reading the losses never stalls the device.
            progress = _settle(pending, 1, progress, plan, hooks.log)
            overdue = 0 < plan.save_seconds <= hooks.clock() - saved_at
            stopping, due = hooks.agree(step, (hooks.asked_to_stop(), overdue))
            due = due or step - saved_step >= plan.save_every
            if step < end and (stopping or due):
                progress = _settle(pending, 0, progress, plan, hooks.log)
                seconds = hooks.clock() - began
                hooks.save(state, dataclasses.replace(progress, seconds=seconds))
                saved_at, saved_step = hooks.clock(), step
                if stopping:
                    raise Interrupted
        progress = _settle(pending, 0, progress, plan, hooks.log)
        scores = hooks.validate(state)
        if not math.isfinite(scores["loss"]):
            raise NonFiniteLoss(
                f"The validation loss after step {end} of stage {plan.phase} is {scores['loss']}",
                plan.phase,
            )
        train_loss = progress.loss_sum / plan.steps_per_epoch
        progress = progress.after_validation(plan, end, scores)
        if hooks.log is not None:
            values = {
                "epoch": progress.epoch,
                "train_loss": train_loss,
                **{f"val_{name}": scores[score] for score, name in VALIDATION_SCORES.items()},
                "best": progress.best_step == end,
            }
            hooks.log.epoch(plan, end, values)
        progress = dataclasses.replace(progress, seconds=hooks.clock() - began)
        hooks.save(state, progress)
        saved_at, saved_step = hooks.clock(), end
        if hooks.agree(end, (hooks.asked_to_stop(),))[0]:
            raise Interrupted
    return state, progress


def _settle(
    pending: collections.deque, leave: int, progress: Progress, plan: Plan, log: RunLog | None
) -> Progress:
    """Read the metrics of all steps but the last ``leave`` and sum their losses."""
    while len(pending) > leave:
        step, metrics, case_ids = pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if bad:
            raise NonFiniteLoss(
                f"The {bad[0]} of step {step} of stage {plan.phase} is {values[bad[0]]}; its "
                f"batch holds the case ids {', '.join(map(str, all_gather(case_ids)))}",
                plan.phase,
            )
        if log is not None:
            log.step(plan, step, values)
        progress = dataclasses.replace(progress, loss_sum=progress.loss_sum + values["loss"])
    return progress
