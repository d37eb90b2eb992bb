"""A weight file tells what its numbers mean, and is compared by name."""

import json
import logging

import chex
import numpy as np
import pytest
import safetensors.numpy
from weight_states import NANO, new_baseline_state, new_state, random_like

import charm_jax
from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import card, files, load
from charm_jax.weights.card import Card
from data_pipelines.errors import InputError

NAMES = tuple(f"Finding {letter}" for letter in "abcdefghijklmn")
WHOLE = Card(
    charm_jax="0.1.0",
    backbone=NANO,
    charm=True,
    findings=NAMES,
    image_size=64,
    channels=1,
    input_range="-1,1",
    retrieval_k=3,
    bank_size=16,
    bank_labels={name: "01?" + "?" * 13 for name in NAMES},
)
KINDS = pytest.mark.parametrize(
    "suffix", [".safetensors", pytest.param(".pth", marks=pytest.mark.torch)]
)


def filled(baseline=False):
    state = new_baseline_state(NANO) if baseline else new_state(NANO)
    state = state.replace(params=random_like(state.params))
    if baseline:
        return state
    bank = state.memory.replace(
        features=state.memory.features.at[:3].set(2.0),
        labels=np.array(np.random.default_rng(0).integers(-1, 2, (16, 14)), np.int8),
    )
    return state.replace(memory=bank)


def last_layer(state):
    return state.params["classifier"] if state.memory is None else state.params["head"]["logits"]


@KINDS
def test_a_card_comes_back_from_a_file(tmp_path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    files.write(path, {"w": np.zeros(2, np.float32)}, WHOLE)
    assert card.read(path) == WHOLE
    assert files.read(path).keys() == {"w"}
    np.testing.assert_array_equal(card.read(path).labels(NAMES[1], 16)[:4], [0, 1, -1, -1])
    assert (card.read(path).labels("another", 16) == -1).all()


def test_a_json_beside_counts_more_than_the_metadata_and_must_be_of_this_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    files.write(path, {"w": np.zeros(2, np.float32)}, WHOLE)
    beside = tmp_path / "weights.safetensors.json"
    beside.write_text(json.dumps({"input_range": "xrv", "author": "somebody"}))
    assert card.read(path).input_range == "xrv"
    assert card.read(path).findings == NAMES
    beside.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"weights\.safetensors\.json describes another file"):
        card.read(path)


def test_the_metadata_of_another_program_are_not_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"w": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(tensors, path, {"findings": "none", "format": "pt"})
    assert card.read(path) == Card()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("findings", "Mass, Nodule"),
        ("findings", ["Mass", "Mass"]),
        ("findings", []),
        ("image_size", "224"),
        ("channels", True),
        ("input_range", "0-255"),
        ("input_range", [0, 1]),
        ("retrieval_k", -1),
        ("charm", 1),
        ("backbone", 7),
        ("bank_labels", {"Mass": [0, 1]}),
    ],
)
def test_an_entry_of_another_kind_is_named(tmp_path, key, value):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    beside = tmp_path / "weights.pth.json"
    beside.write_text(json.dumps({key: value}))
    with pytest.raises(InputError, match=rf"weights\.pth\.json: {key} is .+: make it "):
        card.read(path)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_json_that_is_no_object_is_named(tmp_path, text):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    (tmp_path / "weights.pth.json").write_text(text)
    with pytest.raises(InputError, match=r"weights\.pth\.json.* correct or delete it"):
        card.read(path)


@pytest.mark.parametrize("baseline", [False, True])
@KINDS
def test_outputs_and_bank_labels_follow_their_names(tmp_path, caplog, suffix, baseline):
    """Other columns in another order: shared ones are kept, the rest of the layer begins new."""
    if suffix == ".pth":
        pytest.importorskip("torch")
    state, path = filled(baseline), tmp_path / f"weights{suffix}"
    charm_jax.save_weights(state, path, name=NANO, pathologies=NAMES, image_size=64)
    wanted = ("new", *NAMES[:0:-1])
    new = new_baseline_state(NANO) if baseline else new_state(NANO)
    back = charm_jax.load_weights(new, path, name=NANO, pathologies=wanted)
    theirs, ours = last_layer(state), last_layer(back)
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(ours[leaf][..., 1:], theirs[leaf][..., :0:-1])
        np.testing.assert_array_equal(ours[leaf][..., 0], last_layer(new)[leaf][..., 0])
    chex.assert_trees_all_equal(back.params["trunk"], state.params["trunk"])
    assert "13 of 14 match by name, and new begin new" in caplog.text
    if not baseline:
        labels = np.asarray(back.memory.labels)
        np.testing.assert_array_equal(labels[:, 1:], np.asarray(state.memory.labels)[:, :0:-1])
        assert (labels[:, 0] == -1).all()


def test_names_match_in_any_spelling(tmp_path, caplog):
    state, path = filled(), tmp_path / "weights.safetensors"
    charm_jax.save_weights(state, path, name=NANO, pathologies=NAMES)
    spelled = [name.upper().replace(" ", "_") for name in NAMES]
    back = charm_jax.load_weights(new_state(NANO), path, name=NANO, pathologies=spelled)
    chex.assert_trees_all_equal(last_layer(back), last_layer(state))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_a_file_does_not_tell_is_said(tmp_path, caplog):
    path = tmp_path / "weights.safetensors"
    files.write(path, load.to_reference(filled(), BACKBONES[NANO]))
    charm_jax.load_weights(new_state(NANO), path, name=NANO, pathologies=NAMES)
    said = "does not tell the findings of its outputs: taken in this order: Finding a, Finding b"
    assert said in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pathologies": NAMES[:3]}, "3 findings are named for 14 outputs"),
        ({"input_range": "0-255"}, "input_range is '0-255': make it imagenet, unit, xrv or two"),
        ({"pathologies": ("Mass",) * 14}, "findings is"),
    ],
)
def test_a_wrong_card_is_not_written(tmp_path, values, words):
    with pytest.raises(InputError, match=words):
        charm_jax.save_weights(filled(), tmp_path / "w.safetensors", name=NANO, **values)
    assert not list(tmp_path.iterdir())


def test_a_key_takes_the_average_from_a_file_of_two(tmp_path, caplog):
    plain = load.to_reference(filled(True), BACKBONES[NANO])
    file = {f"state_dict.{name}": value for name, value in plain.items()}
    file |= {f"state_dict_ema.{name}": value + 1 for name, value in plain.items()}
    path = tmp_path / "weights.safetensors"
    files.write(path, file)
    first = charm_jax.load_weights(new_state(NANO), path, name=NANO)
    assert "holds several networks: state_dict is taken, not state_dict_ema" in caplog.text
    other = charm_jax.load_weights(new_state(NANO), path, name=NANO, key="state_dict_ema")
    stem = np.asarray(first.params["trunk"]["features.0"]["0"]["kernel"])
    np.testing.assert_array_equal(other.params["trunk"]["features.0"]["0"]["kernel"], stem + 1)
