"""Define the baseline: a backbone with a linear classifier."""

import typing
from collections.abc import Callable

import flax
import flax.linen as nn
from jaxtyping import Array, Float

from charm_jax.models.charm import Cases
from charm_jax.models.layers.batch_norm import at_least_float32
from charm_jax.models.layers.conv import torch_bias_init, torch_kernel_init


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class BaselineOutput:
    """Hold the values of a forward pass, named as in ``CharmOutput``."""

    logits: Float[Array, "batch findings"]
    main: Float[Array, "batch height width dim"]
    memory: None = None
    momentum: None = None

    def scalars(self) -> dict[str, Float[Array, ""]]:
        """Return nothing: there is no bank to report on."""
        return {}

    def evidence(self) -> dict[str, Array]:
        """Return nothing: there is no attention and no bank."""
        return {}


class Baseline(nn.Module):
    """Apply backbone, global mean and linear layer; called like ``Charm``.

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
        self,
        images: Float[Array, "batch height width channels"],
        cases: Cases | None,
        momentum: None,
        memory: None,
        *,
        train: bool,
    ) -> BaselineOutput:
        """Run the network on normalised images; ``cases`` have no effect."""
        trunk = self.trunk(images, train=train and not self.freeze_trunk)
        main = self.expansion(trunk, train=train)
        return BaselineOutput(logits=self.classify(main, None, cases, memory), main=main)

    @nn.compact
    def classify(
        self,
        main: Float[Array, "batch height width dim"],
        momentum_features: None,
        cases: Cases | None,
        memory: None,
    ) -> Float[Array, "batch findings"]:
        """Compute the logits from the block's features; called like ``Charm.classify``."""
        pooled = at_least_float32(self.final(main)).mean((1, 2))
        classifier = nn.Dense(
            self.num_findings,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(pooled.shape[-1]),
            name="classifier",
        )
        return classifier(pooled)

    def initialise(self, images: Float[Array, "batch height width channels"]) -> None:
        """Create every parameter."""
        self(images, None, None, None, train=False)
