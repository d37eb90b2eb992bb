"""Weights and shifts against the formulas of their papers, and properties they must have."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm_jax.models import imbalance, losses
from charm_jax.models.imbalance import ClassCounts

FINDINGS = 5
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
RARE_LAST = ClassCounts(np.array([600, 200, 60, 6, 0]), np.array([400, 800, 940, 994, 1000]))
BALANCED = ClassCounts(np.full(FINDINGS, 50), np.full(FINDINGS, 50))


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def drawn(seed, low=-1):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=4, size=(6, FINDINGS)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(low, 2, (6, FINDINGS), np.int8))


def bce(logits, targets):
    """Binary cross-entropy of each entry, in float64."""
    z = np.asarray(logits, np.float64)
    return targets * np.logaddexp(0, -z) + (1 - targets) * np.logaddexp(0, z)


def over_known(values, labels):
    return values[np.asarray(labels) >= 0].mean()


def test_counts_leave_out_unknown_labels():
    counts = imbalance.class_counts(np.array([[1, 0, -1], [1, -1, -1], [0, 0, -1]], np.int8))
    assert counts.present.tolist() == [2, 0, 0]
    assert counts.absent.tolist() == [1, 2, 0]


@quick
@given(seed=seeds)
def test_positive_weights_are_those_of_torch(seed):
    """-(w y log p + (1 - y) log(1 - p)), w = absent / present."""
    logits, labels = drawn(seed)
    counts = ClassCounts(RARE_LAST.present + 1, RARE_LAST.absent)
    loss = imbalance.make_loss("bce", counts, weights="positive")(logits, labels)
    y = np.maximum(labels, 0)
    weighted = np.where(y, counts.absent / counts.present, 1) * bce(logits, y)
    np.testing.assert_allclose(loss, over_known(weighted, labels), rtol=1e-5)


def test_a_finding_with_one_class_has_the_positive_weight_1():
    none = ClassCounts(np.array([0, 5]), np.array([9, 0]))
    assert imbalance.positive_weights(none)[0].tolist() == [1, 1]


@quick
@given(n=st.lists(st.integers(1, 50_000), min_size=2, max_size=6), beta=st.floats(0.01, 0.9999))
def test_effective_numbers_are_sums_of_powers(n, beta):
    """E_n is 1 + β + … + β^(n - 1); weights are in proportion to its inverse."""
    counts = ClassCounts(np.array(n), np.ones(len(n), int))
    weights, absent = imbalance.effective_number_weights(counts, beta=beta)
    sums = np.array([np.sum(beta ** np.arange(one)) for one in n])
    np.testing.assert_allclose(weights * sums, (weights * sums)[0], rtol=1e-6)
    np.testing.assert_allclose(weights.mean(), 1)
    np.testing.assert_array_equal(weights, absent)


def test_effective_numbers_go_from_no_weights_to_inverse_frequencies():
    none = imbalance.effective_number_weights(RARE_LAST, beta=0.0)
    np.testing.assert_array_equal(none, 1)
    nearly_one, _ = imbalance.effective_number_weights(RARE_LAST, beta=1 - 1e-9)
    inverse = 1 / np.maximum(RARE_LAST.present, 1)
    np.testing.assert_allclose(nearly_one, inverse / inverse.mean(), rtol=1e-4)


@quick
@given(seed=seeds)
def test_ldam_is_a_softmax_over_both_classes_with_a_margin_for_the_true_one(seed):
    logits, labels = drawn(seed)
    c = 3 / np.max(np.maximum([RARE_LAST.present, RARE_LAST.absent], 1) ** -0.25)
    margins = c * np.maximum([RARE_LAST.absent, RARE_LAST.present], 1) ** -0.25
    z, y = np.asarray(logits, np.float64), np.maximum(labels, 0)
    own, other = np.where(y, z, 0), np.where(y, 0, z)  # logits of absence are 0
    own = own - margins[y, np.arange(FINDINGS)]
    expected = over_known(-np.log(np.exp(own) / (np.exp(own) + np.exp(other))), labels)
    loss = imbalance.make_loss("ldam", RARE_LAST)(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@quick
@given(n=st.lists(st.integers(0, 5000), min_size=2, max_size=6, unique=True))
def test_margins_are_larger_for_rarer_classes(n):
    counts = ClassCounts(np.array(n), 10_000 - np.array(n))
    present, absent = imbalance.ldam_shifts(counts)
    order = np.argsort(n)
    assert (np.diff(-present[order]) <= 0).all()
    assert (-present >= absent).all()
    assert max((-present).max(), absent.max()) == pytest.approx(3)


@quick
@given(seed=seeds)
def test_logit_adjustment_adds_the_log_odds_of_the_prior(seed):
    logits, labels = drawn(seed)
    prior = (RARE_LAST.present + 0.5) / (RARE_LAST.present + RARE_LAST.absent + 1)
    shifted = np.asarray(logits, np.float64) + np.log(prior / (1 - prior))
    expected = over_known(bce(shifted, np.maximum(labels, 0)), labels)
    loss = imbalance.make_loss("logit_adjusted", RARE_LAST)(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@quick
@given(seed=seeds)
def test_without_imbalance_nothing_is_changed(seed):
    logits, labels = drawn(seed)
    for name, weights in (
        ("logit_adjusted", "none"),
        ("bce", "positive"),
        ("bce", "effective"),
    ):
        loss = imbalance.make_loss(name, BALANCED, weights=weights)(logits, labels)
        np.testing.assert_allclose(loss, losses.LOSSES["bce"](logits, labels), rtol=1e-5)


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_each_loss_by_entry_is_that_of_the_batch(name):
    logits, labels = drawn(0)
    loss = imbalance.make_loss(name, mixed=True)(logits, labels)
    np.testing.assert_allclose(loss, losses.LOSSES[name](logits, labels), rtol=1e-5)


def test_without_options_a_loss_is_the_registered_one():
    for name, loss in losses.LOSSES.items():
        assert imbalance.make_loss(name) is loss


@quick
@given(seed=seeds, share=st.floats(0, 1))
def test_a_label_in_between_has_the_share_of_both_losses(seed, share):
    """Mixup's λ l(1) + (1 - λ) l(0), also where the loss of a target is not linear in it."""
    logits, _ = drawn(seed)
    for name in losses.LOSSES:
        loss = imbalance.make_loss(name, mixed=True)
        one, zero, mixed = (
            float(loss(logits, jnp.full_like(logits, target))) for target in (1, 0, share)
        )
        assert mixed == pytest.approx(share * one + (1 - share) * zero, rel=1e-4)


