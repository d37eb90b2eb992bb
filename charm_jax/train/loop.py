"""The loop of a stage: epochs, validation, early stopping, the best checkpoint."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from charm_jax.distributed.processes import all_gather
from charm_jax.models.state import TrainState

TrainStep = Callable[[TrainState, dict[str, np.ndarray]], tuple[TrainState, dict[str, jax.Array]]]


class NonFiniteLoss(Exception):
    """The loss of a step, or of a validation, is infinite or not a number."""


class Interrupted(Exception):
    """The run was asked to end; its state is saved."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a stage is, as numbers.

    Attributes:
        stage: its name.
        part: key of its settings and of its images: the name without the ending of a frozen phase.
        freeze_trunk: whether it leaves the trunk as it is.
        epochs: at most this many.
        steps_per_epoch: full batches in an epoch.
        batch_size: images in a batch.
        peak_step: steps before the rate falls; early stopping does not count before.
        patience: epochs without a better validation loss after which it stops.
        min_delta: a loss must be lower by more than this to count as better for the patience.
        save_every: steps between checkpoints within an epoch.
    """

    stage: str
    part: str
    freeze_trunk: bool
    epochs: int
    steps_per_epoch: int
    batch_size: int
    peak_step: int
    patience: int
    min_delta: float
    save_every: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a stage has come; saved with every checkpoint.

    Attributes:
        stage: its name.
        epoch: epochs completed and validated.
        best_step: step of the lowest validation loss so far.
        best_epoch: its epoch, counted from 1.
        best_loss: that loss.
        best_macro_auroc: of the validation part there; None where no finding has both classes.
        reference_loss: the loss that the patience compares with.
        waited: epochs since it was beaten.
        loss_sum: of the training losses of the epoch that is under way.
        finished: whether the stage is over.
        stopped_early: whether it ended before its last epoch.
        seconds: spent in the stage, over all its restarts.
    """

    stage: str
    epoch: int = 0
    best_step: int | None = None
    best_epoch: int | None = None
    best_loss: float | None = None
    best_macro_auroc: float | None = None
    reference_loss: float | None = None
    waited: int = 0
    loss_sum: float = 0.0
    finished: bool = False
    stopped_early: bool = False
    seconds: float = 0.0

    def after_validation(
        self, plan: Plan, step: int, loss: float, macro_auroc: float | None
    ) -> "Progress":
        """The progress after an epoch whose validation gave ``loss``."""
        new = dataclasses.replace(self, epoch=self.epoch + 1, loss_sum=0.0)
        if self.best_loss is None or loss < self.best_loss:
            new = dataclasses.replace(
                new,
                best_step=step,
                best_epoch=new.epoch,
                best_loss=loss,
                best_macro_auroc=macro_auroc,
            )
        if self.reference_loss is None or loss < self.reference_loss - plan.min_delta:
            new = dataclasses.replace(new, reference_loss=loss, waited=0)
        elif step > plan.peak_step:
            new = dataclasses.replace(new, waited=self.waited + 1)
        stopped = new.waited >= plan.patience and new.epoch < plan.epochs
        return dataclasses.replace(
            new, stopped_early=stopped, finished=stopped or new.epoch >= plan.epochs
        )


@runtime_checkable
class Log(Protocol):
    """What a stage reports to."""

    def begin_epoch(self, plan: Plan, epoch: int, done: int) -> None:
        """Epoch ``epoch``, from 0, begins, or goes on after ``done`` steps."""

    def step(self, plan: Plan, step: int, metrics: dict[str, float]) -> None:
        """A step's metrics are known."""

    def epoch(self, plan: Plan, step: int, values: dict[str, Any]) -> None:
        """An epoch was validated."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a stage needs of the world around it.

    Attributes:
        train_step: jitted; the state is donated to it.
        batches: the stream, at the position of the state's step.
        validate: validation loss and macro AUROC (None where undefined) of a state.
        log: told of steps and epochs.
        save: takes a state and the progress of the same moment.
        asked_to_end: whether the process was asked to end.
    """

    train_step: TrainStep
    batches: Iterator[dict[str, np.ndarray]]
    validate: Callable[[TrainState], tuple[float, float | None]]
    log: Log
    save: Callable[[TrainState, Progress], None]
    asked_to_end: Callable[[], bool]


def run_stage(
    state: TrainState, progress: Progress, plan: Plan, hooks: Hooks
) -> tuple[TrainState, Progress]:
    """Trains until the epochs are over or the validation loss no longer falls.

    Args:
        state: where to begin; its step is the position in the stage.
        progress: of the same moment.
        plan: of the stage.
        hooks: the steps, the data and where to report.

    Returns:
        The last state and progress.

    Raises:
        NonFiniteLoss: with the step and the case ids of its batch.
        Interrupted: when asked to end; the state is saved before.
    """
    began = time.perf_counter() - progress.seconds
    while not progress.finished:
        state, progress = _train_epoch(state, progress, plan, hooks, began)
        step = int(state.step)
        loss, macro_auroc = hooks.validate(state)
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The validation loss after step {step} of stage {plan.stage} is {loss}"
            )
        values = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / plan.steps_per_epoch,
            "val_loss": loss,
            "val_macro_auroc": macro_auroc,
        }
        hooks.log.epoch(plan, step, values)
        progress = progress.after_validation(plan, step, loss, macro_auroc)
        progress = dataclasses.replace(progress, seconds=time.perf_counter() - began)
        hooks.save(state, progress)
        if hooks.asked_to_end():
            raise Interrupted
    return state, progress


def _train_epoch(
    state: TrainState, progress: Progress, plan: Plan, hooks: Hooks, began: float
) -> tuple[TrainState, Progress]:
    first, end = int(state.step), (progress.epoch + 1) * plan.steps_per_epoch
    hooks.log.begin_epoch(plan, progress.epoch, first - progress.epoch * plan.steps_per_epoch)
    pending: collections.deque = collections.deque()
    for step in range(first + 1, end + 1):
        batch = next(hooks.batches)
        state, metrics = hooks.train_step(state, batch)
        pending.append((step, metrics, batch["case_id"]))
        # One step stays in flight, so that reading the losses never makes the device wait.
        progress = _settle(pending, 1, progress, plan, hooks.log)
        ending = hooks.asked_to_end()
        if step < end and (ending or step % plan.save_every == 0):
            progress = _settle(pending, 0, progress, plan, hooks.log)
            seconds = time.perf_counter() - began
            hooks.save(state, dataclasses.replace(progress, seconds=seconds))
            if ending:
                raise Interrupted
    return state, _settle(pending, 0, progress, plan, hooks.log)


def _settle(
    pending: collections.deque, leave: int, progress: Progress, plan: Plan, log: Log
) -> Progress:
    """Reads the metrics of all steps but the last ``leave``; their losses join the epoch's sum."""
    while len(pending) > leave:
        step, metrics, case_ids = pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if bad:
            raise NonFiniteLoss(
                f"The {bad[0]} of step {step} of stage {plan.stage} is {values[bad[0]]}; its "
                f"batch holds the case ids {', '.join(map(str, all_gather(case_ids)))}"
            )
        log.step(plan, step, values)
        progress = dataclasses.replace(progress, loss_sum=progress.loss_sum + values["loss"])
    return progress
