"""What only a CUDA device can show."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, images, memory, model, variables

from charm_jax.distributed import device
from charm_jax.models import memory_bank, state
from charm_jax.models.attention import MultiScaleAttention
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.charm import Charm, Head
from charm_jax.models.layers import conv
from charm_jax.models.losses import focal
from charm_jax.train import optim
from charm_jax.train import step as steps
from data_pipelines.loading.augment import training_images

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strides", [1, 2])
def test_native_convolutions_equal_their_cpu_forms(strides):
    key = jax.random.key(0)
    x, kernel = jax.random.normal(key, (2, 9, 9, 8)), jax.random.normal(key, (3, 3, 1, 8))
    with jax.default_device(jax.devices("cpu")[0]):
        expected = np.asarray(conv.depthwise_conv(jnp.array(x), jnp.array(kernel), strides))
    with jax.default_matmul_precision("highest"):
        actual = conv.depthwise_conv(x, kernel, strides)
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


def test_the_device_says_its_compute_capability():
    platform, capability = device.target()
    assert platform == "gpu"
    assert float(capability) >= 5


def test_two_bfloat16_steps_are_finite_and_traced_once():
    backbone = BACKBONES["efficientnet_v2_nano"]
    network = Charm(
        trunk=backbone.trunk(drop_rate=0.2, dtype=jnp.bfloat16),
        expansion=backbone.expansion(dtype=jnp.bfloat16),
        fusion=MultiScaleAttention(jnp.bfloat16),
        head=Head(14),
        retrieval_k=5,
        select=lambda features, labels: jnp.ones(len(features), bool),
    )
    optimizer = optim.adamw_one_cycle(optim.geometric(1e-3, 1e-3), 8)
    bank = memory_bank.empty(64, backbone.feature_dim, 14)
    new = state.create(network, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), bank)
    now = state.begin_stage(new, optimizer, jax.random.key(1))
    step = steps.jit_train_step(
        model=network,
        optimizer=optimizer,
        loss=focal,
        augment=chex.assert_max_traces(training_images, n=1),
        momentum_step=1 - 0.99,
    )
    ids = np.arange(8, dtype=np.int32)
    batch = {
        "image": np.random.default_rng(0).integers(0, 255, (8, 64, 64, 1), np.uint8),
        "labels": (np.arange(8 * 14).reshape(8, 14) % 5 == 0).astype(np.int8),
        "case_id": ids,
        "patient_id": ids,
    }
    for _ in range(2):
        now, metrics = step(now, batch)
        assert np.isfinite(float(metrics["loss"]))
        assert np.isfinite(float(metrics["grad_norm"]))
    assert now.memory.features.dtype == jnp.float32
