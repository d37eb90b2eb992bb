import os

import numpy as np
import pytest

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.sources import medmnist
from data_pipelines.tables import splits
from data_pipelines.tables.findings import NIH_FINDINGS

SIZES = {"train": 6, "val": 2, "test": 3}
# The order of MedMNIST's own list of labels.
MEDMNIST = (
    *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia"),
    *("pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
)


def _arrays(findings, side=28):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in SIZES.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, side, side), np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 2, (n, findings)).astype(np.uint8)
    return arrays


@pytest.fixture
def chest(tmp_path):
    arrays = _arrays(14)
    np.savez(tmp_path / "chestmnist.npz", **arrays)
    return tmp_path, arrays


def test_chest_images_are_named_by_part_and_number(chest):
    folder, arrays = chest
    table = sources.load("chestmnist", folder)
    assert table.source == "chestmnist"
    assert table.images.tolist() == sorted(table.images)
    assert len(table.images) == 11
    for part, n in SIZES.items():
        for number in range(n):
            row = table.images.tolist().index(f"{part}_{number:05d}")
            assert table.official_part[row] == part
            image = table.store.read(np.array([row]), 28)[0, ..., 0]
            np.testing.assert_array_equal(image, arrays[f"{part}_images"][number])


def test_chest_labels_get_the_order_of_the_project(chest):
    folder, arrays = chest
    table = sources.load("chestmnist", folder)
    assert table.findings == NIH_FINDINGS
    for column, name in enumerate(MEDMNIST):
        ours = [i for i, f in enumerate(NIH_FINDINGS) if f.lower().split("_")[0] == name]
        expected = [arrays[f"{part}_labels"][:, column] for part in ("test", "train", "val")]
        np.testing.assert_array_equal(table.labels[:, ours], np.concatenate(expected)[:, None])


def test_the_parts_are_the_official_rule_and_patients_are_not_known(chest):
    table = sources.load("chestmnist", chest[0])
    assert not table.patients_known
    assert "not by the official lists" in table.warnings[0]
    split = splits.make_split(table, "official", {"focal": "all"}, 0)
    assert {part: len(rows) for part, rows in split.stages["focal"].items()} == SIZES


def test_pneumonia_is_the_only_finding(tmp_path):
    arrays = _arrays(1, 64)
    np.savez_compressed(tmp_path / "pneumoniamnist_64.npz", **arrays)
    table = sources.load("pneumoniamnist", tmp_path)
    assert table.findings == ("Pneumonia",)
    assert table.labels[:3].tolist() == arrays["test_labels"].tolist()
    assert table.store.read(np.arange(4), 32).shape == (4, 32, 32, 1)
    assert table.present.all()


def test_of_several_sizes_one_has_to_be_named(chest):
    folder = chest[0]
    np.savez(folder / "chestmnist_64.npz", **_arrays(14, 64))
    with pytest.raises(InputError, match=r"chestmnist\.npz, chestmnist_64\.npz.*config\.data\.csv"):
        sources.load("chestmnist", folder)
    for name in ("chestmnist_64.npz", str(folder / "chestmnist_64.npz")):
        assert sources.load("chestmnist", folder, name).store.images.shape == (11, 64, 64)


def test_a_pipe_with_the_name_of_a_file_is_not_read(chest):
    folder = chest[0]
    os.mkfifo(folder / "chestmnist_64.npz")
    assert len(sources.load("chestmnist", folder).images) == 11


def test_an_absent_file_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"has no pneumoniamnist\.npz.*https://"):
        sources.load("pneumoniamnist", tmp_path)
    with pytest.raises(InputError, match=r"gone\.npz \(config\.data\.csv\) does not exist"):
        sources.load("pneumoniamnist", tmp_path, "gone.npz")


def _changed(arrays, name, value):
    arrays = dict(arrays)
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    return arrays


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("val_images", None, ["'val_images'"]),
        ("test_labels", None, ["'test_labels'"]),
        ("val_labels", np.zeros((2, 3), np.uint8), ["val_labels", "(2, 3)", "(images, 14)"]),
        ("val_labels", np.zeros(2, np.uint8), ["val_labels", "(2,)"]),
        ("val_labels", np.zeros((0, 14), np.uint8), ["val_labels", "(0, 14)"]),
        ("val_labels", np.full((2, 14), 2, np.uint8), ["val_labels", "0 and 1"]),
        ("val_labels", np.zeros((2, 14)), ["val_labels", "0 and 1"]),
        ("val_images", np.zeros((2, 28, 28, 3), np.uint8), ["val_images", "grey"]),
        ("val_images", np.zeros((2, 28, 28)), ["val_images", "float64", "uint8"]),
        ("val_images", np.zeros((3, 28, 28), np.uint8), ["val_images", "(2, 28, 28)"]),
        ("val_images", np.zeros((2, 64, 64), np.uint8), ["val_images", "(2, 28, 28)"]),
        ("val_images", np.array([None, "x"]), ["cannot be read"]),
    ],
)
def test_wrong_arrays_get_a_sentence(tmp_path, name, value, words):
    path = tmp_path / "chestmnist.npz"
    np.savez(path, **_changed(_arrays(14), name, value))
    with pytest.raises(InputError) as caught:
        medmnist.load_chestmnist(tmp_path)
    for word in ("chestmnist.npz", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "array"])
def test_a_file_of_another_kind_gets_a_sentence(chest, kind):
    folder = chest[0]
    path = folder / "chestmnist.npz"
    if kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        content = {"empty": b"", "truncated": path.read_bytes()[:3000], "text": b"<html>"}
        path.write_bytes(content[kind])
    with pytest.raises(InputError, match=r"chestmnist\.npz cannot be read.*download it again"):
        sources.load("chestmnist", folder)
