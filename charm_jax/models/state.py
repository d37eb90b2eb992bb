"""Define the state of a run and create it."""

import typing
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, Key, PyTree

from charm_jax.models import momentum
from charm_jax.models.create import Network
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.shapes import Maps


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class TrainState:
    """Hold everything that a training step changes.

    Attributes:
        step: steps taken in this stage.
        params: parameters of trunk, expansion block, fusion and head.
        batch_stats: running statistics of their batch norms.
        momentum: the momentum branch; None in a network without one.
        memory: the memory bank; None in a baseline.
        opt_state: state of the stage's optimizer.
        rng: key of the stage; constant, since each step folds its number into it.
        average: EMA of ``params`` and ``batch_stats`` to evaluate with; None to evaluate with the
            weights themselves.
    """

    step: Int32[Array, ""]
    params: PyTree[Float[Array, "..."]]
    batch_stats: PyTree[Float[Array, "..."]]
    momentum: Momentum | None
    memory: MemoryBank | None
    opt_state: optax.OptState
    rng: Key[Array, ""]
    average: dict[str, PyTree[Float[Array, "..."]]] | None = None


def trainable(params: Mapping[str, PyTree[Array]], *, freeze_trunk: bool) -> dict[str, PyTree]:
    """Return the parameters that a step differentiates and the optimizer sees."""
    return {part: tree for part, tree in params.items() if not (freeze_trunk and part == "trunk")}


def create(
    model: Network,
    key: Key[Array, ""],
    images: Maps,
    memory: MemoryBank | None,
    *,
    momentum_branch: bool = True,
    averaged: bool = False,
) -> TrainState:
    """Create a state with random parameters, a copied momentum branch and no optimizer.

    Args:
        images: any batch with the size and channels of the training images.
        memory: an empty bank, or None for a baseline.
        momentum_branch: whether a network with a bank has a momentum branch.
        averaged: whether to keep an average of all weights; ``begin_stage`` starts it.
    """
    variables = model.init(key, images, method="initialise")
    params, batch_stats = variables["params"], variables["batch_stats"]
    branch = None
    if memory is not None and momentum_branch:
        branch = momentum.copy_of(params["expansion"], batch_stats["expansion"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        momentum=branch,
        memory=memory,
        opt_state=(),
        rng=key,
        average={"params": params, "batch_stats": batch_stats} if averaged else None,
    )


def averaged(state: TrainState) -> TrainState:
    """Return the state with the average of its weights, if it keeps one, as the weights."""
    return state.replace(**(state.average or {}))


def begin_stage(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    freeze_trunk: bool = False,
) -> TrainState:
    """Start a stage: step 0, new optimizer state; network, branch and bank stay.

    An average of the weights restarts as a copy of them.

    Args:
        state: a new one, or the best of the previous stage.
        key: seed of the stage's random draws.
        freeze_trunk: whether the stage keeps the trunk constant.
    """
    average = None
    if state.average is not None:
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(jnp.copy, weights)
    return state.replace(
        step=jnp.zeros((), jnp.int32),
        opt_state=jax.jit(optimizer.init)(trainable(state.params, freeze_trunk=freeze_trunk)),
        rng=key,
        average=average,
    )
