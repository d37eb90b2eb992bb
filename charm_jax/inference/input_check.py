"""Compare a network's running statistics with those of real images."""

import contextlib
import functools
import operator
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from charm_jax.config.settings import ModelSettings
from charm_jax.models.create import Network
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data
from data_pipelines.loading import augment, loader

_IMAGES = 32
# ImageNet's statistics fit chest X-rays to 0.9 times the spread and 0.3 standard deviations; fed
# with another usual range they miss it by 5 times or more than one.
_SPREAD, _SHIFT = 3.0, 1.0


class _Reached(Exception):
    """Stop a forward pass at its first batch norm."""


def check_inputs(
    network: Network,
    state: TrainState,
    data: Data,
    rows: np.ndarray,
    keys: ModelSettings,
) -> list[str]:
    """Return a warning where weights were trained on inputs of another range.

    The inputs of the first batch norm are compared with its running statistics, over up to 32
    images: the spread, and how far the means lie off. What was never trained is not judged.

    Args:
        network: the module.
        state: with the weights.
        data: to read the images from.
        rows: images to choose from.
        keys: ``config.model``.
    """
    rows = (
        np.unique(rows[np.linspace(0, len(rows) - 1, _IMAGES).astype(int)]) if len(rows) else rows
    )
    if not len(rows):
        return []
    side = data.settings.image_size
    [batch] = loader.evaluation_batches(data.table, rows, image_size=side, batch_size=len(rows))
    compare = functools.partial(_compare, network, state, batch["image"], keys.channels)
    here = compare(keys.input_range)
    if here is None or _fits(*here):
        return []
    others = [
        name for name in ("imagenet", *augment.RANGES, "-1,1", "0,255") if name != keys.input_range
    ]
    fitting = {name: compare(name) for name in others}
    better = min(fitting, key=lambda name: _misfit(*fitting[name]))
    advice = "set --config.model.input_range to that of its training"
    if _fits(*fitting[better]):
        advice = f"--config.model.input_range={better} fits ({_numbers(*fitting[better])})"
    return [
        f"warning: these weights were trained on inputs of another range than "
        f"{keys.input_range}: at the first batch norm {len(rows)} images have {_numbers(*here)}: "
        f"{advice}."
    ]


def _numbers(spread: float, shift: float) -> str:
    return (
        f"{spread:.3g} times the spread of its running statistics, and means {shift:.3g} standard "
        "deviations off"
    )


def _fits(spread: float, shift: float) -> bool:
    return 1 / _SPREAD <= spread <= _SPREAD and shift <= _SHIFT


def _misfit(spread: float, shift: float) -> float:
    return abs(np.log(spread)) / np.log(_SPREAD) + shift / _SHIFT


def _compare(
    network: Network,
    state: TrainState,
    images: UInt8[np.ndarray, "batch side side 1"],
    channels: int,
    input_range: str,
) -> tuple[float, float] | None:
    """Return medians over the channels of the ratio of spreads and of the distance of means."""
    variables = {"params": state.params["trunk"], "batch_stats": state.batch_stats["trunk"]}
    prepared = augment.evaluation_images(jnp.asarray(images), channels, input_range)
    path, x, epsilon = _first_batch_norm(network.trunk, variables, prepared)
    running = functools.reduce(operator.getitem, path, state.batch_stats["trunk"])
    mean, var = (np.asarray(running[name], np.float64) for name in ("mean", "var"))
    if not mean.any() and (var == var[0]).all():
        return None
    deviation = np.sqrt(np.maximum(var, 0) + epsilon)
    spread = np.sqrt(x.var(axis=(0, 1, 2)) + epsilon) / deviation
    shift = np.abs(x.mean(axis=(0, 1, 2)) - mean) / deviation
    return float(np.median(spread)), float(np.median(shift))


def _first_batch_norm(
    trunk: nn.Module, variables: dict[str, Any], images: Any
) -> tuple[Sequence[str], np.ndarray, float]:
    """Return path, input and epsilon of the first batch norm; nothing after it is computed."""
    reached: list[tuple[Sequence[str], np.ndarray, float]] = []

    def stop(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not isinstance(context.module, BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        x = np.asarray(args[0], np.float64)
        reached.append((context.module.path, x, context.module.epsilon))
        raise _Reached

    with nn.intercept_methods(stop), contextlib.suppress(_Reached):
        trunk.apply(variables, images, train=False)
    return reached[0]
