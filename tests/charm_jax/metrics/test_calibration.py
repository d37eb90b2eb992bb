"""Temperature and threshold against what drew the labels, and where there is none."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scores import NAMES, drawn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from charm_jax.metrics import calibration


def one(logits, labels):
    """The entry of a single finding."""
    logits = np.asarray(logits, np.float32)[:, None]
    fitted = calibration.fit(logits, np.asarray(labels, np.int8)[:, None], ["Mass"])
    return fitted["findings"]["Mass"]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_again(temperature):
    rng = np.random.default_rng(0)
    z = rng.normal(-1, 3, 50_000)
    labels = rng.random(len(z)) < expit(z)
    assert one(temperature * z, labels)["temperature"] == pytest.approx(temperature, rel=0.03)


def test_the_temperature_minimises_scikit_learns_log_loss():
    logits, labels, _ = drawn(seed=1, images=300)
    fitted = calibration.fit(logits, labels, NAMES)
    for column, name in enumerate(NAMES):
        known = labels[:, column] >= 0
        z, truth = logits[known, column].astype(float), labels[known, column]
        best = minimize_scalar(lambda t: log_loss(truth, expit(z / t)), bounds=(0.05, 20))  # noqa: B023
        assert fitted["findings"][name]["temperature"] == pytest.approx(best.x, rel=1e-3)


def test_the_platt_scaling_is_scikit_learns_with_platts_targets():
    logits, labels, _ = drawn(seed=1, images=300)
    fitted = calibration.fit(logits, labels, NAMES)
    scores, priors = calibration.platt_scaled(logits, fitted)
    for column, name in enumerate(NAMES):
        known = labels[:, column] >= 0
        z, truth = logits[known, column].astype(float), labels[known, column]
        positives, negatives = np.sum(truth == 1), np.sum(truth == 0)
        target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        model = LogisticRegression(C=np.inf, tol=1e-10).fit(
            np.tile(z, 2)[:, None], np.repeat([1, 0], len(z)), np.concatenate([target, 1 - target])
        )
        entry = fitted["findings"][name]
        assert entry["slope"] == pytest.approx(model.coef_[0, 0], rel=1e-4)
        assert entry["intercept"] == pytest.approx(model.intercept_[0], rel=1e-4)
        assert scores[known, column].mean() == pytest.approx(priors[column], abs=1e-7)
        assert priors[column] == pytest.approx(np.mean(truth == 1), abs=0.02)


def test_constant_scores_have_no_platt_scaling():
    entry = one([-1.0] * 20, [1] * 4 + [0] * 16)
    assert entry["slope"] is entry["intercept"] is entry["prior"] is None


def test_the_threshold_maximises_sensitivity_plus_specificity():
    logits, labels, _ = drawn(seed=2, images=300)
    fitted = calibration.fit(logits, labels, NAMES)
    p = calibration.calibrated(logits, fitted)
    for column, threshold in enumerate(calibration.thresholds(fitted)):
        truth, score = labels[:, column], p[:, column]

        def youden(t, truth=truth, score=score):
            return np.mean(score[truth == 1] >= t) - np.mean(score[truth == 0] >= t)

        best = max(youden(t) for t in score[truth >= 0])
        assert youden(threshold) == pytest.approx(best, abs=1e-12)


def test_operating_points_are_the_best_that_reach_their_aim():
    logits, labels, _ = drawn(seed=2, images=300)
    fitted = calibration.fit(logits, labels, NAMES)
    p = calibration.calibrated(logits, fitted)
    sensitive = calibration.thresholds(fitted, "sensitivity_95")
    specific = calibration.thresholds(fitted, "specificity_95")
    for column in range(len(NAMES)):
        truth, score = labels[:, column], p[:, column]
        every = np.unique(score[truth >= 0])
        reach = [t for t in every if np.mean(score[truth == 1] >= t) >= 0.95]
        assert sensitive[column] == pytest.approx(max(reach))
        reach = [t for t in every if np.mean(score[truth == 0] < t) >= 0.95]
        assert specific[column] == pytest.approx(min(reach))


def test_an_operating_point_that_validation_cannot_give_is_none():
    """One of nine negatives scores highest: at a specificity of 0.95 nothing is found."""
    entry = one([3, 2, 1.5, 1, *range(-8, 0)], [0, 1, 1, 1, *[0] * 8])
    assert entry["threshold"] is not None
    assert entry["specificity_95"] is None
    assert entry["sensitivity_95"] is not None


def test_the_threshold_by_hand():
    """Positives at 1 and 3, negatives at -2, -1 and 2: at 1 are both and one of three."""
    entry = one([1, 3, -2, -1, 2, 9], [1, 1, 0, 0, 0, -1])
    assert entry["threshold"] == pytest.approx(expit(1 / entry["temperature"]))
    assert (entry["positives"], entry["negatives"]) == (2, 3)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, -1], [-1, -1, -1]])
def test_one_class_gives_neither(labels):
    entry = one([0.3, -1, 2], labels)
    assert entry["temperature"] is entry["threshold"] is entry["sensitivity_95"] is None


def test_constant_scores_give_no_threshold():
    entry = one([-1.0] * 10, [1] + [0] * 9)
    assert expit(-1 / entry["temperature"]) == pytest.approx(0.1)  # their prevalence
    assert entry["threshold"] is None


def test_scores_in_the_wrong_order_give_neither():
    entry = one([2, 1, -1, -2], [0, 0, 1, 1])
    assert entry["temperature"] is entry["threshold"] is None


def test_perfect_order_does_not_make_certain():
    """Any certainty would fit it; Platt's targets leave open what so few positives do."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(3, 0.5, 5), rng.normal(-3, 0.5, 300)])
    entry = one(z, np.arange(305) < 5)
    p = expit(z / entry["temperature"])
    assert 0.9 < p[:5].min() < p[:5].max() < 0.999
    assert 0.001 < p[5:].max() < entry["threshold"] == pytest.approx(p[:5].min())


@given(st.integers(0, 2**32 - 1))
def test_calibration_keeps_the_order_and_fits_json(seed):
    logits, labels, _ = drawn(seed)
    fitted = calibration.fit(logits, labels, NAMES)
    assert json.loads(json.dumps(fitted, allow_nan=False)) == fitted
    p = calibration.calibrated(logits, fitted)
    for column, entry in enumerate(fitted["findings"].values()):
        if entry["temperature"] is None:
            assert np.isnan(p[:, column]).all()
            continue
        order = np.argsort(logits[:, column])
        assert np.all(np.diff(p[order, column]) >= 0)
        assert np.all((p[:, column] > 0) & (p[:, column] < 1))


def test_without_validation_there_is_nothing():
    logits, labels, _ = drawn()
    nothing = calibration.nothing(NAMES)
    assert np.isnan(calibration.calibrated(logits, nothing)).all()
    assert np.isnan(calibration.thresholds(nothing)).all()
    assert nothing == calibration.fit(logits[:0], labels[:0], NAMES)


def test_another_number_of_findings_is_refused():
    logits, _, _ = drawn()
    with pytest.raises(ValueError, match="2 temperatures for 3 findings"):
        calibration.calibrated(logits, calibration.nothing(NAMES[:2]))
    with pytest.raises(ValueError, match="2 finding names for 3"):
        calibration.fit(logits, np.zeros(logits.shape, np.int8), NAMES[:2])
