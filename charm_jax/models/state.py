"""TrainState: everything that a step changes, and how it begins."""

import typing
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, Key, PyTree

from charm_jax.models import momentum
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
        step: steps taken in this stage.
        params: of trunk, expansion block, fusion and head.
        batch_stats: running statistics of their batch norms.
        momentum: the momentum branch; None in a network without one.
        memory: the bank; None in a plain network.
        opt_state: of the stage's optimizer.
        rng: key of the stage; a step folds its number in, so the key itself never changes.
        average: EMA of ``params`` and ``batch_stats``, which evaluation then uses; None without.
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
    """The parts of the parameters that a step differentiates and the optimizer sees."""
    return {part: tree for part, tree in params.items() if not (freeze_trunk and part == "trunk")}


def create(
    model: Charm | Baseline,
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    memory: MemoryBank | None,
    *,
    momentum_branch: bool = True,
    averaged: bool = False,
) -> TrainState:
    """A state with random parameters and a copied momentum branch; no optimizer yet.

    Args:
        model: the network.
        key: seeds the parameters.
        images: of the size and channels that the network will see.
        memory: an empty bank, or None for a plain network.
        momentum_branch: whether a network with a bank has a momentum branch.
        averaged: whether an average of all weights is kept; ``begin_stage`` starts it.
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


def begin_stage(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    freeze_trunk: bool = False,
) -> TrainState:
    """The same network, momentum branch and bank at the start of a stage.

    An average of the weights starts there as a copy of them.

    Args:
        state: a new one, or the best of the stage before.
        optimizer: of the stage; it starts afresh.
        key: of the stage's random draws.
        freeze_trunk: whether the stage leaves the trunk as it is.
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
