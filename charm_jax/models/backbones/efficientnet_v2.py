"""Define EfficientNetV2 (Tan & Le, arXiv 2104.00298) as torchvision does."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from charm_jax.models.backbones.backbone import Backbone, Renames
from charm_jax.models.layers.batch_norm import BatchNorm, at_least_float32
from charm_jax.models.layers.conv import Conv
from charm_jax.models.shapes import Maps, NewMaps

_EPSILON = 1e-3
_SQUEEZE = 4  # the squeeze has a quarter of the block's input channels


@dataclasses.dataclass(frozen=True)
class Stage:
    """Hold a row of the paper's table 4.

    Attributes:
        fused: Fused-MBConv rather than MBConv.
        expand: width of the hidden layer as a multiple of the input's.
        strides: of the first block; the others have 1.
        features: output channels.
        blocks: number of blocks.
    """

    fused: bool
    expand: int
    strides: int
    features: int
    blocks: int


class ConvNormAct(nn.Module):
    """Apply convolution, batch norm and (if ``activate``) SiLU."""

    features: int
    kernel_size: int
    strides: int = 1
    depthwise: bool = False
    activate: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Apply the three in this order."""
        conv = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.depthwise,
            dtype=self.dtype,
            name="0",
        )
        activation = "silu" if self.activate else ""
        norm = BatchNorm(_EPSILON, activation=activation, dtype=self.dtype, name="1")
        return norm(conv(x), train=train)


class SqueezeExcite(nn.Module):
    """Weigh channels by two 1x1 convolutions of the mean (Hu et al., arXiv 1709.01507)."""

    squeeze: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """Multiply each channel by a number in (0, 1)."""
        zeros = nn.initializers.zeros
        conv = partial(Conv, kernel_size=1, use_bias=True, bias_init=zeros, dtype=self.dtype)
        s = x.mean((1, 2), keepdims=True)
        s = nn.silu(conv(self.squeeze, name="fc1")(s))
        gate = nn.sigmoid(at_least_float32(conv(x.shape[-1], name="fc2")(s)))
        # In float32, in which the gate's gradient then is summed over space.
        return (at_least_float32(x) * gate).astype(x.dtype)


