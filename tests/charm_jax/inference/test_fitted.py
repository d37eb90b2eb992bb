"""Thresholds are fitted on the model's own validation images, or there are none."""

import dataclasses
import errno
import json
import logging

import numpy as np
import pytest
from flax import linen as nn
from running import read
from tables import small_table

from charm_jax.config import recipe, settings
from charm_jax.inference import fitted
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models.baseline import Baseline
from charm_jax.models.state import TrainState
from charm_jax.runs import cases
from charm_jax.runs import data as run_data
from data_pipelines.errors import InputError
from data_pipelines.tables import splits

N = 24
SETTINGS = settings.from_dict(recipe.defaults().to_dict())


def data(val, **columns):
    """Two thirds of the table's images have the finding; the validation split is given."""
    labels = (np.arange(N) % 3 > 0).astype(np.int8)[:, None]
    table = small_table(N, **({"labels": labels} | columns))
    rest = np.setdiff1d(np.arange(N), val)
    parts = {"train": rest[:8], "val": np.array(val), "test": rest[8:]}
    split = splits.Split("official", 0, {"bce": parts, "focal": parts}, 0, 0)
    return run_data.Data(table, split, [], [], (0.6,), (), SETTINGS.data)


OWN, OTHER = range(0, 8), range(4, 12)


class Model(LoadedModel):
    """A model that is right for two of three images, so that thresholds are defined."""

    def predict_rows(self, data, rows, title, large=()):
        logits = np.where(rows % 4 > 0, 1.0, -1.0)[:, None].astype(np.float32)
        thumbnail = np.random.default_rng(0).uniform(size=(len(rows), 4, 4)).astype(np.float32)
        return {"logits": logits, "thumbnail": thumbnail}


class Unreadable(LoadedModel):
    def predict_rows(self, data, rows, title, large=()):
        raise InputError("00003.png cannot be read.")


@pytest.fixture
def model(tmp_path):
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
    return Model(
        settings=SETTINGS,
        network=Baseline(nn.Dense(1), nn.Dense(1), nn.relu, 1),  # never called
        state=state,
        pathologies=("Mass",),
        description="a run",
        checkpoint="focal/9",
        folder=tmp_path,
        run=tmp_path,
        trained=trained,
        provenance={},
    )


def as_kind(model, kind):
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    return kind(**fields)


def both(model):
    calibrator = fitted.load_calibrator(model)
    return calibrator.calibration, calibrator.reference


def reads(monkeypatch, there):
    """The config's data are these, or gone."""

    def load(config):
        if there is None:
            raise InputError("The data folder is gone.")
        return there

    monkeypatch.setattr(run_data, "load_data", load)


def test_given_data_with_the_run_s_part_are_used_and_not_read_again(model, monkeypatch):
    reads(monkeypatch, None)
    found = fitted.load_calibration(model, data(OWN))
    assert found["split_sha256"] == model.trained["stages"]["focal"]["val"]["sha256"]
    assert found["findings"]["Mass"]["positives"] == 5
    assert read(model.folder / "calibration.json") == found


def test_given_data_with_another_part_give_way_to_the_run_s(model, monkeypatch):
    reads(monkeypatch, data(OWN))
    found = fitted.load_calibration(model, data(OTHER))
    assert found["images"] == data(OWN).table.images[list(OWN)].tolist()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (data(OTHER), "is not the one in"),
        (data(OWN, simulated=True), "is not the one in"),
        (data(OWN, patients=np.arange(N, dtype=np.int32) // 2), "not the labels or patients of"),
        (data(OWN, labels=np.eye(N, 1, dtype=np.int8)), "not the labels or patients of"),
        (None, "The data folder is gone."),
    ],
    ids=[
        "another part",
        "drawn images of the same names",
        "another hospital's images of the same names",
        "other labels",
        "gone",
    ],
)
def test_no_other_images_pass_for_the_run_s(model, monkeypatch, caplog, found, words):
    reads(monkeypatch, found)
    assert fitted.load_calibration(model, data(OTHER)) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "there are no thresholds and temperatures" in caplog.text
    assert words in caplog.text
    assert not (model.folder / "calibration.json").exists()


@pytest.mark.parametrize("key", ["image_size", "value_range"])
def test_data_that_are_read_otherwise_give_way_to_the_run_s(model, monkeypatch, key):
    """An evaluation at another size must not fit thresholds for the predictions of all others."""
    value = {"image_size": 96, "value_range": "4095"}[key]
    given = dataclasses.replace(
        data(OWN), settings=dataclasses.replace(SETTINGS.data, **{key: value})
    )
    asked = []
    monkeypatch.setattr(run_data, "load_data", lambda config: asked.append(config) or data(OWN))
    found = fitted.load_calibration(model, given)
    assert found[key] == getattr(SETTINGS.data, key)
    assert asked == [model.settings]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_range", "unit"),
        ("channels", 1),
        ("retrieval_k", 3),
        ("init_key", "state_dict_ema"),
        ("fusion", False),
    ],
)
def test_a_calibration_of_another_reading_is_fitted_again_and_said(model, caplog, key, value):
    """A weight file tells these beside its weights, and its config may say otherwise."""
    caplog.set_level(logging.INFO)
    alone = dataclasses.replace(model, run=None, trained=None)
    first = fitted.load_calibration(alone, data(OWN))
    assert fitted.load_calibration(alone, data(OWN)) == first
    other = SETTINGS.replace(**{f"model_{key}": value})
    again = fitted.load_calibration(dataclasses.replace(alone, settings=other), data(OWN))
    assert (first[key], again[key]) == (getattr(SETTINGS.model, key), value)
    assert caplog.text.count("are fitted on") == 2
    assert f"They replace those of another {key}." in caplog.text


