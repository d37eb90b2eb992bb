"""A checked config as typed, immutable values: all that code below the commands sees of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.loading.augment import Augmentation

# In the order of training. The frozen phase of a stage has its own cycle, optimizer, patience and
# checkpoints.
PHASES = ("bce_frozen", "bce", "focal_frozen", "focal")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """``config.data``: where images come from and how they are divided."""

    source: str
    dir: str
    csv: str
    split: str
    split_seed: int
    image_size: int
    missing: str
    max_unreadable: float
    value_range: str
    uncertain: str
    views: str
    equal_sets: bool
    resident: bool
    processes: int
    options: Mapping[str, int]  # the keys of ``config.data.<source>``, which that source alone has


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """``config.model``: the network and where its weights begin."""

    backbone: str
    init_from: str
    init_key: str
    input_range: str
    charm: bool
    memory: str
    channels: int
    stochastic_depth: float
    fusion: bool
    momentum_branch: bool
    momentum: float
    retrieval_k: int
    rarity: str
    rarity_threshold: float
    bank_size: int
    vote_weight: float
    vote_temperature: float
    vote_training_temperature: float
    vote_loss_share: float
    average: float


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """``config.stages.<stage>``: images, loss, epochs and optimizer of a stage."""

    images: str
    loss: str
    class_weights: str
    label_smoothing: float
    mixup: float
    sampling: str
    epochs: int
    frozen_epochs: int
    freeze_trunk: bool
    schedule: str
    batch_size: int
    peak_lr: float
    lr_spread: float
    find_lr: bool
    clip_norm: float
    accumulate: int
    monitor: str
    patience: int
    min_delta: float


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """``config.checkpoint``: how often to save and how many to keep."""

    every_steps: int
    every_minutes: float
    keep: int


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """``config.log``: how often to log and where, and how many steps to profile."""

    every_steps: int
    trackers: str
    trace_steps: int

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers, each once."""
        return tuple(dict.fromkeys(filter(None, self.trackers.split(","))))


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole config; the fields have the names of its keys.

    Attributes:
        raw: the config as a nested dict, ready for ``config.json``.
    """

    name: str
    preset: str
    runs_dir: str
    seed: int
    resume: str
    deterministic: bool
    refit: str
    data: DataSettings
    augment: Augmentation
    model: ModelSettings
    stages: Mapping[str, StageSettings]
    checkpoint: CheckpointSettings
    log: LogSettings
    raw: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def directory(self) -> Path:
        """Folder of the run."""
        return Path(self.runs_dir) / self.name

    @property
    def stage_names(self) -> list[str]:
        """Stages with at least one epoch, in the order of training."""
        return [name for name, stage in self.stages.items() if stage.frozen_epochs + stage.epochs]

    @property
    def phases(self) -> dict[str, tuple[str, bool]]:
        """Phases with at least one epoch: name -> (stage, whether its trunk is frozen)."""
        split = {name: (name.removesuffix("_frozen"), name.endswith("_frozen")) for name in PHASES}
        return {phase: split[phase] for phase in PHASES if self.epochs(*split[phase])}

    @property
    def told_by_weights(self) -> dict[str, Any]:
        """Values that no shape proves and a weight file may tell, by the names of its card."""
        return {
            "image_size": self.data.image_size,
            "input_range": self.model.input_range,
            "retrieval_k": self.model.retrieval_k,
        }

    def replace(self, **values: Any) -> "Settings":
        """Return settings with other values of keys, ``model_channels`` for ``model.channels``."""
        raw = {name: dict(v) if isinstance(v, Mapping) else v for name, v in self.raw.items()}
        for key, value in values.items():
            group, name = key.split("_", 1)
            raw[group][name] = value
        return from_dict(raw)

    def epochs(self, stage: str, frozen: bool) -> int:
        """Epochs of a stage, in its frozen phase or after it."""
        return self.stages[stage].frozen_epochs if frozen else self.stages[stage].epochs


def from_dict(raw: Mapping[str, Any]) -> Settings:
    """Return the settings that a nested dict of all keys holds."""
    data, options = raw["data"], raw["data"].get(raw["data"]["source"], {})
    data = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    return Settings(
        **{key: value for key, value in raw.items() if not isinstance(value, Mapping)},
        data=DataSettings(**data, options=options if isinstance(options, Mapping) else {}),
        augment=Augmentation(**raw["augment"]),
        model=ModelSettings(**raw["model"]),
        stages={name: StageSettings(**stage) for name, stage in raw["stages"].items()},
        checkpoint=CheckpointSettings(**raw["checkpoint"]),
        log=LogSettings(**raw["log"]),
        raw=raw,
    )
