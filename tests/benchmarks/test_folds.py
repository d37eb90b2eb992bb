"""Folds of ``benchmarks/real_data.py``: who is tested where, and AUROC within them."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines import sources

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FINDINGS = ("A", "B", "C")
BATCH = 16


@pytest.fixture
def folds(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("folds")


@pytest.fixture
def cases():
    """Patients, up to 20 images each, and labels of 600 images."""
    generator = np.random.default_rng(0)
    sizes = generator.geometric(0.3, 600).clip(max=20)
    patients = np.repeat(np.arange(600), sizes)[:600]
    return patients, (generator.random((600, 3)) < (0.3, 0.1, 0.03)).astype(np.int8)


def test_each_image_is_tested_once_by_a_network_that_never_saw_its_patient(folds, cases):
    patients, labels = cases
    parts = folds.make(patients, labels, 5, BATCH)
    assert ((parts == "test").sum(0) == 1).all()
    for part in parts:
        seen = set(patients[part != "test"])
        assert not seen & set(patients[part == "test"])
        assert not set(patients[part == "train"]) & set(patients[part == "val"])
        assert 0.05 < np.mean(part == "val") < 0.2
        assert labels[part == "test"].any(0).all()


def test_all_folds_take_as_many_steps(folds, cases):
    patients, labels = cases
    parts = folds.make(patients, labels, 5, BATCH)
    abnormal = labels.any(1)
    steps = {(sum(p == "train") // BATCH, sum((p == "train") & abnormal) // BATCH) for p in parts}
    assert len(steps) == 1


def test_a_patient_in_two_parts_is_refused(folds):
    patients, parts = np.array([0, 0, 1]), np.array([["test", "train", "train"]] * 2)
    parts[1] = ["train", "test", "test"]
    with pytest.raises(ValueError, match="a patient is in two parts of fold 0"):
        folds.check(patients, parts)


def test_an_image_that_is_tested_twice_is_refused(folds):
    parts = np.array([["test", "train"], ["test", "test"]])
    with pytest.raises(ValueError, match="image 0 is tested 2 times"):
        folds.check(np.arange(2), parts)


def test_the_written_tables_give_the_source_these_splits(folds, cases, tmp_path):
    patients, labels = cases
    names = np.array([f"{i:04}.png" for i in range(600)])
    table = SimpleNamespace(images=names, patients=patients, labels=labels, findings=FINDINGS)
    parts = folds.make(patients, labels, 3, BATCH)
    for path, part in zip(folds.write(table, np.arange(600), parts, tmp_path), parts, strict=True):
        read = sources.load("csv_folder", tmp_path, csv=str(path))
        np.testing.assert_array_equal(read.official_part, part)
        np.testing.assert_array_equal(read.labels, labels)
        assert read.findings == FINDINGS
        assert [read.patient_name(number) for number in read.patients] == [*map(str, patients)]


def test_auroc_counts_the_pairs_of_the_same_fold_alone(folds, cases):
    patients, labels = cases
    parts = folds.make(patients, labels, 4, BATCH)
    fold = (parts == "test").argmax(0)
    logits = np.random.default_rng(1).integers(-8, 8, labels.shape) / 4 + labels  # with ties
    found = folds.auroc_within(logits, labels, patients, parts)
    for column in range(3):
        positive, negative = np.meshgrid(*(np.flatnonzero(labels[:, column] == v) for v in (1, 0)))
        same = fold[positive] == fold[negative]
        gap = (logits[positive, column] - logits[negative, column])[same]
        np.testing.assert_allclose(found[0, column], np.mean((gap > 0) + 0.5 * (gap == 0)))
    shifted = logits + 128 * fold[:, None]  # networks on other scales
    np.testing.assert_array_equal(folds.auroc_within(shifted, labels, patients, parts), found)


def test_a_draw_counts_each_pair_as_often_as_its_patients_are_drawn(folds):
    labels = np.array([[1], [0], [0]] * 2)
    parts = np.array([["test"] * 3 + ["train"] * 3, ["train"] * 3 + ["test"] * 3])
    logits = np.array([[1.0], [0], [2], [1], [0], [0]])
    found = folds.auroc_within(logits, labels, np.array([0, 1, 2, 3, 4, 4]), parts)[:, 0]
    assert found[0] == 0.75
    # One wrong pair, patients 0 and 2; right ones are 0 and 1, and twice 3 and 4.
    assert set(found[found < 1]) >= {0, 1 / 2, 1 / 4, 3 / 4}
    assert np.isnan(found[1:]).any()  # neither 0 nor 3, or nobody beside them
