"""Check the values of a config before any data are read."""

import functools
import operator

from charm_jax.config import recipe
from charm_jax.config.settings import Settings
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
