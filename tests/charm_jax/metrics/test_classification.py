"""Each metric against its definition or scikit-learn: ties, one class, constants, unknown."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scores import NAMES, drawn
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from charm_jax.metrics import classification
from charm_jax.metrics.classification import Known, Metric
from charm_jax.metrics.result import FindingResult

NONE = np.full(len(NAMES), np.nan)


def pairwise(scores, truth):
    """U / (n₊ n₋) by comparing every pair, ties ½."""
    difference = scores[truth == 1][:, None] - scores[truth == 0][None, :]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


def stepwise(scores, truth):
    """Σ (R_n - R_{n-1}) P_n over the distinct scores, the highest first."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores[truth >= 0]), reverse=True):
        called = (scores >= threshold) & (truth >= 0)
        recall = np.sum(called & (truth == 1)) / np.sum(truth == 1)
        total += (recall - before) * np.sum(called & (truth == 1)) / np.sum(called)
        before = recall
    return total


def points(logits, labels, names=NAMES, thresholds=None):
    """`per_finding` with plain sigmoids for probabilities."""
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.int8)
    at = np.full(len(names), 0.5) if thresholds is None else thresholds
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return classification.per_finding(logits, labels, names, probabilities, at), probabilities


def test_auroc_is_the_share_of_pairs_in_order():
    scores, labels, _ = drawn()
    result = classification.auroc_by_finding(scores, labels, NAMES)
    assert tuple(result) == NAMES
    for column, name in enumerate(NAMES):
        entry, truth = result[name], labels[:, column]
        assert entry["auroc"] == pytest.approx(pairwise(scores[:, column], truth), abs=1e-12)
        assert entry["positives"] == np.sum(truth == 1)
        assert entry["negatives"] == np.sum(truth == 0)


def test_average_precision_is_the_step_integral():
    scores, labels, _ = drawn()
    result = classification.auroc_and_ap(scores, labels, NAMES)
    for column, name in enumerate(NAMES):
        expected = stepwise(scores[:, column], labels[:, column])
        assert result[name]["average_precision"] == pytest.approx(expected, abs=1e-12)


def test_every_metric_is_that_of_scikit_learn_on_the_known_labels():
    logits, labels, _ = drawn(seed=1, images=200)
    result, probabilities = points(logits, labels)
    for column, name in enumerate(NAMES):
        known = labels[:, column] >= 0
        truth, z, p = labels[known, column], logits[known, column], probabilities[known, column]
        expected = {
            "auroc": roc_auc_score(truth, z),
            "average_precision": average_precision_score(truth, z),
            "f1": f1_score(truth, p >= 0.5),
            "sensitivity": recall_score(truth, p >= 0.5),
            "specificity": recall_score(truth, p >= 0.5, pos_label=0),
            "ppv": precision_score(truth, p >= 0.5),
            "npv": precision_score(truth, p >= 0.5, pos_label=0),
            "brier": brier_score_loss(truth, p),
            "prevalence": truth.mean(),
        }
        for metric, value in expected.items():
            assert getattr(result[name], metric) == pytest.approx(value, abs=1e-12), metric
        assert result[name].unknown == np.sum(~known) > 0


@pytest.mark.parametrize(
    ("metric", "strategy"), [("ece_equal_width", "uniform"), ("ece_equal_mass", "quantile")]
)
def test_calibration_error_is_the_gaps_of_scikit_learns_bins(metric, strategy):
    rng = np.random.default_rng(2)
    p = np.round(rng.beta(0.5, 5, 500), 3)  # with ties, nearly all low
    truth = (rng.random(500) < p**2).astype(np.int8)
    share = np.linspace(0, 1, 16)
    edges = share if strategy == "uniform" else np.quantile(p, share)
    counts = np.bincount(np.searchsorted(edges[1:-1], p), minlength=15)
    observed, predicted = calibration_curve(truth, p, n_bins=15, strategy=strategy)
    expected = np.sum(np.abs(observed - predicted) * counts[counts > 0]) / 500
    known = Known(truth=truth, logits=p, probability=p)
    assert classification.METRICS[metric].compute(known) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    """Two probabilities in two bins: |1/2 - 0.2| for half the images, |1 - 0.8| for the others."""
    p, truth = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 1, 1, 1])
    known = Known(truth=truth, logits=p, probability=p)
    assert classification.ece_equal_width(known) == pytest.approx(0.25)
    assert classification.ece_equal_mass(known) == pytest.approx(0.25)
    assert classification.brier(known) == pytest.approx((0.04 + 0.64 + 0.04 + 0.04) / 4)


