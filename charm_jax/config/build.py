"""From a config to network, plans and steps. Below this, no code sees a config."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array
from ml_collections import ConfigDict
from tqdm import tqdm

from charm_jax.distributed import mesh, processes
from charm_jax.inference.evaluate import evaluate
from charm_jax.metrics.classification import summarise
from charm_jax.models import memory_bank, state
from charm_jax.models.attention import MultiScaleAttention
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.baseline import Plain
from charm_jax.models.charm import Charm, Head
from charm_jax.models.losses import LOSSES
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data, evaluation_batches, stage_names
from charm_jax.train import lr_finder, optim
from charm_jax.train.loop import STAGES, Plan
from charm_jax.train.step import jit_eval_step, jit_train_step
from data_pipelines.loading import augment, loader
from data_pipelines.loading.resident import ResidentCases


def phases(config: ConfigDict) -> list[str]:
    """The members of ``STAGES`` that have an epoch: the above, frozen phases apart."""
    return list(_phases(config))


def _phases(config: ConfigDict) -> dict[str, tuple[str, bool]]:
    """For each phase its stage's key, and whether the trunk is frozen."""
    split = {name: (name.removesuffix("_frozen"), name.endswith("_frozen")) for name in STAGES}
    return {
        name: (part, frozen)
        for name, (part, frozen) in split.items()
        if _epochs(config, part, frozen)
    }


def _epochs(config: ConfigDict, part: str, frozen: bool) -> int:
    return config.stages[part]["frozen_epochs" if frozen else "epochs"]


def compute_type() -> DTypeLike:
    """The type of activations: bfloat16 on a GPU, float32 elsewhere."""
    return jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32


def build_model(config: ConfigDict, data: Data) -> Charm | Plain:
    """The network for some data; its parameters are float32 everywhere."""
    return build_network(config, len(data.table.findings), data.prevalence)


def build_network(
    config: ConfigDict, findings: int, prevalence: tuple[float, ...]
) -> Charm | Plain:
    """The network for a number of findings, each with its prevalence in training."""
    dtype = compute_type()
    backbone = BACKBONES[config.model.backbone]
    keys = config.model
    trunk = backbone.trunk(drop_rate=keys.stochastic_depth, dtype=dtype)
    expansion = backbone.expansion(dtype=dtype)
    if not keys.charm:
        return Plain(trunk, expansion, backbone.final, findings)
    return Charm(
        trunk=trunk,
        expansion=expansion,
        fusion=MultiScaleAttention(dtype) if keys.fusion else None,
        head=Head(findings),
        retrieval_k=keys.retrieval_k,
        select=partial(
            memory_bank.select,
            rule=keys.rarity,
            threshold=keys.rarity_threshold,
            prevalence=prevalence,
        ),
    )


def frozen_as(model: Charm | Plain, stage: Plan) -> Charm | Plain:
    """The network as a stage trains it."""
    return model.clone(freeze_trunk=stage.freeze_trunk)


def new_state(model: Charm | Plain, config: ConfigDict) -> TrainState:
    """A state before the first stage."""
    # It runs once: optimising hundreds of random draws would take longer than the draws.
    options = {"xla_backend_optimization_level": 0}
    create = jax.jit(_creation(model, config), compiler_options=options)
    return create(jax.random.fold_in(jax.random.key(config.seed), 0))


def state_shapes(model: Charm | Plain, config: ConfigDict) -> TrainState:
    """The same as shapes and types."""
    return jax.eval_shape(_creation(model, config), jax.random.key(0))


def _creation(model: Charm | Plain, config: ConfigDict) -> Callable[[Array], TrainState]:
    side, keys = config.data.image_size, config.model

    def create(key: Array) -> TrainState:
        bank = None
        if keys.charm:
            dim = BACKBONES[keys.backbone].feature_dim
            bank = memory_bank.empty(keys.bank_size, dim, model.head.num_findings)
        images = jnp.zeros((1, side, side, keys.channels))
        return state.create(
            model,
            key,
            images,
            bank,
            momentum_branch=keys.momentum_branch,
            averaged=keys.average > 0,
        )

    return create


