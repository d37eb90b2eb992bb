import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.models.layers.batch_norm import BatchNorm

for_each_activation = pytest.mark.parametrize("activation", ["", "silu", "relu6"])

SHAPES = [(6, 5), (3, 4, 2, 5)]


def inputs(shape):
    return 1.5 + 0.7 * jax.random.normal(jax.random.key(len(shape)), shape)


def start(channels):
    """Parameters and statistics that are neither ones nor zeros."""
    rng = np.random.default_rng(channels)

    def draw(low, high):
        return jnp.asarray(rng.uniform(low, high, channels), jnp.float32)

    return {
        "params": {"scale": draw(0.5, 1.5), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 1.5)},
    }


def train(variables, x, **attributes):
    y, updated = BatchNorm(**attributes).apply(variables, x, train=True, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def normalised(x, mean, var, params, epsilon):
    x, params = np.asarray(x, np.float64), float64(params)
    return (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.5])
def test_training_normalises_with_the_biased_variance_of_the_batch(shape, epsilon):
    x, variables = inputs(shape), start(5)
    rows = np.asarray(x, np.float64).reshape(-1, 5)
    y, _ = train(variables, x, epsilon=epsilon)
    expected = normalised(x, rows.mean(0), rows.var(0), variables["params"], epsilon)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_the_running_statistics_are_torchs(shape, decay):
    x, variables = inputs(shape), start(5)
    rows, old = np.asarray(x, np.float64).reshape(-1, 5), float64(variables["batch_stats"])
    _, new = train(variables, x, decay=decay)
    mean = decay * old["mean"] + (1 - decay) * rows.mean(0)
    var = decay * old["var"] + (1 - decay) * rows.var(0, ddof=1)
    np.testing.assert_allclose(new["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], var, rtol=1e-5)


def test_only_the_running_variance_differs_from_flax():
    x, variables = inputs((6, 5)), start(5)
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    expected, updated = theirs.apply(variables, x, mutable=["batch_stats"])
    y, stats = train(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["mean"], updated["batch_stats"]["mean"], rtol=1e-5)
    biased = updated["batch_stats"]["var"]
    np.testing.assert_allclose(stats["var"] - biased, 0.1 * x.var(0) / 5, rtol=1e-3)


def test_its_gradient_is_that_of_flax():
    x, variables = inputs((6, 5)), start(5)
    theirs = nn.BatchNorm(use_running_average=False, epsilon=1e-5)
    weights = jax.random.normal(jax.random.key(9), x.shape)

    def objective(apply):
        def value(x, params):
            y = apply({**variables, "params": params}, x)
            return (y * weights).sum()

        return jax.grad(value, argnums=(0, 1))(x, variables["params"])

    ours = objective(lambda v, x: train(v, x)[0])
    flax = objective(lambda v, x: theirs.apply(v, x, mutable=["batch_stats"])[0])
    chex.assert_trees_all_close(ours, flax, rtol=1e-4, atol=1e-5)


def gradient_by_definition(x, weights, params, activation):
    """Of ``(y * weights).sum()``: of the input and of the scale, in float64."""
    x, weights = (np.asarray(v, np.float64) for v in (x, weights))
    std, params = np.sqrt(x.var(0) + 1e-5), float64(params)
    unit = (x - x.mean(0)) / std
    if activation:
        z = unit * params["scale"] + params["bias"]
        sigmoid = 1 / (1 + np.exp(-z))
        slopes = {"silu": sigmoid * (1 + z * (1 - sigmoid)), "relu6": (z > 0) & (z < 6)}
        weights = weights * slopes[activation]
    through = weights - weights.mean(0) - unit * (weights * unit).mean(0)
    return params["scale"] / std * through, (weights * unit).sum(0)


@for_each_activation
@pytest.mark.parametrize(("shape", "mean"), [((64, 5), 0), ((64, 5), 300), ((4, 4, 4, 5), 30)])
def test_its_gradient_is_right_where_the_mean_is_many_deviations_from_zero(shape, mean, activation):
    keys = jax.random.split(jax.random.key(4), 2)
    x = mean + jax.random.normal(keys[0], shape)
    weights, variables = jax.random.normal(keys[1], (64, 5)), start(5)
    if not activation:  # else the rounding of the mean, not of the gradient, is most of the error
        weights = weights - weights.mean(0, keepdims=True)

    def value(x, params):
        y, _ = train({**variables, "params": params}, x, activation=activation)
        return (y.reshape(64, 5) * weights).sum()

    of_x, of_params = jax.grad(value, argnums=(0, 1))(x, variables["params"])
    expected, of_scale = gradient_by_definition(
        x.reshape(64, 5), weights, variables["params"], activation
    )
    np.testing.assert_allclose(of_x.reshape(64, 5), expected, atol=1e-4 if activation else 1e-5)
    np.testing.assert_allclose(of_params["scale"], of_scale, atol=1e-4)


def test_relu6_cuts_off_below_0_and_above_6_and_passes_no_gradient_there():
    x, variables = inputs((64, 5)), start(5)
    variables["params"] = {"scale": jnp.full(5, 4.0), "bias": jnp.full(5, 3.0)}
    z, _ = train(variables, x)
    y, pull = jax.vjp(lambda bias: relu6(variables, bias, x), variables["params"]["bias"])
    np.testing.assert_array_equal(y, np.clip(z, 0, 6))
    between = (z > 0) & (z < 6)
    assert 0 < between.sum() < z.size
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], between.sum(0))


