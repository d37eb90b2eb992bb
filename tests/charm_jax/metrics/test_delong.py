"""DeLong by midranks against the definition, pair by pair."""

import numpy as np
import pytest
from scores import NAMES, drawn
from sklearn.metrics import roc_auc_score

from charm_jax.metrics import delong


def components(scores, truth):
    """V10 and V01 of DeLong et al. (1988), from the matrix of all pairs."""
    difference = scores[truth == 1][:, None] - scores[truth == 0][None, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    return wins.mean(axis=1), wins.mean(axis=0)


def covariance(one, other, truth):
    (v10, v01), (w10, w01) = components(one, truth), components(other, truth)
    return np.cov(v10, w10)[0, 1] / len(v10) + np.cov(v01, w01)[0, 1] / len(v01)


def test_the_variance_is_that_of_the_structural_components():
    scores, labels, _ = drawn()  # with ties and unknown labels
    shares = delong.influence(scores, labels)
    for column in range(len(NAMES)):
        expected = covariance(scores[:, column], scores[:, column], labels[:, column])
        assert np.sum(shares[:, column] ** 2) == pytest.approx(expected, rel=1e-10)
        assert np.all(shares[labels[:, column] < 0, column] == 0)
        assert np.sum(shares[:, column]) == pytest.approx(0, abs=1e-12)


def test_the_covariance_of_two_models_on_the_same_images():
    scores, labels, _ = drawn()
    other = scores + drawn(seed=8)[0]
    products = delong.influence(scores, labels) * delong.influence(other, labels)
    for column in range(len(NAMES)):
        expected = covariance(scores[:, column], other[:, column], labels[:, column])
        assert products[:, column].sum() == pytest.approx(expected, rel=1e-10)


def test_the_interval_is_normal_and_cut_at_one():
    scores, labels, _ = drawn()
    truth = labels[:, 0]
    value = roc_auc_score(truth[truth >= 0], scores[truth >= 0, 0])
    shares = delong.influence(scores, labels)[:, 0]
    error = np.sqrt(covariance(scores[:, 0], scores[:, 0], truth))
    expected = (value - 1.959964 * error, min(value + 1.959964 * error, 1.0))
    assert delong.interval(value, shares) == pytest.approx(expected, abs=1e-6)
    assert delong.interval(0.999, shares)[1] == 1.0
    low, _ = delong.interval(0.0, shares, bounds=(-1.0, 1.0))
    assert low == pytest.approx(-1.959964 * error, abs=1e-6)


def test_the_mean_takes_the_findings_that_have_a_variance():
    scores, labels, _ = drawn()
    labels[:, 1] = 0
    labels[0, 1] = 1  # of a single positive the variance is not known
    shares = delong.influence(scores, labels)
    assert np.isnan(shares[:, 1]).all()
    np.testing.assert_allclose(delong.macro(shares), shares[:, [0, 2]].mean(axis=1))
    assert delong.interval(0.7, shares[:, 1]) == (None, None)
    assert delong.interval(None, shares[:, 0]) == (None, None)
    assert np.isnan(delong.macro(shares[:, [1]])).all()


def test_perfect_order_has_no_spread_to_speak_of():
    """The known weakness of the method: the bootstrap has it, too."""
    scores = np.arange(6.0)[:, None]
    labels = np.array([0, 0, 0, 1, 1, 1], np.int8)[:, None]
    assert delong.interval(1.0, delong.influence(scores, labels)[:, 0]) == (1.0, 1.0)
