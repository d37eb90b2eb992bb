"""Test-time augmentation: average the logits over a fixed set of views of each image."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from charm_jax.inference.steps import Batch, eval_step
from charm_jax.models.create import Network
from charm_jax.models.state import TrainState
from data_pipelines.loading import augment

# Shift down and right as shares of a side, and size. The first is the image as it is.
_STEP, _ZOOM = 1 / 32, 0.05
VIEWS = (
    (0.0, 0.0, 1.0),
    (_STEP, 0.0, 1.0),
    (-_STEP, 0.0, 1.0),
    (0.0, _STEP, 1.0),
    (0.0, -_STEP, 1.0),
    (0.0, 0.0, 1 + _ZOOM),
    (0.0, 0.0, 1 - _ZOOM),
)


@functools.cache
def views_step(*, mirrored: bool) -> Callable:
    """Return ``eval_step`` over views, the same function each time, so that it compiles once.

    Args:
        mirrored: whether the image mirrored left to right is a view, too.
    """
    return functools.partial(_views_step, mirrored=mirrored)


def _views_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Network,
    prepare: Callable[[Array], Array],
    mirrored: bool,
) -> dict[str, Array]:
    """Run ``eval_step`` on one view after another, so that the memory is that of one.

    Returns:
        The outputs of ``eval_step`` for the image as it is, with its logits as ``single_view``;
        ``logits`` ``[B, F]`` are the mean over the views.
    """
    views = jnp.asarray([*VIEWS, *[VIEWS[0]] * mirrored], jnp.float32)
    turned = jnp.arange(len(views)) >= len(VIEWS)

    def on_view(view: tuple[Array, Array]) -> dict[str, Array]:
        image = view_of(batch["image"], *view)
        return eval_step(state, {**batch, "image": image}, model=model, prepare=prepare)

    outputs = jax.lax.map(on_view, (views, turned))
    as_it_is = {name: values[0] for name, values in outputs.items()}
    return as_it_is | {
        "single_view": as_it_is["logits"],
        "logits": outputs["logits"].mean(axis=0),
    }


def view_of(
    images: UInt8[Array, "batch height width 1"], view: Float[Array, "3"], turned: Bool[Array, ""]
) -> UInt8[Array, "batch height width 1"]:
    """Return one view of each image, in whole grey levels.

    Args:
        images: grey levels.
        view: shift down, shift right and size, as ``augment.affine_by`` takes them.
        turned: whether to mirror left to right.
    """
    n = len(images)
    shift, size = jnp.broadcast_to(view[None, :2], (n, 2)), jnp.broadcast_to(view[2], n)
    moved = augment.affine_by(jnp.zeros(n), size, shift, images.astype(jnp.float32))
    moved = jnp.where(turned, moved[:, :, ::-1], moved)
    return jnp.round(moved).astype(jnp.uint8)
