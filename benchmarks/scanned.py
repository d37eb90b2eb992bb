"""Trunks whose identical blocks in a row are one `nn.scan`: a peer to measure ours against.

They compute the same with stacked parameters; stochastic depth has one rate for the blocks of a
scan, the mean of theirs.
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from charm_jax.models.backbones import efficientnet_v2, resnet
from charm_jax.models.backbones.backbone import Backbone
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.layers.conv import Conv


class _Step(nn.Module):
    """A block in the form that nn.scan takes: carry in, carry and nothing out."""

    make: Any
    train: bool

    @nn.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:
        return self.make(name="block")(x, train=self.train), None


def repeated(make: Any, times: int, name: str, x: Array, *, train: bool) -> Array:
    """Apply ``times`` blocks of one kind, compiled once."""
    scan = nn.scan(
        _Step,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True, "dropout": True},
        length=times,
    )
    return scan(make, train, name=name)(x, None)[0]


class EfficientNetV2Trunk(efficientnet_v2.Trunk):
    """The trunk with all blocks of a stage but the first scanned."""

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """As ``efficientnet_v2.Trunk``."""
        x = efficientnet_v2.ConvNormAct(self.stem, 3, 2, dtype=self.dtype, name="stem")(
            images, train=train
        )
        total, done = sum(stage.blocks for stage in self.stages), 0
        for i, stage in enumerate(self.stages, start=1):
            first = 0 if stage.strides == 1 and x.shape[-1] == stage.features else 1
            for j in range(first):
                rate = self.drop_rate * (done + j) / total
                block = efficientnet_v2.Block(stage, stage.strides, rate, self.dtype)
                x = block(x, train=train)
            rest = stage.blocks - first
            rate = self.drop_rate * (done + first + (rest - 1) / 2) / total
            if rest:
                make = partial(efficientnet_v2.Block, stage, 1, rate, self.dtype)
                x = repeated(make, rest, f"stage{i}", x, train=train)
            done += stage.blocks
        return x


class ResNetTrunk(resnet.Trunk):
    """The trunk with all bottlenecks of a layer but the first scanned."""

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """As ``resnet.Trunk``."""
        x = Conv(64, 7, 2, dtype=self.dtype, name="stem_conv")(images)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="stem_norm")(x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, blocks in enumerate(self.blocks):
            strides = 1 if i == 0 else 2
            x = resnet.Bottleneck(64 * 2**i, strides, self.dtype)(x, train=train)
            make = partial(resnet.Bottleneck, 64 * 2**i, 1, self.dtype)
            x = repeated(make, blocks - 1, f"layer{i + 1}", x, train=train)
        return x


def trunk_of(backbone: Backbone, **options: Any) -> nn.Module | None:
    """Scan a backbone's trunk; None where no blocks in a row are identical."""
    trunk = backbone.trunk(**options)
    if isinstance(trunk, efficientnet_v2.Trunk):
        return EfficientNetV2Trunk(trunk.stem, trunk.stages, trunk.drop_rate, trunk.dtype)
    if isinstance(trunk, resnet.Trunk):
        return ResNetTrunk(trunk.blocks, trunk.dtype)
    return None
