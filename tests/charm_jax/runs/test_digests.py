"""What a digest of a network is of."""

import jax.numpy as jnp
import pytest

from charm_jax.models.state import TrainState
from charm_jax.runs import digests


@pytest.fixture
def state():
    fields = ("step", "params", "batch_stats", "opt_state", "momentum", "memory", "average")
    names = TrainState.__dataclass_fields__
    filled = {name: {"x": jnp.arange(3.0)} for name in fields if name in names}
    return TrainState(**dict.fromkeys(names) | filled)


@pytest.mark.parametrize("field", ["params", "batch_stats", "momentum", "average", "memory"])
def test_all_that_makes_a_prediction_counts_and_for_features_all_but_the_bank(state, field):
    other = state.replace(**{field: {"x": jnp.arange(3.0) + 1}})
    assert digests.network_sha256(other) != digests.network_sha256(state)
    same = digests.weights_sha256(other) == digests.weights_sha256(state)
    assert same == (field == "memory")


def test_where_training_stands_does_not_count(state):
    other = state.replace(opt_state={"x": jnp.zeros(3)})
    assert digests.network_sha256(other) == digests.network_sha256(state)
