import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from charm_jax.models.layers.conv import (
    Conv,
    dense_conv,
    depthwise_conv,
    pointwise,
    torch_bias_init,
)

# (height, width, channels, features, kernel size); a fixed few, since each is compiled.
CASES = [
    (5, 5, 2, 3, 3),
    (6, 4, 3, 2, 3),
    (1, 1, 2, 2, 3),
    (2, 2, 3, 2, 5),
    (7, 8, 2, 4, 5),
    (2, 3, 1, 3, 5),
    (4, 4, 3, 3, 1),
    (8, 5, 3, 2, 7),
    (4, 4, 16, 2, 5),  # to far fewer features
    (4, 6, 5, 20, 3),  # to far more of them
    (66, 64, 2, 3, 3),  # a large map, with strides of 2, too
]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def xla_conv(x, kernel, strides, groups, dilation=1):
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def numpy_conv(x, kernel, strides):
    """Dense convolution by its definition, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = range(0, x.shape[1], strides), range(0, x.shape[2], strides)
    windows = [
        [np.einsum("bijc,ijcf->bf", padded[:, r : r + size, c : c + size], kernel) for c in columns]
        for r in rows
    ]
    return np.moveaxis(np.array(windows), 2, 0)


def jitted(form, strides):
    conv = {"dense": dense_conv, "depthwise": depthwise_conv}[form]
    return jax.jit(functools.partial(conv, strides=strides))


@functools.cache
def outputs(form, strides, ours):
    """Jitted (x, kernel, cotangent) -> (output, gradient of x, gradient of the kernel)."""

    def conv(x, kernel):
        if ours:
            return jitted(form, strides)(x, kernel)
        return xla_conv(x, kernel, strides, 1 if form == "dense" else x.shape[-1])

    @jax.jit
    def run(x, kernel, cotangent):
        y, pull = jax.vjp(conv, x, kernel)
        return y, *pull(cotangent)

    return run


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("form", ["dense", "depthwise"])
@pytest.mark.parametrize("case", CASES)
def test_both_forms_equal_the_convolution_of_xla(form, strides, case):
    height, width, channels, features, size = case
    if form == "depthwise":
        kernel_shape = (size, size, 1, channels)
    else:
        kernel_shape = (size, size, channels, features)
    rng = np.random.default_rng(case)
    x = jnp.asarray(rng.standard_normal((2, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal(kernel_shape), jnp.float32)
    sides = -(-height // strides), -(-width // strides)
    cotangent = jnp.asarray(rng.standard_normal((2, *sides, kernel_shape[-1])), jnp.float32)
    actual = outputs(form, strides, True)(x, kernel, cotangent)
    expected = outputs(form, strides, False)(x, kernel, cotangent)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sides", [(2, 3), (4, 11)])
def test_a_dilated_kernel_equals_the_convolution_of_xla(sides):
    # On the smaller map most of the kernel reads nothing but padding.
    x = jax.random.normal(jax.random.key(0), (2, *sides, 3))
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 1, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def run(ours, x, kernel):
        y, pull = jax.vjp(conv if ours else xla, x, kernel)
        return y, *pull(y)

    conv = functools.partial(depthwise_conv, strides=1, dilation=3)
    xla = functools.partial(xla_conv, strides=1, groups=3, dilation=3)

    chex.assert_trees_all_close(run(True, x, kernel), run(False, x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [5, 6])
def test_it_is_the_convolution_of_the_definition(size, strides):
    x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    actual = jitted("dense", strides)(x, kernel)
    np.testing.assert_allclose(actual, numpy_conv(x, kernel, strides), rtol=1e-4, atol=1e-4)
    own = jax.random.normal(jax.random.key(2), (3, 3, 1, 3))
    diagonal = own * jnp.eye(3).reshape(1, 1, 3, 3)
    actual = jitted("depthwise", strides)(x, own)
    np.testing.assert_allclose(actual, numpy_conv(x, diagonal, strides), rtol=1e-4, atol=1e-4)


def test_stride_2_on_an_even_side_is_not_same():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    # torch's padding centres the windows on pixels 0 and 2, 'SAME' on 1 and 3.
    for form in ("dense", "depthwise"):
        assert jitted(form, 2)(x, kernel).reshape(-1).tolist() == [0, 2, 8, 10]
    same = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)
    assert same.reshape(-1).tolist() == [5, 7, 13, 15]


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("sides", [(7, 8), (8, 7), (6, 4)])
@pytest.mark.parametrize(("size", "strides"), [(3, 2), (5, 2), (3, 1), (1, 2)])
def test_same_is_tensorflows_padding(size, strides, sides, depthwise):
    channels = 3
    x = jax.random.normal(jax.random.key(0), (2, *sides, channels))
    shape = (size, size, 1 if depthwise else channels, channels)
    params = {"kernel": jax.random.normal(jax.random.key(1), shape)}
    layer = Conv(channels, size, strides, depthwise, same=True)

    def xlas(params, x):
        kernel, groups = params["kernel"], channels if depthwise else 1
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            "SAME",
            dimension_numbers=LAYOUT,
            feature_group_count=groups,
        )

    @functools.partial(jax.jit, static_argnums=0)
    def run(conv, params, x):
        y, pull = jax.vjp(conv, params, x)
        return y, *pull(y)

    def ours(params, x):
        return layer.apply({"params": params}, x)

    actual, expected = run(ours, params, x), run(xlas, params, x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_size_1_is_the_matrix_product(strides):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    layer = Conv(6, 1, strides, use_bias=True)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    expected = np.einsum("bhwc,cf->bhwf", x[:, ::strides, ::strides], kernel[0, 0])
    expected = expected + np.asarray(bias).reshape(1, 1, 1, -1)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("depthwise", "fan_in"), [(False, 9 * 4), (True, 9)])
def test_the_bias_is_uniform_within_one_over_the_root_of_fan_in(depthwise, fan_in):
    x = jnp.zeros((1, 4, 4, 4 if not depthwise else 1000))
    layer = Conv(1000, 3, depthwise=depthwise, use_bias=True)
    bias = np.asarray(jax.jit(layer.init)(jax.random.key(0), x)["params"]["bias"])
    bound = fan_in**-0.5
    assert np.abs(bias).max() <= bound
    assert bias.min() < -0.95 * bound
    assert bias.max() > 0.95 * bound
    # Half of a uniform draw lies in the inner half: three standard errors of 1000 draws.
    assert abs((np.abs(bias) < bound / 2).mean() - 0.5) < 0.05


def test_another_initialiser_of_the_bias_is_used():
    layer = Conv(3, 1, use_bias=True, bias_init=jax.nn.initializers.ones)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, 2)))["params"]
    assert params["bias"].tolist() == [1, 1, 1]


def test_the_bias_initialiser_keeps_the_asked_type():
    init = torch_bias_init(16)
    assert init(jax.random.key(0), (8,), jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("size", "depthwise"), [(1, False), (3, False), (5, False), (3, True)])
def test_the_layer_has_the_sides_divided_by_its_strides(size, depthwise, strides, dtype):
    x = jnp.ones((2, 7, 6, 4))
    layer = Conv(4 if depthwise else 5, size, strides, depthwise, use_bias=True, dtype=dtype)

    def run():
        return layer.init_with_output(jax.random.key(0), x)

    y, variables = jax.eval_shape(run)
    assert y.shape == (2, -(-7 // strides), -(-6 // strides), 4 if depthwise else 5)
    assert y.dtype == dtype
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (size, size, 1 if depthwise else 4, 4 if depthwise else 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(("size", "depthwise"), [(3, False), (3, True)])
def test_the_layer_adds_its_bias(size, depthwise):
    x = jax.random.normal(jax.random.key(3), (1, 5, 5, 4))
    layer = Conv(4, size, depthwise=depthwise, use_bias=True)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    apply = jax.jit(layer.apply)
    without = apply({"params": {**params, "bias": jnp.zeros(4)}}, x)
    bias = params["bias"].reshape(1, 1, 1, 4)
    np.testing.assert_allclose(apply({"params": params}, x), without + bias, atol=1e-6)


def test_a_pointwise_kernels_gradient_is_summed_and_kept_in_float32():
    keys = jax.random.split(jax.random.key(0), 3)
    x, grad = (jax.random.normal(key, (4, 8, 8, 16)).astype(jnp.bfloat16) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (16, 16))
    _, back = jax.vjp(pointwise, x, kernel)
    of_x, of_kernel = back(grad)
    assert (of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    exact = np.einsum("bhwc,bhwf->cf", *(np.asarray(v, np.float64) for v in (x, grad)))
    np.testing.assert_allclose(of_kernel, exact, rtol=1e-5, atol=1e-5)
