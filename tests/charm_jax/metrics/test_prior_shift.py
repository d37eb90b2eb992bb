"""The prevalence that unlabelled scores tell, against the EM of the paper and simulated shifts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from charm_jax.metrics import prior_shift


def em(s, p, steps):
    """Equations 2.4 and 2.9 as the paper has them, for one finding."""
    q = p
    for _ in range(steps):
        corrected = q / p * s / (q / p * s + (1 - q) / (1 - p) * (1 - s))
        q = corrected.mean()
    return q, corrected


def simulated(rng, n, prevalence, prior, separation=3.0):
    """Labels and the exact probabilities under a prior of normal scores with SD 1."""
    truth = rng.random(n) < prevalence
    score = rng.normal(separation * truth, 1)
    ratio = separation * score - separation**2 / 2
    return truth, expit(ratio + logit(prior))


def correct_one(s, p):
    estimated, corrected = prior_shift.correct(s[:, None], np.array([p]))
    return estimated[0], corrected[:, 0]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    prevalence=st.floats(0.02, 0.98),
    prior=st.floats(0.02, 0.98),
    separation=st.floats(2.0, 5.0),
)
def test_it_is_where_the_papers_em_ends(seed, prevalence, prior, separation):
    _, s = simulated(np.random.default_rng(seed), 300, prevalence, prior, separation)
    expected, scores = em(s, prior, 2000)
    estimated, corrected = correct_one(s, prior)
    assert estimated == pytest.approx(expected, abs=2e-3)
    np.testing.assert_allclose(corrected, scores, atol=0.02)
    again, _ = em(s, prior, 1)
    assert abs(estimated - expected) <= abs(again - expected) + 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_scores_whose_mean_is_the_prior_stay_as_they_are(seed):
    """The fixed point of the EM: without a shift nothing changes."""
    s = np.random.default_rng(seed).beta(0.5, 2.0, 200).clip(1e-6, 1 - 1e-6)
    prior = s.mean()
    estimated, corrected = correct_one(s, prior)
    assert estimated == pytest.approx(prior, abs=1e-9)
    np.testing.assert_allclose(corrected, s, atol=1e-9)


@pytest.mark.parametrize("prevalence", [0.01, 0.1, 0.5, 0.9])
def test_a_shift_is_recovered_and_its_correction_calibrates(prevalence):
    truth, s = simulated(np.random.default_rng(0), 20_000, prevalence, prior=0.1)
    estimated, corrected = correct_one(s, 0.1)
    assert estimated == pytest.approx(truth.mean(), abs=0.01)
    assert corrected.mean() == pytest.approx(estimated, abs=1e-6)
    before, after = (np.mean((x - truth) ** 2) for x in (s, corrected))
    assert after < before or prevalence == 0.1


def test_the_order_of_the_scores_stays():
    _, s = simulated(np.random.default_rng(1), 500, 0.6, prior=0.05)
    _, corrected = correct_one(s, 0.05)
    np.testing.assert_array_equal(np.argsort(s), np.argsort(corrected))


def test_each_finding_is_alone():
    rng = np.random.default_rng(2)
    columns = [simulated(rng, 400, q, p)[1] for q, p in ((0.3, 0.1), (0.02, 0.2), (0.5, 0.5))]
    priors = np.array([0.1, 0.2, 0.5])
    estimated, corrected = prior_shift.correct(np.stack(columns, 1), priors)
    for column, (s, p) in enumerate(zip(columns, priors, strict=True)):
        alone, scores = correct_one(s, p)
        assert estimated[column] == alone
        np.testing.assert_array_equal(corrected[:, column], scores)


def test_images_that_do_not_count_are_corrected_alike():
    rng = np.random.default_rng(1)
    _, s = simulated(rng, 400, 0.3, 0.1)
    counted = rng.random(400) < 0.5
    estimated, corrected = prior_shift.correct(s[:, None], np.array([0.1]), counted[:, None])
    alone, scores = correct_one(s[counted], 0.1)
    assert estimated[0] == pytest.approx(alone)
    np.testing.assert_allclose(corrected[counted, 0], scores)
    assert np.isfinite(corrected).all()
    counted[:] = s == s[0]
    s[~counted] = 0.9
    s[0] = 0.1
    assert prior_shift.correct(s[:, None], np.array([0.1]), counted[:, None])[0] == [0.1]


@pytest.mark.parametrize(
    ("s", "prior"),
    [([np.nan, np.nan], 0.1), ([0.2, 0.3], 0.0), ([0.2, 0.3], 1.0), ([0.2, 0.3], np.nan)],
)
def test_what_cannot_be_estimated_is_nan(s, prior):
    estimated, corrected = correct_one(np.array(s), prior)
    assert np.isnan(estimated)
    assert np.isnan(corrected).all()


@pytest.mark.parametrize(
    ("s", "prior", "expected"),
    [
        ([0.1, 0.1], 0.1, 0.1),  # they tell nothing
        ([0.0, 0.0, 1.0, 0.0], 0.1, 0.25),  # they tell all
        ([0.02, 0.01], 0.1, 0.0),
        ([0.9, 0.8], 0.1, 1.0),
    ],
)
def test_ends(s, prior, expected):
    estimated, corrected = correct_one(np.array(s), prior)
    assert estimated == pytest.approx(expected, abs=1e-9)
    assert np.isfinite(corrected).all()