def relu6(variables, bias, x):
    params = variables["params"] | {"bias": bias}
    return train({**variables, "params": params}, x, activation="relu6")[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_uses_the_running_statistics(shape):
    x, variables = inputs(shape), start(5)
    y, unchanged = BatchNorm(epsilon=1e-3).apply(variables, x, train=False, mutable=["batch_stats"])
    stats = float64(variables["batch_stats"])
    expected = normalised(x, stats["mean"], stats["var"], variables["params"], 1e-3)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # Flax hands back the variables that it was given, untouched.
    chex.assert_trees_all_equal(unchanged["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 5)])
def test_one_element_a_channel_stays_finite(shape):
    variables = start(5)
    y, stats = train(variables, inputs(shape))
    np.testing.assert_allclose(y.reshape(-1), variables["params"]["bias"], atol=1e-3)
    np.testing.assert_allclose(stats["var"], 0.9 * variables["batch_stats"]["var"], atol=1e-6)
    chex.assert_tree_all_finite(stats)


def test_a_constant_channel_far_from_zero_stays_finite():
    variables = start(5)
    y, stats = train(variables, jnp.full((7, 5), 1e4))
    chex.assert_tree_all_finite((y, stats))
    assert (stats["var"] >= 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_keeps_its_statistics_in_float32(training):
    x = inputs((3, 4, 2, 5)).astype(jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=training)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    y, updated = layer.apply(variables, x, train=training, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    if training:
        rows = np.asarray(x, np.float64).reshape(-1, 5)
        # Far closer than bfloat16's three digits.
        np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-5)


def test_initialisation_does_not_move_the_statistics():
    variables = BatchNorm().init(jax.random.key(0), inputs((6, 5)), train=True)
    chex.assert_trees_all_equal(
        variables["batch_stats"], {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    )
    chex.assert_trees_all_equal(variables["params"], {"scale": jnp.ones(5), "bias": jnp.zeros(5)})


@for_each_activation
def test_in_bfloat16_its_gradient_is_that_of_float32_to_rounding(activation):
    keys = jax.random.split(jax.random.key(4), 2)
    x, weights = (jax.random.normal(key, (4, 4, 4, 5)).astype(jnp.bfloat16) for key in keys)

    def gradients(dtype):
        def value(x, params):
            variables = {**start(5), "params": params}
            y, _ = train(variables, x, activation=activation, dtype=dtype)
            return (y * weights.astype(dtype)).astype(jnp.float32).sum()

        return jax.grad(value, argnums=(0, 1))(x.astype(dtype), start(5)["params"])

    (of_x, of_params), (exact_of_x, exact_of_params) = map(gradients, (jnp.bfloat16, jnp.float32))
    np.testing.assert_allclose(of_x.astype(jnp.float32), exact_of_x, rtol=0.01, atol=1e-3)
    chex.assert_trees_all_close(of_params, exact_of_params, rtol=1e-5, atol=1e-5)
