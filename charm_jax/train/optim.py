"""The optimizer: AdamW in depth groups under a one-cycle schedule of rate and b1."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

# By depth: the first two are keys of the parameters, and all other keys belong to the head.
GROUPS = ("trunk", "expansion", "head")

_DIV_END = 1e5  # the rate ends at peak / 1e5
_B1_HIGH, _B1_LOW = 0.95, 0.85

Schedule = Callable[[int | Array], Array]
Number = int | float | np.generic | np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class Cycle:
    """Describe the shape of a one-cycle schedule.

    Attributes:
        peak: highest rate, over the ``peak_lr`` of the stage.
        warm_up: share of the steps before the peak.
        div: highest rate over the first.
    """

    peak: float = 1.0
    warm_up: float = 0.25
    div: float = 25.0


# Cycles of the frozen epochs and of those after them. Source: fastai's ``fit_one_cycle``, and
# ``fine_tune`` with its default arguments.
SCHEDULES = {
    "one_cycle": (Cycle(), Cycle()),
    "fine_tune": (Cycle(warm_up=0.99), Cycle(peak=0.5, warm_up=0.3, div=5.0)),
}


class OneCycle(NamedTuple):
    """The numbers of a one-cycle schedule; a compiled step takes them as an argument.

    Attributes:
        first: rate of the head at the first update.
        peak: its highest rate.
        last: its last one.
        updates: of the cycle.
        warm_up: share of them before the peak.
    """

    first: Number
    peak: Number
    last: Number
    updates: Number
    warm_up: Number

    def rate(self, step: int | Array) -> Array:
        """Return the rate of the head at a step: a cosine to the peak, then one to the last."""
        return self._two_cosines(self.first, self.peak, self.last, step)

    def b1(self, step: int | Array) -> Array:
        """Return Adam's b1 at a step: 0.95 to 0.85 while the rate rises, and back."""
        return self._two_cosines(_B1_HIGH, _B1_LOW, _B1_HIGH, step)

    def _two_cosines(self, start: Number, middle: Number, end: Number, step: int | Array) -> Array:
        """Return what is ``middle`` after the share ``warm_up`` of the updates.

        Differs: ``optax.cosine_onecycle_schedule`` rounds the place of the peak down to a step.
        """
        position = jnp.asarray(step, jnp.float32) / self.updates
        rises = position < self.warm_up
        falling = (position - self.warm_up) / (1 - self.warm_up)
        share = jnp.where(rises, position / self.warm_up, falling)
        before, after = jnp.where(rises, start, middle), jnp.where(rises, middle, end)
        # This square is (1 + cos(pi share)) / 2, without its cancellation near the end.
        return after + (before - after) * jnp.cos(jnp.pi / 2 * share) ** 2


def one_cycle(peak_lr: float, steps: int, cycle: Cycle, accumulate: int = 1) -> OneCycle:
    """Return the schedule of a phase, which begins at peak/div and ends at peak/1e5.

    Args:
        peak_lr: of the head, in the whole stage.
        steps: batches of the cycle, at least 1; an update may accumulate several.
        cycle: its shape.

    Raises:
        ValueError: no steps.
    """
    if steps < 1:
        raise ValueError(f"a one-cycle schedule needs at least one step, not {steps}")
    peak, updates = cycle.peak * peak_lr, max(steps // accumulate, 1)
    return OneCycle(peak / cycle.div, peak, peak / _DIV_END, updates, cycle.warm_up)


def peak_step(steps: int, cycle: Cycle) -> int:
    """Return the last step of a cycle of ``steps`` before the rate falls."""
    return int(cycle.warm_up * steps)


def decays(params: PyTree[Array]) -> PyTree[bool]:
    """Mark the parameters that weight decay acts on: kernels, not biases or norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def group_of(part: str) -> str:
    """Return the depth group of a top-level key of the parameters."""
    return part if part in GROUPS else "head"


def geometric(first: float, last: float) -> dict[str, float]:
    """Return a rate for each depth group, in equal ratios from the trunk's to the head's."""
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
    """Return AdamW with b2 0.99, epsilon 1e-5 and weight decay 0.01 (none on norms and biases).

    Args:
        rate: of the head.
        b1: of Adam.
        share: rate of each depth group over the head's.
        clip_norm: largest global norm of the gradients; 0 for no limit.
        accumulate: steps whose gradients are averaged for one update.
    """
    optimizer = optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=rate, b1=b1, b2=0.99, eps=1e-5, weight_decay=0.01, mask=decays
    )
    spread = any(value != 1.0 for value in share.values())
    # Links without effect keep the state's tree, so that a run can go on with another limit. The
    # whole update of AdamW is proportional to the rate, weight decay included.
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optimizer,
        _scale_by_group(share) if spread else optax.identity(),
    )
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer


def at_update(opt_state: optax.OptState, count: int) -> optax.OptState:
    """Return a new optimizer's state that stands at an update of its schedules."""

    def leaf(path: tuple, value: Array) -> Array:
        name = getattr(path[-1], "name", "")
        return jnp.full_like(value, count) if name in ("count", "gradient_step") else value

    return jax.tree_util.tree_map_with_path(leaf, opt_state)


def adamw_one_cycle(
    peaks: Mapping[str, float],
    steps: int,
    cycle: Cycle = SCHEDULES["one_cycle"][1],
    *,
    clip_norm: float = 0.0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Return ``adamw`` with a one-cycle schedule.

    Args:
        peaks: ``peak_lr`` of each depth group.
        steps: batches of the cycle, at least 1; an update may accumulate several.
        cycle: its shape.
        clip_norm: as in ``adamw``.
        accumulate: as in ``adamw``.

    Raises:
        ValueError: no steps.
    """
    numbers = one_cycle(peaks["head"], steps, cycle, accumulate)
    share = {group: peak / peaks["head"] for group, peak in peaks.items()}
    return adamw(numbers.rate, numbers.b1, share=share, clip_norm=clip_norm, accumulate=accumulate)


def hyperparams(opt_state: optax.OptState) -> dict[str, Array]:
    """Return the ``learning_rate`` (of the head) and ``b1`` of the last step."""
    return optax.tree.get(opt_state, "hyperparams")


def _scale_by_group(share: Mapping[str, float]) -> optax.GradientTransformation:
    def labels(updates: Mapping[str, PyTree]) -> PyTree[str]:
        return {
            part: jax.tree.map(lambda _, part=part: group_of(part), tree)
            for part, tree in updates.items()
        }

    return optax.partition({group: optax.scale(value) for group, value in share.items()}, labels)
