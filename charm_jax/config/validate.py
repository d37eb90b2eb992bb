"""Check the values of a config before any data are read."""

import functools
import operator

from charm_jax.config import recipe
from charm_jax.config.settings import Settings
from charm_jax.models.imbalance import needs_counts, unshifted
from charm_jax.models.losses import ENTRY_LOSSES
from charm_jax.models.selection import resolve_threshold
from data_pipelines.errors import InputError, did_you_mean


def check(settings: Settings) -> None:
    """Check every value that can be judged without data.

    Raises:
        InputError: with the key, its value and the valid values.
    """
    for path, key in recipe.KEYS.items():
        value = functools.reduce(operator.getitem, path.split("."), settings.raw)
        shown = "empty" if value == "" else repr(value)
        if key.choices and value not in key.choices:
            known = filter(None, key.choices)
            raise InputError(f"config.{path} is {shown}: {did_you_mean(value, known)}")
        if key.valid and not key.valid[1](value):
            raise InputError(f"config.{path} is {shown}: set it to {key.valid[0]}.")
    try:
        resolve_threshold(settings.model.rarity, settings.model.rarity_threshold)
    except ValueError as error:
        raise InputError(f"config.model.rarity_threshold: {error}.") from None
    if not settings.stage_names:
        raise InputError("config.stages: no stage has an epoch: set config.stages.bce.epochs.")
    _check_imbalance(settings)


def _check_imbalance(settings: Settings) -> None:
    """Check that the remedies for rare findings can be combined.

    Raises:
        InputError: with the keys.
    """
    for name, keys in settings.stages.items():
        if keys.sampling != "uniform" and settings.data.equal_sets:
            raise InputError(
                f"config.stages.{name}.sampling is {keys.sampling!r} and config.data.equal_sets "
                "is True, which both choose the images: set one to its default."
            )
        by_entry = keys.class_weights != "none" or keys.label_smoothing or keys.mixup
        if by_entry and unshifted(keys.loss) not in ENTRY_LOSSES:
            raise InputError(
                f"config.stages.{name}.loss {keys.loss!r} is not in ENTRY_LOSSES, which its "
                "class_weights, label_smoothing and mixup need: add it, or leave them out."
            )
    if settings.refit != "none":
        last = settings.stage_names[-1]
        keys = settings.stages[last]
        if needs_counts(keys.loss, keys.class_weights):
            raise InputError(
                f"config.refit is {settings.refit!r}, which would fit the last layer without the "
                f"class weights or shifts of stage {last}: set config.refit=none."
            )