class Block(nn.Module):
    """Apply MBConv or Fused-MBConv with its residual connection and stochastic depth.

    Attributes:
        drop_rate: probability in [0, 1) that a row of the batch skips the block while training.
    """

    stage: Stage
    strides: int
    drop_rate: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Apply the block, adding the residual where the shapes allow it."""
        stage, channels = self.stage, x.shape[-1]
        hidden = channels * stage.expand
        layer = partial(ConvNormAct, dtype=self.dtype)
        y = x
        if stage.fused and stage.expand == 1:
            y = layer(stage.features, 3, self.strides, name="block.0")(y, train=train)
        elif stage.fused:
            y = layer(hidden, 3, self.strides, name="block.0")(y, train=train)
            y = layer(stage.features, 1, activate=False, name="block.1")(y, train=train)
        else:
            y = layer(hidden, 1, name="block.0")(y, train=train)
            y = layer(hidden, 3, self.strides, depthwise=True, name="block.1")(y, train=train)
            y = SqueezeExcite(max(1, channels // _SQUEEZE), self.dtype, name="block.2")(y)
            y = layer(stage.features, 1, activate=False, name="block.3")(y, train=train)
        return with_residual(self, x, y, train=train)


def with_residual(block: nn.Module, x: Maps, y: NewMaps, *, train: bool) -> NewMaps:
    """Add a block's input to its output where the shapes allow it, with stochastic depth.

    Args:
        block: with ``strides`` and ``drop_rate``.
        x: input.
        y: output.
        train: whether rows of ``y`` are dropped.
    """
    if block.strides != 1 or x.shape[-1] != y.shape[-1]:
        return y
    if train and block.drop_rate > 0:
        y = stochastic_depth(block.make_rng("dropout"), y, block.drop_rate)
    return x + y


def stochastic_depth(key: Array, x: Maps, rate: float) -> Maps:
    """Zero rows of the batch with probability ``rate``, scale the others by 1/(1 - rate).

    Source: Huang et al., arXiv 1603.09382, in torchvision's mode "row".
    """
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, 1))
    return x * (keep / (1 - rate)).astype(x.dtype)


class Trunk(nn.Module):
    """Apply stem and all blocks, torchvision's ``features[:-1]``.

    Each stage's output is sown as the intermediate ``features.<i>``, torchvision's name for it.

    Attributes:
        stem: channels of the stem.
        drop_rate: stochastic depth of a block beyond the last, rising linearly from 0 at the first.
    """

    stem: int
    stages: tuple[Stage, ...]
    drop_rate: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Maps, *, train: bool) -> NewMaps:
        """Map normalised images to features; each stride of 2 halves the sides."""
        x = ConvNormAct(self.stem, 3, 2, dtype=self.dtype, name="features.0")(images, train=train)
        self.sow("intermediates", "features.0.out", x)
        total, done = sum(stage.blocks for stage in self.stages), 0
        for i, stage in enumerate(self.stages, start=1):
            for j in range(stage.blocks):
                strides = stage.strides if j == 0 else 1
                rate = self.drop_rate * done / total
                block = Block(stage, strides, rate, self.dtype, name=f"features.{i}.{j}")
                x = block(x, train=train)
                done += 1
            self.sow("intermediates", f"features.{i}.out", x)
        return x


_SMALL = (
    Stage(True, 1, 1, 24, 2),
    Stage(True, 4, 2, 48, 4),
    Stage(True, 4, 2, 64, 4),
    Stage(False, 4, 2, 128, 6),
    Stage(False, 6, 1, 160, 9),
    Stage(False, 6, 2, 256, 15),
)
_MEDIUM = (
    Stage(True, 1, 1, 24, 3),
    Stage(True, 4, 2, 48, 5),
    Stage(True, 4, 2, 80, 5),
    Stage(False, 4, 2, 160, 7),
    Stage(False, 6, 1, 176, 14),
    Stage(False, 6, 2, 304, 18),
    Stage(False, 6, 1, 512, 5),
)
# Not in the paper: narrow and shallow, for demonstrations and tests on a CPU.
_NANO = (
    Stage(True, 1, 1, 16, 1),
    Stage(True, 4, 2, 24, 1),
    Stage(True, 4, 2, 32, 1),
    Stage(False, 4, 2, 48, 2),
    Stage(False, 4, 1, 64, 2),
)


# From timm's layers of each kind of block to torchvision's.
_TIMM_NARROW = {"conv": "0.0", "bn1": "0.1"}
_TIMM_FUSED = {"conv_exp": "0.0", "bn1": "0.1", "conv_pwl": "1.0", "bn2": "1.1"}
_TIMM_MBCONV = {
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "se.conv_reduce": "2.fc1",
    "se.conv_expand": "2.fc2",
    "conv_pwl": "3.0",
    "bn3": "3.1",
}


def _timm_names(stages: tuple[Stage, ...]) -> Renames:
    """Return the renames from timm's EfficientNetV2 to torchvision's.

    Differs: timm's ``tf_efficientnetv2_*`` weights were trained with TensorFlow's padding "SAME"
    and load into a network that pads symmetrically, as torchvision's does, so that their features
    differ somewhat.
    """
    last = len(stages) + 1
    renames = [
        (r"^conv_stem\.", "features.0.0."),
        (r"^bn1\.", "features.0.1."),
        (r"^conv_head\.", f"features.{last}.0."),
        (r"^bn2\.", f"features.{last}.1."),
    ]
    for i, stage in enumerate(stages):
        layers = _TIMM_MBCONV
        if stage.fused:
            layers = _TIMM_NARROW if stage.expand == 1 else _TIMM_FUSED
        renames += [
            (rf"^blocks\.{i}\.(\d+)\.{re.escape(timm)}\.", rf"features.{i + 1}.\1.block.{ours}.")
            for timm, ours in layers.items()
        ]
    return tuple(renames)


def _member(stem: int, stages: tuple[Stage, ...], feature_dim: int) -> Backbone:
    last = len(stages) + 1
    return Backbone(
        trunk=partial(Trunk, stem, stages),
        expansion=partial(ConvNormAct, feature_dim, 1),
        feature_dim=feature_dim,
        expansion_name=f"features.{last}.",
        classifier="classifier.1",
        duplicates=(
            *((f"backbone.{i}.", f"features.{i}.") for i in range(last)),
            ("final_block.0.", f"features.{last}."),
        ),
        file_names=_timm_names(stages),
    )


MEMBERS = {
    "efficientnet_v2_s": _member(24, _SMALL, 1280),
    "efficientnet_v2_m": _member(24, _MEDIUM, 1280),
    "efficientnet_v2_nano": _member(16, _NANO, 256),
}
