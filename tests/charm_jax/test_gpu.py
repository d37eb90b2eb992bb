"""What only a CUDA device can show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, images, memory, model, variables

from charm_jax import convolution, experiment

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strides", [1, 2])
def test_native_convolutions_equal_their_cpu_forms(strides):
    key = jax.random.key(0)
    x, kernel = jax.random.normal(key, (2, 9, 9, 8)), jax.random.normal(key, (3, 3, 1, 8))
    with jax.default_device(jax.devices("cpu")[0]):
        expected = np.asarray(convolution.depthwise_conv(jnp.array(x), jnp.array(kernel), strides))
    with jax.default_matmul_precision("highest"):
        actual = convolution.depthwise_conv(x, kernel, strides)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_the_whole_network_equals_its_cpu_self():
    network, momentum = variables("efficientnet_v2_s")

    def forward(network, x, momentum, bank):
        return model("efficientnet_v2_s").apply(network, x, cases(2), momentum, bank, train=False)

    inputs = (network, images(2, 64), momentum, memory("efficientnet_v2_s"))
    with jax.default_matmul_precision("highest"):
        on_gpu = jax.jit(forward)(*inputs).logits
    on_cpu = jax.jit(forward)(*jax.device_put(inputs, jax.devices("cpu")[0])).logits
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3)


def test_a_gpu_computes_in_bfloat16():
    assert experiment.compute_type() == jnp.bfloat16
