import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tables import small_table

from data_pipelines.inspect.table_statistics import (
    co_occurrence,
    images_per_patient,
    named_parts,
    part_statistics,
    parts_of_images,
)
from data_pipelines.tables.splits import Split, make_split

STAGES = {"bce": "abnormal", "focal": "all"}
LABELS = st.integers(1, 12).flatmap(lambda n: arrays(np.int8, (n, 3), elements=st.integers(-1, 1)))


def _table(labels, **columns):
    labels = np.array(labels, np.int8)
    names = ("Mass", "Edema", "Hernia")[: labels.shape[1]]
    return small_table(len(labels), findings=names, labels=labels, **columns)


def test_counts_of_a_part_by_hand():
    table = _table(
        [[1, 0], [1, -1], [0, -1], [0, 0], [1, 1]],
        patients=np.array([7, 7, 7, 8, 9], np.int32),
        views=np.array(["PA", "AP", "PA", "", "AP"]),
        sexes=np.array(["F", "F", "F", "M", ""]),
        ages=np.array([40, 41, 45, -1, 99], np.int16),
    )
    found = part_statistics(table, np.array([0, 1, 2, 3]))
    assert (found["images"], found["patients"], found["abnormal"]) == (4, 2, 2)
    assert found["findings"] == {
        "Mass": {"positive": 2, "negative": 2, "unknown": 0, "prevalence": 0.5},
        "Edema": {"positive": 0, "negative": 2, "unknown": 2, "prevalence": 0.0},
    }
    assert found["views"] == {"PA": 2, "AP": 1, "unknown": 1}
    assert found["sexes"] == {"F": 3, "M": 1}
    assert found["ages"] == {"unknown": 1, "min": 40, "median": 41, "mean": 42, "max": 45}
    assert images_per_patient(table, np.arange(5)) == {
        "patients": 3,
        "min": 1,
        "median": 1,
        "mean": pytest.approx(5 / 3),
        "max": 3,
    }


def test_an_empty_part_has_counts_of_zero_and_no_ages():
    found = part_statistics(_table([[1], [0]]), np.array([], np.int64))
    assert found["images"] == found["patients"] == found["abnormal"] == 0
    assert found["findings"]["Mass"]["prevalence"] is None
    assert found["ages"] == {"unknown": 0, "min": None, "median": None, "mean": None, "max": None}


@given(LABELS)
def test_positive_negative_and_unknown_add_up(labels):
    found = part_statistics(_table(labels), np.arange(len(labels)))
    for counts in found["findings"].values():
        assert counts["positive"] + counts["negative"] + counts["unknown"] == len(labels)
        known = counts["positive"] + counts["negative"]
        assert (counts["prevalence"] is None) == (known == 0)


def test_co_occurrence_by_hand():
    table = _table([[1, 1, 0], [1, 0, 0], [1, -1, 0], [0, 1, 0], [1, 1, 0]])
    shares, alone, counts = co_occurrence(table, np.arange(5))
    assert counts.tolist() == [4, 3, 0]
    # Of 4 images with Mass, Edema is known in 3 and present in 2.
    np.testing.assert_allclose(shares[:2], [[1, 2 / 3, 0], [2 / 3, 1, 0]])
    np.testing.assert_allclose(alone[:2], [2 / 4, 1 / 3])
    assert np.isnan(shares[2]).all() and np.isnan(alone[2])


@given(LABELS)
def test_shares_are_shares(labels):
    shares, alone, counts = co_occurrence(_table(labels), np.arange(len(labels)))
    assert ((shares >= 0) & (shares <= 1) | np.isnan(shares)).all()
    np.testing.assert_array_equal(np.isnan(alone), counts == 0)
    np.testing.assert_array_equal(np.diag(shares)[counts > 0], 1)


def test_parts_that_stages_share_are_named_once():
    labels = np.arange(40)[:, None] % 2
    table = _table(labels)
    split = make_split(table, "patient", STAGES, split_seed=0)
    named = named_parts(split)
    assert set(named) == {"bce train", "bce val", "test", "focal train", "focal val"}
    np.testing.assert_array_equal(named["focal train"], split.stages["focal"]["train"])
    assert (labels[named["bce train"]] == 1).all()


def test_every_image_knows_its_parts():
    parts = {"train": np.array([0]), "test": np.array([1, 2]), "test_published": np.array([2])}
    split = Split("notebook", 0, {"focal": parts}, leak_images=0, leak_of=0)
    held = parts_of_images(_table([[0]] * 4), split)["focal"]
    assert held.tolist() == ["train", "test", "test+test_published", ""]
