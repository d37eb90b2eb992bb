"""A bank is described truly, and a weight file is loaded by what it tells."""

import dataclasses
import logging
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from flax import linen as nn

import charm_jax
from charm_jax.config import recipe, settings
from charm_jax.inference import loaded
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models import memory_bank
from charm_jax.models.baseline import Baseline
from charm_jax.models.state import TrainState
from charm_jax.runs.banks import StoredBank
from charm_jax.runs.cases import CaseMatch
from charm_jax.weights import files
from charm_jax.weights.card import Card
from charm_jax.weights.load import Contents
from data_pipelines.errors import InputError

SETTINGS = settings.from_dict(recipe.defaults().to_dict() | {"name": "demo"})
TRAINED = {"source": "nih", "patients_known": True, "stages": {}}
ROWS = np.array([1, 2, 3])
REFILLED = {
    "source": "csv_folder",
    "split": "test",
    "images_sha256": "ab",
    "patients_known": False,
    "label": "x",
}


def model(run=Path("run"), description=None, plain=False):
    """A bank with case 7 of patient 3, and one of a file."""
    memory = memory_bank.empty(3, 2, 1).replace(
        case_ids=np.array([7, 2**30, -1], np.int32), patient_ids=np.array([3, -1, -1], np.int32)
    )
    state = Mock(spec=TrainState, memory=None if plain else memory)
    bank = None if description is None else StoredBank(Path(), memory, description)
    trained = None if run is None else TRAINED
    return LoadedModel(
        settings=SETTINGS,
        network=Baseline(nn.Dense(1), nn.Dense(1), nn.relu, 1),
        state=state,
        pathologies=("Mass",),
        description="",
        checkpoint="",
        folder=Path(),
        run=run,
        trained=trained,
        provenance={},
        bank=bank,
    )


def match(case_ids, patient_ids):
    nothing = np.zeros(4, bool)
    return CaseMatch(
        np.array(case_ids, np.int32), np.array(patient_ids, np.int32), nothing, nothing
    )


@pytest.mark.parametrize(
    ("case_ids", "patient_ids", "count"),
    [
        ([-1, -1, -1, -1], [-1, -1, -1, -1], 0),  # unknown is not in an empty slot
        ([7, 1, 2, 3], [3, 4, 5, 6], 0),  # the first image is not of the part
        ([0, 7, 2, 3], [0, -1, 5, 6], 1),
        ([0, 7, 8, 9], [0, 3, 3, 4], 2),
    ],
)
def test_images_of_the_bank_or_of_its_patients_are_counted(case_ids, patient_ids, count):
    assert model().describe_bank(match(case_ids, patient_ids), ROWS)["images_here"] == count


NOBODY = match([-1] * 4, [-1] * 4)


@pytest.mark.parametrize("description", [None, {"made_by": "forget", "forgotten": ["a"]}])
def test_a_trained_bank_is_of_the_run_s_training_part(description):
    held = model(description=description).describe_bank(NOBODY, ROWS)
    assert (held["source"], held["split"], held["images_sha256"]) == ("nih", "train", None)
    assert held["patients_known"] is True


def test_a_refilled_bank_is_what_its_description_says():
    held = model(description=REFILLED).describe_bank(NOBODY, ROWS)
    assert held.pop("images_here") == 0
    assert held == {key: value for key, value in REFILLED.items() if key != "label"}


def test_of_a_file_s_bank_nothing_is_known_and_a_plain_network_has_none():
    assert set(model(run=None).describe_bank(NOBODY, ROWS).values()) == {None}
    assert model(plain=True).describe_bank(NOBODY, ROWS) is None


def file(**told):
    return Contents("w.pth", Path("w.pth"), {}, Card(**told), [])


def test_a_file_ranks_above_the_config_and_the_command_line_above_the_file(caplog):
    caplog.set_level(logging.INFO)
    told = file(backbone="resnet50", channels=1, retrieval_k=3, input_range="xrv", image_size=96)
    config = SETTINGS.replace(model_channels=3, model_input_range="unit")
    found = loaded.file_settings(config, told, given=["model.retrieval_k", "data.image_size"])
    assert found.model.backbone == "resnet50"
    assert (found.model.channels, found.model.input_range) == (1, "xrv")
    assert (found.model.retrieval_k, found.data.image_size) == (5, 224)
    assert "model.channels 1, not 3" in caplog.text
    assert "retrieval_k" not in caplog.text
    assert found.model.bank_size == SETTINGS.model.bank_size  # not told


