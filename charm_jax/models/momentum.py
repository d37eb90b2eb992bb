"""Define the momentum branch: an exponential moving average of the expansion block."""

import typing

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class Momentum:
    """Hold the state of the momentum branch.

    Attributes:
        params: θ̄, shaped like the expansion block's parameters.
        batch_stats: running statistics of the branch's own batch norms.
    """

    params: PyTree[Float[Array, "..."]]
    batch_stats: PyTree[Float[Array, "..."]]


def copy_of(params: PyTree[Array], batch_stats: PyTree[Array]) -> Momentum:
    """Create a momentum branch as a copy of the expansion block.

    The buffers are real copies: a step that donates its state may not see one buffer twice.
    """
    return Momentum(
        params=jax.tree.map(jnp.copy, params), batch_stats=jax.tree.map(jnp.copy, batch_stats)
    )


def update(momentum: Momentum, params: PyTree[Array], step: float | Float[Array, ""]) -> Momentum:
    """Compute θ̄ ← m·θ̄ + (1 - m)·θ; the running statistics do not change.

    Args:
        params: θ before this step's optimizer update.
        step: 1 - m, in [0, 1]; in float32 it is more exact than 1 less m would be.
    """
    return momentum.replace(params=optax.incremental_update(params, momentum.params, step))


def both_branches(
    trunk: nn.Module,
    expansion: nn.Module,
    images: Float[Array, "batch height width channels"],
    momentum: Momentum | None,
    *,
    train: bool,
    freeze_trunk: bool,
) -> tuple[Float[Array, "batch h w dim"], Float[Array, "batch h w dim"] | None, Momentum | None]:
    """Run the trunk and both expansion blocks on normalised images.

    Returns:
        f, f̄ and the momentum branch as ``apply`` returns it; f̄ is None without a branch.
    """
    features = trunk(images, train=train and not freeze_trunk)
    main = expansion(features, train=train)
    if momentum is None:
        return main, None, None
    return main, *apply(expansion, momentum, features, train=train)


def apply(
    expansion: nn.Module,
    momentum: Momentum,
    features: Float[Array, "batch h w channels"],
    *,
    train: bool,
) -> tuple[Float[Array, "batch new_h new_w dim"], Momentum]:
    """Run the expansion block with θ̄; no gradient passes.

    Source: the reference, whose momentum block stays in train mode while training, so that its
    batch norms use the batch's statistics and update their own running ones.

    Returns:
        f̄, and the state with updated running statistics (unchanged unless ``train``).
    """
    variables = {"params": momentum.params, "batch_stats": momentum.batch_stats}
    features, variables = jax.lax.stop_gradient((features, variables))
    block = expansion.clone(parent=None)
    if not train:
        return block.apply(variables, features, train=False), momentum
    out, updated = block.apply(variables, features, train=True, mutable=["batch_stats"])
    return jax.lax.stop_gradient(out), momentum.replace(batch_stats=updated["batch_stats"])