def parameters(model: Charm | Plain, config: ConfigDict) -> int:
    """Numbers that training changes by gradients."""
    params = state_shapes(model, config).params
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def plan(config: ConfigDict, data: Data, stage: str) -> Plan:
    """The numbers of a stage."""
    part, frozen = _phases(config)[stage]
    keys, epochs = config.stages[part], _epochs(config, part, frozen)
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


def optimizer(config: ConfigDict, stage: Plan, peak_lr: float) -> optax.GradientTransformation:
    """AdamW, one cycle over all epochs of the stage; ``peak_lr`` is the head's."""
    keys = config.stages[stage.part]
    return optim.adamw_one_cycle(
        optim.geometric(peak_lr / keys.lr_spread, peak_lr),
        stage.epochs * stage.steps_per_epoch,
        clip_norm=keys.clip_norm,
        accumulate=keys.accumulate,
    )


def range_test_optimizer(config: ConfigDict, stage: Plan) -> optax.GradientTransformation:
    """AdamW for the sweep of a range test, with the stage's spread of rates and its clipping."""
    keys = config.stages[stage.part]
    shares = optim.geometric(1 / keys.lr_spread, 1.0)
    return optim.adamw(lr_finder.rates(), lr_finder.B1, share=shares, clip_norm=keys.clip_norm)


def train_step(
    config: ConfigDict,
    model: Charm | Plain,
    stage: Plan,
    optimizer: optax.GradientTransformation,
    cases: ResidentCases | None,
) -> Callable:
    """The jitted step of a stage."""
    return jit_train_step(
        cases,
        mesh.mesh(),
        model=frozen_as(model, stage),
        optimizer=optimizer,
        loss=LOSSES[config.stages[stage.part].loss],
        augment=partial(augment.training_images, channels=config.model.channels),
        momentum_decay=config.model.momentum,
        average_decay=config.model.average,
    )


def eval_step(
    config: ConfigDict, model: Charm | Plain, cases: ResidentCases | None = None
) -> Callable:
    """The jitted evaluation step."""
    prepare = partial(augment.evaluation_images, channels=config.model.channels)
    return jit_eval_step(cases, mesh.mesh(), model=model, prepare=prepare)


def evaluation_batch_size(config: ConfigDict) -> int:
    """The largest batch of training, or a little more where the devices could not share it."""
    batch = max(config.stages[stage].batch_size for stage in stage_names(config))
    return batch + -batch % jax.device_count()


def evaluated(
    batches: Iterator[dict[str, np.ndarray]],
    rows: np.ndarray,
    step: Callable,
    network: TrainState,
    title: str,
) -> dict[str, np.ndarray]:
    """What ``eval_step`` says of the rows that the batches hold, with a progress bar."""
    network = mesh.replicated(network, mesh.mesh())
    with tqdm(
        total=len(rows),
        desc=title,
        unit=" images",
        dynamic_ncols=True,
        leave=False,
        disable=not processes.is_first(),
    ) as bar:
        return evaluate(network, batches, step, rows, bar.update)


def validator(
    config: ConfigDict, data: Data, stage: Plan, step: Callable
) -> Callable[[TrainState], tuple[float, float | None]]:
    """A function from a state to the loss and macro AUROC on the stage's validation part."""
    rows = data.split.rows(stage.part, "val")
    labels = data.table.labels[rows]
    loss: Callable[[Array, Array], Array] = LOSSES[config.stages[stage.part].loss]

    def validate(network: TrainState) -> tuple[float, float | None]:
        batches = evaluation_batches(
            config, data, rows, stage.batch_size, resident=config.data.resident
        )
        z = evaluated(batches, rows, step, network, "validation")["logits"]
        value = float(loss(jnp.asarray(z), jnp.asarray(labels)))
        # Without a finite loss the run stops: ranking logits that are not numbers would raise
        # first.
        if not math.isfinite(value):
            return value, None
        return value, summarise(z, labels, data.table.findings)["macro_auroc"]

    return validate
