"""Gaps between groups against counts by hand and plain resampling."""

import numpy as np
import pytest
from scipy.special import expit
from scores import NAMES, drawn

from charm_jax.metrics import bootstrap, fairness
from charm_jax.metrics.intervals import EvalSet
from charm_jax.metrics.result import Estimate

THRESHOLDS = np.array([0.5, 0.6, 0.55])
SPECIFIC = np.array([0.8, 0.9, 0.85])


def compared(groups, scores, labels, patients, thresholds=THRESHOLDS, specific=SPECIFIC):
    probabilities = expit(scores.astype(np.float64))
    evaluated = EvalSet(scores, labels, patients, NAMES)
    return fairness.gaps(evaluated, probabilities, thresholds, specific, {"sex": groups})


def rates(scores, labels, rows, column):
    p, truth = expit(scores[rows, column].astype(np.float64)), labels[rows, column]
    called = p >= THRESHOLDS[column]
    return called[truth == 1].mean(), called[truth == 0].mean()


def missed(scores, labels, rows):
    sick = rows[(labels[rows] == 1).any(axis=1)]
    return np.mean((expit(scores[sick].astype(np.float64)) < SPECIFIC).all(axis=1))


def test_a_gap_is_the_group_minus_the_known_others_with_their_plain_resamples():
    scores, labels, patients = drawn(seed=4, images=400, patients=80)
    groups = np.array(["a", "b", "c", "unknown"])[patients % 4]
    result = compared(groups, scores, labels, patients)["sex"]
    assert list(result) == ["a", "b", "c"]
    ids, rng = np.unique(patients), np.random.default_rng(0)
    resampled = []
    for _ in range(bootstrap.RESAMPLES):
        picked = ids[rng.integers(len(ids), size=len(ids))]
        resampled.append(np.concatenate([np.flatnonzero(patients == p) for p in picked]))

    def values(rows):
        inside = rows[groups[rows] == "b"]
        rest = rows[np.isin(groups[rows], ["a", "c"])]
        found = []
        for column in range(len(NAMES)):
            own, other = (np.array(rates(scores, labels, r, column)) for r in (inside, rest))
            found.append(own - other)
        under = missed(scores, labels, inside)
        return *np.mean(found, axis=0), *found[1], under, under - missed(scores, labels, rest)

    expected, drawn_values = values(np.arange(400)), np.array([values(r) for r in resampled])
    group = result["b"]
    second = group.findings["Hernia"]
    got = [
        *(group.tpr_gap, group.fpr_gap, second.tpr_gap, second.fpr_gap),
        *(group.underdiagnosis, group.underdiagnosis_gap),
    ]
    for column, (estimate, value) in enumerate(zip(got, expected, strict=True)):
        assert estimate.value == pytest.approx(value)
        interval = bootstrap.interval(drawn_values[:, column])
        assert estimate.interval == pytest.approx(interval)
    assert group.n_images == np.sum(groups == "b")
    assert group.undefined == ()


def test_two_groups_differ_by_opposite_gaps():
    scores, labels, patients = drawn(seed=5, images=200, patients=80)
    result = compared(np.where(patients % 2, "F", "M"), scores, labels, patients)["sex"]
    for name in ("tpr_gap", "fpr_gap", "underdiagnosis_gap"):
        one, other = (getattr(result[sex], name) for sex in "FM")
        assert one.value == pytest.approx(-other.value)
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


def test_a_group_that_is_missed_more_often_stands_out():
    scores, labels, patients = drawn(seed=6, images=900, patients=300)
    group = np.where(patients % 2, "F", "M")
    worse = np.where((group == "F")[:, None], scores - 1.5, scores).astype(np.float32)
    women = compared(group, worse, labels, patients)["sex"]["F"]
    assert women.tpr_gap.interval[1] < 0
    assert women.underdiagnosis_gap.interval[0] > 0
    fair = compared(group, scores, labels, patients)["sex"]["F"]
    assert fair.tpr_gap.interval[0] < 0 < fair.tpr_gap.interval[1]


def test_without_two_known_groups_or_thresholds_nothing_is_compared():
    scores, labels, patients = drawn()
    one = np.where(patients % 2, "F", "unknown")
    assert compared(one, scores, labels, patients) == {}
    two, nothing = np.where(patients % 2, "F", "M"), np.full(3, np.nan)
    assert compared(two, scores, labels, patients, thresholds=nothing) == {}


def test_what_a_group_lacks_is_undefined_and_left_out_of_the_mean():
    scores, labels, patients = drawn(seed=7, images=120, patients=60)
    groups = np.where(patients % 2, "F", "M")
    labels[groups == "F", 0] = 0
    some = np.array([0.5, np.nan, 0.5])
    women = compared(groups, scores, labels, patients, thresholds=some)["sex"]["F"]
    assert women.undefined == ("Mass", "Hernia")
    assert women.findings["Mass"].tpr == women.findings["Hernia"].fpr_gap == Estimate()
    assert women.tpr_gap.value == pytest.approx(women.findings["Edema"].tpr_gap.value)


def test_without_specific_thresholds_nobody_is_underdiagnosed():
    scores, labels, patients = drawn()
    groups, nothing = np.where(patients % 2, "F", "M"), np.full(3, np.nan)
    result = compared(groups, scores, labels, patients, specific=nothing)["sex"]
    assert result["F"].underdiagnosis == result["M"].underdiagnosis_gap == Estimate()
