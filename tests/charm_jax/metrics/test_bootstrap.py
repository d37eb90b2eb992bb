"""The bootstrap against plain resampling with scikit-learn."""

import numpy as np
import pytest
from scores import NAMES, drawn
from sklearn.metrics import average_precision_score, roc_auc_score

from charm_jax.metrics import bootstrap


def macro_interval(scores, labels, patients, resamples=50, seed=4, level=0.95):
    values = bootstrap.resampled(scores, labels, patients, resamples=resamples, seed=seed)
    return bootstrap.interval(bootstrap.macro(values.auroc), level)


def plain_resample(scores, labels, rows):
    """AUROC and average precision of each finding on some rows; NaN without both classes."""
    values = np.full((2, labels.shape[1]), np.nan)
    for column in range(scores.shape[1]):
        known = rows[labels[rows, column] >= 0]
        truth = labels[known, column]
        if len(np.unique(truth)) == 2:
            values[0, column] = roc_auc_score(truth, scores[known, column])
            values[1, column] = average_precision_score(truth, scores[known, column])
    return values


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
    got = bootstrap.resampled(
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
    expected = np.stack(expected)
    np.testing.assert_allclose(got.auroc, expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(got.average_precision, expected[:, 1], rtol=1e-12)
    assert np.isnan(bootstrap.macro(got.auroc)).any() == rare
    assert np.nanmin(got.auroc) < 0.7
    assert len(np.unique(got.average_precision)) > 20


def test_macro_is_the_mean_of_what_a_resample_defines():
    values = np.array([[0.5, 0.7], [np.nan, 0.6], [np.nan, np.nan]])
    np.testing.assert_array_equal(bootstrap.macro(values), [0.6, 0.6, np.nan])


def test_nothing_defined_has_no_interval():
    scores, labels, patients = drawn()
    assert macro_interval(scores, np.full_like(labels, -1), patients) == (None, None)


def test_a_single_patient_has_no_interval():
    """Every draw would be the same: an interval of no width, however few the images."""
    scores, labels, _ = drawn()
    assert macro_interval(scores, labels, np.zeros(len(scores), int)) == (None, None)


def test_an_interval_needs_most_resamples():
    values = np.arange(100.0)
    values[:5] = np.nan
    assert bootstrap.interval(values) == pytest.approx((5 + 94 * 0.025, 5 + 94 * 0.975))
    values[5] = np.nan
    assert bootstrap.interval(values) == (None, None)


def test_a_finding_of_one_patient_has_no_interval_and_one_of_many_has():
    scores, labels, patients = drawn(images=300, patients=100)
    labels[:, 0] = patients == 7
    drawn_values = bootstrap.resampled(scores, labels, patients).auroc
    assert bootstrap.interval(drawn_values[:, 0]) == (None, None)
    low, high = bootstrap.interval(drawn_values[:, 1])
    assert 0.5 < low < roc_auc_score(*_known(labels[:, 1], scores[:, 1])) < high < 1


def _known(truth, scores):
    return truth[truth >= 0], scores[truth >= 0]


def test_interval_holds_the_middle_share_of_the_resamples():
    scores, labels, patients = drawn()
    macros = bootstrap.macro(
        bootstrap.resampled(scores, labels, patients, resamples=200, seed=2).auroc
    )
    low, high = macro_interval(scores, labels, patients, resamples=200, seed=2, level=0.8)
    assert np.mean((macros >= low) & (macros <= high)) == pytest.approx(0.8, abs=0.01)


def test_order_of_scores_is_all_that_matters():
    scores, labels, patients = drawn()
    squashed = 1 / (1 + np.exp(-scores.astype(np.float64)))
    one, other = (
        bootstrap.resampled(s, labels, patients, resamples=5, seed=1) for s in (scores, squashed)
    )
    np.testing.assert_array_equal(one.auroc, other.auroc)
    np.testing.assert_array_equal(one.average_precision, other.average_precision)


def test_interval_is_wider_when_images_share_patients():
    """Ten copies of every image tell nothing new, and the clusters know it."""
    scores, labels, _ = drawn()
    tenfold = [np.repeat(x, 10, axis=0) for x in (scores, labels, np.arange(len(scores)))]
    as_one = macro_interval(scores, labels, np.arange(len(scores)))
    clustered = macro_interval(*tenfold)
    assert clustered == pytest.approx(as_one, abs=1e-12)
    naive = macro_interval(tenfold[0], tenfold[1], np.arange(len(tenfold[0])))
    assert naive[1] - naive[0] < 0.6 * (clustered[1] - clustered[0])


def test_coverage_of_patients_with_like_images():
    """Scores with AUC Φ(1 / √2) = 0.7602; 200 of the 1,000 simulations of the benchmark."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        patients = np.repeat(np.arange(150), rng.integers(1, 6, 150))
        labels = (rng.random(150) < 0.3)[patients].astype(np.int8)
        own, shared = rng.normal(size=len(patients)), rng.normal(size=150)[patients]
        scores = labels + np.sqrt(0.5) * (own + shared)
        low, high = macro_interval(scores[:, None], labels[:, None], patients, resamples=300)
        hits += low < 0.7602 < high
    assert 0.9 <= hits / 200 <= 0.99


def test_bad_input_is_refused_in_a_sentence():
    scores, labels, patients = drawn()
    with pytest.raises(ValueError, match="59 patients for 60 images"):
        bootstrap.resampled(scores, labels, patients[1:])
    with pytest.raises(ValueError, match="0 resamples of 60"):
        bootstrap.resampled(scores, labels, patients, resamples=0)
    with pytest.raises(ValueError, match="3 resamples of 0"):
        bootstrap.resampled(scores[:0], labels[:0], patients[:0], resamples=3)
    with pytest.raises(ValueError, match="level is 95"):
        macro_interval(scores, labels, patients, level=95.0)


def test_there_is_a_column_for_each_finding():
    values = bootstrap.resampled(*drawn(), resamples=3)
    assert values.auroc.shape == values.average_precision.shape == (3, len(NAMES))
