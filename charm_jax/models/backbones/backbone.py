"""Define the interface between a backbone and the networks built on it."""

import dataclasses
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

Renames = tuple[tuple[str, str], ...]  # regular expressions and replacements, applied in order


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Describe a network that is cut in two before its last block.

    Attributes:
        trunk: ``trunk(drop_rate=..., dtype=...)`` creates the module up to the cut;
            ``[B, H, W, 3] -> [B, h, w, C]``.
        expansion: ``expansion(dtype=...)`` creates the last block;
            ``[B, h, w, C] -> [B, h, w, D]``.
        feature_dim: D.
        expansion_name: torchvision's prefix of the names in the last block. Otherwise the names of
            the modules are torchvision's, or timm's where torchvision has no such network.
        classifier: torchvision's name of the linear classifier.
        duplicates: (prefix, torchvision's prefix) of the second names that the reference's files
            give to trunk and last block.
        file_names: from the names in other files to torchvision's.
        not_in_files: prefixes of the names that no ImageNet file has.
        input_range: grey levels as the network reads them with its ImageNet weights:
            ``config.model.input_range``.
        final: what the baseline, not CHARM, applies between last block and pooling.
    """

    trunk: Callable[..., nn.Module]
    expansion: Callable[..., nn.Module]
    feature_dim: int
    expansion_name: str
    classifier: str
    duplicates: tuple[tuple[str, str], ...]
    file_names: Renames = ()
    not_in_files: tuple[str, ...] = ()
    input_range: str = "imagenet"
    final: Callable[[Array], Array] = jax.nn.identity

    def torchvision_name(self, name: str) -> str:
        """Return torchvision's name of a tensor under any name that files give it."""
        for prefix, original in self.duplicates:
            if name.startswith(prefix):
                return original + name.removeprefix(prefix)
        return _renamed(name, self.file_names)

    def reference_name(self, name: str) -> str:
        """Return the reference's second name of a tensor, given torchvision's.

        Raises:
            ValueError: the tensor is of neither trunk nor last block.
        """
        for prefix, original in self.duplicates:
            if name.startswith(original):
                return prefix + name.removeprefix(original)
        raise ValueError(f"{name} is of neither trunk nor last block")


def _renamed(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def without_stochastic_depth(trunk: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Let a trunk without stochastic depth ignore a drop rate."""

    def make(*, drop_rate: float, dtype: DTypeLike = jnp.float32) -> nn.Module:
        del drop_rate
        return trunk(dtype=dtype)

    return make