def test_a_calibration_of_a_file_whose_outputs_got_other_names_is_fitted_again(model):
    alone = dataclasses.replace(model, run=None, trained=None)
    fitted.load_calibration(alone, data(OWN))
    renamed = dataclasses.replace(alone, pathologies=("Nodule",))
    found = fitted.load_calibration(renamed, data(OWN, findings=("Nodule",)))
    assert list(found["findings"]) == ["Nodule"]


def test_a_calibration_on_other_labels_is_fitted_again(model, caplog):
    caplog.set_level(logging.INFO)
    alone = dataclasses.replace(model, run=None, trained=None)
    first = fitted.load_calibration(alone, data(OWN))
    other = data(OWN, patients=np.arange(N, dtype=np.int32) // 2)
    again = fitted.load_calibration(alone, other)
    assert first["split_sha256"] == again["split_sha256"]
    assert "They replace those of another cases." in caplog.text


def test_predictions_refuse_other_images_likewise(model, monkeypatch, caplog):
    reads(monkeypatch, data(OTHER))
    assert both(model) == (None, None)
    assert "is not the one in" in caplog.text


def test_a_stored_file_of_other_images_is_fitted_anew(model):
    path = model.folder / "calibration.json"
    first = fitted.load_calibration(model, data(OWN))
    [(name, entry)] = first["findings"].items()
    changed = first | {"findings": {name: entry | {"threshold": 0.125}}}
    for other in (changed | {"split_sha256": "0"}, first | {"findings": {}}):
        path.write_text(json.dumps(other))
        assert fitted.load_calibration(model, data(OWN)) == first
    path.write_text(json.dumps(changed))
    assert fitted.load_calibration(model, data(OWN)) == changed


def test_a_stored_reference_of_other_images_is_not_read(model, monkeypatch):
    reads(monkeypatch, None)
    own = fitted.identity(model)
    calibration = own | {"findings": {"Mass": {"temperature": 1.0, "threshold": 0.5}}}
    reference = own | {"n_images": N, "percentiles": {}}
    stored = {"calibration.json": calibration, fitted.REFERENCE: reference}
    for name, content in stored.items():
        (model.folder / name).write_text(json.dumps(content))
    assert both(model) == (calibration, reference)
    for name, content in stored.items():
        (model.folder / name).write_text(json.dumps(content | {"split_sha256": "0"}))
    assert both(model) == (None, None)


class Naming(Model):
    """A model whose logits are the numbers in the images' names."""

    def predict_rows(self, data, rows, title, large=()):
        return {"logits": np.array([[float(name[:5])] for name in data.table.images[rows]])}


def test_validation_is_kept_by_name_so_that_the_members_of_an_ensemble_agree(model):
    model, there = as_kind(model, Naming), data(OWN)
    columns = ("images", "labels", "patients")
    turned = {name: getattr(there.table, name)[::-1] for name in columns}
    for given in (there, data([N - 1 - row for row in OWN], **turned)):
        (model.folder / fitted.VALIDATION).unlink(missing_ok=True)
        found = fitted.load_validation(model, given)
        assert found.logits[:, 0].tolist() == [*OWN]
        np.testing.assert_array_equal(found.labels, there.table.labels[list(OWN)])
        np.testing.assert_array_equal(found.patients, there.table.patients[list(OWN)])


def test_an_unreadable_image_costs_the_thresholds_alone(model, monkeypatch, caplog):
    model = as_kind(model, Unreadable)
    assert fitted.load_calibration(model, data(OWN)) is None
    assert "00003.png cannot be read." in caplog.text
    caplog.clear()
    reads(monkeypatch, data(OWN))
    assert both(model) == (None, None)
    assert "00003.png cannot be read." in caplog.text


def test_a_run_that_cannot_be_written_is_fitted_for_each_command(model, monkeypatch, caplog):
    reads(monkeypatch, data(OWN))

    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(fitted, "whole_file", refuse)
        found, reference = both(model)
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        alone = fitted.load_calibration(model, data(OWN))
    assert "novelty.json, calibration.json, validation.npz cannot be kept in" in record.message
    assert "(Read-only file system)" in record.message
    assert not (model.folder / "calibration.json").exists()
    assert found == alone == fitted.load_calibration(model, data(OWN))
    assert both(model)[1] == reference == read(model.folder / fitted.REFERENCE)


def test_images_that_were_fitted_on_are_known_one_by_one(model):
    found = fitted.load_calibration(model, data(OWN))
    own = data(OWN).table
    expected = np.isin(np.arange(N), OWN)
    np.testing.assert_array_equal(fitted.fitted_on(model, found, own), expected)
    moved = small_table(
        3, images=np.array(["a/00007.png", "a/00008.png", "z.png"]), source="another"
    )
    assert fitted.fitted_on(model, found, moved).tolist() == [True, False, False]
    drawn = small_table(N, simulated=True)
    assert not fitted.fitted_on(model, found, drawn).any()


def test_weights_without_a_run_are_fitted_for_each_validation_part(model):
    alone = dataclasses.replace(model, run=None, trained=None)
    first = fitted.load_calibration(alone, data(OWN))
    second = fitted.load_calibration(alone, data(OTHER))
    assert first["images"] != second["images"]
    expected = np.isin(np.arange(N), OTHER)
    found = fitted.fitted_on(alone, second, data(OTHER).table)
    np.testing.assert_array_equal(found, expected)
