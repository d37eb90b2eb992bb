import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import check_plain_network, shapes

from charm_jax.models.backbones import BACKBONES, efficientnet_v2
from charm_jax.weights import torch_names

ARCH = "efficientnet_v2_s"


@pytest.mark.parametrize("size", [128, 224])
def test_the_plain_network_equals_the_original(size):
    check_plain_network(ARCH, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 224])
def test_the_medium_member_equals_the_original(size):
    check_plain_network("efficientnet_v2_m", size)


@pytest.mark.parametrize("arch", efficientnet_v2.MEMBERS)
def test_every_member_builds_and_names_each_tensor_once(arch):
    backbone = BACKBONES[arch]
    assert backbone is efficientnet_v2.MEMBERS[arch]
    norm = shapes(arch)["params"]["expansion"]["1"]
    assert norm["scale"].shape == (backbone.feature_dim,)
    names = torch_names.leaf_names(shapes(arch), backbone).values()
    assert len(set(names)) == len(names) == len(jax.tree.leaves(shapes(arch)))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_the_small_member_halves_the_side_four_times(size):
    backbone = BACKBONES["efficientnet_v2_nano"]
    trunk, expansion = backbone.trunk(drop_rate=0.2), backbone.expansion()

    def forward():
        key = jax.random.key(0)
        x = jnp.zeros((3, size, size, 3))
        rngs = {"params": key, "dropout": key}
        features, _ = trunk.init_with_output(rngs, x, train=True)
        return features, expansion.init_with_output(key, features, train=True)[0]

    features, expanded = jax.eval_shape(forward)
    assert features.shape == (3, size // 16, size // 16, 64)
    assert expanded.shape == (3, size // 16, size // 16, backbone.feature_dim)


def test_stochastic_depth_zeroes_or_scales_whole_rows():
    x = 1.0 + jax.random.uniform(jax.random.key(0), (64, 3, 2, 5))
    y = np.asarray(efficientnet_v2.stochastic_depth(jax.random.key(1), x, 0.25))
    dropped = (y == 0).all((1, 2, 3))
    assert 0 < dropped.sum() < 64
    np.testing.assert_allclose(y[~dropped], np.asarray(x)[~dropped] / 0.75, rtol=1e-6)


def test_stochastic_depth_keeps_the_expected_value():
    x = jnp.ones((20_000, 1, 1, 1))
    y = efficientnet_v2.stochastic_depth(jax.random.key(2), x, 0.2)
    # Five standard errors: the variance of a row is rate / (1 - rate).
    assert abs(float(y.mean()) - 1) < 5 * math.sqrt(0.25 / 20_000)


def test_stochastic_depth_at_rate_zero_is_the_identity():
    x = jax.random.normal(jax.random.key(3), (16, 2, 2, 3))
    chex.assert_trees_all_equal(efficientnet_v2.stochastic_depth(jax.random.key(4), x, 0.0), x)


def test_stochastic_depth_keeps_bfloat16():
    x = jnp.ones((4, 1, 1, 2), jnp.bfloat16)
    assert efficientnet_v2.stochastic_depth(jax.random.key(5), x, 0.5).dtype == jnp.bfloat16


def test_a_dropped_row_passes_its_block_unchanged():
    stage = efficientnet_v2.Stage(fused=True, expand=1, strides=1, features=4, blocks=1)
    x = jax.random.normal(jax.random.key(6), (16, 4, 4, 4))
    block = functools.partial(efficientnet_v2.Block, stage, 1)
    initial = block(0.0).init(jax.random.key(7), x, train=False)
    whole, _ = block(0.0).apply(initial, x, train=True, mutable=["batch_stats"])
    rngs = {"dropout": jax.random.key(8)}
    y, _ = block(0.5).apply(initial, x, train=True, mutable=["batch_stats"], rngs=rngs)
    dropped = np.asarray((y == x).all((1, 2, 3)))
    assert 0 < dropped.sum() < 16
    expected = (x + 2 * (whole - x))[~dropped]
    np.testing.assert_allclose(y[~dropped], expected, rtol=1e-5, atol=1e-5)
    # In evaluation nothing is dropped, and no random stream is needed.
    chex.assert_trees_all_equal(
        block(0.5).apply(initial, x, train=False), block(0.0).apply(initial, x, train=False)
    )


def test_the_drop_rate_rises_linearly_over_the_blocks(monkeypatch):
    rates = []

    def record(key, x, rate):
        rates.append(rate)
        return x

    monkeypatch.setattr(efficientnet_v2, "stochastic_depth", record)
    trunk = BACKBONES[ARCH].trunk(drop_rate=0.2)
    key = jax.random.key(0)
    jax.eval_shape(
        lambda: trunk.init({"params": key, "dropout": key}, jnp.zeros((1, 32, 32, 3)), train=True)
    )
    # Stages of 2, 4, 4, 6, 9 and 15 blocks; the first of all but the first stage has no residual.
    residual = [i for i in range(1, 40) if i not in (2, 6, 10, 16, 25)]
    np.testing.assert_allclose(rates, [0.2 * i / 40 for i in residual], rtol=1e-12)
