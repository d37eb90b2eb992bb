"""Define EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6.

Source: Tan & Le, arXiv 1905.11946, as TensorFlow's EfficientNet-Lite reduces it and timm names it.
Differs: batch norm keeps 0.9 of its running statistics at a step, TensorFlow's 0.99, so that a
short fine-tuning does not evaluate with those of ImageNet.
"""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from charm_jax.models.backbones.backbone import Backbone, Renames
from charm_jax.models.backbones.efficientnet_v2 import with_residual
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.layers.conv import Conv
from charm_jax.models.shapes import Maps, NewMaps

_STEM, _FEATURES = 32, 1280
_EXPAND = 6  # width of the hidden layer as a multiple of the input's; 1 in the first stage


@dataclasses.dataclass(frozen=True)
class Stage:
    """Hold a row of the paper's table 1.

    Attributes:
        blocks: number of blocks.
        strides: of the first block; the others have 1.
        kernel_size: side of the depthwise kernels.
        features: output channels.
    """

    blocks: int
    strides: int
    kernel_size: int
    features: int


_LITE0 = (
    Stage(1, 1, 3, 16),
    Stage(2, 2, 3, 24),
    Stage(2, 2, 5, 40),
    Stage(3, 2, 3, 80),
    Stage(3, 1, 5, 112),
    Stage(4, 2, 5, 192),
    Stage(1, 1, 3, 320),
)

_Conv = partial(Conv, same=True)
_Norm = partial(BatchNorm, 1e-3)


class Block(nn.Module):
    """Apply MBConv with its residual connection and stochastic depth.

    Attributes:
        expand: width of the hidden layer as a multiple of the input's; 1 for no such layer.
        drop_rate: probability in [0, 1) that a row of the batch skips the block while training.
    """

    expand: int
    kernel_size: int
    strides: int
    features: int
    drop_rate: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Apply the block, adding the residual where the shapes allow it."""
        y, norms = x, iter(("bn1", "bn2", "bn3"))
        hidden = x.shape[-1] * self.expand
        conv, norm = (partial(layer, dtype=self.dtype) for layer in (_Conv, _Norm))
        if self.expand > 1:
            y = conv(hidden, 1, name="conv_pw")(y)
            y = norm(activation="relu6", name=next(norms))(y, train=train)
        y = conv(hidden, self.kernel_size, self.strides, depthwise=True, name="conv_dw")(y)
        y = norm(activation="relu6", name=next(norms))(y, train=train)
        y = conv(self.features, 1, name="conv_pwl" if self.expand > 1 else "conv_pw")(y)
        y = norm(name=next(norms))(y, train=train)
        return with_residual(self, x, y, train=train)


class Trunk(nn.Module):
    """Apply stem and all blocks.

    The outputs of stem and stages are sown as intermediates ``stem`` and ``blocks.<i>``.

    Attributes:
        drop_rate: stochastic depth of a block beyond the last, rising linearly from 0 at the first.
    """

    stages: tuple[Stage, ...]
    drop_rate: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Maps, *, train: bool) -> NewMaps:
        """Map normalised images to features with a thirty-second of their sides, rounded up."""
        x = _Conv(_STEM, 3, 2, dtype=self.dtype, name="conv_stem")(images)
        x = _Norm(activation="relu6", dtype=self.dtype, name="bn1")(x, train=train)
        self.sow("intermediates", "stem.out", x)
        total, done = sum(stage.blocks for stage in self.stages), 0
        for i, stage in enumerate(self.stages):
            for j in range(stage.blocks):
                block = Block(
                    expand=_EXPAND if i else 1,
                    kernel_size=stage.kernel_size,
                    strides=1 if j else stage.strides,
                    features=stage.features,
                    drop_rate=self.drop_rate * done / total,
                    dtype=self.dtype,
                    name=f"blocks.{i}.{j}",
                )
                x = block(x, train=train)
                done += 1
            self.sow("intermediates", f"blocks.{i}.out", x)
        return x


class Expansion(nn.Module):
    """Apply the last convolution, 1x1, with batch norm and ReLU6."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Return ``_FEATURES`` channels."""
        x = _Conv(_FEATURES, 1, dtype=self.dtype, name="conv_head")(x)
        return _Norm(activation="relu6", dtype=self.dtype, name="bn2")(x, train=train)


def _scaled(width: float, depth: float) -> tuple[Stage, ...]:
    """Scale all stages, but not the number of blocks in the first and the last."""

    def features(channels: int) -> int:
        """Round to a multiple of 8, and never down by more than a tenth."""
        rounded = max(8, int(channels * width + 4) // 8 * 8)
        return rounded + 8 * (rounded < 0.9 * channels * width)

    middle = [
        dataclasses.replace(stage, blocks=math.ceil(stage.blocks * depth)) for stage in _LITE0[1:-1]
    ]
    return tuple(
        dataclasses.replace(stage, features=features(stage.features))
        for stage in (_LITE0[0], *middle, _LITE0[-1])
    )


def _member(width: float, depth: float) -> Backbone:
    stages = _scaled(width, depth)
    return Backbone(
        trunk=partial(Trunk, stages),
        expansion=Expansion,
        feature_dim=_FEATURES,
        expansion_name="",
        classifier="classifier",
        duplicates=(
            ("backbone.0.", "conv_stem."),
            ("backbone.1.", "bn1."),
            ("backbone.3.", "blocks."),
            ("final_block.0.", "conv_head."),
            ("final_block.1.", "bn2."),
        ),
        file_names=_numbered_names(stages),
        input_range="-0.9921875,1",  # (grey level - 127) / 128
    )


# From EfficientNet-PyTorch's layers of blocks without and with a hidden layer to timm's.
_NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_MBCONV = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _numbered_names(stages: tuple[Stage, ...]) -> Renames:
    """Return the renames from EfficientNet-PyTorch's names, which number blocks in a row."""
    renames = [
        (r"^_conv_stem\.", "conv_stem."),
        (r"^_bn0\.", "bn1."),
        (r"^_conv_head\.", "conv_head."),
        (r"^_bn1\.", "bn2."),
        (r"^_fc\.", "classifier."),
    ]
    places = [(i, j) for i, stage in enumerate(stages) for j in range(stage.blocks)]
    for number, (i, j) in enumerate(places):
        renames += [
            (rf"^_blocks\.{number}\.{theirs}\.", f"blocks.{i}.{j}.{ours}.")
            for theirs, ours in (_NARROW, _MBCONV)[i > 0].items()
        ]
    return tuple(renames)


MEMBERS = {
    "efficientnet_lite0": _member(1.0, 1.0),
    "efficientnet_lite1": _member(1.0, 1.1),
    "efficientnet_lite2": _member(1.1, 1.2),
}
