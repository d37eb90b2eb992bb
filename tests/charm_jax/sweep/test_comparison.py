"""Differences between rows, their intervals and their p-values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from charm_jax.sweep import comparison


def part(rng, strength, images=300, findings=3):
    labels = (rng.random((images, findings)) < 0.3).astype(np.int8)
    logits = (strength * labels + rng.normal(size=labels.shape)).astype(np.float32)
    return logits, labels, np.arange(images) // 2


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_folds_are_scored_apart_and_findings_without_a_class_do_not_count(rng):
    parts = [part(rng, 1.0), part(rng, 1.0)]
    parts[1][0][:] += 100  # another network, whose scores are all higher
    parts[1][1][:, 0] = 0
    for _, labels, _ in parts:
        labels[:, 2] = 1
    draws = comparison.macro_draws(parts)
    aurocs = [roc_auc_score(labels[:, 1], logits[:, 1]) for logits, labels, _ in parts]
    first = roc_auc_score(parts[0][1][:, 0], parts[0][0][:, 0])
    assert draws[0] == pytest.approx((first + np.mean(aurocs)) / 2)
    assert draws.shape == (1001,)


def test_the_interval_holds_seeds_and_patients(rng):
    runs = [np.full(1001, value) for value in (0.7, 0.8, 0.9)]
    drawn = comparison.over_seeds(runs)
    assert drawn[0] == pytest.approx(0.8)
    low, high = comparison.interval(drawn)
    assert low < 0.75
    assert high > 0.85
    assert comparison.interval(comparison.over_seeds(runs[:1])) == (0.7, 0.7)


def test_a_real_difference_is_told_from_none(rng):
    runs = {}
    for title, strength in (("base", 1.0), ("better", 2.0), ("same", 1.0), ("worse", 0.2)):
        runs[title] = {}
        for seed in (0, 1):
            rng = np.random.default_rng(seed + 10)  # the same images and labels
            logits, labels, patients = part(rng, strength)
            noise = np.random.default_rng(seed + len(title)).normal(size=logits.shape) / 10
            runs[title][seed] = comparison.macro_draws([(logits + noise, labels, patients)])
    scores = dict.fromkeys(runs, 0.5)
    rows = comparison.compare(runs, scores, {"worse": 0.9}, "base")
    verdicts = {row.title: row.verdict for row in rows}
    assert verdicts == {
        "base": "baseline",
        "better": "better",
        "same": "no difference that these seeds can show",
        "worse": "worse",
    }
    better = rows[1]
    assert better.difference == pytest.approx(better.mean - rows[0].mean)
    assert better.difference_interval[0] < better.difference < better.difference_interval[1]
    assert rows[3].published == 0.9


def test_rows_are_compared_over_the_seeds_that_they_share():
    runs = {
        "base": {0: np.full(1001, 0.5), 1: np.full(1001, 0.9)},
        "row": {1: np.full(1001, 0.8)},
        "other": {2: np.full(1001, 0.8)},
    }
    rows = comparison.compare(runs, dict.fromkeys(runs, 0.5), {}, "base")
    assert rows[1].difference == pytest.approx(-0.1)
    assert (rows[2].difference, rows[2].p) == (None, None)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_p_values_are_never_smaller_and_keep_their_order(values):
    corrected = comparison.holm(values)
    assert all(new >= old for new, old in zip(corrected, values, strict=True))
    assert max(corrected) <= 1
    assert corrected[int(np.argmin(values))] == pytest.approx(min(1, min(values) * len(values)))
    ranked = [corrected[i] for i in np.argsort(values, kind="stable")]
    assert ranked == sorted(ranked)


def test_the_p_value_is_twice_the_share_beyond_zero():
    assert comparison.p_value(np.concatenate([[0.1], np.full(999, 0.1)])) == pytest.approx(0.002)
    assert comparison.p_value(np.array([0.0, -1.0, 1.0, np.nan])) == 1.0


def test_the_spread_of_rows_stands_beside_that_of_seeds():
    def row(title, seeds):
        return comparison.Compared(title, seeds, 0.5, float(np.mean(seeds)), (0.0, 1.0))

    rows = [row("a", (0.70, 0.72)), row("b", (0.80, 0.82)), row("c", (0.5,))]
    between, within = comparison.spread(rows)
    assert between == pytest.approx(np.std([0.71, 0.81], ddof=1))
    assert within == pytest.approx(0.01)
    assert comparison.spread(rows[1:]) is None
