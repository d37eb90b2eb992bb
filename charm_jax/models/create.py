"""Create a network by the name of its backbone."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from charm_jax.models import memory_bank, selection
from charm_jax.models.attention import MultiScaleAttention, ResidualAttention
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm, Head
from charm_jax.models.layers.conv import torch_bias_init, torch_kernel_init
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.vote import Vote

Network = Charm | Vote | Baseline
_FIRST_WITH_BFLOAT16 = 8  # major compute capability: Ampere


class Voting(NamedTuple):
    """Numbers of a network whose stored cases vote (``vote.py``).

    Attributes:
        weight: λ, the factor of the vote's log odds in the logits.
        temperature: of the softmax over the cases that an evaluation reads.
        training_temperature: of the softmax in training.
        loss_share: factor of the loss on the vote.
    """

    weight: float = 0.4
    temperature: float = 0.05
    training_temperature: float = 0.1
    loss_share: float = 0.5


def compute_type(platform: str, capability: str = "") -> DTypeLike:
    """Return the type of activations: bfloat16 on a GPU that multiplies in it, else float32.

    Args:
        platform: of the device, such as ``cpu``, ``gpu`` or ``cuda``.
        capability: compute capability of a CUDA device, such as ``7.5``; empty on others.
    """
    major = capability.partition(".")[0]
    too_old = major.isdigit() and int(major) < _FIRST_WITH_BFLOAT16
    is_gpu = platform in ("gpu", "cuda", "rocm")
    return jnp.bfloat16 if is_gpu and not too_old else jnp.float32


def create_network(
    backbone: str,
    *,
    num_classes: int,
    charm: bool = True,
    prevalence: tuple[float, ...] | None = None,
    fusion: bool = True,
    retrieval_k: int = 5,
    voting: Voting | None = None,
    rarity: str = "norm_inlier",
    rarity_threshold: float = -1.0,
    stochastic_depth: float = 0.2,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """Create the module of a network; its parameters are float32 everywhere.

    Args:
        backbone: name in ``BACKBONES``.
        num_classes: number of findings.
        charm: False for the bare backbone with a linear classifier.
        prevalence: share of the training images with each finding, for the rule ``rare_finding``.
        fusion: False for the mean over space in place of multi-scale attention.
        retrieval_k: cases that a query reads; 0 never reads the bank.
        voting: of a network that reads labels; None for the published one, which reads features.
        rarity: rule that selects what is written to the bank.
        rarity_threshold: of the rule; -1 for the rule's default.
        stochastic_depth: drop rate d; block i of n (from 0) is dropped with probability d · i / n.
        dtype: of activations.
    """
    parts = BACKBONES[backbone]
    trunk = parts.trunk(drop_rate=stochastic_depth, dtype=dtype)
    expansion = parts.expansion(dtype=dtype)
    if not charm:
        return Baseline(trunk, expansion, parts.final, num_classes)
    if voting is not None:
        return Vote(
            trunk=trunk,
            expansion=expansion,
            final=parts.final,
            fusion=ResidualAttention(dtype) if fusion else None,
            classifier=nn.Dense(
                num_classes,
                kernel_init=torch_kernel_init,
                bias_init=torch_bias_init(parts.feature_dim),
                precision=lax.Precision.HIGHEST,  # not TF32, a GPU's default
            ),
            retrieval_k=retrieval_k,
            **voting._asdict(),
        )
    select = partial(
        selection.select,
        rule=rarity,
        threshold=selection.resolve_threshold(rarity, rarity_threshold),
        prevalence=(0.0,) * num_classes if prevalence is None else prevalence,
    )
    return Charm(
        trunk=trunk,
        expansion=expansion,
        fusion=MultiScaleAttention(dtype) if fusion else None,
        head=Head(num_classes),
        retrieval_k=retrieval_k,
        select=select,
    )


def empty_bank(model: Network, backbone: str, size: int) -> MemoryBank | None:
    """Create an empty bank of ``size`` cases for a network; None for one without CHARM."""
    if isinstance(model, Baseline):
        return None
    return memory_bank.empty(size, BACKBONES[backbone].feature_dim, model.num_findings)
