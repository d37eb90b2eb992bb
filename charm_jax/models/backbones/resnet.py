"""Define ResNet (He et al., arXiv 1512.03385) as torchvision does, in the form "v1.5"."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from charm_jax.models.backbones.backbone import Backbone, without_stochastic_depth
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.layers.conv import Conv
from charm_jax.models.layers.pool import max_pool
from charm_jax.models.shapes import Maps, NewMaps

_EXPANSION = 4  # a bottleneck's output is this many times as wide as its inside


class Bottleneck(nn.Module):
    """Add the input to its convolutions 1x1, 3x3 and 1x1.

    Differs: the paper strides in the first 1x1 convolution, version 1.5 in the 3x3.

    Attributes:
        features: channels of the inner convolutions.
        strides: step of the 3x3 convolution.
    """

    features: int
    strides: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Apply the block, projecting the input where it has another shape."""
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        width = self.features * _EXPANSION
        y = conv(self.features, 1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train=train))
        y = conv(self.features, 3, self.strides, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train=train))
        y = norm(name="bn3")(conv(width, 1, name="conv3")(y), train=train)
        if self.strides != 1 or x.shape[-1] != width:
            x = conv(width, 1, self.strides, name="downsample.0")(x)
            x = norm(name="downsample.1")(x, train=train)
        return nn.relu(x + y)


class Layer(nn.Module):
    """Apply bottlenecks of one width, the first one with strides."""

    features: int
    blocks: int
    strides: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Apply the blocks in a row."""
        for i in range(self.blocks):
            strides = self.strides if i == 0 else 1
            x = Bottleneck(self.features, strides, self.dtype, name=str(i))(x, train=train)
        return x


class Trunk(nn.Module):
    """Apply stem and all layers but the last, of ``blocks`` bottlenecks each.

    The outputs of stem and layers are sown as the intermediates ``stem``, ``layer1``, ...
    """

    blocks: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Maps, *, train: bool) -> NewMaps:
        """Map normalised images to features with a sixteenth of their sides."""
        x = Conv(64, 7, 2, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, train=train))
        self.sow("intermediates", "stem.out", x)
        x = max_pool(x)
        for i, blocks in enumerate(self.blocks):
            strides = 1 if i == 0 else 2
            layer = Layer(64 * 2**i, blocks, strides, self.dtype, name=f"layer{i + 1}")
            x = layer(x, train=train)
            self.sow("intermediates", f"layer{i + 1}.out", x)
        return x


# The reference numbers the children of the network; two (ReLU, pooling) hold no tensors.
_DUPLICATES = (
    ("backbone.0.", "conv1."),
    ("backbone.1.", "bn1."),
    ("backbone.4.", "layer1."),
    ("backbone.5.", "layer2."),
    ("backbone.6.", "layer3."),
    ("final_block.", "layer4."),
    ("backbone.7.", "layer4."),  # fastai does not cut before it
)

MEMBERS = {
    "resnet50": Backbone(
        trunk=without_stochastic_depth(partial(Trunk, (3, 4, 6))),
        expansion=partial(Layer, 512, 3, 2),
        feature_dim=2048,
        expansion_name="layer4.",
        classifier="fc",
        duplicates=_DUPLICATES,
    )
}
