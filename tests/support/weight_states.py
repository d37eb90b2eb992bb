"""States with zeros or random numbers for tests of weight files."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import shapes

from charm_jax.models import memory_bank
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState

NANO, SMALL = "efficientnet_v2_nano", "efficientnet_v2_s"


SLOTS, FINDINGS = 16, 14


def random_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), tree)


def new_state(arch):
    """A CHARM network's state with zeros everywhere."""
    tree = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes(arch))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=tree["params"],
        batch_stats=tree["batch_stats"],
        momentum=Momentum(tree["momentum_params"], tree["momentum_batch_stats"]),
        memory=memory_bank.empty(SLOTS, BACKBONES[arch].feature_dim, FINDINGS),
        opt_state=(),
        rng=jax.random.key(0),
    )


def new_baseline_state(arch):
    state = new_state(arch)
    dim = BACKBONES[arch].feature_dim
    backbone = {part: state.params[part] for part in ("trunk", "expansion")}
    statistics = {part: state.batch_stats[part] for part in ("trunk", "expansion")}
    linear = {"kernel": np.zeros((dim, FINDINGS), np.float32), "bias": np.zeros(14, np.float32)}
    return state.replace(
        params=backbone | {"classifier": linear},
        batch_stats=statistics,
        momentum=None,
        memory=None,
    )
