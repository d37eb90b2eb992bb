import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import shapes, spec, tensors

from charm_jax import pretrained
from charm_jax.backbones import BACKBONES

NANO, SMALL = "efficientnet_v2_nano", "efficientnet_v2_s"


def random_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), tree)


def described(arch):
    """Name to shape of every tensor that a parameter or statistic stands for."""
    record = spec(arch)
    all_names = {name: record["network"][name] for name in record["charm_network"]}
    all_names |= record["charm"]
    return {n: tuple(s) for n, s in all_names.items() if not n.endswith("num_batches_tracked")}


@pytest.mark.parametrize("arch", [NANO, SMALL])
def test_there_and_back_is_the_identity(arch):
    original = random_like(shapes(arch))
    tensors = pretrained.to_torch(original, BACKBONES[arch])
    back = pretrained.from_torch(tensors, shapes(arch), BACKBONES[arch])
    chex.assert_trees_all_equal(back, original)


def test_every_tensor_of_the_original_is_named_and_shaped():
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes(SMALL))
    ours = {n: v.shape for n, v in pretrained.to_torch(zeros, BACKBONES[SMALL]).items()}
    assert ours == described(SMALL)
    assert set(pretrained.torch_names(shapes(SMALL), BACKBONES[SMALL]).values()) == set(ours)


def test_kernels_are_turned_from_torchs_layout():
    weights = tensors(SMALL)
    loaded = pretrained.from_torch(weights, shapes(SMALL), BACKBONES[SMALL])
    params = loaded["params"]

    def expect(ours, name, *axes):
        np.testing.assert_array_equal(
            ours, weights[name].transpose(axes) if axes else weights[name]
        )

    block = params["trunk"]["stage4_block1"]
    expect(params["trunk"]["stem"]["conv"]["kernel"], "features.0.0.weight", 2, 3, 1, 0)
    expect(block["depthwise"]["conv"]["kernel"], "features.4.1.block.1.0.weight", 2, 3, 1, 0)
    expect(block["squeeze_excite"]["reduce"]["bias"], "features.4.1.block.2.fc1.bias")
    expect(params["head"]["hidden"]["kernel"], "classifier.1.weight", 1, 0)
    expect(params["fusion"]["merge"]["bias"], "spatial_attention.spatial_att.0.bias")
    name = "momentum_final_block.final_block.0.1.running_var"
    expect(loaded["momentum_batch_stats"]["norm"]["var"], name)


def test_weights_are_loaded_as_float32():
    original = random_like(shapes(NANO))
    tensors = pretrained.to_torch(original, BACKBONES[NANO])
    doubles = {name: value.astype(np.float64) for name, value in tensors.items()}
    back = pretrained.from_torch(doubles, shapes(NANO), BACKBONES[NANO])
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(jnp.float32)}


def test_torchs_batch_counters_are_passed_over():
    tensors = pretrained.to_torch(random_like(shapes(NANO)), BACKBONES[NANO])
    tensors["features.0.1.num_batches_tracked"] = np.int64(3)
    back = pretrained.from_torch(tensors, shapes(NANO), BACKBONES[NANO])
    assert len(jax.tree.leaves(back)) == len(tensors) - 1


def test_every_fault_is_listed_at_once():
    tensors = pretrained.to_torch(random_like(shapes(NANO)), BACKBONES[NANO])
    del tensors["features.0.0.weight"], tensors["classifier.4.bias"]
    tensors["features.0.1.weight"] = np.zeros(17, np.float32)
    tensors["classifier.1.weight"] = np.zeros((512, 9), np.float32)
    tensors |= {"fc.weight": np.zeros(3), "features.9.0.weight": np.zeros(3)}
    with pytest.raises(ValueError) as error:
        pretrained.from_torch(tensors, shapes(NANO), BACKBONES[NANO])
    assert sorted(str(error.value).split("; ")) == sorted(
        [
            "missing features.0.0.weight",
            "missing classifier.4.bias",
            "features.0.1.weight has shape (17,), not (16,)",
            "classifier.1.weight has shape (9, 512), not (256, 512)",
            "unexpected fc.weight",
            "unexpected features.9.0.weight",
        ]
    )
