"""The baseline: a backbone with a linear classifier; no attention, momentum branch or bank."""

import typing
from collections.abc import Callable

import flax
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from charm_jax.models.charm import Cases
from charm_jax.models.layers.conv import torch_bias_init, torch_kernel_init


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class BaselineOutput:
    """What a forward pass makes; named as in ``CharmOutput``.

    Attributes:
        logits: one a finding, float32.
        main: the expansion block's features.
        memory: None, there is no bank.
        momentum: None, there is no momentum branch.
    """

    logits: Float[Array, "batch findings"]
    main: Float[Array, "batch height width dim"]
    memory: None = None
    momentum: None = None

    def scalars(self) -> dict[str, Float[Array, ""]]:
        """Nothing to report."""
        return {}

    def evidence(self) -> dict[str, Array]:
        """Nothing: there is no map and no bank."""
        return {}


class Baseline(nn.Module):
    """Backbone, global mean, linear layer; it is called as ``Charm`` is.

    Attributes:
        trunk: the backbone up to its last block.
        expansion: the backbone's last block.
        final: what the network does between the last block and pooling.
        num_findings: F.
        freeze_trunk: run the trunk as in evaluation while the rest trains.
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
        """One pass over a batch of normalised images; ``cases`` do not matter."""
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
        """From the expansion block's features to the logits; called as ``Charm.classify`` is."""
        pooled = self.final(main).astype(jnp.float32).mean((1, 2))
        classifier = nn.Dense(
            self.num_findings,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(pooled.shape[-1]),
            name="classifier",
        )
        return classifier(pooled)

    def initialise(self, images: Float[Array, "batch height width channels"]) -> None:
        """Touches every parameter once."""
        self(images, None, None, None, train=False)
