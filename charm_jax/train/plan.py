"""The numbers of a training phase, and how far a run has come in it."""

import dataclasses

from charm_jax.train.optim import Cycle


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a phase.

    Attributes:
        stage: its stage, the key of its settings and images; a frozen phase shares it.
        freeze_trunk: whether the trunk keeps its weights.
        steps_per_epoch: full batches in an epoch.
        cycle: shape of the schedule.
        peak_step: steps before the learning rate falls; early stopping starts to count there.
        patience: epochs without a better validation loss after which training stops.
        min_delta: decrease of the validation loss that resets the patience.
        save_every: steps between checkpoints within an epoch.
        save_seconds: time after which a checkpoint is saved within an epoch; 0 for never.
    """

    phase: str
    stage: str
    freeze_trunk: bool
    epochs: int
    steps_per_epoch: int
    batch_size: int
    cycle: Cycle
    peak_step: int
    patience: int
    min_delta: float
    save_every: int
    save_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a phase has come; saved with every checkpoint.

    Attributes:
        epoch: epochs completed and validated.
        best_step: step of the lowest validation loss so far.
        best_epoch: its epoch, counted from 1.
        best_macro_auroc: on validation, at that step; None where no finding has both classes.
        reference_loss: loss that the patience compares with.
        waited: epochs since it was beaten.
        loss_sum: sum of the training losses of the current epoch.
        stopped_early: whether it ended before its last epoch.
        seconds: spent in the phase, over all restarts.
    """

    phase: str
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
        """Return the progress after an epoch whose validation loss is ``loss``."""
        new = dataclasses.replace(self, epoch=self.epoch + 1, loss_sum=0.0)
        if self.best_loss is None or loss < self.best_loss:
            best = {"best_step": step, "best_epoch": new.epoch, "best_loss": loss}
            new = dataclasses.replace(new, **best, best_macro_auroc=macro_auroc)
        if self.reference_loss is None or loss < self.reference_loss - plan.min_delta:
            new = dataclasses.replace(new, reference_loss=loss, waited=0)
        elif step > plan.peak_step:
            new = dataclasses.replace(new, waited=self.waited + 1)
        stopped = new.waited >= plan.patience and new.epoch < plan.epochs
        return dataclasses.replace(
            new, stopped_early=stopped, finished=stopped or new.epoch >= plan.epochs
        )
