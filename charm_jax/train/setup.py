"""Set up the phases of a run: plan, optimizer, compiled step, batches and validation."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from charm_jax.config import build
from charm_jax.config.settings import PHASES, Settings, StageSettings
from charm_jax.distributed import mesh
from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference.rows import largest_batch, predict_rows
from charm_jax.inference.steps import jit_eval_step
from charm_jax.metrics.classification import auroc_and_ap, mean
from charm_jax.models.create import Network
from charm_jax.models.imbalance import class_counts, needs_counts
from charm_jax.models.losses import SUMMED, Loss
from charm_jax.models.selection import resolve_threshold
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data, resident_cases
from charm_jax.train import optim
from charm_jax.train.plan import Plan
from charm_jax.train.step import PhaseNumbers, PhaseStep, jit_phase_step, jit_train_step
from data_pipelines.loading import augment, loader
from data_pipelines.loading.resident import ResidentCases
from data_pipelines.tables.case_table import rows_of


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run's settings and data, with the network and the images that they lead to."""

    settings: Settings
    data: Data

    @property
    def directory(self) -> Path:
        """Folder of the run."""
        return self.settings.directory

    @property
    def title(self) -> str:
        """Title of the run's figures."""
        table = self.data.table
        simulated = " (SIMULATED images)" if table.simulated else ""
        backbone = self.settings.model.backbone
        return f"{self.settings.name}: {backbone} on {table.source}{simulated}"

    @cached_property
    def model(self) -> Network:
        """The network."""
        findings = len(self.data.table.findings)
        return build.build_network(self.settings, findings, self.data.prevalence)

    @cached_property
    def steps(self) -> dict[Any, CompiledStep]:
        """Training steps that phases share, by what they are compiled for."""
        return {}

    @cached_property
    def cases(self) -> ResidentCases | None:
        """All images on the devices, loaded at first use; None unless they are resident."""
        return resident_cases(self.settings, self.data)


def make_plan(experiment: Experiment, phase: str) -> Plan:
    """Return the plan of a phase."""
    settings = experiment.settings
    stage, frozen = settings.phases[phase]
    keys, (epochs, steps) = settings.stages[stage], _length(experiment, phase)
    cycle = optim.SCHEDULES[keys.schedule][0 if frozen else 1]
    findings = len(experiment.data.table.findings)
    summed = keys.monitor == "loss" and keys.loss in SUMMED
    phases = list(settings.phases)
    before = phases[: phases.index(phase)]
    return Plan(
        phase=phase,
        stage=stage,
        freeze_trunk=frozen and keys.freeze_trunk,
        epochs=epochs,
        steps_per_epoch=steps,
        steps_before=sum(math.prod(_length(experiment, other)) for other in before),
        batch_size=keys.batch_size,
        cycle=cycle,
        peak_step=optim.peak_step(epochs * steps, cycle),
        monitor=keys.monitor,
        patience=keys.patience,
        min_delta=keys.min_delta * (keys.batch_size * findings if summed else 1),
        save_every=settings.checkpoint.every_steps,
        save_seconds=60 * settings.checkpoint.every_minutes,
    )


def _length(experiment: Experiment, phase: str) -> tuple[int, int]:
    """Return the epochs of a phase and the steps of each."""
    settings = experiment.settings
    stage, frozen = settings.phases[phase]
    images = len(experiment.data.split.rows(stage, "train"))
    steps = loader.steps_per_epoch(images, settings.stages[stage].batch_size)
    return settings.epochs(stage, frozen), steps


def make_optimizer(
    experiment: Experiment, plan: Plan, peak_lr: float
) -> optax.GradientTransformation:
    """Return AdamW with one cycle over all epochs of a phase.

    Args:
        peak_lr: of the stage, for the head.
    """
    keys = experiment.settings.stages[plan.stage]
    return optim.adamw_one_cycle(
        optim.geometric(peak_lr / keys.lr_spread, peak_lr),
        plan.steps,
        plan.cycle,
        clip_norm=keys.clip_norm,
        accumulate=keys.accumulate,
    )


def compile_train_step(
    experiment: Experiment, plan: Plan, peak_lr: float, cases: ResidentCases | None = None
) -> PhaseStep:
    """Compile the training step of a phase; phases that differ in numbers alone share a program.

    Args:
        peak_lr: of the stage, for the head.
        cases: shapes in place of resident images.
    """
    settings = experiment.settings
    keys = settings.stages[plan.stage]
    sharing = [
        name for name in settings.stage_names if _links(settings.stages[name]) == _links(keys)
    ]
    own = plan.freeze_trunk, _links(keys)
    step = experiment.steps.get(own) if cases is None else None
    if step is None:
        links = {"clip_norm": keys.clip_norm, "accumulate": keys.accumulate}
        links["share"] = optim.geometric(1 / keys.lr_spread, 1.0)
        step = jit_phase_step(
            cases or experiment.cases,
            mesh.mesh(),
            make_optimizer=lambda schedule: optim.adamw(schedule.rate, schedule.b1, **links),
            losses=[_losses(experiment, name, train=True) for name in sharing],
            **_parts(experiment, plan),
        )
        if cases is None:
            experiment.steps[own] = step
    schedule = optim.one_cycle(peak_lr, plan.steps, plan.cycle, keys.accumulate)
    numbers = PhaseNumbers(
        schedule,
        sharing.index(plan.stage),
        plan.steps_before,
        1 - settings.model.momentum,
        resolve_threshold(settings.model.rarity, settings.model.rarity_threshold),
    )
    return PhaseStep(step, numbers, mesh.mesh())


