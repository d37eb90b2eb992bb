"""VGG-16 with batch norm (Simonyan & Zisserman, arXiv 1409.1556) and large-kernel attention."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charm_jax.models.backbones.backbone import Backbone, without_stochastic_depth
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.layers.conv import Conv, fan_in_kernel_init

_FIRST_ATTENDED = 3  # block whose output attention weighs, as that of all later ones


class Block(nn.Module):
    """Convolutions 3x3, each with batch norm and ReLU.

    Attributes:
        features: output channels.
        convs: how many.
        dtype: type that it computes in.
    """

    features: int
    convs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width features"]:
        """Applies the convolutions in a row."""
        for i in range(1, self.convs + 1):
            conv = Conv(
                self.features,
                3,
                use_bias=True,
                bias_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(conv(x), train=train))
        return x


class LargeKernelAttention(nn.Module):
    """Weighs each value by three convolutions that together see 23x23 pixels.

    Source: Guo et al., arXiv 2202.09741, for convolutions and initialisation.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Multiplies ``x`` by the attention, which is not bounded."""
        conv = partial(
            Conv,
            x.shape[-1],
            use_bias=True,
            kernel_init=fan_in_kernel_init,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        y = conv(kernel_size=5, depthwise=True, name="local")(x)
        y = conv(kernel_size=7, depthwise=True, dilation=3, name="dilated")(y)
        return x * conv(kernel_size=1, name="pointwise")(y)


class Trunk(nn.Module):
    """All blocks but the last, each with its attention and 2x2 max-pooling.

    The outputs of blocks and attentions are sown as intermediates ``block1``, ..., ``lka4``.

    Attributes:
        blocks: (features, convs) of each block.
        dtype: type that it computes in.
    """

    blocks: tuple[tuple[int, int], ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch new_height new_width features"]:
        """Maps normalised images to the trunk's features; each block halves the side."""
        x = images
        for i, (features, convs) in enumerate(self.blocks, start=1):
            x = Block(features, convs, self.dtype, name=f"convs{i}")(x, train=train)
            self.sow("intermediates", f"block{i}", x)
            if i >= _FIRST_ATTENDED:
                x = LargeKernelAttention(self.dtype, name=f"attention{i}")(x)
                self.sow("intermediates", f"lka{i}", x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x


class Expansion(nn.Module):
    """The fifth block with its attention and pooling."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch new_height new_width features"]:
        """Halves the side and keeps the channels."""
        x = Block(512, 3, self.dtype, name="block")(x, train=train)
        self.sow("intermediates", "block5", x)
        x = LargeKernelAttention(self.dtype, name="lka")(x)
        self.sow("intermediates", "lka5", x)
        return nn.max_pool(x, (2, 2), (2, 2))


_ATTENTION = {"local": "dw_conv1", "dilated": "dw_conv2", "pointwise": "pw_conv"}


def _layer_name(layer: str) -> str:
    """Name of a layer within its block: there, torch numbers convolution, norm and ReLU alike."""
    if layer in _ATTENTION:
        return _ATTENTION[layer]
    kind, number = layer[:-1], int(layer[-1])
    return str(3 * (number - 1) + {"conv": 0, "norm": 1}[kind])


def _torch_name(path: tuple[str, ...]) -> str:
    part, block, layer = path
    if part == "expansion":
        block = f"{block}5"
    block = block.replace("convs", "block").replace("attention", "lka")
    return f"{block}.{_layer_name(layer)}"


def _momentum_torch_name(path: tuple[str, ...]) -> str:
    block, layer = path
    number = {"block": 0, "lka": 1}[block]
    return f"momentum_final_block.final_block.{number}.{_layer_name(layer)}"


# The reference numbers blocks, attentions and poolings in a row.
_DUPLICATES = (
    ("backbone.0.", "block1."),
    ("backbone.2.", "block2."),
    ("backbone.4.", "block3."),
    ("backbone.5.", "lka3."),
    ("backbone.7.", "block4."),
    ("backbone.8.", "lka4."),
    ("final_block.0.", "block5."),
    ("final_block.1.", "lka5."),
)
# Where each block begins and ends in the row of all layers of torchvision's vgg16_bn.
_SPANS = ((0, 6), (7, 13), (14, 23), (24, 33), (34, 43))
_RENAMES = tuple(
    (rf"features\.{layer}\.", f"block{block}.{layer - start}.")
    for block, (start, end) in enumerate(_SPANS, start=1)
    for layer in range(start, end)
)

MEMBERS = {
    "vgg16_lka": Backbone(
        trunk=without_stochastic_depth(partial(Trunk, ((64, 2), (128, 2), (256, 3), (512, 3)))),
        expansion=Expansion,
        feature_dim=512,
        torch_name=_torch_name,
        momentum_torch_name=_momentum_torch_name,
        classifier="classifier",
        duplicates=_DUPLICATES,
        renames=_RENAMES,
        not_in_files=("lka",),
    ),
}
