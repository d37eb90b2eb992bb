"""Each selection rule against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rings import DIM, FINDINGS

from charm_jax.models import selection

PREVALENCE = (0.5, 0.01)


def keep_by(rule, features, labels=None, threshold=-1.0, prevalence=PREVALENCE):
    features = jnp.asarray(features, jnp.float32)
    tau = selection.resolve_threshold(rule, threshold)
    if labels is None:
        labels = np.zeros((len(features), FINDINGS), np.int8)

    @jax.jit
    def chosen(features, labels):
        return selection.select(features, labels, rule=rule, threshold=tau, prevalence=prevalence)

    return np.asarray(chosen(features, jnp.asarray(labels, jnp.int8)))


@pytest.mark.parametrize("threshold", [-1.0, 0.05, 0.6])
def test_norm_rules_follow_the_formula(threshold):
    features = np.random.default_rng(0).normal(size=(32, DIM))
    norms = np.linalg.norm(features, axis=1)
    deviation = np.abs(norms - norms.mean()) / norms.mean()
    tau = 0.2 if threshold == -1.0 else threshold
    inlier = keep_by("norm_inlier", features, threshold=threshold)
    np.testing.assert_array_equal(inlier, deviation < tau)
    assert 0 < inlier.sum() < 32
    outlier = keep_by("norm_outlier", features, threshold=threshold)
    np.testing.assert_array_equal(outlier, deviation > tau)


@pytest.mark.parametrize("threshold", [-1.0, 0.9, 1.5])
def test_angle_outlier_follows_the_formula(threshold):
    features = np.random.default_rng(1).normal(size=(32, DIM)) + 0.3
    mean = features.mean(axis=0)
    cosine = features @ mean / np.linalg.norm(features, axis=1) / np.linalg.norm(mean)
    tau = 0.2 if threshold == -1.0 else threshold
    kept = keep_by("angle_outlier", features, threshold=threshold)
    np.testing.assert_array_equal(kept, 1 - cosine > tau)
    assert 0 < kept.sum() < 32


def test_rare_finding_reads_positive_labels_only():
    labels = [[1, 0], [0, 1], [1, 1], [-1, -1], [0, 0]]
    features = np.ones((5, DIM))
    expected = [False, True, True, False, False]
    np.testing.assert_array_equal(keep_by("rare_finding", features, labels), expected)
    as_array = keep_by("rare_finding", features, labels, prevalence=jnp.array(PREVALENCE))
    np.testing.assert_array_equal(as_array, expected)
    every = keep_by("rare_finding", features, labels, threshold=0.6)
    np.testing.assert_array_equal(every, [True, True, True, False, False])


def test_rules_stay_finite_on_zero_vectors():
    zeros = np.zeros((4, DIM))
    np.testing.assert_array_equal(selection.norm_deviation(jnp.asarray(zeros, jnp.float32)), 0)
    assert not keep_by("norm_inlier", zeros).any()
    assert not keep_by("norm_outlier", zeros).any()
    assert keep_by("angle_outlier", zeros).all()  # cosine 0 with everything, as torch has it


def test_every_rule_has_a_default_and_minus_one_means_it():
    for rule, (_, default, _) in selection.SELECTION_RULES.items():
        assert selection.resolve_threshold(rule, -1.0) == default
        assert selection.resolve_threshold(rule, 0.07) == 0.07


@pytest.mark.parametrize(
    ("rule", "threshold", "message"),
    [
        ("norm", 0.2, "norm_inlier, norm_outlier"),
        ("norm_inlier", -0.2, "-1.0 for the default 0.2"),
        ("norm_inlier", float("nan"), "threshold"),
    ],
)
def test_resolve_threshold_refuses(rule, threshold, message):
    with pytest.raises(ValueError, match=message):
        selection.resolve_threshold(rule, threshold)
