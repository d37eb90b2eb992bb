"""Images that a run has seen under other names are found by their pixels."""

import csv
import types

import numpy as np
import pytest
from PIL import Image
from tables import small_table

from charm_jax.inference import overlap
from charm_jax.inference.loaded import LoadedModel
from charm_jax.runs import cases
from charm_jax.runs import data as run_data
from charm_jax.runs.data import Data
from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageArray

SIZE = 32
SMALL = np.random.default_rng(0).integers(0, 255, (12, 5, 5), dtype=np.uint8)
IMAGES = np.stack([np.asarray(Image.fromarray(s).resize((SIZE, SIZE))) for s in SMALL])


def data_of(source, chosen, **columns):
    """Some of the images, brightened, with the names that a source may give them."""
    pixels = np.minimum(IMAGES[chosen], 235) + 20
    table = small_table(
        len(chosen),
        source=source,
        images=np.array([f"{source}{i:02d}.png" for i in range(len(chosen))]),
        store=ImageArray(pixels.astype(np.uint8)),
        **columns,
    )
    return holding(Data, table=table, settings=types.SimpleNamespace(image_size=SIZE))


def holding(kind, **fields):
    """An instance that has these fields alone."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A run that has seen the first six of its eight images."""
    own = data_of("nih_chest_xray14", list(range(8)))
    cases.write_cases(tmp_path, own.table, np.arange(6))
    monkeypatch.setattr(run_data, "load_data", lambda settings: own)
    return holding(LoadedModel, run=tmp_path, trained=own.table.origin, settings=None)


OTHERS = [11, 2, 7, 4, 10]  # the run has seen two of them


def found(model, data, match=None):
    match = match or cases.unknown_cases(data.table)
    return overlap.by_pixels(model, data, np.arange(len(data.table.images)), match)


def test_seen_images_are_found_listed_and_seen(model, caplog):
    match = found(model, data_of("siim_pneumothorax", OTHERS))
    assert match.image_seen.tolist() == [False, True, False, True, False]
    assert match.case_ids.tolist() == [-1, 2, -1, 4, -1]
    assert match.patient_seen.tolist() == match.image_seen.tolist()
    path = model.run / "eval/overlap-siim_pneumothorax.csv"
    assert list(csv.reader(path.open())) == [
        ["image", "seen_as"],
        ["siim_pneumothorax01.png", "nih_chest_xray1402.png"],
        ["siim_pneumothorax03.png", "nih_chest_xray1404.png"],
    ]
    assert "2 of the 5 images are ones that the run has trained or validated on" in caplog.text


def test_a_patient_with_a_seen_image_is_seen(model):
    patients = np.array([0, 1, 1, 2, 3], np.int32)
    match = found(model, data_of("rsna_pneumonia", OTHERS, patients=patients))
    assert match.patient_seen.tolist() == [False, True, True, True, False]


def test_the_runs_own_images_are_read_once(model, monkeypatch):
    first = found(model, data_of("siim_pneumothorax", OTHERS))

    def gone(settings):
        raise InputError("gone: find them.")

    monkeypatch.setattr(run_data, "load_data", gone)
    again = found(model, data_of("siim_pneumothorax", OTHERS))
    assert again.case_ids.tolist() == first.case_ids.tolist()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_without_them_nothing_is_claimed(model, monkeypatch, caplog, damage):
    found(model, data_of("siim_pneumothorax", OTHERS))
    damage(model.run / overlap.KEPT)

    def gone(settings):
        raise InputError("The data folder x does not exist: name it.")

    monkeypatch.setattr(run_data, "load_data", gone)
    match = found(model, data_of("siim_pneumothorax", OTHERS))
    assert not match.image_seen.any()
    assert "cannot be told: The data folder x does not exist" in caplog.text


@pytest.mark.parametrize("source", ["nih_chest_xray14", "chexpert"])
def test_the_same_source_goes_by_names_and_other_images_are_others(model, source):
    assert not found(model, data_of(source, OTHERS)).image_seen.any()
    assert not (model.run / overlap.KEPT).exists()