def test_constant_scores_are_chance():
    result, _ = points(np.zeros((6, 1)), [[1], [0], [0], [1], [0], [-1]], ["Mass"], np.array([0.5]))
    entry = result["Mass"]
    assert entry.auroc == 0.5
    assert entry.average_precision == entry.prevalence == 0.4
    assert (entry.sensitivity, entry.specificity) == (1.0, 0.0)  # at the threshold is above
    assert entry.f1 == pytest.approx(2 * 2 / (2 * 2 + 3))
    assert entry.ece_equal_width == entry.ece_equal_mass == pytest.approx(0.1)
    assert entry.brier == 0.25


def test_one_class_leaves_what_needs_both_undefined():
    result, _ = points(
        np.zeros((3, 2)), [[1, 0], [1, 0], [1, -1]], ["All", "None"], np.full(2, 0.9)
    )
    everyone, nobody = result["All"], result["None"]
    for entry in (everyone, nobody):
        assert entry.auroc is None
        assert entry.average_precision is None
        assert entry.brier == 0.25
        assert entry.ece_equal_mass == 0.5
    assert (everyone.prevalence, nobody.prevalence) == (1.0, 0.0)
    assert (everyone.sensitivity, everyone.specificity, everyone.f1) == (0.0, None, 0.0)
    assert (nobody.sensitivity, nobody.specificity, nobody.f1) == (None, 1.0, None)


def test_nothing_known_leaves_everything_undefined():
    scores, labels, _ = drawn()
    result, _ = points(scores, np.full_like(labels, -1))
    for entry in result.values():
        assert {getattr(entry, metric) for metric in (*classification.METRICS, "prevalence")} == {
            None
        }
        assert (entry.positives, entry.negatives, entry.unknown) == (0, 0, 60)


def test_without_calibration_nothing_is_called_a_probability():
    scores, labels, _ = drawn()
    nothing = np.full(scores.shape, np.nan)
    result = classification.per_finding(scores, labels, NAMES, nothing, NONE)
    for entry in result.values():
        assert {
            getattr(entry, m)
            for m in classification.METRICS
            if m not in ("auroc", "average_precision")
        } == {None}
        assert entry.auroc is not None


@pytest.mark.parametrize("needs", ["order", "threshold", "probabilities"])
def test_a_metric_is_computed_where_its_needs_are_met(monkeypatch, needs):
    metric = Metric(lambda known: float(len(known.truth)), "toy", needs)
    monkeypatch.setitem(classification.METRICS, "toy", metric)
    scores, labels, _ = drawn()
    labels[:, 0], labels[:, 1] = -1, np.abs(labels[:, 1])
    (nothing, one, _), (bare, *_) = (
        classification.per_finding(
            scores, labels, NAMES, p, at, {"point": np.full(3, 0.4)}
        ).values()
        for p, at in [
            (1 / (1 + np.exp(-scores)), np.array([np.nan, 0.5, 0.5])),
            (np.full(scores.shape, np.nan), NONE),
        ]
    )
    assert (nothing.value("toy"), one.value("toy")) == (None, 60)
    assert classification.macro({"a": nothing, "b": one})["toy"].undefined == ("a",)
    if needs == "threshold":
        assert one.operating_points["point"].value("toy") == 60
    assert bare.value("toy") is None


