"""Sets hold the label as often as asked, by finding and label, whatever the scores are."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from charm_jax.metrics import conformal
from charm_jax.metrics.conformal import ABSENT, PRESENT
from charm_jax.metrics.intervals import EvalSet


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    coverage=st.floats(0.05, 0.97),
    counts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    gain=st.floats(-3, 3),
    ties=st.booleans(),
)
def test_over_draws_the_label_is_in_the_set_as_often_as_asked(seed, coverage, counts, gain, ties):
    """Coverage holds for exchangeable images, even if scores are random or inverted."""
    rng = np.random.default_rng(seed)
    draws = 400
    labels = np.repeat([PRESENT, ABSENT], counts)[:, None]
    held = np.zeros((draws, 2))
    for draw in range(draws):
        logits = gain * labels + rng.standard_normal(labels.shape)
        new = gain * np.array([[PRESENT], [ABSENT]]) + rng.standard_normal((2, 1))
        if ties:
            logits, new = np.round(logits), np.round(new)
        limits = conformal.fit(logits, labels, np.arange(len(labels)), coverage)
        found = conformal.sets(new, limits)
        held[draw] = found[0, 0, PRESENT], found[1, 0, ABSENT]
    # Five standard errors of the share, of a guarantee that holds on average over the draws.
    error = np.sqrt(coverage * (1 - coverage) / draws)
    assert (held.mean(axis=0) >= coverage - 5 * error).all()


@hypothesis.given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 2**31), st.booleans())
def test_a_label_is_in_the_set_if_its_p_value_is_above_the_error(n, coverage, seed, ties):
    rng = np.random.default_rng(seed)
    logits, new = rng.standard_normal((n, 1)), rng.standard_normal((50, 1))
    if ties:
        logits, new = np.round(logits), np.round(new)
    labels, patients = rng.integers(-1, 2, (n, 1)), rng.integers(0, n, n)
    found = conformal.sets(new, conformal.fit(logits, labels, patients, coverage))
    for label, sign in ((PRESENT, 1), (ABSENT, -1)):
        is_one = labels[:, 0] == label
        shares = [
            (sign * logits[is_one & (patients == patient), 0] <= sign * new).mean(axis=1)
            for patient in np.unique(patients[is_one])
        ]
        p = (1 + sum(shares, np.zeros(len(new)))) / (len(shares) + 1)
        certain = ~np.isclose(p, 1 - coverage)
        expected = p > 1 - coverage
        np.testing.assert_array_equal(found[certain, 0, label], expected[certain])


def test_each_patient_counts_as_one_however_many_images_there_are_of_one():
    """Counted by image, patients with many alike would make the limit too sharp."""
    rng = np.random.default_rng(0)
    held = {"by patient": [], "by image": []}
    for _ in range(1000):
        images = rng.geometric(0.1, 12)
        patients = np.repeat(np.arange(12), images)
        logits, new = rng.standard_normal(12)[patients, None], rng.standard_normal((1, 1))
        labels = np.ones_like(logits, int)
        for unit, each in (("by patient", patients), ("by image", np.arange(len(patients)))):
            limits = conformal.fit(logits, labels, each, 0.9)
            held[unit].append(conformal.sets(new, limits)[0, 0, PRESENT])
    assert np.mean(held["by image"]) < 0.88
    assert np.mean(held["by patient"]) > 0.9


def test_limits_at_a_whole_number_do_not_suffer_from_rounding():
    """0.1 (19 + 1) is 2: the second lowest of 19 is the limit."""
    logits = np.arange(19.0)[:, None]
    limits = conformal.fit(logits, np.ones((19, 1), int), np.arange(19), 0.9)
    assert limits.present == [1.0]
    assert limits.absent == [np.inf]


def test_coverage_and_sizes_of_an_evaluation():
    logits = np.array([[-2.0, 0], [-1, 0], [1, 0], [2, 0]])
    labels = np.array([[0, -1], [1, -1], [0, -1], [1, -1]])
    limits = conformal.Limits(0.8, np.array([0.0, 1]), np.array([1.5, -1]))
    evaluated = EvalSet(logits, labels, np.arange(4), ("Mass", "Hernia"))
    found = conformal.evaluate(evaluated, limits)
    mass = found.findings["Mass"]
    assert (mass.present.value, mass.absent.value) == (0.5, 1.0)
    assert (mass.decided, mass.both, mass.neither) == (0.75, 0.25, 0.0)
    hernia = found.findings["Hernia"]
    assert hernia.present.value is hernia.absent.value is None
    assert hernia.neither == 1.0
    assert found.decided == mass.decided  # of labelled findings
    assert found.present.value == 0.5
    assert found.coverage == 0.8


def test_coverage_is_the_mean_over_patients():
    logits, labels = np.array([[1.0], [1], [1], [-1]]), np.ones((4, 1), int)
    limits = conformal.Limits(0.8, np.array([0.0]), np.array([0.0]))
    evaluated = EvalSet(logits, labels, np.array([7, 7, 7, 9]), ("Mass",))
    assert conformal.evaluate(evaluated, limits).findings["Mass"].present.value == 0.5


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 90.0, np.nan])
def test_a_coverage_that_is_no_share_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        conformal.fit(np.zeros((3, 1)), np.zeros((3, 1), int), np.arange(3), coverage)
