"""Thresholds are of the run's own validation images, or there are none."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from running import read
from tables import small_table

from charm_jax.config import recipe
from charm_jax.inference import stored_calibration, stored_ood
from charm_jax.inference.loaded import Subject
from charm_jax.models.baseline import Plain
from charm_jax.models.state import TrainState
from charm_jax.runs import cases
from charm_jax.runs import data as run_data
from data_pipelines.errors import InputError
from data_pipelines.tables import splits

N = 24


def data(val, **columns):
    """Two thirds of the table's images have the finding; the part `val` is given."""
    labels = (np.arange(N) % 3 > 0).astype(np.int8)[:, None]
    table = small_table(N, labels=labels, **columns)
    rest = np.setdiff1d(np.arange(N), val)
    parts = {"train": rest[:8], "val": np.array(val), "test": rest[8:]}
    split = splits.Split("official", 0, {"bce": parts, "focal": parts}, 0, 0)
    return run_data.Data(table, split, [], [], (0.6,), ())


OWN, OTHER = range(0, 8), range(4, 12)
NETWORK = Plain(nn.Dense(1), nn.Dense(1), jax.nn.identity, 1)  # never called


@pytest.fixture
def subject(tmp_path):
    """A run that was validated on `OWN`."""
    first = data(OWN)
    val = splits.part_summary(first.table, first.split.stages["focal"]["val"])
    trained = {
        "source": "test",
        "findings": ["Mass"],
        "simulated": False,
        "patients_known": True,
        "stages": {"focal": {"val": val}},
    }
    cases.write_cases(tmp_path, first.table, first.seen)
    state = TrainState(0, {"weight": np.ones(2)}, {}, None, None, (), None)
    return Subject(state, "a run", "focal/9", tmp_path, tmp_path, trained, {})


@pytest.fixture
def config():
    config = recipe.defaults()
    assert run_data.stage_names(config)[-1] == "focal"
    return config


def reads(monkeypatch, there):
    """The config's data are these, or gone."""

    def load(config):
        if there is None:
            raise InputError("The data folder is gone.")
        return there

    monkeypatch.setattr(run_data, "load_data", load)


def logits(config, data, rows):
    """Right of two of three images, so that thresholds and temperatures are defined."""
    return np.where(rows % 4 > 0, 1.0, -1.0)[:, None].astype(np.float32)


def test_given_data_with_the_run_s_part_are_used_and_not_read_again(subject, config, monkeypatch):
    reads(monkeypatch, None)
    fitted = stored_calibration.load_or_fit(subject, config, data(OWN), logits)
    assert fitted["split_sha256"] == subject.trained["stages"]["focal"]["val"]["sha256"]
    assert fitted["findings"]["Mass"]["positives"] == 5
    assert read(subject.folder / "calibration.json") == fitted


def test_given_data_with_another_part_give_way_to_the_run_s(subject, config, monkeypatch):
    reads(monkeypatch, data(OWN))
    fitted = stored_calibration.load_or_fit(subject, config, data(OTHER), logits)
    assert fitted["images"] == data(OWN).table.images[list(OWN)].tolist()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (data(OTHER), "is not the one in"),
        (data(OWN, simulated=True), "is not the one in"),
        (None, "The data folder is gone."),
    ],
    ids=["another part", "drawn images of the same names", "gone"],
)
def test_no_other_images_pass_for_the_run_s(subject, config, monkeypatch, capfd, found, words):
    reads(monkeypatch, found)
    assert stored_calibration.load_or_fit(subject, config, data(OTHER), logits) is None
    shown = capfd.readouterr().err
    assert "warning: there are no thresholds and temperatures" in shown
    assert words in shown
    assert not (subject.folder / "calibration.json").exists()


def test_predictions_refuse_other_images_likewise(subject, config, monkeypatch, capfd):
    reads(monkeypatch, data(OTHER))
    assert stored_ood.load_or_fit(subject, config, NETWORK) == (None, None)
    assert "is not the one in" in capfd.readouterr().err


def test_a_stored_file_of_other_images_is_fitted_anew(subject, config):
    path = subject.folder / "calibration.json"
    first = stored_calibration.load_or_fit(subject, config, data(OWN), logits)
    path.write_text(json.dumps(first | {"split_sha256": "0", "findings": {}}))
    assert stored_calibration.load_or_fit(subject, config, data(OWN), logits) == first
    path.write_text(json.dumps(first | {"findings": {}}))
    again = stored_calibration.load_or_fit(subject, config, data(OWN), logits)
    assert again["findings"] == {}


def test_a_stored_reference_of_other_images_is_not_read(subject, config, monkeypatch):
    reads(monkeypatch, None)
    of_this = stored_calibration.identity(subject, config)
    paths = [subject.folder / name for name in ("calibration.json", stored_ood.FILE)]
    for path in paths:
        path.write_text(json.dumps(of_this))
    assert stored_ood.load_or_fit(subject, config, NETWORK) == (of_this, of_this)
    for path in paths:
        path.write_text(json.dumps(of_this | {"split_sha256": "0"}))
    assert stored_ood.load_or_fit(subject, config, NETWORK) == (None, None)


def test_an_unreadable_image_costs_the_thresholds_alone(subject, config, monkeypatch, capfd):
    def unreadable(*_, **__):
        raise InputError("00003.png cannot be read.")

    assert stored_calibration.load_or_fit(subject, config, data(OWN), unreadable) is None
    assert "00003.png cannot be read." in capfd.readouterr().err
    reads(monkeypatch, data(OWN))
    monkeypatch.setattr(stored_ood, "_outputs", unreadable)
    assert stored_ood.load_or_fit(subject, config, NETWORK) == (None, None)
    assert "00003.png cannot be read." in capfd.readouterr().err


def test_images_that_were_fitted_on_are_known_one_by_one(subject, config):
    fitted = stored_calibration.load_or_fit(subject, config, data(OWN), logits)
    own = data(OWN).table
    expected = np.isin(np.arange(N), OWN)
    np.testing.assert_array_equal(stored_calibration.fitted_on(subject, fitted, own), expected)
    moved = small_table(
        3, images=np.array(["a/00007.png", "a/00008.png", "z.png"]), source="another"
    )
    found = stored_calibration.fitted_on(subject, fitted, moved)
    assert found.tolist() == [True, False, False]
    drawn = small_table(N, simulated=True)
    assert not stored_calibration.fitted_on(subject, fitted, drawn).any()


def test_weights_without_a_run_are_fitted_for_each_validation_part(subject, config):
    alone = dataclasses.replace(subject, run=None, trained=None)
    first = stored_calibration.load_or_fit(alone, config, data(OWN), logits)
    second = stored_calibration.load_or_fit(alone, config, data(OTHER), logits)
    assert first["images"] != second["images"]
    expected = np.isin(np.arange(N), OTHER)
    found = stored_calibration.fitted_on(alone, second, data(OTHER).table)
    np.testing.assert_array_equal(found, expected)
