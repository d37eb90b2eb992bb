"""The optimizer of a stage: AdamW under a one-cycle schedule of rate and momentum."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, PyTree

_WARM_UP = 0.25  # share of the steps before the rate's peak
_DIV_START = 25.0  # the rate begins at peak / 25
_DIV_END = 1e5  # and ends at peak / 1e5
_B1_HIGH, _B1_LOW = 0.95, 0.85

Schedule = Callable[[int | Array], Array]


def one_cycle_rate(peak: float, steps: int) -> Schedule:
    """Learning rate by step: cosine from peak/25 up in a quarter of the steps, down to peak/1e5.

    Source: fastai's ``fit_one_cycle`` with ``pct_start=0.25``, as the reference calls it.
    """
    return optax.cosine_onecycle_schedule(
        steps,
        peak,
        pct_start=_WARM_UP,
        div_factor=_DIV_START,
        final_div_factor=_DIV_END / _DIV_START,
    )


def one_cycle_b1(steps: int) -> Schedule:
    """Adam's b1 by step, against the rate: 0.95 to 0.85 over a quarter of the steps, and back."""
    return optax.piecewise_interpolate_schedule(
        "cosine", _B1_HIGH, {peak_step(steps): _B1_LOW / _B1_HIGH, steps: _B1_HIGH / _B1_LOW}
    )


def peak_step(steps: int) -> int:
    """Steps that a one-cycle of ``steps`` takes before the rate falls."""
    return int(_WARM_UP * steps)


def decays(params: PyTree[Array]) -> PyTree[bool]:
    """Which parameters weight decay acts on: kernels, not biases nor the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw_one_cycle(peak: float, steps: int) -> optax.GradientTransformation:
    """AdamW with b2 0.99, epsilon 1e-5 and decoupled weight decay 0.01, one cycle long.

    Args:
        peak: highest learning rate.
        steps: of the whole stage, at least 1.

    Raises:
        ValueError: no steps.
    """
    if steps < 1:
        raise ValueError(f"a one-cycle schedule needs at least one step, not {steps}")
    return optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=one_cycle_rate(peak, steps),
        b1=one_cycle_b1(steps),
        b2=0.99,
        eps=1e-5,
        weight_decay=0.01,
        mask=decays,
    )
