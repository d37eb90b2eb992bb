"""The optimizer of a stage: AdamW in depth groups under a one-cycle schedule of rate and b1."""

from collections.abc import Callable, Mapping

import jax
import optax
from jaxtyping import Array, PyTree

# By depth; a group is a part of the parameters, and all that is in none of the first two is head.
GROUPS = ("trunk", "expansion", "head")

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


def group_of(part: str) -> str:
    """The depth group of a part of the parameters, by its name at the top of their tree."""
    return part if part in GROUPS else "head"


def geometric(first: float, last: float) -> dict[str, float]:
    """A rate for each depth group: equal ratios from ``first``, of the trunk, to the head's."""
    ratio = (last / first) ** (1 / (len(GROUPS) - 1))
    return {group: first * ratio**i for i, group in enumerate(GROUPS)}


def adamw(
    rate: float | Schedule,
    b1: float | Schedule,
    *,
    share: Mapping[str, float],
    clip_norm: float = 0.0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """AdamW with b2 0.99, epsilon 1e-5 and decoupled weight decay 0.01, none on norms and biases.

    Args:
        rate: of the head.
        b1: of Adam.
        share: for each depth group, its rate as a share of the head's.
        clip_norm: largest global norm of the gradients; 0 for no limit.
        accumulate: steps whose gradients are averaged before the parameters change.
    """
    optimizer = optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=rate, b1=b1, b2=0.99, eps=1e-5, weight_decay=0.01, mask=decays
    )
    if any(value != 1.0 for value in share.values()):
        # The whole update of AdamW is proportional to the rate, weight decay included.
        optimizer = optax.chain(optimizer, _scale_by_group(share))
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer


def adamw_one_cycle(
    peaks: Mapping[str, float], steps: int, *, clip_norm: float = 0.0, accumulate: int = 1
) -> optax.GradientTransformation:
    """``adamw`` along one cycle.

    Args:
        peaks: highest rate of each depth group.
        steps: of the whole cycle, at least 1; as the batches are counted, not the updates.
        clip_norm: as in ``adamw``.
        accumulate: as in ``adamw``.

    Raises:
        ValueError: no steps.
    """
    if steps < 1:
        raise ValueError(f"a one-cycle schedule needs at least one step, not {steps}")
    updates = max(steps // accumulate, 1)
    return adamw(
        one_cycle_rate(peaks["head"], updates),
        one_cycle_b1(updates),
        share={group: peak / peaks["head"] for group, peak in peaks.items()},
        clip_norm=clip_norm,
        accumulate=accumulate,
    )


def hyperparams(opt_state: optax.OptState) -> dict[str, Array]:
    """``learning_rate`` (of the head) and ``b1`` of the step that made this state."""
    return optax.tree.get(opt_state, "hyperparams")


def _scale_by_group(share: Mapping[str, float]) -> optax.GradientTransformation:
    def labels(updates: Mapping[str, PyTree]) -> PyTree[str]:
        return {
            part: jax.tree.map(lambda _, part=part: group_of(part), tree)
            for part, tree in updates.items()
        }

    return optax.partition({group: optax.scale(value) for group, value in share.items()}, labels)
