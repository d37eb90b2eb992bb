import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.loading.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    bounds,
    evaluation_images,
    flip,
    normalise,
    rotate,
    rotate_by,
    training_images,
)


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


_rotated = jax.jit(rotate, static_argnames=("degrees", "p"))


def _images(n=4, height=12, width=16, seed=0):
    grey = np.random.default_rng(seed).integers(0, 256, (n, height, width, 1), np.uint8)
    return jnp.asarray(grey)


def _floats(*shape, seed=0):
    return _images(*shape, seed=seed).astype(jnp.float32)


def test_normalise_is_imagenet_s_on_three_equal_channels():
    grey = _floats()
    out = normalise(grey)
    assert (out.shape, out.dtype) == ((4, 12, 16, 3), jnp.float32)
    expected = (np.asarray(grey) / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("input_range", "black", "white"),
    [("unit", 0, 1), ("xrv", -1024, 1024), ("-1,1", -1, 1), ("255,0", 255, 0)],
)
def test_black_and_white_become_the_ends_of_the_range(channels, input_range, black, white):
    grey = jnp.asarray([0.0, 255.0, 127.5]).reshape(1, 1, 3, 1)
    out = normalise(grey, channels, input_range)
    assert out.shape == (1, 1, 3, channels)
    expected = np.array([black, white, (black + white) / 2])
    np.testing.assert_allclose(out[0, 0, :, -1], expected, atol=1e-4)


@pytest.mark.parametrize("text", ["", "imagnet", "1", "1,1", "0,inf", "1,2,3", "nan,1"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        bounds(text)


def test_evaluation_images_are_normalised_only():
    images = _images()
    np.testing.assert_array_equal(evaluation_images(images), normalise(images.astype(jnp.float32)))


def test_p_0_is_the_identity():
    images, key = _floats(), jax.random.key(0)
    np.testing.assert_array_equal(flip(key, images, p=0.0), images)
    np.testing.assert_allclose(_rotated(key, images, p=0.0), images, atol=1e-4)


def test_flip_with_p_1_is_the_mirror_image():
    images = _floats()
    flipped = flip(jax.random.key(0), images, p=1.0)
    np.testing.assert_array_equal(flipped, np.asarray(images)[:, :, ::-1])


def test_flip_takes_half_of_the_images_one_by_one():
    images = _floats(400, 3, 4)
    flipped = np.asarray(flip(jax.random.key(1), images))
    same = (flipped == np.asarray(images)).all(axis=(1, 2, 3))
    mirrored = (flipped == np.asarray(images)[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


@given(angle=st.floats(-180, 180, width=32), shape=st.sampled_from([(9, 9), (6, 13), (12, 7)]))
@settings(max_examples=30)
def test_rotation_by_a_known_angle_is_scipy_s(angle, shape):
    images = _floats(1, *shape)
    out = jax.jit(rotate_by)(jnp.array([angle], jnp.float32), images)
    expected = scipy.ndimage.rotate(
        np.asarray(images[0, ..., 0], np.float64), angle, reshape=False, order=1, mode="mirror"
    )
    np.testing.assert_allclose(out[0, ..., 0], expected, atol=0.05)


def test_a_positive_angle_turns_counter_clockwise():
    image = jnp.zeros((1, 5, 5, 1)).at[0, 2, 4, 0].set(1.0)  # right of the centre
    turned = jax.jit(rotate_by)(jnp.array([90.0]), image)
    assert jnp.unravel_index(jnp.argmax(turned[0, ..., 0]), (5, 5)) == (0, 2)  # above it


def test_angles_stay_in_range_and_half_of_the_images_are_turned():
    # A bright pixel straight above the centre moves sideways by radius * sin(angle).
    radius, n = 40, 200
    image = jnp.zeros((1, 2 * radius + 3, 2 * radius + 3, 1)).at[0, 1, radius + 1, 0].set(1.0)
    turned = _rotated(jax.random.key(2), jnp.repeat(image, n, axis=0), degrees=10.0)
    top = np.asarray(turned[..., 0]).sum(axis=1)
    shift = (top * (np.arange(top.shape[1]) - radius - 1)).sum(axis=1) / top.sum(axis=1)
    angles = np.degrees(np.arcsin(shift / radius))
    still = np.abs(angles) < 1e-3
    assert 70 < still.sum() < 130
    assert np.abs(angles).max() < 11
    assert angles.min() < -8
    assert angles.max() > 8


def test_rotation_keeps_the_range_and_roughly_the_mean():
    smooth = scipy.ndimage.gaussian_filter(
        np.random.default_rng(0).uniform(0, 255, (8, 64, 64)), (0, 6, 6)
    )
    images = jnp.asarray(smooth, jnp.float32)[..., None]
    turned = _rotated(jax.random.key(3), images, p=1.0)
    assert float(turned.min()) >= float(images.min()) - 1e-3
    assert float(turned.max()) <= float(images.max()) + 1e-3
    np.testing.assert_allclose(turned.mean((1, 2, 3)), images.mean((1, 2, 3)), rtol=0.02)
    constant = jnp.full((2, 16, 16, 1), 77.0)
    np.testing.assert_allclose(_rotated(jax.random.key(4), constant, p=1.0), constant, rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_training_images_depend_on_the_key_only(jit):
    run = jax.jit(training_images) if jit else training_images
    images = _images(8, 16, 16)
    one, again, other = (run(jax.random.key(seed), images) for seed in (0, 0, 1))
    assert (one.shape, one.dtype) == ((8, 16, 16, 3), jnp.float32)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, training_images(jax.random.key(0), images), atol=1e-4)


def test_training_images_contain_both_unchanged_and_changed_ones():
    images = _images(64, 8, 8)
    out = jax.jit(training_images)(jax.random.key(0), images)
    same = np.isclose(out, evaluation_images(images), atol=1e-3).all(axis=(1, 2, 3))
    assert 4 <= same.sum() <= 30  # a quarter of 64 is 16


def test_one_trace_for_any_key_and_pixels():
    chex.clear_trace_counter()
    train = jax.jit(chex.assert_max_traces(training_images, n=1))
    evaluate = jax.jit(chex.assert_max_traces(evaluation_images, n=1))
    for seed in range(3):
        images = _images(seed=seed)
        train(jax.random.key(seed), images)
        evaluate(images)
