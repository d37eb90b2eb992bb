"""Digests of a network, by which what is stored beside it is known to be of it."""

from charm_jax.models.state import TrainState
from charm_jax.runs.checkpoints import tree_sha256


def weights_sha256(state: TrainState) -> str:
    """Of all that makes a feature: the network without its bank."""
    return tree_sha256(_weights(state))


def network_sha256(state: TrainState) -> str:
    """Of all that makes a prediction: a name such as focal/123 may come again in a new run."""
    return tree_sha256(_weights(state) | {"memory": state.memory})


def _weights(state: TrainState) -> dict[str, object]:
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "momentum": state.momentum,
        "average": state.average,
    }
