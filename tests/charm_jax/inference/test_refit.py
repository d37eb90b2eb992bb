"""The refitted layer is tested against scikit-learn, and against the logits of whole networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sklearn.linear_model import LogisticRegression
from small_network import BATCH, DIM, FINDINGS, SIDE, SLOTS, batch_of, network, voting_network

from charm_jax.inference import refit
from charm_jax.models import memory_bank, state
from charm_jax.models.baseline import Baseline
from charm_jax.models.losses import LOSSES
from charm_jax.runs import refitted
from data_pipelines.loading.augment import evaluation_images

N, D = 400, 6


def cases(seed, unknown=0.0):
    """Features of unlike scale, one of them constant, and labels that they tell in part."""
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(N, D)) * np.logspace(-1, 1, D) + 2).astype(np.float32)
    features[:, 2] = 3.0
    hidden = ((features - 2) / np.logspace(-1, 1, D)) @ rng.normal(size=(D, FINDINGS)) - 1.5
    labels = (rng.random((N, FINDINGS)) < 1 / (1 + np.exp(-hidden))).astype(np.int8)
    labels[rng.random(labels.shape) < unknown] = -1
    start = {
        "kernel": rng.normal(size=(D, FINDINGS)).astype(np.float32),
        "bias": np.zeros(FINDINGS, np.float32),
    }
    return jnp.asarray(features), jnp.asarray(labels), jax.tree.map(jnp.asarray, start)


def apply(layer, features):
    return features @ layer["kernel"] + layer["bias"][None]


def each(fitted):
    """The layer of each strength."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], fitted) for i in range(len(refit.STRENGTHS))]


@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_the_classifier_of_scikit_learn(balanced):
    features, labels, start = cases(0)
    fitted = refit.fit(features, labels, start, loss=LOSSES["bce"], balanced=balanced)
    x = np.asarray(features, np.float64)
    spread = np.where(x.std(0) > 0, x.std(0), 1)
    for layer, strength in zip(each(fitted), refit.STRENGTHS, strict=True):
        for finding in range(FINDINGS):
            known = LogisticRegression(
                C=1 / (N * strength), class_weight="balanced" if balanced else None, tol=1e-8
            ).fit((x - x.mean(0)) / spread, labels[:, finding])
            ours = np.asarray(layer["kernel"][:, finding]) * spread
            np.testing.assert_allclose(ours, known.coef_[0], atol=0.03)


@pytest.mark.parametrize("loss", ["bce", "focal"])
@pytest.mark.parametrize("balanced", [False, True])
def test_as_many_positives_are_expected_as_there_are(loss, balanced):
    """The gradient by the biases of the plain loss is zero, however the kernel was weighted."""
    features, labels, start = cases(1, unknown=0.2)
    fitted = refit.fit(features, labels, start, loss=LOSSES[loss], balanced=balanced)

    def by_bias(shift, layer):
        return LOSSES[loss](apply(layer, features) + shift[None], labels)

    for layer in each(fitted):
        slope = jax.grad(by_bias)(jnp.zeros(FINDINGS), layer)
        np.testing.assert_allclose(slope, 0, atol=2e-3)


@pytest.mark.parametrize("loss", ["bce", "focal", "asymmetric"])
def test_the_loss_over_all_training_images_falls(loss):
    features, labels, start = cases(2, unknown=0.2)
    fitted = refit.fit(features, labels, start, loss=LOSSES[loss])
    losses = [float(LOSSES[loss](apply(layer, features), labels)) for layer in each(fitted)]
    assert losses == sorted(losses, reverse=True)  # the weaker the penalty, the lower
    assert losses[-1] < float(LOSSES[loss](apply(start, features), labels))


@pytest.mark.parametrize(
    ("model", "bank"),
    [
        (network(), True),
        (voting_network(weight=0.0), True),
        (Baseline(network().trunk, network().expansion, nn.silu, FINDINGS), False),
    ],
    ids=["published", "vote", "baseline"],
)
def test_features_are_what_the_last_layer_reads(model, bank):
    memory = memory_bank.empty(SLOTS, DIM, FINDINGS) if bank else None
    begun = jax.jit(functools.partial(state.create, model, averaged=True))(
        jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)), memory
    )
    # The average is what an evaluation uses.
    average = jax.tree.map(lambda leaf: leaf + 0.01, begun.average)
    prepare = functools.partial(evaluation_images, channels=3)
    step = jax.jit(functools.partial(refit.features_step, model=model, prepare=prepare))
    outputs = step(begun.replace(average=average), batch_of(0))
    layer = refitted.layer_of(begun.replace(average=average))
    assert outputs["features"].shape == (BATCH, len(layer["kernel"]))
    np.testing.assert_allclose(
        apply(layer, outputs["features"]), outputs["logits"], rtol=1e-4, atol=1e-5
    )
