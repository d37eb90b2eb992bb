"""TrainState: everything that a step changes, and how it begins."""

import typing

import flax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, Key, PyTree

from charm_jax import memory_bank, momentum
from charm_jax.memory_bank import MemoryBank
from charm_jax.model import Charm
from charm_jax.momentum import Momentum


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
        step: steps taken in this stage.
        params: of trunk, expansion block, fusion and head.
        batch_stats: running statistics of their batch norms.
        momentum: the momentum branch.
        memory: the bank.
        opt_state: of the stage's optimizer.
        rng: key of the stage; a step folds its number in, so the key itself never changes.
    """

    step: Int32[Array, ""]
    params: PyTree[Float[Array, "..."]]
    batch_stats: PyTree[Float[Array, "..."]]
    momentum: Momentum
    memory: MemoryBank
    opt_state: optax.OptState
    rng: Key[Array, ""]


def create(
    model: Charm,
    key: Key[Array, ""],
    *,
    image_size: int,
    bank_size: int,
    feature_dim: int,
    num_findings: int,
) -> TrainState:
    """A state with random parameters, an empty bank and a copied momentum branch; no optimizer yet.

    Args:
        model: the network.
        key: seeds the parameters.
        image_size: side of the square images in pixels.
        bank_size: N, slots of the bank.
        feature_dim: D, of the backbone.
        num_findings: F.
    """
    images = jnp.zeros((1, image_size, image_size, 3))
    variables = model.init(key, images, method="initialise")
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        momentum=momentum.copy_of(params["expansion"], batch_stats["expansion"]),
        memory=memory_bank.empty(bank_size, feature_dim, num_findings),
        opt_state=(),
        rng=key,
    )


def begin_stage(
    state: TrainState, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The same network, momentum branch and bank at the start of a stage.

    Args:
        state: a new one, or the best of the stage before.
        optimizer: of the stage; it starts afresh.
        key: of the stage's random draws.
    """
    return state.replace(
        step=jnp.zeros((), jnp.int32), opt_state=optimizer.init(state.params), rng=key
    )
