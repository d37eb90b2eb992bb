"""From a config to the parts of a run: data, network, plans. Below this, no code sees a config."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array
from ml_collections import ConfigDict
from tqdm import tqdm

from charm_jax import memory_bank, optim, range_test, state
from charm_jax.backbones import BACKBONES
from charm_jax.evaluation import logits_of
from charm_jax.fusion import MultiScaleAttention
from charm_jax.losses import LOSSES
from charm_jax.metrics import summarise
from charm_jax.model import Charm, Head
from charm_jax.plain import Plain
from charm_jax.stages import STAGES, Plan
from charm_jax.state import TrainState
from charm_jax.steps import jit_eval_step, jit_train_step
from data_pipelines import augment, loader, quarantine, resident, sources, splits
from data_pipelines.case_table import CaseTable
from data_pipelines.errors import InputError
from data_pipelines.resident import ResidentCases


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
        table: of the source.
        split: parts, without bad images.
        quarantined: (image, reason) of those.
        refused: how many of those should have been usable: all but files that are absent with
            ``config.data.missing=skip``.
        prevalence: share of the whole training part, abnormal or not, with each finding, among the
            images where it is known.
        notes: lines for the user on these data.
    """

    table: CaseTable
    split: splits.Split
    quarantined: list[tuple[str, str]]
    refused: int
    prevalence: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def seen(self) -> np.ndarray:
        """Ids of the images that training or validation sees."""
        parts = self.split.stages.values()
        return np.unique(np.concatenate([p[name] for p in parts for name in ("train", "val")]))


def load_data(config: ConfigDict) -> Data:
    """Reads the source's table, divides it and looks at the image files.

    Raises:
        InputError: whatever is wrong with the data, or a batch that a part cannot fill.
    """
    data = config.data
    options = data.get(data.source)
    options = options if isinstance(options, ConfigDict) else {}
    table = sources.load(data.source, Path(data.dir), data.csv, **options)
    table.store.check_size(data.image_size)
    images, note = _stage_images(config, table)
    split = splits.make_split(table, data.split, images, data.split_seed)
    split, quarantined = quarantine.apply_policy(table, split, data.missing)
    absent = sum(reason == quarantine.ABSENT for _, reason in quarantined)
    return Data(
        table=table,
        split=split,
        quarantined=quarantined,
        refused=len(quarantined) - (absent if data.missing == "skip" else 0),
        prevalence=_prevalence(table, data, quarantined),
        notes=(*(f"warning: {warning}" for warning in table.warnings), *note),
    )


def _stage_images(config: ConfigDict, table: CaseTable) -> tuple[dict[str, str], list[str]]:
    """The kind of images of each stage, and a note where it is not the config's."""
    images = {name: config.stages[name].images for name in stage_names(config)}
    abnormal = [name for name, kind in images.items() if kind == "abnormal"]
    # With one finding the abnormal images are of one class, and nothing could be learned of it.
    if len(table.findings) > 1 or not abnormal:
        return images, []
    note = (
        f"The only finding is {table.findings[0]}, which every abnormal image has: stage "
        f"{abnormal[0]} uses all images."
    )
    return dict.fromkeys(images, "all"), [note]


def _prevalence(
    table: CaseTable, data: ConfigDict, quarantined: list[tuple[str, str]]
) -> tuple[float, ...]:
    whole = splits.make_split(table, data.split, {"all": "all"}, data.split_seed)
    rows = whole.stages["all"]["train"]
    rows = rows[~np.isin(table.images[rows], [name for name, _ in quarantined])]
    positive, known = (table.labels[rows] == 1).sum(axis=0), (table.labels[rows] >= 0).sum(axis=0)
    return tuple(float(share) for share in positive / np.maximum(known, 1))


def stage_names(config: ConfigDict) -> list[str]:
    """The keys of ``config.stages`` that have an epoch, in the order of training."""
    return list(dict.fromkeys(part for part, _ in _phases(config).values()))


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


def check_batches(config: ConfigDict, data: Data) -> None:
    """Looks whether each stage can fill a batch and has images to validate on.

    Raises:
        InputError: with the key or part.
    """
    for name in stage_names(config):
        n, batch = len(data.split.rows(name, "train")), config.stages[name].batch_size
        data.split.rows(name, "val")
        if batch > n:
            raise InputError(
                f"config.stages.{name}.batch_size is {batch} but the training part has {n} "
                f"images: set it to at most {n}."
            )


def describe_split(config: ConfigDict, data: Data) -> dict[str, Any]:
    """The content of ``split.json``: rule, leak, counts and hashes of every part."""
    stages = {
        name: {part: splits.part_summary(data.table, rows) for part, rows in parts.items()}
        for name, parts in data.split.stages.items()
    }
    for name, parts in stages.items():
        batch = config.stages[name].batch_size
        parts["steps_per_epoch"] = loader.steps_per_epoch(parts["train"]["images"], batch)
    present = int(data.table.present.sum())
    return {
        "source": data.table.source,
        "simulated": data.table.simulated,
        "findings": list(data.table.findings),
        "patients_known": data.table.patients_known,
        "rule": data.split.rule,
        "split_seed": data.split.split_seed,
        "leak_images": data.split.leak_images,
        "leak_of": data.split.leak_of,
        "images_present": present,
        "images_missing": len(data.table.images) - present,
        "refused": data.refused,
        "parameters": parameters(build_model(config, data), config),
        "stages": stages,
    }


