"""Views of an image, and the mean over them as one program."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from charm_jax.distributed.compiler import CompiledStep
from charm_jax.inference import tta
from charm_jax.inference.steps import eval_step
from charm_jax.models import state
from charm_jax.models.baseline import Baseline
from data_pipelines.loading.augment import evaluation_images

B, SIDE = 4, 32
PREPARE = functools.partial(evaluation_images, channels=3)


class Block(nn.Module):
    """A convolution with the signature of a trunk."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), strides=2)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (B, SIDE, SIDE, 1)).astype(np.uint8)


def view(images, *numbers, turned=False):
    return np.asarray(
        tta.view_of(jnp.asarray(images), jnp.asarray(numbers, jnp.float32), jnp.asarray(turned))
    )


def test_the_first_view_is_the_image(images):
    np.testing.assert_array_equal(view(images, *tta.VIEWS[0]), images)
    assert tta.VIEWS[0] == (0, 0, 1)
    assert len(set(tta.VIEWS)) == len(tta.VIEWS)


def test_views_are_moved_and_mirrored_images(images):
    down = view(images, 1 / 32, 0, 1)
    np.testing.assert_array_equal(down[:, 1:], images[:, :-1])
    left = view(images, 0, -1 / 32, 1)
    np.testing.assert_array_equal(left[:, :, :-1], images[:, :, 1:])
    np.testing.assert_array_equal(view(images, 0, 0, 1, turned=True), images[:, :, ::-1])


@pytest.mark.parametrize("mirrored", [False, True])
def test_logits_are_the_mean_over_views_and_the_rest_is_the_image_s(images, mirrored, traces):
    model = Baseline(Block(), Block(), nn.relu, 3)
    start = jax.jit(functools.partial(state.create, model, momentum_branch=False))
    weights = start(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)), None)
    ids = np.arange(B, dtype=np.int32)
    batch = {"labels": np.full((B, 3), -1, np.int8), "case_id": ids, "patient_id": ids}
    parts = {"model": model, "prepare": PREPARE}

    def plain(images):
        return eval_step(weights, jax.tree.map(jnp.asarray, batch | {"image": images}), **parts)

    over = Mesh(np.array(jax.devices()), "data")
    step = CompiledStep(functools.partial(tta.views_step(mirrored=mirrored), **parts), None, over)
    for _ in range(2):
        outputs = step(weights, batch | {"image": images})
    every = [plain(view(images, *one))["logits"] for one in tta.VIEWS]
    if mirrored:
        every.append(plain(images[:, :, ::-1])["logits"])
    np.testing.assert_allclose(outputs["logits"], np.mean(every, axis=0), atol=1e-5)
    np.testing.assert_allclose(outputs["single_view"], every[0], atol=1e-5)
    np.testing.assert_allclose(outputs["thumbnail"], plain(images)["thumbnail"], atol=1e-3)
    assert traces["_views_step"] <= 2  # traced once, lowered once
    assert tta.views_step(mirrored=mirrored) is tta.views_step(mirrored=mirrored)
