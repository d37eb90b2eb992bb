"""The pool of both forms, against PyTorch's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from charm_jax.models.layers.conv import plain_forms
from charm_jax.models.layers.pool import max_pool


def by_definition(x):
    """MaxPool2d(3, stride=2, padding=1), window by window."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    sides = [-(-side // 2) for side in x.shape[1:3]]
    out = np.empty((len(x), *sides, x.shape[-1]), x.dtype)
    for i, j in np.ndindex(*sides):
        out[:, i, j] = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return out


@pytest.mark.parametrize("sides", [(8, 8), (7, 5), (1, 2)])
def test_both_forms_are_the_pool_of_pytorch(sides):
    x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32) - 5
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), by_definition(x))
    with plain_forms():
        np.testing.assert_array_equal(max_pool(jnp.asarray(x)), by_definition(x))


def test_the_converter_keeps_the_padding():
    jax2onnx = pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32) - 5
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape("n"), 8, 8, 3), np.float32)
    with plain_forms():
        program = jax2onnx.to_onnx(max_pool, [shape], model_name="pool", input_names=["x"])
    session = onnxruntime.InferenceSession(program.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], by_definition(x))