def describe_leak(data: Data) -> str:
    """One sentence on the patients that the parts share."""
    split = data.split
    if not data.table.patients_known:
        return "The source does not tell patients apart: whether parts share any is not known."
    if split.rule in splits.DISJOINT:
        return "No patient is in two parts."
    return (
        f"LEAK: {split.leak_images:,} of the {split.leak_of:,} abnormal test images of the last "
        "stage belong to patients that a stage trained or validated on "
        f"(rule '{split.rule}'); validation images share patients with training, too."
    )


def compute_type() -> DTypeLike:
    """The type of activations: bfloat16 on a GPU, float32 elsewhere."""
    return jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32


def build_model(config: ConfigDict, data: Data) -> Charm | Plain:
    """The network; its parameters are float32 everywhere."""
    dtype = compute_type()
    backbone = BACKBONES[config.model.backbone]
    keys, findings = config.model, len(data.table.findings)
    trunk = backbone.trunk(drop_rate=keys.stochastic_depth, dtype=dtype)
    expansion = backbone.expansion(dtype=dtype)
    if not keys.charm:
        return Plain(trunk, expansion, backbone.final, findings)
    return Charm(
        trunk=trunk,
        expansion=expansion,
        fusion=MultiScaleAttention(dtype),
        head=Head(findings),
        retrieval_k=keys.retrieval_k,
        select=partial(
            memory_bank.select,
            rule=keys.rarity,
            threshold=keys.rarity_threshold,
            prevalence=data.prevalence,
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
        return state.create(model, key, images, bank, averaged=keys.average > 0)

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


def resident_cases(config: ConfigDict, data: Data) -> ResidentCases | None:
    """All that training and validation see, on the device, if ``config.data.resident`` says so."""
    if not config.data.resident:
        return None
    return resident.load(data.table, data.seen, config.data.image_size)


def range_test_optimizer(config: ConfigDict, stage: Plan) -> optax.GradientTransformation:
    """AdamW for the sweep of a range test, with the stage's spread of rates and its clipping."""
    keys = config.stages[stage.part]
    shares = optim.geometric(1 / keys.lr_spread, 1.0)
    return optim.adamw(range_test.rates(), range_test.B1, share=shares, clip_norm=keys.clip_norm)


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
    return jit_eval_step(cases, model=model, prepare=prepare)


def training_batches(
    config: ConfigDict, data: Data, stage: Plan, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """The stream of a stage from a step on; its order follows ``config.seed`` and the stage."""
    case_ids = loader.case_id_batches(
        data.split.rows(stage.part, "train"),
        batch_size=stage.batch_size,
        seed=len(STAGES) * config.seed + STAGES.index(stage.stage),
        epochs=stage.epochs,
        batch_key=f"config.stages.{stage.part}.batch_size",
    )
    if config.data.resident:
        return loader.training_ids(case_ids, start_step)
    return loader.training_batches(
        data.table,
        case_ids,
        image_size=config.data.image_size,
        processes=config.data.processes,
        start_step=start_step,
    )


def evaluation_batches(
    config: ConfigDict, data: Data, rows: np.ndarray, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """The given rows from their files, once and in order."""
    return loader.evaluation_batches(
        data.table,
        rows,
        image_size=config.data.image_size,
        batch_size=batch_size,
        processes=config.data.processes,
    )


def logits(
    batches: Iterator[dict[str, np.ndarray]],
    rows: np.ndarray,
    step: Callable,
    network: TrainState,
    title: str,
) -> np.ndarray:
    """``[n, F]`` logits of the rows that the batches hold, with a progress bar."""
    with tqdm(total=len(rows), desc=title, unit=" images", dynamic_ncols=True, leave=False) as bar:
        return logits_of(network, batches, step, rows, bar.update)


def validator(
    config: ConfigDict, data: Data, stage: Plan, step: Callable
) -> Callable[[TrainState], tuple[float, float | None]]:
    """A function from a state to the loss and macro AUROC on the stage's validation part."""
    rows = data.split.rows(stage.part, "val")
    labels = data.table.labels[rows]
    loss: Callable[[Array, Array], Array] = LOSSES[config.stages[stage.part].loss]

    def validate(network: TrainState) -> tuple[float, float | None]:
        if config.data.resident:
            batches = loader.evaluation_ids(rows, batch_size=stage.batch_size)
        else:
            batches = evaluation_batches(config, data, rows, stage.batch_size)
        z = logits(batches, rows, step, network, "validation")
        value = float(loss(jnp.asarray(z), jnp.asarray(labels)))
        # Without a finite loss the run stops: ranking logits that are not numbers would raise
        # first.
        if not math.isfinite(value):
            return value, None
        return value, summarise(z, labels, data.table.findings)["macro_auroc"]

    return validate
