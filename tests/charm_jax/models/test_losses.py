"""Losses against the original's numbers, the published formulas, and properties they must have."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm_jax.models import losses

GOLDEN = Path(__file__).parents[2] / "golden" / "losses.npz"
BATCH, FINDINGS = 4, 14
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25)
either = pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "plain"])
every_loss = pytest.mark.parametrize("name", list(losses.LOSSES))


def drawn(seed, low=-1):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=4, size=(BATCH, FINDINGS)).astype(np.float32)
    labels = rng.integers(low, 2, (BATCH, FINDINGS), dtype=np.int8)
    return jnp.asarray(logits), jnp.asarray(labels)


@functools.cache
def jitted(name):
    return jax.jit(losses.LOSSES[name])


@functools.cache
def compiled(name):
    def one(z, y):
        return losses.LOSSES[name](z[None, None], y[None, None])

    return jax.jit(jax.vmap(jax.value_and_grad(one)))


def entries(name, logits, target):
    """The loss of each logit by itself against one target, and its gradient, both NumPy arrays."""
    padded = np.zeros(64, np.float32)  # one shape, so that each loss is compiled once
    padded[: len(logits)] = logits
    value, gradient = compiled(name)(padded, np.full(64, target, np.int8))
    return np.asarray(value)[: len(logits)], np.asarray(gradient)[: len(logits)]


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize(
    ("name", "stored"),
    [("bce", "bce"), ("focal", "focal"), ("asymmetric_reference", "asymmetric")],
)
def test_golden(name, stored, target):
    golden = np.load(GOLDEN)
    usable = np.abs(golden["logits"]) <= 10
    logits = golden["logits"][usable].astype(np.float64)
    value, gradient = entries(name, logits, target)
    # The original rounds p to float32 and then takes log(1 - p): up to one unit in the last place
    # of p, seen through that logarithm. Its gradient and its positives do not suffer.
    p = 1 / (1 + np.exp(-logits))
    rounded = 2.0**-24 / (1 - p) if (stored, target) == ("asymmetric", 0) else 0.0
    expected = golden[f"{stored}/target{target}"][usable]
    assert np.all(np.abs(value - expected) <= 2e-6 + rounded)
    expected = golden[f"{stored}/target{target}/grad"][usable]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("p", "reference", "published"),
    [
        (0.04, 1.0e-7, 0.0),
        (0.1, 1.05e-5, 3.2e-7),
        (0.3, 2.89e-3, 1.12e-3),
        (0.5, 4.33e-2, 2.45e-2),
        (0.9, 1.511, 0.990),
    ],
)
def test_one_negative_reference_and_published(p, reference, published):
    logit = [np.log(p / (1 - p))]
    assert entries("asymmetric_reference", logit, 0)[0] == pytest.approx(reference, rel=0.05)
    assert entries("asymmetric", logit, 0)[0] == pytest.approx(published, rel=0.02)


@quick
@given(seed=seeds)
def test_asymmetric_equals_its_formula_in_float64(seed):
    logits, labels = drawn(seed, low=0)
    published, reference = jitted("asymmetric"), jitted("asymmetric_reference")
    p, y = 1 / (1 + np.exp(-np.asarray(logits, np.float64))), np.asarray(labels)
    shifted = np.maximum(p - 0.05, 0)
    expected = -np.sum(y * np.log(p) * (1 - p) + (1 - y) * np.log(1 - shifted) * shifted**4)
    np.testing.assert_allclose(published(logits, labels), expected, rtol=1e-5)
    expected = -np.mean(y * np.log(p) * (1 - p) + (1 - y) * np.log1p(-p) * p**4)
    np.testing.assert_allclose(reference(logits, labels), expected, rtol=1e-5)


@either
def test_focal_without_focus_is_cross_entropy(wrap):
    logits, labels = drawn(0)
    unfocused = wrap(lambda z, y: losses.focal(z, y, gamma=0.0))(logits, labels)
    cross_entropy = wrap(losses.binary_cross_entropy)(logits, labels)
    np.testing.assert_allclose(unfocused, cross_entropy, rtol=1e-6)
    assert float(wrap(losses.focal)(logits, labels)) < float(cross_entropy)


@either
@every_loss
def test_unknown_entries_do_not_count(name, wrap):
    """The loss is that of the known entries gathered into a batch of their own."""
    loss = wrap(losses.LOSSES[name])
    for low in (-1, 0):
        logits, labels = drawn(1, low)
        known = np.asarray(labels) >= 0
        gathered = loss(*(jnp.asarray(np.asarray(x)[known][None]) for x in (logits, labels)))
        np.testing.assert_allclose(loss(logits, labels), gathered, rtol=1e-5)
        gradient = np.asarray(jax.grad(loss)(logits, labels))
        assert np.any(gradient[known])
        assert not np.any(gradient[~known])


@either
@every_loss
def test_nothing_known_is_zero(name, wrap):
    logits, labels = drawn(2)
    value, gradient = jax.value_and_grad(wrap(losses.LOSSES[name]))(
        logits, jnp.full_like(labels, -1)
    )
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


@every_loss
def test_finite_far_out(name):
    extreme = np.array([-1000, -80, -17, 0, 17, 80, 1000], np.float32)
    for target in (-1, 0, 1):
        value, gradient = entries(name, extreme, target)
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(gradient))
        assert np.all(value >= 0)
    wrong, _ = entries(name, extreme[:2], 1)
    np.testing.assert_allclose(wrong, [1000, 80], rtol=1e-5)


@every_loss
def test_gradient_equals_finite_differences(name):
    logits = np.array([-6.0, -2.0, -0.5, 0.3, 1.7, 5.0])
    step = 1e-2
    for target in (0, 1):
        _, gradient = entries(name, logits, target)
        up, down = (entries(name, logits + nudge, target)[0] for nudge in (step, -step))
        slope = (up.astype(np.float64) - down) / (2 * step)
        np.testing.assert_allclose(gradient, slope, atol=3e-4)


@every_loss
def test_integer_and_float_labels_agree(name):
    logits, labels = drawn(3)
    loss = losses.LOSSES[name]
    assert float(loss(logits, labels)) == float(loss(logits, labels.astype(jnp.float32)))
