import collections
import itertools

import numpy as np
import pytest

from data_pipelines.phantom import labels as phantom_labels
from data_pipelines.tables.findings import NIH_FINDINGS, NO_FINDING


def _positives(label_sets):
    return collections.Counter(name for labels in label_sets for name in labels.split("|"))


def test_the_table_of_counts_is_the_official_one():
    sets, shares = phantom_labels.label_sets()
    assert len(sets) == 836 and shares.sum() == pytest.approx(1, abs=1e-12)
    positives = collections.Counter()
    for labels, share in zip(sets, shares, strict=True):
        positives.update({name: round(share * 112120) for name in labels.split("|")})
    assert (positives["Infiltration"], positives["Hernia"]) == (19894, 227)
    assert positives[NO_FINDING] == 60361


def test_label_sets_follow_the_table_without_floors():
    drawn = [s for patient in phantom_labels.sample_patients(20000, 0, seed=1) for s in patient]
    have = collections.Counter(drawn)
    sets, shares = phantom_labels.label_sets()
    common = shares > 0.003
    expected = 20000 * shares[common]
    seen = np.array([have[s] for s, keep in zip(sets, common, strict=True) if keep])
    # Follow-ups that repeat their labels widen the spread beyond that of independent
    # draws.
    assert np.all(np.abs(seen - expected) < 5 * np.sqrt(expected))
    assert ((seen - expected) ** 2 / expected).mean() < 2.5
    assert len(drawn) == 20000


def test_patients_have_several_images():
    patients = phantom_labels.sample_patients(20000, 0, seed=2)
    assert 20000 / len(patients) == pytest.approx(phantom_labels.IMAGES_PER_PATIENT, rel=0.05)


def test_repeats_among_follow_ups_are_as_frequent_as_in_chestxray14():
    patients = phantom_labels.sample_patients(20000, 0, seed=2)
    pairs = [pair for images in patients for pair in itertools.pairwise(images)]
    assert np.mean([a == b for a, b in pairs]) == pytest.approx(0.41, abs=0.02)


def test_floors_leave_the_number_of_images():
    patients = phantom_labels.sample_patients(1000, 24, seed=5)
    label_sets = [labels for images in patients for labels in images]
    assert len(label_sets) == 1000
    assert min(_positives(label_sets)[name] for name in NIH_FINDINGS) >= 24
