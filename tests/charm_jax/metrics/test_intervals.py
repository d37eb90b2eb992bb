"""Two networks on the same images and the same resamples."""

import numpy as np
import pytest
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
