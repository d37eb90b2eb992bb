"""Build the network and its state from settings."""

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from charm_jax.config.settings import ModelSettings, Settings, StageSettings
from charm_jax.distributed import device
from charm_jax.models import imbalance, state
from charm_jax.models.create import Network, Voting, compute_type, create_network, empty_bank
from charm_jax.models.imbalance import ClassCounts
from charm_jax.models.losses import Loss
from charm_jax.models.state import TrainState

_LOG = logging.getLogger(__name__)


def build_network(config: Settings, findings: int, prevalence: tuple[float | None, ...]) -> Network:
    """Build the network for some findings, given the prevalence of each in training.

    One whose prevalence is unknown, None, does not count as rare.
    """
    device.warn_of_unused_gpu()
    keys, (platform, capability) = config.model, device.target()
    dtype = compute_type(platform, capability)
    if platform == "gpu" and dtype == jnp.float32:
        _LOG.info(
            f"A GPU of compute capability {capability} computes in float32: bfloat16, which takes "
            "half the memory, needs 8.0."
        )
    return create_network(
        keys.backbone,
        num_classes=findings,
        charm=keys.charm,
        prevalence=tuple(1.0 if share is None else share for share in prevalence),
        fusion=keys.fusion,
        retrieval_k=keys.retrieval_k,
        voting=_voting(keys),
        rarity=keys.rarity,
        rarity_threshold=keys.rarity_threshold,
        stochastic_depth=keys.stochastic_depth,
        dtype=dtype,
    )


def _voting(keys: ModelSettings) -> Voting | None:
    if keys.memory != "vote":
        return None
    return Voting(
        weight=keys.vote_weight,
        temperature=keys.vote_temperature,
        training_temperature=keys.vote_training_temperature,
        loss_share=keys.vote_loss_share,
    )


def build_losses(
    keys: StageSettings, counts: ClassCounts | None, *, train: bool
) -> tuple[Loss, Loss]:
    """Return the loss of a stage's logits and that of its vote.

    The vote has no shifts: what it adds to a prediction is measured from the prevalence.

    Args:
        keys: of the stage.
        counts: of its training split; None where the loss needs none.
        train: whether labels are smoothed, and may be mixed.
    """
    names = keys.loss, imbalance.unshifted(keys.loss)
    options = {"smoothing": keys.label_smoothing, "mixed": keys.mixup > 0} if train else {}
    own, vote = (
        imbalance.make_loss(name, counts, weights=keys.class_weights, **options) for name in names
    )
    return own, vote


def new_state(model: Network, config: Settings) -> TrainState:
    """Return a state before the first stage."""
    create = _creation(model, config.model, config.data.image_size)
    return create(jax.random.fold_in(jax.random.key(config.seed), 0))


def state_shapes(model: Network, config: Settings) -> TrainState:
    """Return a state's shapes and types."""
    create = _creation(model, config.model, config.data.image_size)
    return jax.eval_shape(create, jax.random.key(0))


@functools.lru_cache(maxsize=4)  # a start asks for it three times
def _creation(model: Network, keys: ModelSettings, side: int) -> Callable[[Array], TrainState]:
    def create(key: Array) -> TrainState:  # images and bank, too, so that they are no programs
        return state.create(
            model,
            key,
            images=jnp.zeros((1, side, side, keys.channels)),
            memory=empty_bank(model, keys.backbone, keys.bank_size),
            momentum_branch=keys.momentum_branch,
            averaged=keys.average > 0,
        )

    # It runs once: optimising hundreds of random draws would take longer than the draws.
    return jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})


def parameter_count(model: Network, config: Settings) -> int:
    """Count the numbers that training changes by gradients."""
    params = state_shapes(model, config).params
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
