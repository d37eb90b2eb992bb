"""The numbers of a training phase, and how far a run has come in it."""

import dataclasses
from collections.abc import Mapping

from charm_jax.train.optim import Cycle

# Scores of a validation, and their names in logs and summaries.
VALIDATION_SCORES = {"loss": "loss", "auroc": "macro_auroc", "ap": "macro_ap"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a phase.

    Attributes:
        stage: its stage, the key of its settings and images; a frozen phase shares it.
        freeze_trunk: whether the trunk keeps its weights.
        steps_per_epoch: full batches in an epoch.
        steps_before: steps of the phases before, had none been stopped early.
        cycle: shape of the schedule.
        peak_step: steps before the learning rate falls; early stopping starts to count there.
        monitor: score on validation that decides which epoch is best and when to stop: ``loss``, or
            ``auroc`` or ``ap``, which are macro means.
        patience: epochs without a better score after which training stops.
        min_delta: improvement of the score that resets the patience.
        save_every: steps after which a checkpoint is saved within an epoch.
        save_seconds: time after which one is saved, too; 0 for never.
    """

    phase: str
    stage: str
    freeze_trunk: bool
    epochs: int
    steps_per_epoch: int
    steps_before: int
    batch_size: int
    cycle: Cycle
    peak_step: int
    monitor: str
    patience: int
    min_delta: float
    save_every: int
    save_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of the phase, unless it is stopped early."""
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a phase has come; saved with every checkpoint.

    Attributes:
        epoch: epochs completed and validated.
        best_step: step of the best validation so far.
        best_epoch: its epoch, counted from 1.
        best_scores: its ``loss``, ``auroc`` and ``ap``; the last two are None where no finding has
            both classes.
        reference: monitored score that the patience compares with.
        waited: epochs since it was beaten.
        loss_sum: sum of the training losses of the current epoch.
        stopped_early: whether it ended before its last epoch.
        seconds: spent in the phase, over all restarts.
    """

    phase: str
    epoch: int = 0
    best_step: int | None = None
    best_epoch: int | None = None
    best_scores: Mapping[str, float | None] | None = None
    reference: float | None = None
    waited: int = 0
    loss_sum: float = 0.0
    finished: bool = False
    stopped_early: bool = False
    seconds: float = 0.0

    def after_validation(
        self, plan: Plan, step: int, scores: Mapping[str, float | None]
    ) -> "Progress":
        """Return the progress after an epoch with these ``best_scores``.

        An epoch whose monitored score is None is never better than another.
        """
        new = dataclasses.replace(self, epoch=self.epoch + 1, loss_sum=0.0)
        score, sign = scores[plan.monitor], -1 if plan.monitor == "loss" else 1

        def better(than: float | None, by: float) -> bool:
            return score is not None and (than is None or sign * (score - than) > by)

        if better(self.best_scores and self.best_scores[plan.monitor], 0.0):
            new = dataclasses.replace(
                new, best_step=step, best_epoch=new.epoch, best_scores=dict(scores)
            )
        if better(self.reference, plan.min_delta):
            new = dataclasses.replace(new, reference=score, waited=0)
        elif step > plan.peak_step:
            new = dataclasses.replace(new, waited=self.waited + 1)
        stopped = new.waited >= plan.patience and new.epoch < plan.epochs
        return dataclasses.replace(
            new, stopped_early=stopped, finished=stopped or new.epoch >= plan.epochs
        )
