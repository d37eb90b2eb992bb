"""Define DenseNet (Huang et al., arXiv 1608.06993) as torchvision does."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from charm_jax.models.backbones.backbone import Backbone, without_stochastic_depth
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.layers.conv import Conv as PaddedConv
from charm_jax.models.layers.conv import fan_in_kernel_init
from charm_jax.models.layers.pool import max_pool
from charm_jax.models.shapes import Maps, NewMaps, SameSizeMaps

_BOTTLENECK = 4  # width of the 1x1 convolution as a multiple of the growth

# Torchvision draws DenseNet's kernels from N(0, 2/fan_in), unlike those of its other families.
Conv = partial(PaddedConv, kernel_init=fan_in_kernel_init)


class DenseLayer(nn.Module):
    """Apply batch norm, ReLU, 1x1 convolution; batch norm, ReLU, 3x3 convolution."""

    growth: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> SameSizeMaps:
        """Return ``growth`` new channels."""
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        x = nn.relu(norm(name="norm1")(x, train=train))
        x = conv(self.growth * _BOTTLENECK, 1, name="conv1")(x)
        x = nn.relu(norm(name="norm2")(x, train=train))
        return conv(self.growth, 3, name="conv2")(x)


class DenseBlock(nn.Module):
    """Apply layers that each read the block's input and the outputs of all layers before."""

    layers: int
    growth: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> SameSizeMaps:
        """Append ``layers`` times ``growth`` channels."""
        for i in range(1, self.layers + 1):
            new = DenseLayer(self.growth, self.dtype, name=f"denselayer{i}")(x, train=train)
            x = jnp.concatenate([x, new], axis=-1)
        return x


class Transition(nn.Module):
    """Apply batch norm, ReLU, a 1x1 convolution to half the channels and 2x2 mean pooling."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Halve channels and sides (rounded down)."""
        y = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        y = Conv(x.shape[-1] // 2, 1, dtype=self.dtype, name="conv")(y)
        return nn.avg_pool(y, window_shape=(2, 2), strides=(2, 2))


class Trunk(nn.Module):
    """Apply stem and dense blocks, all of torchvision's ``features`` but the last batch norm.

    The outputs of stem, blocks and transitions are sown as intermediates by their torchvision
    names.

    Attributes:
        layers: number of layers in each dense block.
        growth: channels that a layer adds.
    """

    layers: tuple[int, ...]
    growth: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Maps, *, train: bool) -> NewMaps:
        """Map normalised images to features with a thirty-second of their sides."""
        x = Conv(2 * self.growth, 7, 2, dtype=self.dtype, name="features.conv0")(images)
        self.sow("intermediates", "conv0.out", x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="features.norm0")(x, train=train))
        x = max_pool(x)
        self.sow("intermediates", "pool0.out", x)
        for i, layers in enumerate(self.layers, start=1):
            x = DenseBlock(layers, self.growth, self.dtype, name=f"features.denseblock{i}")(
                x, train=train
            )
            self.sow("intermediates", f"denseblock{i}.out", x)
            if i < len(self.layers):
                x = Transition(self.dtype, name=f"features.transition{i}")(x, train=train)
                self.sow("intermediates", f"transition{i}.out", x)
        return x


_CHILDREN = (
    *("conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1", "denseblock2"),
    *("transition2", "denseblock3", "transition3", "denseblock4"),
)
_DUPLICATES = (
    *((f"backbone.{i}.", f"features.{child}.") for i, child in enumerate(_CHILDREN)),
    ("final_block.0.", "features.norm5."),
    ("backbone.11.", "features.norm5."),
)
# MONAI puts a layer's modules in a row; torchvision's ImageNet file keeps its first names.
_FILE_NAMES = (
    (r"^(features\.denseblock\d+\.denselayer\d+)\.layers\.", r"\1."),
    (r"^(features\.denseblock\d+\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
)

MEMBERS = {
    "densenet121": Backbone(
        trunk=without_stochastic_depth(partial(Trunk, (6, 12, 24, 16), 32)),
        expansion=BatchNorm,
        feature_dim=1024,
        expansion_name="features.norm5.",
        classifier="classifier",
        duplicates=_DUPLICATES,
        file_names=_FILE_NAMES,
        final=nn.relu,
    )
}
