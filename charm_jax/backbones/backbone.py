"""What every backbone offers to the model."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network cut in two before its last block.

    Attributes:
        trunk: ``trunk(drop_rate=..., dtype=...)`` makes the module up to the cut;
            ``[B, H, W, 3] -> [B, h, w, C]``.
        expansion: ``expansion(dtype=...)`` makes the last block; ``[B, h, w, C] -> [B, h, w, D]``.
        feature_dim: D.
        drop_rate: stochastic depth that the family trains with.
        torch_name: path of a layer in trunk or expansion block to its torchvision name, e.g.
            ``("expansion", "norm")`` to ``features.7.1``.
        momentum_torch_name: path of a layer in the momentum branch to its name in the reference.
    """

    trunk: Callable[..., nn.Module]
    expansion: Callable[..., nn.Module]
    feature_dim: int
    drop_rate: float
    torch_name: Callable[[tuple[str, ...]], str]
    momentum_torch_name: Callable[[tuple[str, ...]], str]
