"""Subgroups are evaluated among themselves; what is unknown is a group, too."""

import numpy as np
import pytest
from scores import NAMES, drawn

from charm_jax.metrics import bootstrap, classification, subgroups


def test_bands_of_age():
    ages = np.array([-1, 0, 17, 18, 39, 40, 59, 60, 79, 80, 120, 121, 414], np.int16)
    expected = ["unknown", "0-17", "0-17", "18-39", "18-39", "40-59", "40-59", "60-79", "60-79"]
    assert subgroups.age_bands(ages).tolist() == [*expected, "80+", "80+", "unknown", "unknown"]


def test_what_is_known_of_no_image_is_left_out():
    found = subgroups.attributes(
        np.array(["PA", "", "AP"]), np.array(["", "", ""]), np.array([-1, 50, 60], np.int16)
    )
    assert {name: values.tolist() for name, values in found.items()} == {
        "view": ["PA", "unknown", "AP"],
        "age": ["unknown", "40-59", "60-79"],
    }


def test_a_subgroup_is_what_its_images_alone_would_be():
    scores, labels, patients = drawn()
    views = np.where(np.arange(len(scores)) % 3 == 0, "AP", "PA")
    labels[views == "AP", 1] = 0
    result = subgroups.subgroups(
        scores, labels, patients, NAMES, {"view": views}, resamples=20, seed=3
    )
    assert list(result["view"]) == ["AP", "PA"]
    for value, entry in result["view"].items():
        rows = views == value
        alone = classification.summarise(scores[rows], labels[rows], NAMES)
        assert entry["macro_auroc"] == alone["macro_auroc"]
        assert entry["findings"] == {n: alone["findings"][n]["auroc"] for n in NAMES}
        assert entry["n_images"] == rows.sum()
        assert entry["n_patients"] == len(set(patients[rows]))
        values = bootstrap.resampled(
            scores[rows], labels[rows], patients[rows], resamples=20, seed=3
        )
        expected = bootstrap.interval(bootstrap.macro(values.auroc))
        assert entry["macro_auroc_interval"] == pytest.approx(list(expected))
    assert result["view"]["AP"]["undefined"] == ["Hernia"]
    assert result["view"]["PA"]["undefined"] == []


def test_a_subgroup_of_one_image_is_undefined():
    scores, labels, patients = drawn()
    sexes = np.where(np.arange(len(scores)) == 0, "F", "M")
    entry = subgroups.subgroups(scores, labels, patients, NAMES, {"sex": sexes}, resamples=2)
    alone = entry["sex"]["F"]
    assert alone["macro_auroc"] is None
    assert alone["macro_auroc_interval"] == [None, None]
    assert alone["undefined"] == list(NAMES)
