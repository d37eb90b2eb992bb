"""Two networks on the same images and the same resamples."""

import numpy as np
import pytest
from scipy.special import expit
from scores import NAMES, drawn

from charm_jax.metrics import bootstrap, classification, delong, intervals
from charm_jax.metrics.result import Difference


def pair(seed=0):
    scores, labels, patients = drawn(seed, 200, 60)
    rng = np.random.default_rng(seed + 1)
    worse = (scores + rng.normal(0, 2, scores.shape)).astype(np.float32)
    return intervals.EvalSet(scores, labels, patients, NAMES), worse


def test_the_interval_is_of_the_differences_of_the_same_resamples():
    ours, theirs = pair()
    macro, findings = intervals.compare(ours, theirs)
    mine, other = (
        bootstrap.resampled(z, ours.labels, ours.patients) for z in (ours.logits, theirs)
    )
    for metric in ("auroc", "average_precision"):
        drawn_values = getattr(mine, metric) - getattr(other, metric)
        for column, name in enumerate(NAMES):
            entry = findings[name][metric]
            assert entry.interval == bootstrap.interval(drawn_values[:, column])
            assert entry.difference == entry.value - entry.other
        entry = macro[metric]
        assert entry.interval == pytest.approx(bootstrap.interval(drawn_values.mean(axis=1)))
        assert entry.interval[0] > 0  # the other is the same with noise
    expected = classification.summarise(theirs, ours.labels, NAMES)["macro_auroc"]
    assert macro["auroc"].other == pytest.approx(expected)


def test_intervals_of_rates_are_those_of_plain_resampling():
    scores, labels, patients = drawn(seed=3, images=90, patients=25)
    evaluated = intervals.EvalSet(scores, labels, patients, NAMES)
    probabilities, thresholds = expit(scores.astype(float)), np.array([0.5, 0.6, np.nan])
    probabilities[:, 1] = np.nan
    got = intervals.of_rates(evaluated, probabilities, thresholds)
    ids, rng = np.unique(patients), np.random.default_rng(0)
    known = labels[:, 0] >= 0
    bins = np.zeros(len(labels), int)
    bins[known] = classification.equal_mass_bins(probabilities[known, 0])
    plain = {name: [] for name in got}
    for _ in range(bootstrap.RESAMPLES):
        picked = ids[rng.integers(len(ids), size=len(ids))]
        rows = np.concatenate([np.flatnonzero(patients == p) for p in picked])
        rows = rows[labels[rows, 0] >= 0]
        truth, p = labels[rows, 0], probabilities[rows, 0]
        plain["prevalence"].append(truth.mean())
        plain["sensitivity"].append(np.mean(p[truth == 1] >= 0.5))
        plain["specificity"].append(np.mean(p[truth == 0] < 0.5))
        wrong = [abs(np.sum((truth - p)[bins[rows] == b])) for b in range(15)]
        plain["ece_equal_mass"].append(sum(wrong) / len(rows))
    for name, values in plain.items():
        assert got[name][0] == pytest.approx(bootstrap.interval(np.array(values)))
    assert got["sensitivity"][1] == got["ece_equal_mass"][1] == (None, None)
    assert got["specificity"][2] == (None, None)
    assert None not in got["ece_equal_mass"][2]


def test_a_rate_that_no_resample_changes_has_no_interval():
    labels = np.repeat([[1], [0]], 30, axis=0).astype(np.int8)
    evaluated = intervals.EvalSet(labels.astype(np.float32), labels, np.arange(60), ("Mass",))
    got = intervals.of_rates(evaluated, labels.astype(float), np.array([0.5]))
    assert got["sensitivity"] == got["specificity"] == got["ece_equal_mass"] == [(None, None)]
    assert got["prevalence"][0] == pytest.approx((0.38, 0.62), abs=0.03)


def test_pairing_tells_more_than_two_intervals_do():
    ours, theirs = pair()
    similar = (0.98 * ours.logits + 0.02 * theirs).astype(np.float32)
    low, high = intervals.compare(ours, similar)[0]["auroc"].interval
    alone = bootstrap.macro(bootstrap.resampled(similar, ours.labels, ours.patients).auroc)
    assert high - low < 0.3 * np.subtract(*bootstrap.interval(alone)[::-1])


def test_a_network_equals_itself():
    ours, _ = pair()
    entry = intervals.compare(ours, ours.logits)[0]["auroc"]
    assert (entry.difference, entry.interval) == (0, (0, 0))


def test_swapping_turns_the_sign():
    ours, theirs = pair()
    swapped = intervals.EvalSet(theirs, ours.labels, ours.patients, NAMES)
    there = intervals.compare(ours, theirs)[0]["auroc"]
    back = intervals.compare(swapped, ours.logits)[0]["auroc"]
    assert back.difference == -there.difference
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))


def test_delong_takes_the_covariance_into_account():
    ours, theirs = pair()
    entry = intervals.compare(ours, theirs, "delong")[1]["Mass"]["auroc"]
    shares = [delong.influence(z, ours.labels)[:, 0] for z in (ours.logits, theirs)]
    one, other = (np.sum(s**2) for s in shares)
    error = np.sqrt(one + other - 2 * np.sum(shares[0] * shares[1]))
    low, high = entry.interval
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(entry.difference)


def test_an_undefined_finding_has_no_difference():
    ours, theirs = pair()
    ours.labels[:, 1] = np.minimum(ours.labels[:, 1], 0)
    for method in intervals.METHODS:
        macro, findings = intervals.compare(ours, theirs, method)
        assert findings["Hernia"]["auroc"] == Difference(value=None, other=None)
        assert macro["auroc"].difference > 0
