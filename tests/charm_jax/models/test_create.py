import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm
from charm_jax.models.create import compute_type, create_network, empty_bank

NANO = "efficientnet_v2_nano"
DESCRIPTIONS = Path(__file__).parents[3] / "benchmarks" / "gpus"


@pytest.fixture
def charm():
    return create_network(NANO, num_classes=3, stochastic_depth=0.1, retrieval_k=2)


def test_charm_has_the_parts_that_are_asked_for(charm):
    assert isinstance(charm, Charm)
    assert (charm.head.num_findings, charm.retrieval_k, charm.trunk.drop_rate) == (3, 2, 0.1)
    assert charm.fusion is not None
    assert create_network(NANO, num_classes=3, fusion=False).fusion is None


def test_activations_have_the_type_that_is_asked_for():
    network = create_network(NANO, num_classes=3, dtype=jnp.bfloat16)
    assert {network.trunk.dtype, network.expansion.dtype, network.fusion.dtype} == {jnp.bfloat16}


def test_without_charm_it_is_the_baseline():
    network = create_network("densenet121", num_classes=3, charm=False)
    assert isinstance(network, Baseline)
    assert network.num_findings == 3
    assert network.final(jnp.array(-1.0)) == 0


def test_a_bank_has_room_for_the_features_and_findings(charm):
    bank = empty_bank(charm, NANO, 7)
    assert (bank.features.shape, bank.labels.shape) == ((7, 256), (7, 3))
    assert empty_bank(create_network(NANO, num_classes=3, charm=False), NANO, 7) is None


def test_the_rule_gets_threshold_and_prevalence():
    network = create_network(
        NANO,
        num_classes=2,
        rarity="rare_finding",
        rarity_threshold=0.1,
        prevalence=(0.5, 0.05),
    )
    labels = jnp.array([[1, 0], [0, 1], [0, 0]], jnp.int8)
    selected = network.select(jnp.ones((3, 4)), labels)
    np.testing.assert_array_equal(selected, [False, True, False])


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", "", jnp.float32),
        ("gpu", "8.0", jnp.bfloat16),
        ("cuda", "12.0", jnp.bfloat16),
        ("gpu", "gfx942", jnp.bfloat16),  # AMD's
    ],
)
def test_activations_are_bfloat16_where_a_gpu_multiplies_in_it(platform, capability, expected):
    assert compute_type(platform, capability) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p100", jnp.float32),
        ("v100", jnp.float32),
        ("t4", jnp.float32),
        ("a100", jnp.bfloat16),
        ("h100", jnp.bfloat16),
    ],
)
def test_activations_have_the_type_that_suits_each_described_gpu(name, expected):
    described = (DESCRIPTIONS / f"{name}.txtpb").read_text()
    numbers = re.search(r"cuda_compute_capability { major: (\d+)(?: minor: (\d+))? }", described)
    assert compute_type("gpu", ".".join(number or "0" for number in numbers.groups())) == expected


def test_an_unknown_backbone_is_an_error():
    with pytest.raises(KeyError, match="resnet51"):
        create_network("resnet51", num_classes=3)