@quick
@given(seed=seeds, smoothing=st.floats(0.01, 0.9))
def test_smoothing_moves_targets_towards_a_half(seed, smoothing):
    logits, labels = drawn(seed)
    targets = (1 - smoothing) * np.maximum(labels, 0) + smoothing / 2
    loss = imbalance.make_loss("bce", smoothing=smoothing)(logits, labels)
    np.testing.assert_allclose(loss, over_known(bce(logits, targets), labels), rtol=1e-5)


EVERY = [
    *({"name": name} for name in imbalance.SHIFTED_LOSSES),
    *(
        {"name": name, "weights": weights, "smoothing": 0.1}
        for name in losses.LOSSES
        for weights in ("positive", "effective")
    ),
]


@pytest.mark.parametrize("options", EVERY, ids=lambda options: "-".join(map(str, options.values())))
def test_unknown_labels_have_no_gradient_and_far_logits_a_finite_one(options):
    loss = jax.jit(jax.value_and_grad(imbalance.make_loss(counts=RARE_LAST, **options)))
    logits, labels = drawn(1)
    value, gradient = loss(logits, labels)
    known = np.asarray(labels) >= 0
    assert np.all(np.asarray(gradient)[~known] == 0)
    assert np.all(np.asarray(gradient)[known] != 0)
    other, _ = loss(jnp.where(jnp.asarray(known), logits, 9.0), labels)
    assert float(other) == float(value)
    nothing = loss(logits, jnp.full_like(labels, -1))
    assert float(nothing[0]) == 0
    for far in (-1000.0, 1000.0):
        assert all(np.isfinite(part).all() for part in loss(jnp.full_like(logits, far), labels))


def test_what_a_run_records_is_what_the_loss_reads():
    described = imbalance.describe("ldam", "effective", RARE_LAST)
    assert json.loads(json.dumps(described)) == described
    assert described["present"] == RARE_LAST.present.tolist()
    weights, _ = imbalance.effective_number_weights(RARE_LAST)
    np.testing.assert_allclose(described["weights_present"], weights, atol=1e-6)
    np.testing.assert_allclose(
        described["shifts_absent"], imbalance.ldam_shifts(RARE_LAST)[1], atol=1e-6
    )
    assert "weights_present" not in imbalance.describe("ldam", "none", RARE_LAST)
