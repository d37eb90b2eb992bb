"""What the tests of steps share: the smallest network with every kind of block."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from charm_jax.models import selection
from charm_jax.models.attention import MultiScaleAttention, ResidualAttention
from charm_jax.models.backbones.efficientnet_v2 import ConvNormAct, Stage, Trunk
from charm_jax.models.charm import Charm, Head
from charm_jax.models.vote import Vote
from charm_jax.train import optim

BATCH, SIDE, FINDINGS, SLOTS, DECAY = 8, 32, 3, 12, 0.9


DIM = 32


# The smallest network with every kind of block and with stochastic depth: quick to compile.
STAGES = (Stage(True, 4, 2, 12, 1), Stage(False, 4, 2, 16, 2))


def network(dtype=jnp.float32):
    return Charm(
        trunk=Trunk(8, STAGES, drop_rate=0.2, dtype=dtype),
        expansion=ConvNormAct(DIM, 1, dtype=dtype),
        fusion=MultiScaleAttention(dtype=dtype),
        head=Head(FINDINGS),
        retrieval_k=2,
        # The labels alone decide what is written: whoever has the first finding.
        select=functools.partial(
            selection.select, rule="rare_finding", threshold=0.02, prevalence=(0.01, 0.5, 0.5)
        ),
    )


def voting_network(fusion=False, **numbers):
    defaults = {"weight": 0.4, "temperature": 0.05, "training_temperature": 0.1, "loss_share": 0.5}
    return Vote(
        trunk=Trunk(8, STAGES, drop_rate=0.2),
        expansion=ConvNormAct(DIM, 1),
        final=nn.relu,
        fusion=ResidualAttention() if fusion else None,
        classifier=nn.Dense(FINDINGS),
        **({"retrieval_k": 4} | defaults | numbers),
    )


OPTIMIZER = optim.adamw_one_cycle(optim.geometric(2e-3, 2e-3), 40)


def batch_of(seed, first_case=0):
    """Images whose brightness tells their labels; four rows have the first finding."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((BATCH, FINDINGS)) < 0.5).astype(np.int8)
    labels[:, 0] = rng.permutation([1, 1, 1, 0, 0, 0, 0, 1])
    image = rng.integers(0, 60, (BATCH, SIDE, SIDE, 1))
    for i in range(FINDINGS):
        image[:, 10 * i : 10 * i + 10] += 190 * labels[:, i].astype(int).reshape(-1, 1, 1, 1)
    ids = np.arange(first_case, first_case + BATCH, dtype=np.int32)
    return {
        "image": image.astype(np.uint8),
        "labels": labels,
        "case_id": ids,
        "patient_id": 500 + ids,
    }