def test_means_leave_the_undefined_out_and_name_them():
    scores, labels, _ = drawn()
    labels[:, 1] = np.where(labels[:, 1] == 1, 0, labels[:, 1])
    result, _ = points(scores, labels)
    means = classification.macro(result)
    assert tuple(means) == tuple(classification.METRICS)
    for metric in ("auroc", "average_precision", "sensitivity"):
        values = [getattr(result[name], metric) for name in ("Mass", "Edema")]
        assert means[metric].value == pytest.approx(np.mean(values))
        assert (means[metric].findings, means[metric].undefined) == (2, ("Hernia",))
    assert means["brier"].findings == 3


def test_groups_are_cut_by_prevalence_in_training():
    entries = {
        name: FindingResult(
            positives=1,
            negatives=1,
            unknown=0,
            auroc=value,
            average_precision=None if value is None else value / 2,
        )
        for name, value in [("a", 0.9), ("b", 0.7), ("c", 0.6), ("d", None), ("e", 0.5)]
    }
    shares = {"a": 0.2, "b": 0.05, "c": 0.02, "d": 0.0199, "e": 1e-5}
    groups = classification.by_prevalence(entries, shares)
    assert {name: group.findings for name, group in groups.items()} == {
        "head": ("a", "b"),
        "medium": ("c",),
        "tail": ("d", "e"),
    }
    assert groups["head"].auroc == pytest.approx(0.8)
    assert groups["head"].average_precision == pytest.approx(0.4)
    assert (groups["tail"].auroc, groups["tail"].undefined) == (0.5, ("d",))
    none = classification.by_prevalence({"d": entries["d"]}, shares)
    assert none["tail"].auroc is none["head"].auroc is None
    assert none["head"].findings == ()


def test_a_finding_that_training_lacks_is_not_a_rare_one():
    entries = {name: FindingResult(positives=1, negatives=1, unknown=0) for name in "ab"}
    groups = classification.by_prevalence(entries, {"a": 0.0, "b": 0.01})
    assert groups["tail"].findings == ("b",)
    assert classification.by_prevalence(entries, {"a": 0.0, "b": 0.0}) is None
    assert classification.by_prevalence(entries, None) is None


def test_finding_with_one_class_is_undefined_and_named():
    scores, labels, _ = drawn()
    labels[:, 1] = np.where(labels[:, 1] == 1, 0, labels[:, 1])
    summary = classification.summarise(scores, labels, NAMES)
    assert summary["undefined"] == ["Hernia"]
    assert summary["findings"]["Hernia"]["auroc"] is None
    assert summary["findings"]["Hernia"]["positives"] == 0
    rest = [summary["findings"][name]["auroc"] for name in ("Mass", "Edema")]
    assert summary["macro_auroc"] == pytest.approx(np.mean(rest))
    assert json.loads(json.dumps(summary)) == summary


def test_nothing_defined_has_no_macro():
    scores, labels, _ = drawn()
    summary = classification.summarise(scores, np.full_like(labels, -1), NAMES)
    assert summary["macro_auroc"] is None
    assert summary["undefined"] == list(NAMES)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_order_of_scores_is_all_that_ranking_asks(seed, scale):
    scores, labels, _ = drawn(seed)
    squashed = 1 / (1 + np.exp(-scale * scores.astype(np.float64)))
    assert classification.auroc_and_ap(squashed, labels, NAMES) == classification.auroc_and_ap(
        scores, labels, NAMES
    )


def test_bad_input_is_refused_in_a_sentence():
    scores, labels, _ = drawn()
    broken, doubtful = scores.copy(), labels.copy()
    broken[4, 1], doubtful[5, 2] = np.nan, 2
    with pytest.raises(ValueError, match="row 4, column 1 is nan"):
        classification.summarise(broken, labels, NAMES)
    with pytest.raises(ValueError, match="row 5, column 2 is 2"):
        classification.summarise(scores, doubtful, NAMES)
    with pytest.raises(ValueError, match="scores"):
        classification.summarise(scores[:-1], labels, NAMES)
    with pytest.raises(ValueError, match="2 finding names for 3"):
        classification.summarise(scores, labels, NAMES[:2])