def _links(keys: StageSettings) -> tuple[int | float, ...]:
    """Return what of a stage's settings is compiled into its step, beside its loss."""
    return keys.lr_spread, keys.clip_norm, keys.accumulate, keys.mixup


def compile_test_step(
    experiment: Experiment, plan: Plan, optimizer: optax.GradientTransformation
) -> CompiledStep:
    """Compile a training step of a phase with another optimizer, for a range test."""
    loss, vote_loss = _losses(experiment, plan.stage, train=True)
    return jit_train_step(
        experiment.cases,
        mesh.mesh(),
        optimizer=optimizer,
        loss=loss,
        vote_loss=vote_loss,
        averaged_steps=plan.steps_before,
        momentum_step=1 - experiment.settings.model.momentum,
        **_parts(experiment, plan),
    )


def _parts(experiment: Experiment, plan: Plan) -> dict[str, Any]:
    """Return what the training steps of a phase have in common."""
    settings = experiment.settings
    return {
        "model": experiment.model.clone(freeze_trunk=plan.freeze_trunk),
        "augment": partial(
            augment.training_images,
            channels=settings.model.channels,
            input_range=settings.model.input_range,
            changes=settings.augment,
        ),
        "mixup_alpha": settings.stages[plan.stage].mixup,
        "average_decay": settings.model.average,
    }


def _losses(experiment: Experiment, stage: str, *, train: bool) -> tuple[Loss, Loss]:
    """Return the losses of a stage, whose numbers are those of its training split."""
    keys, data = experiment.settings.stages[stage], experiment.data
    if not needs_counts(keys.loss, keys.class_weights):
        return build.build_losses(keys, None, train=train)
    labels = data.table.labels[data.split.rows(stage, "train")]
    return build.build_losses(keys, class_counts(labels), train=train)


def compile_eval_step(experiment: Experiment) -> CompiledStep:
    """Compile the evaluation step that validation runs."""
    keys = experiment.settings.model
    prepare = partial(
        augment.evaluation_images, channels=keys.channels, input_range=keys.input_range
    )
    return jit_eval_step(experiment.cases, mesh.mesh(), model=experiment.model, prepare=prepare)


def training_batches(
    experiment: Experiment, plan: Plan, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Stream a phase's batches from a step on, in the order that seed and phase give.

    Source: class-balanced sampling as in Kang et al., arXiv 1910.09217, equation 1 with q = 0;
    class-aware sampling as in Shen et al., arXiv 1512.05830.
    Differs: the images without any finding are one more class.
    """
    settings, data = experiment.settings, experiment.data
    rows = data.split.rows(plan.stage, "train")
    sampling = settings.stages[plan.stage].sampling
    sets: list[np.ndarray] = []
    if settings.data.equal_sets:
        sets = [np.intersect1d(rows, rows_of(data.table, name)) for name in data.table.sets]
    elif sampling != "uniform":
        sets = loader.rows_by_finding(data.table.labels, rows)
    case_ids = loader.case_id_batches(
        rows,
        batch_size=plan.batch_size,
        seed=len(PHASES) * settings.seed + PHASES.index(plan.phase),
        epochs=plan.epochs,
        batch_key=f"config.stages.{plan.stage}.batch_size",
        process=jax.process_index(),
        processes=jax.process_count(),
        sets=sets,
        at_random=sampling == "class_balanced",
    )
    if settings.data.resident:
        return loader.training_ids(case_ids, start_step)
    return loader.training_batches(
        data.table,
        case_ids,
        image_size=settings.data.image_size,
        workers=settings.data.processes,
        start_step=start_step,
    )


def validator(
    experiment: Experiment, plan: Plan, step: Callable
) -> Callable[[TrainState], dict[str, float | None]]:
    """Return a function from a state to its scores on the validation split.

    The scores are ``loss`` (of a batch, if it is a sum), and the macro means ``auroc`` and ``ap``.
    """
    settings, data = experiment.settings, experiment.data
    rows, name = data.split.rows(plan.stage, "val"), settings.stages[plan.stage].loss
    labels, (loss, _) = data.table.labels[rows], _losses(experiment, plan.stage, train=False)
    share = plan.batch_size / len(rows) if name in SUMMED else 1.0

    def validate(network: TrainState) -> dict[str, float | None]:
        resident = settings.data.resident
        z = predict_rows(
            network, step, data, rows, largest_batch(settings), "validation", resident=resident
        )["logits"]
        scores = {"loss": share * float(loss(jnp.asarray(z), jnp.asarray(labels)))}
        if not math.isfinite(scores["loss"]):  # the run stops; the others would raise before that
            return scores
        by_finding = auroc_and_ap(z, labels, data.table.findings).values()
        for short, metric in (("auroc", "auroc"), ("ap", "average_precision")):
            scores[short] = mean(entry[metric] for entry in by_finding)
        return scores

    return validate
