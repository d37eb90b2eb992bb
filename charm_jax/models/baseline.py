"""Define the baseline: a backbone with a linear classifier."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array

from charm_jax.models.charm import Cases, Output
from charm_jax.models.layers.batch_norm import at_least_float32
from charm_jax.models.layers.conv import torch_bias_init, torch_kernel_init
from charm_jax.models.shapes import Features, Logits, Maps


class Baseline(nn.Module):
    """Apply backbone, global mean and linear layer; called like ``Charm``.

    The linear layer starts as torch draws one that replaces torchvision's.

    Attributes:
        trunk: the backbone up to its last block.
        expansion: the backbone's last block.
        final: applied between the last block and pooling.
        freeze_trunk: whether the trunk runs as in evaluation while the rest trains.
    """

    trunk: nn.Module
    expansion: nn.Module
    final: Callable[[Array], Array]
    num_findings: int
    freeze_trunk: bool = False

    def __call__(
        self, images: Maps, cases: Cases | None, momentum: None, memory: None, *, train: bool
    ) -> Output:
        """Run the network on normalised images; ``cases`` have no effect."""
        trunk = self.trunk(images, train=train and not self.freeze_trunk)
        main = self.expansion(trunk, train=train)
        return Output(logits=self.classify(main, None, cases, memory), main=main)

    @nn.compact
    def classify(
        self, main: Features, momentum_features: None, cases: Cases | None, memory: None
    ) -> Logits:
        """Compute the logits from the block's features; called like ``Charm.classify``."""
        pooled = at_least_float32(self.final(main)).mean((1, 2))
        classifier = nn.Dense(
            self.num_findings,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(pooled.shape[-1]),
            precision=jax.lax.Precision.HIGHEST,
            name="classifier",
        )
        return classifier(pooled)

    def initialise(self, images: Maps) -> None:
        """Create every parameter."""
        self(images, None, None, None, train=False)
