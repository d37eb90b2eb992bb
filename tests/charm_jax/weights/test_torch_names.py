import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LARGE, ORIGINALS, check_names_and_shapes, shapes, tensors
from weight_states import NANO, SMALL, random_like

from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import torch_names

# The largest network shares its family with a smaller one.
EACH = [pytest.param(arch, marks=pytest.mark.slow) if arch in LARGE else arch for arch in ORIGINALS]


@pytest.mark.parametrize("arch", [NANO, *EACH])
def test_there_and_back_is_the_identity(arch):
    original = random_like(shapes(arch))
    tensors = torch_names.to_torch(original, BACKBONES[arch])
    back = torch_names.from_torch(tensors, shapes(arch), BACKBONES[arch])
    chex.assert_trees_all_equal(back, original)


@pytest.mark.parametrize("arch", ORIGINALS)
def test_every_tensor_of_the_original_is_named_and_shaped(arch):
    check_names_and_shapes(arch)


def test_kernels_are_turned_from_torchs_layout():
    weights = tensors(SMALL)
    loaded = torch_names.from_torch(weights, shapes(SMALL), BACKBONES[SMALL])
    params = loaded["params"]

    def expect(ours, name, *axes):
        np.testing.assert_array_equal(
            ours, weights[name].transpose(axes) if axes else weights[name]
        )

    block = params["trunk"]["features.4.1"]
    expect(params["trunk"]["features.0"]["0"]["kernel"], "features.0.0.weight", 2, 3, 1, 0)
    expect(block["block.1"]["0"]["kernel"], "features.4.1.block.1.0.weight", 2, 3, 1, 0)
    expect(block["block.2"]["fc1"]["bias"], "features.4.1.block.2.fc1.bias")
    expect(params["head"]["hidden"]["kernel"], "classifier.1.weight", 1, 0)
    expect(params["fusion"]["merge"]["bias"], "spatial_attention.spatial_att.0.bias")
    name = "momentum_final_block.final_block.0.1.running_var"
    expect(loaded["momentum_batch_stats"]["1"]["var"], name)


def test_weights_are_loaded_as_float32():
    original = random_like(shapes(NANO))
    tensors = torch_names.to_torch(original, BACKBONES[NANO])
    doubles = {name: value.astype(np.float64) for name, value in tensors.items()}
    back = torch_names.from_torch(doubles, shapes(NANO), BACKBONES[NANO])
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(jnp.float32)}


def test_torchs_batch_counters_are_passed_over():
    tensors = torch_names.to_torch(random_like(shapes(NANO)), BACKBONES[NANO])
    tensors["features.0.1.num_batches_tracked"] = np.int64(3)
    back = torch_names.from_torch(tensors, shapes(NANO), BACKBONES[NANO])
    assert len(jax.tree.leaves(back)) == len(tensors) - 1


def test_every_fault_is_listed_at_once():
    tensors = torch_names.to_torch(random_like(shapes(NANO)), BACKBONES[NANO])
    del tensors["features.0.0.weight"], tensors["classifier.4.bias"]
    tensors["features.0.1.weight"] = np.zeros(17, np.float32)
    tensors["classifier.1.weight"] = np.zeros((512, 9), np.float32)
    tensors |= {"fc.weight": np.zeros(3)}
    with pytest.raises(ValueError) as error:
        torch_names.from_torch(tensors, shapes(NANO), BACKBONES[NANO])
    assert sorted(str(error.value).split("; ")) == sorted(
        [
            "missing features.0.0.weight",
            "missing classifier.4.bias",
            "features.0.1.weight has shape (17,), not (16,)",
            "classifier.1.weight has shape (512, 9), not (512, 256)",
            "unexpected fc.weight",
        ]
    )
