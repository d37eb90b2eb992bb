"""Set up the training of a phase: its plan, optimizer, compiled step, batches and validation."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from charm_jax.config.settings import PHASES, Settings
from charm_jax.distributed import mesh
from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference.rows import predict_rows
from charm_jax.inference.steps import jit_eval_step
from charm_jax.metrics.classification import summarise
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm
from charm_jax.models.losses import LOSSES
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data
from charm_jax.train import lr_finder, optim
from charm_jax.train.loop import Plan
from charm_jax.train.step import jit_train_step
from data_pipelines.loading import augment, loader
from data_pipelines.loading.resident import ResidentCases


def plan(config: Settings, data: Data, stage: str) -> Plan:
    """The numbers of a stage."""
    part, frozen = config.phases[stage]
    keys, epochs = config.stages[part], config.epochs(part, frozen)
    steps = loader.steps_per_epoch(len(data.split.rows(part, "train")), keys.batch_size)
    return Plan(
        stage=stage,
        part=part,
        freeze_trunk=frozen,
        epochs=epochs,
        steps_per_epoch=steps,
        batch_size=keys.batch_size,
        peak_step=optim.peak_step(epochs * steps),
        patience=keys.patience,
        min_delta=keys.min_delta,
        save_every=config.checkpoint.every_steps,
    )


def optimizer(config: Settings, stage: Plan, peak_lr: float) -> optax.GradientTransformation:
    """AdamW, one cycle over all epochs of the stage; ``peak_lr`` is the head's."""
    keys = config.stages[stage.part]
    return optim.adamw_one_cycle(
        optim.geometric(peak_lr / keys.lr_spread, peak_lr),
        stage.epochs * stage.steps_per_epoch,
        clip_norm=keys.clip_norm,
        accumulate=keys.accumulate,
    )


def range_test_optimizer(config: Settings, stage: Plan) -> optax.GradientTransformation:
    """AdamW for the sweep of a range test, with the stage's spread of rates and its clipping."""
    keys = config.stages[stage.part]
    shares = optim.geometric(1 / keys.lr_spread, 1.0)
    return optim.adamw(lr_finder.rates(), lr_finder.B1, share=shares, clip_norm=keys.clip_norm)


def train_step(
    config: Settings,
    model: Charm | Baseline,
    stage: Plan,
    optimizer: optax.GradientTransformation,
    cases: ResidentCases | None,
) -> Callable:
    """The jitted step of a stage."""
    return jit_train_step(
        cases,
        mesh.mesh(),
        model=model.clone(freeze_trunk=stage.freeze_trunk),
        optimizer=optimizer,
        loss=LOSSES[config.stages[stage.part].loss],
        augment=partial(augment.training_images, channels=config.model.channels),
        momentum_decay=config.model.momentum,
        average_decay=config.model.average,
    )


def training_batches(
    config: Settings, data: Data, stage: Plan, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """The stream of a stage from a step on; its order follows ``config.seed`` and the stage."""
    case_ids = loader.case_id_batches(
        data.split.rows(stage.part, "train"),
        batch_size=stage.batch_size,
        seed=len(PHASES) * config.seed + PHASES.index(stage.stage),
        epochs=stage.epochs,
        batch_key=f"config.stages.{stage.part}.batch_size",
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    if config.data.resident:
        return loader.training_ids(case_ids, start_step)
    return loader.training_batches(
        data.table,
        case_ids,
        image_size=config.data.image_size,
        workers=config.data.processes,
        start_step=start_step,
    )


def validator(
    config: Settings, data: Data, stage: Plan, step: Callable
) -> Callable[[TrainState], tuple[float, float | None]]:
    """A function from a state to the loss and macro AUROC on the stage's validation part."""
    rows = data.split.rows(stage.part, "val")
    labels = data.table.labels[rows]
    loss: Callable[[Array, Array], Array] = LOSSES[config.stages[stage.part].loss]

    def validate(network: TrainState) -> tuple[float, float | None]:
        z = predict_rows(
            network, step, data, rows, stage.batch_size, "validation", resident=config.data.resident
        )["logits"]
        value = float(loss(jnp.asarray(z), jnp.asarray(labels)))
        # Without a finite loss the run stops: ranking logits that are not numbers would raise
        # first.
        if not math.isfinite(value):
            return value, None
        return value, summarise(z, labels, data.table.findings)["macro_auroc"]

    return validate


def eval_step(
    config: Settings, model: Charm | Baseline, cases: ResidentCases | None = None
) -> CompiledStep:
    """Compile the evaluation step that validation runs."""
    prepare = partial(augment.evaluation_images, channels=config.model.channels)
    return jit_eval_step(cases, mesh.mesh(), model=model, prepare=prepare)
