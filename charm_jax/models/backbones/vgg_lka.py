"""Define VGG-16 (Simonyan & Zisserman, arXiv 1409.1556) with large-kernel attention."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from charm_jax.models.backbones.backbone import Backbone, without_stochastic_depth
from charm_jax.models.layers.batch_norm import BatchNorm
from charm_jax.models.layers.conv import Conv, fan_in_kernel_init
from charm_jax.models.shapes import Maps, NewMaps, SameSizeMaps

_FIRST_ATTENDED = 3  # block; attention weighs its output and those of later blocks


class Block(nn.Module):
    """Apply ``convs`` convolutions 3x3, each with batch norm and ReLU."""

    features: int
    convs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> SameSizeMaps:
        """Apply the convolutions in a row."""
        zeros = nn.initializers.zeros
        conv = partial(Conv, use_bias=True, bias_init=zeros, dtype=self.dtype)
        for i in range(0, 3 * self.convs, 3):  # torch counts convolution, batch norm and ReLU
            x = conv(self.features, 3, name=f"{i}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"{i + 1}")(x, train=train))
        return x


class LargeKernelAttention(nn.Module):
    """Weigh each value by three convolutions with a joint field of 23x23 pixels.

    Source: Guo et al., arXiv 2202.09741, for convolutions and initialisation.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """Multiply ``x`` by the attention, which is not bounded."""
        conv = partial(
            Conv,
            x.shape[-1],
            use_bias=True,
            kernel_init=fan_in_kernel_init,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        y = conv(kernel_size=5, depthwise=True, name="dw_conv1")(x)
        y = conv(kernel_size=7, depthwise=True, dilation=3, name="dw_conv2")(y)
        return x * conv(kernel_size=1, name="pw_conv")(y)


class Trunk(nn.Module):
    """Apply all blocks but the last, each with its attention and 2x2 max-pooling.

    The outputs of blocks and attentions are sown as intermediates ``block1``, ..., ``lka4``.

    Attributes:
        blocks: (features, convs) of each block.
    """

    blocks: tuple[tuple[int, int], ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Maps, *, train: bool) -> NewMaps:
        """Map normalised images to features; each block halves the sides."""
        x = images
        for i, (features, convs) in enumerate(self.blocks, start=1):
            x = Block(features, convs, self.dtype, name=f"block{i}")(x, train=train)
            self.sow("intermediates", f"block{i}.out", x)
            if i >= _FIRST_ATTENDED:
                x = LargeKernelAttention(self.dtype, name=f"lka{i}")(x)
                self.sow("intermediates", f"lka{i}.out", x)
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        return x


class Expansion(nn.Module):
    """Apply the fifth block with its attention and pooling."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> NewMaps:
        """Halve the sides and keep the channels."""
        x = Block(512, 3, self.dtype, name="block5")(x, train=train)
        self.sow("intermediates", "block5.out", x)
        x = LargeKernelAttention(self.dtype, name="lka5")(x)
        self.sow("intermediates", "lka5.out", x)
        return nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))


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
# First layer of each block, and the one after its last, in torchvision's vgg16_bn.
_SPANS = ((0, 6), (7, 13), (14, 23), (24, 33), (34, 43))
_FILE_NAMES = tuple(
    (rf"^features\.{layer}\.", f"block{block}.{layer - start}.")
    for block, (start, end) in enumerate(_SPANS, start=1)
    for layer in range(start, end)
)

MEMBERS = {
    "vgg16_lka": Backbone(
        trunk=without_stochastic_depth(partial(Trunk, ((64, 2), (128, 2), (256, 3), (512, 3)))),
        expansion=Expansion,
        feature_dim=512,
        expansion_name="",
        classifier="classifier",
        duplicates=_DUPLICATES,
        file_names=_FILE_NAMES,
        not_in_files=("lka",),
    )
}
