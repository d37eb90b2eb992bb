"""AUROC against its definition; the bootstrap against plain resampling with scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from charm_jax import metrics

NAMES = ("Mass", "Hernia", "Edema")


def drawn(seed=0, images=60, patients=15):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, (images, len(NAMES)), dtype=np.int8)
    scores = np.round(rng.normal(size=labels.shape) + labels, 1).astype(np.float32)  # with ties
    return scores, labels, rng.integers(0, patients, images)


def pairwise(scores, truth):
    """U / (n₊ n₋) by comparing every pair, ties ½."""
    difference = scores[truth == 1][:, None] - scores[truth == 0][None, :]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


def test_auroc_is_the_share_of_pairs_in_order():
    scores, labels, _ = drawn()
    result = metrics.auroc_by_finding(scores, labels, NAMES)
    assert tuple(result) == NAMES
    for column, name in enumerate(NAMES):
        entry, truth = result[name], labels[:, column]
        assert entry["auroc"] == pytest.approx(pairwise(scores[:, column], truth), abs=1e-12)
        assert entry["positives"] == np.sum(truth == 1)
        assert entry["negatives"] == np.sum(truth == 0)


def test_finding_with_one_class_is_undefined_and_named():
    scores, labels, _ = drawn()
    labels[:, 1] = np.where(labels[:, 1] == 1, 0, labels[:, 1])
    summary = metrics.summarise(scores, labels, NAMES)
    assert summary["undefined"] == ["Hernia"]
    assert summary["findings"]["Hernia"]["auroc"] is None
    assert summary["findings"]["Hernia"]["positives"] == 0
    rest = [summary["findings"][name]["auroc"] for name in ("Mass", "Edema")]
    assert summary["macro_auroc"] == pytest.approx(np.mean(rest))
    assert json.loads(json.dumps(summary)) == summary


def test_nothing_defined_has_no_macro_and_no_interval():
    scores, labels, patients = drawn()
    nothing = np.full_like(labels, -1)
    summary = metrics.summarise(scores, nothing, NAMES)
    assert summary["macro_auroc"] is None
    assert summary["undefined"] == list(NAMES)
    interval = metrics.macro_auroc_interval(scores, nothing, patients, resamples=3)
    assert interval == (None, None)


def test_order_of_scores_is_all_that_matters():
    scores, labels, patients = drawn()
    squashed = 1 / (1 + np.exp(-scores.astype(np.float64)))
    assert metrics.summarise(squashed, labels, NAMES) == metrics.summarise(scores, labels, NAMES)
    one, other = (
        metrics.resampled_macro_auroc(s, labels, patients, resamples=5, seed=1)
        for s in (scores, squashed)
    )
    np.testing.assert_array_equal(one, other)


def plain_resample(scores, labels, rows):
    aurocs = []
    for column in range(scores.shape[1]):
        known = rows[labels[rows, column] >= 0]
        truth = labels[known, column]
        if len(np.unique(truth)) == 2:
            aurocs.append(roc_auc_score(truth, scores[known, column]))
    return np.mean(aurocs) if aurocs else np.nan


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("rare", [False, True])
def test_bootstrap_equals_plain_resampling_of_whole_patients(rare, as_text):
    """Where findings are rare some resamples lack one of them, and some lack them all."""
    scores, labels, patients = drawn(seed=3, images=30, patients=5)
    if rare:
        labels[:] = np.minimum(labels, 0)
        labels[:2, 0] = labels[0, 1] = 1
        patients[:2] = 0, 1
        labels[:2, 2] = scores[:2] = 0  # in the midst of the negatives, with ties
    got = metrics.resampled_macro_auroc(
        scores,
        labels,
        np.array([f"patient {p}" for p in patients]) if as_text else patients,
        resamples=70,  # more than two chunks
        seed=5,
    )
    ids = np.unique(patients)
    rng = np.random.default_rng(5)
    expected = []
    for _ in range(70):
        picked = ids[rng.integers(len(ids), size=len(ids))]
        rows = np.concatenate([np.flatnonzero(patients == p) for p in picked])
        expected.append(plain_resample(scores, labels, rows))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert np.isnan(got).any() == rare
    assert np.nanmin(got) > 0.1
    assert len(np.unique(got)) > 20


def test_interval_holds_the_middle_share_of_the_resamples():
    scores, labels, patients = drawn()
    macros = metrics.resampled_macro_auroc(scores, labels, patients, resamples=200, seed=2)
    low, high = metrics.macro_auroc_interval(
        scores, labels, patients, resamples=200, seed=2, level=0.8
    )
    assert np.mean((macros >= low) & (macros <= high)) == pytest.approx(0.8, abs=0.01)
    assert low < metrics.summarise(scores, labels, NAMES)["macro_auroc"] < high


def test_interval_is_wider_when_images_share_patients():
    """Ten copies of every image tell nothing new, and the clusters know it."""
    scores, labels, _ = drawn()
    tenfold = [np.repeat(x, 10, axis=0) for x in (scores, labels, np.arange(len(scores)))]
    as_one = metrics.macro_auroc_interval(
        scores, labels, np.arange(len(scores)), resamples=50, seed=4
    )
    clustered = metrics.macro_auroc_interval(*tenfold, resamples=50, seed=4)
    assert clustered == pytest.approx(as_one, abs=1e-12)
    naive = metrics.macro_auroc_interval(
        tenfold[0], tenfold[1], np.arange(len(tenfold[0])), resamples=50, seed=4
    )
    assert naive[1] - naive[0] < 0.6 * (clustered[1] - clustered[0])


def test_bad_input_is_refused_in_a_sentence():
    scores, labels, patients = drawn()
    broken, doubtful = scores.copy(), labels.copy()
    broken[4, 1], doubtful[5, 2] = np.nan, 2
    with pytest.raises(ValueError, match="row 4, column 1 is nan"):
        metrics.summarise(broken, labels, NAMES)
    with pytest.raises(ValueError, match="row 5, column 2 is 2"):
        metrics.summarise(scores, doubtful, NAMES)
    with pytest.raises(ValueError, match="scores"):
        metrics.summarise(scores[:-1], labels, NAMES)
    with pytest.raises(ValueError, match="2 finding names for 3"):
        metrics.summarise(scores, labels, NAMES[:2])
    with pytest.raises(ValueError, match="59 patients for 60 images"):
        metrics.macro_auroc_interval(scores, labels, patients[1:])
    with pytest.raises(ValueError, match="0 resamples of 60"):
        metrics.macro_auroc_interval(scores, labels, patients, resamples=0)
    with pytest.raises(ValueError, match="level is 95"):
        metrics.macro_auroc_interval(scores, labels, patients, level=95.0)