def test_numbers_of_a_vote_do_not_carry_over_to_a_file_of_the_published_network():
    config = SETTINGS.replace(
        model_memory="vote", model_fusion=False, model_retrieval_k=100, model_bank_size=2048
    )
    found = loaded.file_settings(config, file(charm=True, bank_size=64)).model
    assert (found.memory, found.fusion, found.retrieval_k, found.bank_size) == (
        *("published", True, 5, 64),
    )


@pytest.mark.parametrize("given", [[], ["model.input_range"]])
@pytest.mark.parametrize(
    ("backbone", "told", "expected"),
    [
        ("efficientnet_v2_s", "unit", "unit"),
        ("efficientnet_v2_s", None, "imagenet"),
        ("efficientnet_lite0", None, "-0.9921875,1"),
    ],
)
def test_an_automatic_input_range_is_the_file_s_or_the_backbone_s(
    caplog, given, backbone, told, expected
):
    caplog.set_level(logging.INFO)
    config = SETTINGS.replace(model_backbone=backbone)
    found = loaded.file_settings(config, file(input_range=told), given)
    assert found.model.input_range == expected
    assert not caplog.text


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"backbone": "resnet51"}, "config.model.backbone is 'resnet51': did you mean 'resnet50'"),
        ({"channels": 2}, "config.model.channels is 2: set it to 3 or 1"),
        ({"image_size": 0}, "config.data.image_size is 0: set it to 32 or more"),
        ({"bank_size": 0}, "config.model.bank_size is 0"),
    ],
)
def test_an_unusable_value_of_a_file_is_named_with_the_file(told, words):
    with pytest.raises(InputError, match=rf"w\.pth tells an unusable value: {words}"):
        loaded.file_settings(SETTINGS, file(**told))


def test_a_file_alone_must_tell_its_network_and_its_findings(tmp_path):
    path = tmp_path / "w.safetensors"
    files.write(path, {"w": np.zeros(2, np.float32)})
    with pytest.raises(
        InputError, match=r"not tell its backbone: write it to w\.safetensors\.json"
    ):
        charm_jax.load(path)
    (tmp_path / "w.safetensors.json").write_text('{"backbone": "resnet50"}')
    with pytest.raises(InputError, match="not tell its findings: give pathologies"):
        charm_jax.load(path)
    (tmp_path / "w.safetensors.json").write_text('{"backbone": "resnet50", "findings": ["a"]}')
    with pytest.raises(InputError, match="names its outputs a: leave out pathologies"):
        charm_jax.load(path, pathologies=["b"])


@pytest.mark.parametrize(
    ("path", "keywords", "words"),
    [
        ("none.safetensors", {}, "There is no weight file none.safetensors"),
        ("none.pth", {"memory": "site"}, "is a weight file: leave out checkpoint and memory"),
        ("none.pth", {"checkpoint": "last"}, "is a weight file: leave out checkpoint and memory"),
        ("runs/demo", {"pathologies": ["a"]}, "is no weight file: leave out pathologies"),
        ("runs/demo", {"key": "ema"}, "is no weight file: leave out pathologies and key"),
        ("runs/demo-1.5", {}, "There is no run 'demo-1.5'"),
    ],
)
def test_arguments_of_a_run_and_of_a_file_are_not_mixed(path, keywords, words):
    with pytest.raises(InputError, match=words):
        charm_jax.load(path, **keywords)


def test_a_network_is_read_and_scored_as_its_settings_bank_and_names_say():
    one = model()
    assert one.reading(SETTINGS.data) == {
        "image_size": 224,
        "value_range": "container",
        "outputs": ["Mass"],
        "memory": None,
        "channels": 3,
        "input_range": "auto",
        "fusion": True,
        "momentum_branch": True,
        "retrieval_k": 5,
        "init_key": "",
    }
    other = dataclasses.replace(one, provenance={"memory": "site"}, pathologies=("Nodule",))
    wide = dataclasses.replace(SETTINGS.data, image_size=320, value_range="image")
    changed = other.reading(wide)
    assert (changed["outputs"], changed["memory"]) == (["Nodule"], "site")
    assert (changed["image_size"], changed["value_range"]) == (320, "image")
