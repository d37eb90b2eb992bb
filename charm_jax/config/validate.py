"""What can be said of a config before any data are read."""

import math
import re
from collections.abc import Iterable

from charm_jax.config.settings import ModelSettings, Settings, StageSettings
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.losses import LOSSES
from charm_jax.models.selection import SELECTION_RULES, resolve_threshold
from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.tables import splits


def check(config: Settings) -> None:
    """Check every value that can be judged without data.

    Raises:
        InputError: with the key, its value and what it may be.
    """
    _check_run(config)
    _check_model(config.model)
    _one_of("config.resume", config.resume, ("auto", "force"))
    _at_least("config.data.image_size", config.data.image_size, 32)
    _at_least("config.checkpoint.every_steps", config.checkpoint.every_steps, 1)
    minutes = config.checkpoint.every_minutes
    if not 0 <= minutes < math.inf:
        raise InputError(
            f"config.checkpoint.every_minutes is {minutes}: set it above 0, or to 0 for never."
        )
    _at_least("config.checkpoint.keep", config.checkpoint.keep, 1)
    _at_least("config.log.every_steps", config.log.every_steps, 1)
    _at_least("config.log.trace_steps", config.log.trace_steps, 0)
    for name, stage in config.stages.items():
        _check_stage(f"config.stages.{name}", stage)
    if not any(stage.epochs + stage.frozen_epochs for stage in config.stages.values()):
        raise InputError("config.stages: no stage has an epoch: set config.stages.bce.epochs.")


def _check_run(config: Settings) -> None:
    if not re.fullmatch(r"[\w.+-]+", config.name) or not config.name.strip("."):
        raise InputError(
            f"config.name is {config.name!r}: set it to a folder's name, made of "
            "letters, digits and . + - _."
        )
    for key, seed in (("seed", config.seed), ("data.split_seed", config.data.split_seed)):
        if not 0 <= seed < 2**31:
            raise InputError(f"config.{key} is {seed}: set it from 0 to {2**31 - 1}.")
    _at_least("config.data.processes", config.data.processes, 0)


def _check_model(model: ModelSettings) -> None:
    _one_of("config.model.backbone", model.backbone, BACKBONES)
    if not model.init_from.strip():
        raise InputError(
            "config.model.init_from is empty: set it to random, imagenet or the path of a weight "
            "file."
        )
    _one_of("config.model.rarity", model.rarity, SELECTION_RULES)
    try:
        resolve_threshold(model.rarity, model.rarity_threshold)
    except ValueError as error:
        raise InputError(f"config.model.rarity_threshold: {error}.") from None
    if model.channels not in (1, 3):
        raise InputError(f"config.model.channels is {model.channels}: set it to 3 or 1.")
    _at_least("config.model.retrieval_k", model.retrieval_k, 0)
    _at_least("config.model.bank_size", model.bank_size, 1)
    if not 0 <= model.momentum <= 1:
        raise InputError(f"config.model.momentum is {model.momentum}: set it from 0 to 1.")
    if not 0 <= model.average < 1:
        raise InputError(f"config.model.average is {model.average}: set it from 0 to below 1.")
    if not 0 <= model.stochastic_depth < 1:
        raise InputError(
            f"config.model.stochastic_depth is {model.stochastic_depth}: set it from 0 to below 1."
        )


def _check_stage(key: str, stage: StageSettings) -> None:
    _one_of(f"{key}.images", stage.images, splits.IMAGES)
    _one_of(f"{key}.loss", stage.loss, LOSSES)
    _at_least(f"{key}.epochs", stage.epochs, 0)
    _at_least(f"{key}.batch_size", stage.batch_size, 2)
    _at_least(f"{key}.patience", stage.patience, 1)
    if not 0 < stage.peak_lr < math.inf:
        raise InputError(f"{key}.peak_lr is {stage.peak_lr}: set it above 0.")
    if not 0 <= stage.min_delta < math.inf:
        raise InputError(f"{key}.min_delta is {stage.min_delta}: set it to 0 or more.")
    _at_least(f"{key}.frozen_epochs", stage.frozen_epochs, 0)
    _at_least(f"{key}.accumulate", stage.accumulate, 1)
    if not 0 <= stage.clip_norm < math.inf:
        raise InputError(f"{key}.clip_norm is {stage.clip_norm}: set it above 0, or to 0 for none.")
    if not 0 < stage.lr_spread < math.inf:
        raise InputError(f"{key}.lr_spread is {stage.lr_spread}: set it above 0, such as 4.")


def _one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise InputError(f"{key} is {value!r}: {did_you_mean(value, known)}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{key} is {value}: set it to {least} or more.")
