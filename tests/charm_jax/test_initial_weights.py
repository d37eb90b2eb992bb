import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained import NANO, new_state, random_like

from charm_jax import imagenet, initial_weights, pretrained, weights_file
from charm_jax.backbones import BACKBONES
from data_pipelines.errors import InputError


@pytest.fixture
def filled():
    state = new_state(NANO)
    return state.replace(params=random_like(state.params))


@pytest.fixture
def file(tmp_path, filled):
    path = tmp_path / "weights.safetensors"
    weights_file.write(path, pretrained.to_reference(filled, BACKBONES[NANO]))
    return path


def test_random_leaves_the_state_as_it_is():
    state = new_state(NANO)
    same, sentence = initial_weights.fill(state, "random", NANO)
    assert same is state
    assert sentence == "Weights: random."


def test_a_file_of_a_whole_network_fills_the_state(file, filled):
    loaded, sentence = initial_weights.fill(new_state(NANO), str(file), NANO)
    chex.assert_trees_all_equal(loaded.params, filled.params)
    assert str(file) in sentence
    assert "left out" not in sentence
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}


def test_what_is_left_out_is_said(tmp_path, filled):
    tensors = pretrained.to_torch(
        {
            collection: {part: tree[part] for part in ("trunk", "expansion")}
            for collection, tree in (("params", filled.params), ("batch_stats", filled.batch_stats))
        },
        BACKBONES[NANO],
    )
    others = {f"classifier.{i}.weight": np.zeros((2, 2), np.float32) for i in range(6)}
    path = tmp_path / "plain.safetensors"
    weights_file.write(path, tensors | others)
    _, sentence = initial_weights.fill(new_state(NANO), str(path), NANO)
    assert f"{len(tensors)} tensors" in sentence
    assert "classifier.3.weight and 2 more" in sentence


def test_imagenet_is_fetched(monkeypatch, file, filled):
    asked = []
    monkeypatch.setattr(imagenet, "fetch", lambda backbone: asked.append(backbone) or file)
    loaded, _ = initial_weights.fill(new_state(NANO), "imagenet", NANO)
    assert asked == [NANO]
    chex.assert_trees_all_equal(loaded.params, filled.params)


def test_a_file_that_does_not_fit_is_named_with_every_fault(tmp_path, file):
    tensors = weights_file.read(file)
    tensors["classifier.4.biases"] = tensors.pop("classifier.4.bias")
    path = tmp_path / "renamed.safetensors"
    weights_file.write(path, tensors)
    with pytest.raises(InputError) as error:
        initial_weights.fill(new_state(NANO), str(path), NANO)
    for part in (str(path), NANO, "missing classifier.4.bias;", "unexpected classifier.4.biases"):
        assert part in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        initial_weights.fill(new_state(NANO), str(tmp_path / "absent.safetensors"), NANO)
