import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.models.attention import MultiScaleAttention


def started(dim):
    """Parameters of about unit gain, and features."""
    rng = np.random.default_rng(dim)
    features = rng.standard_normal((1, 9, 9, dim))
    layer = MultiScaleAttention()
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((1, 9, 9, dim))))

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes), jnp.asarray(features, jnp.float32)


@jax.jit
def attend(variables, features):
    return MultiScaleAttention().apply(variables, features)


def conv(x, params):
    """The definition, in float64."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, params["kernel"], params["bias"]))
    size, (_, height, width, _) = kernel.shape[0], x.shape
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    taps = itertools.product(range(size), repeat=2)
    return bias + sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in taps)


@pytest.mark.parametrize("dim", [16, 80])
def test_it_is_the_composition_of_the_equation(dim):
    variables, features = started(dim)
    params = variables["params"]
    branches = [conv(features, params[f"conv{size}"]) for size in (1, 3, 5)]
    merged = conv(np.concatenate(branches, -1), params["merge"])
    expected = 1 / (1 + np.exp(-merged))
    np.testing.assert_allclose(attend(variables, features), expected, rtol=1e-5)


@pytest.mark.parametrize(("dim", "width"), [(1, 8), (63, 8), (64, 8), (71, 8), (80, 10), (256, 32)])
def test_the_branches_are_an_eighth_as_wide_but_at_least_8(dim, width):
    features = jnp.zeros((1, 3, 3, dim))
    layer = MultiScaleAttention()
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), features))["params"]
    for size in (1, 3, 5):
        assert params[f"conv{size}"]["kernel"].shape == (size, size, dim, width)
        assert params[f"conv{size}"]["bias"].shape == (width,)
    assert params["merge"]["kernel"].shape == (1, 1, 3 * width, 1)


def test_every_value_is_between_0_and_1_and_they_differ():
    variables, features = started(16)
    attention = np.asarray(attend(variables, 5 * features))
    assert attention.shape == (1, 9, 9, 1)
    assert attention.min() > 0
    assert attention.max() < 1
    assert attention.std() > 0.01


def test_the_merge_sees_a_neighbourhood_of_5():
    variables, features = started(16)
    moved = features.at[0, 4, 4].add(1.0)
    change = attend(variables, moved)[0] != attend(variables, features)[0]
    expected = np.zeros((9, 9, 1), bool)
    expected[2:7, 2:7] = True
    np.testing.assert_array_equal(change, expected)


def test_under_bfloat16_the_map_is_float32():
    layer = MultiScaleAttention(dtype=jnp.bfloat16)
    variables, features = started(16)
    attention = jax.jit(layer.apply)(variables, features.astype(jnp.bfloat16))
    assert attention.dtype == jnp.float32
    np.testing.assert_allclose(attention, attend(variables, features), atol=0.02)
    assert not np.array_equal(attention, attend(variables, features))
    started_so = jax.eval_shape(lambda: layer.init(jax.random.key(0), features))
    assert {leaf.dtype for leaf in jax.tree.leaves(started_so)} == {jnp.dtype(jnp.float32)}
