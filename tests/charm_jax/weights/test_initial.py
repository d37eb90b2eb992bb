import dataclasses
import hashlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_states import NANO, new_plain_state, new_state, random_like

from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import files, imagenet, initial, load, torch_names
from data_pipelines.errors import InputError


@pytest.fixture
def filled():
    state = new_state(NANO)
    return state.replace(params=random_like(state.params))


@pytest.fixture
def file(tmp_path, filled):
    path = tmp_path / "weights.safetensors"
    files.write(path, load.to_reference(filled, BACKBONES[NANO]))
    return path


def refusal(state, path, *, whole=False):
    with pytest.raises(InputError) as error:
        initial.fill(state, str(path), NANO, whole=whole)
    return str(error.value)


def changed(tmp_path, file, changes):
    tensors = files.read(file)
    path = tmp_path / "changed.safetensors"
    files.write(path, tensors | changes)
    return path


def test_random_leaves_the_state_as_it_is():
    state = new_state(NANO)
    same, file = initial.fill(state, "random", NANO, whole=False)
    assert same is state
    assert file is None
    assert initial.sentence(file) == "Weights: random."


def test_a_file_of_a_whole_network_fills_the_state(file, filled):
    loaded, record = initial.fill(new_state(NANO), str(file), NANO, whole=True)
    chex.assert_trees_all_equal(loaded.params, filled.params)
    assert dataclasses.asdict(record) == {
        "init_from": str(file),
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "tensors": len(files.read(file)),
        "left_out": [],
    }
    assert str(file) in initial.sentence(record)
    assert "left out" not in initial.sentence(record)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}


def test_what_is_left_out_is_said(tmp_path, filled):
    tensors = torch_names.to_torch(
        {
            collection: {part: tree[part] for part in ("trunk", "expansion")}
            for collection, tree in (("params", filled.params), ("batch_stats", filled.batch_stats))
        },
        BACKBONES[NANO],
    )
    others = {f"classifier.{i}.weight": np.zeros((2, 2), np.float32) for i in range(6)}
    path = tmp_path / "plain.safetensors"
    files.write(path, tensors | others)
    _, record = initial.fill(new_state(NANO), str(path), NANO, whole=False)
    assert f"{len(tensors)} tensors" in initial.sentence(record)
    assert "classifier.3.weight and 2 more" in initial.sentence(record)


def test_imagenet_is_fetched(monkeypatch, file, filled):
    asked = []
    monkeypatch.setattr(imagenet, "fetch", lambda backbone: asked.append(backbone) or file)
    loaded, _ = initial.fill(new_state(NANO), "imagenet", NANO, whole=False)
    assert asked == [NANO]
    chex.assert_trees_all_equal(loaded.params, filled.params)


def test_nothing_is_fetched_that_could_not_be_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(imagenet, "fetch", lambda _: pytest.fail("fetched"))
    with pytest.raises(InputError, match=r"init_from=imagenet needs PyTorch: pip install"):
        initial.fill(new_state(NANO), "imagenet", "resnet50", whole=False)


def test_a_file_that_does_not_fit_is_named_with_every_fault(tmp_path, file):
    tensors = files.read(file)
    tensors["classifier.4.biases"] = tensors.pop("classifier.4.bias")
    path = tmp_path / "renamed.safetensors"
    files.write(path, tensors)
    message = refusal(new_state(NANO), path)
    for part in (str(path), NANO, "missing classifier.4.bias;", "unexpected classifier.4.biases"):
        assert part in message
    assert message.endswith("; give a file of this network, or choose the file's.")


def test_a_fault_with_its_own_remedy_gets_no_other(file):
    message = refusal(new_plain_state(NANO), file)
    assert message.endswith("set --config.model.charm=True.")


def test_a_number_that_is_not_finite_is_refused(tmp_path, file):
    path = changed(tmp_path, file, {"classifier.4.bias": np.full(14, np.nan, np.float32)})
    assert "classifier.4.bias holds numbers that are not finite" in refusal(new_state(NANO), path)


def test_a_file_of_other_findings_says_how_many(tmp_path, file):
    path = changed(tmp_path, file, {"classifier.4.bias": np.zeros(15, np.float32)})
    said = "classifier.4.bias has shape (15,), not (14,) (the file has 15 findings, this data 14)"
    assert said in refusal(new_state(NANO), path)


def test_a_missing_file_is_named(tmp_path):
    assert "absent.safetensors" in refusal(new_state(NANO), tmp_path / "absent.safetensors")
