"""What every backbone offers to the model."""

import dataclasses
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network cut in two before its last block.

    Attributes:
        trunk: ``trunk(drop_rate=..., dtype=...)`` makes the module up to the cut;
            ``[B, H, W, 3] -> [B, h, w, C]``.
        expansion: ``expansion(dtype=...)`` makes the last block; ``[B, h, w, C] -> [B, h, w, D]``.
        feature_dim: D.
        torch_name: path of a layer in trunk or expansion block to its torchvision name, e.g.
            ``("expansion", "norm")`` to ``features.7.1``.
        momentum_torch_name: path of a layer in the momentum branch to its name in the reference.
        classifier: torchvision's name of the plain network's linear classifier.
        duplicates: (prefix, torchvision's prefix) of the names under which the reference's files
            hold trunk and last block a second time.
        renames: (pattern of a name's beginning, replacement) from other files' names to
            torchvision's.
        not_in_files: beginnings of names that no ImageNet file has.
        final: what the plain network, not CHARM, does between the last block and pooling.
    """

    trunk: Callable[..., nn.Module]
    expansion: Callable[..., nn.Module]
    feature_dim: int
    torch_name: Callable[[tuple[str, ...]], str]
    momentum_torch_name: Callable[[tuple[str, ...]], str]
    classifier: str
    duplicates: tuple[tuple[str, str], ...]
    renames: tuple[tuple[str, str], ...] = ()
    not_in_files: tuple[str, ...] = ()
    final: Callable[[Array], Array] = jax.nn.identity

    def plain_name(self, name: str) -> str:
        """Torchvision's name of a tensor that a file names in any way known here."""
        for prefix, plain in self.duplicates:
            if name.startswith(prefix):
                return plain + name.removeprefix(prefix)
        for pattern, replacement in self.renames:
            name = re.sub(f"^{pattern}", replacement, name)
        return name

    def reference_name(self, name: str) -> str:
        """The second name that a tensor, here by torchvision's, has in the reference's files."""
        for prefix, plain in self.duplicates:
            if name.startswith(plain):
                return prefix + name.removeprefix(plain)
        raise ValueError(f"{name} is of neither trunk nor last block")


def without_stochastic_depth(trunk: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The ``trunk`` of a family that has no stochastic depth: a drop rate changes nothing."""

    def make(*, drop_rate: float, dtype: DTypeLike = jnp.float32) -> nn.Module:
        del drop_rate
        return trunk(dtype=dtype)

    return make
