"""The learning-rate range test: a sweep of rates on a throw-away copy, and the rate it suggests."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from charm_jax.models.state import TrainState

STEPS = 100
FIRST, LAST = 1e-7, 10.0  # rates
B1 = 0.95
_SMOOTHING = 0.98
_BRINK = 5  # steps
_DIVERGED = 4.0  # times the lowest smoothed loss


def rates() -> optax.Schedule:
    """The rate by step: exponential from ``FIRST`` to ``LAST`` in ``STEPS``.

    Source: Smith, arXiv 1506.01186; numbers of fastai's ``lr_find``.
    """
    ratio = (LAST / FIRST) ** (1 / (STEPS - 1))
    return lambda step: FIRST * ratio ** jnp.asarray(step, jnp.float32)


def sweep(
    state: TrainState, batches: Iterator[Any], train_step: Callable
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Trains a copy of a state while the rate rises, until the loss runs away.

    Args:
        state: to copy; its optimizer must follow ``rates``.
        batches: at least ``STEPS`` of them.
        train_step: jitted; the copy is donated to it.

    Returns:
        The rates, and the losses smoothed by a bias-corrected moving average.
    """
    state = jax.tree.map(jnp.copy, state)
    average, tried, smoothed = 0.0, [], []
    for step in range(STEPS):
        state, metrics = train_step(state, next(batches))
        loss = float(metrics["loss"])
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        value = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(value) or (smoothed and value > _DIVERGED * min(smoothed)):
            break
        tried.append(float(metrics["rate"]))
        smoothed.append(value)
    return np.array(tried), np.array(smoothed)


def suggest(
    tried: Float[np.ndarray, " steps"], losses: Float[np.ndarray, " steps"]
) -> float | None:
    """The rate that a sweep suggests: ``valley`` without its first tenth and its last 5 steps.

    At the beginning the losses fall by chance, at the end they run away.
    """
    kept = slice(STEPS // 10, -_BRINK)
    return valley(tried[kept], losses[kept])


def valley(tried: Float[np.ndarray, " steps"], losses: Float[np.ndarray, " steps"]) -> float | None:
    """The rate in the middle of the longest fall of the losses; None if they never fall.

    The longest fall is the longest subsequence in which each loss is lower than the one before; the
    rate is that half-way along it, so that neither the flat beginning nor the brink is taken.

    Source: fastai's ``valley`` rule.
    """
    length = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        length[i] += max((length[j] for j in range(i) if losses[j] > losses[i]), default=0)
    if not len(losses) or length.max() < 2:
        return None
    end = int(length.argmax())
    start = end - int(length[end])
    return float(tried[start + (end - start) // 2])
