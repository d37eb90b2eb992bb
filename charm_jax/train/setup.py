"""Set up the phases of a run: plan, optimizer, compiled step, batches and validation."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from charm_jax.config import build
from charm_jax.config.settings import PHASES, Settings
from charm_jax.distributed import mesh
from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference.rows import largest_batch, predict_rows
from charm_jax.inference.steps import jit_eval_step
from charm_jax.metrics.classification import auroc_and_ap, mean
from charm_jax.models.create import Network
from charm_jax.models.losses import LOSSES, SUMMED
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data, resident_cases
from charm_jax.train import optim
from charm_jax.train.plan import Plan
from charm_jax.train.step import jit_train_step
from data_pipelines.loading import augment, loader
from data_pipelines.loading.resident import ResidentCases


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
    experiment: Experiment,
    plan: Plan,
    optimizer: optax.GradientTransformation,
    cases: ResidentCases | None = None,
) -> CompiledStep:
    """Compile the training step of a phase; ``cases`` are shapes in place of resident images."""
    settings = experiment.settings
    return jit_train_step(
        cases or experiment.cases,
        mesh.mesh(),
        model=experiment.model.clone(freeze_trunk=plan.freeze_trunk),
        optimizer=optimizer,
        loss=LOSSES[settings.stages[plan.stage].loss],
        augment=partial(
            augment.training_images,
            channels=settings.model.channels,
            input_range=settings.model.input_range,
        ),
        momentum_decay=settings.model.momentum,
        average_decay=settings.model.average,
        averaged_steps=plan.steps_before,
    )


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
    """Stream a phase's batches from a step on, in the order that seed and phase give."""
    settings, data = experiment.settings, experiment.data
    case_ids = loader.case_id_batches(
        data.split.rows(plan.stage, "train"),
        batch_size=plan.batch_size,
        seed=len(PHASES) * settings.seed + PHASES.index(plan.phase),
        epochs=plan.epochs,
        batch_key=f"config.stages.{plan.stage}.batch_size",
        process=jax.process_index(),
        processes=jax.process_count(),
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
    labels, loss = data.table.labels[rows], LOSSES[name]
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
