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
    Augmentation,
    add_noise,
    affine_by,
    bounds,
    erase,
    evaluation_images,
    flip,
    jitter,
    mix,
    mixup,
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


LABELS = jnp.asarray([[1, 0, -1], [0, 0, 1], [1, -1, 1], [0, 1, 0]], jnp.int8)


def test_a_mixed_image_is_the_weighted_mean_of_two_and_so_are_its_labels():
    images, share = _floats(), jnp.asarray([0.75, 1.0, 0.5, 0.6])
    other = np.array([1, 2, 3, 0])
    mixed, targets = mix(share, jnp.asarray(other), images, LABELS)
    weight = np.asarray(share)[:, None, None, None]
    pixels = np.asarray(images)
    np.testing.assert_allclose(mixed, weight * pixels + (1 - weight) * pixels[other], rtol=1e-6)
    # A label stays unknown in each mixture that it has a share in.
    expected = [[0.75, 0, -1], [0, 0, 1], [0.5, -1, 0.5], [0.4, 0.6, -1]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_a_share_of_1_is_the_identity(seed):
    other = jnp.asarray(np.random.default_rng(seed).permutation(4))
    mixed, targets = mix(jnp.ones(4), other, _floats(), LABELS)
    np.testing.assert_array_equal(mixed, _floats())
    np.testing.assert_array_equal(targets, LABELS)


def test_shares_of_mixup_are_folded_beta_and_its_key_decides():
    scipy_stats = pytest.importorskip("scipy.stats")
    run = jax.jit(mixup, static_argnums=3)
    # A white image among black ones: its grey level is its share, that of its partner the rest.
    n = 400
    images = jnp.zeros((n, 2, 2, 1)).at[0].set(1.0)
    labels = jnp.zeros((n, 1), jnp.int8).at[0].set(1)
    shares = []
    for seed in range(200):
        mixed, targets = run(jax.random.key(seed), images, labels, 0.4)
        np.testing.assert_allclose(mixed[:, 0, 0], targets, rtol=1e-6)
        shares.append(float(targets[0, 0]))
        assert float(targets[1:].max()) <= 0.5
    folded = scipy_stats.beta(0.4, 0.4)
    assert min(shares) >= 0.5
    found = np.mean(np.array(shares) > 0.9)
    assert found == pytest.approx(2 * folded.sf(0.9), abs=0.1)
    np.testing.assert_array_equal(
        run(jax.random.key(3), images, labels, 0.4)[0],
        run(jax.random.key(3), images, labels, 0.4)[0],
    )


EVERY = Augmentation(True, 15.0, 0.2, 0.1, 0.2, 0.3, 0.05, 0.5)


def test_the_default_changes_are_a_flip_and_a_rotation():
    key, images = jax.random.key(5), _images()
    flip_key, rotate_key = jax.random.split(key)
    expected = normalise(_rotated(rotate_key, flip(flip_key, images.astype(jnp.float32))))
    np.testing.assert_allclose(training_images(key, images), expected, atol=1e-5)


def test_without_changes_training_images_are_those_of_an_evaluation():
    none = Augmentation(flip=False, rotate=0.0)
    out = training_images(jax.random.key(0), _images(), changes=none)
    np.testing.assert_array_equal(out, evaluation_images(_images()))


def test_without_flip_left_stays_left():
    images = jnp.zeros((32, 9, 9, 1), jnp.uint8).at[:, :, :3].set(255)
    out = training_images(jax.random.key(0), images, changes=Augmentation(flip=False))
    assert (out[:, 4, 1, 0] > out[:, 4, 7, 0]).all()


def test_the_draws_of_a_change_do_not_depend_on_the_others():
    key, images = jax.random.key(2), _images(16)
    flipped = Augmentation(rotate=0.0)
    noisy = Augmentation(rotate=0.0, noise=1e-4)
    np.testing.assert_allclose(
        training_images(key, images, changes=noisy),
        training_images(key, images, changes=flipped),
        atol=0.01,
    )


def test_every_change_at_once_traces_once_and_stays_in_range():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(training_images, n=1), static_argnums=(2, 3, 4))
    images = _images(16, 12, 12)
    one, again, other = (run(jax.random.key(seed), images, 1, "0,255", EVERY) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert float(one.min()) >= -1e-3
    assert float(one.max()) <= 255.001


@given(
    angle=st.floats(-30, 30, width=32),
    size=st.floats(0.5, 1.5, width=32),
    shift=st.tuples(*[st.floats(-0.25, 0.25, width=32)] * 2),
)
@settings(max_examples=20, deadline=None)
def test_an_affine_change_is_scipy_s(angle, size, shift):
    images = _floats(1, 9, 12)
    out = jax.jit(affine_by)(jnp.array([angle]), jnp.array([size]), jnp.array([shift]), images)
    turn = np.deg2rad(angle)
    back = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / size
    centre, pixels = np.array([4.0, 5.5]), np.array(shift) * [9, 12]
    expected = scipy.ndimage.affine_transform(
        np.asarray(images[0, ..., 0], np.float64),
        back,
        centre - back @ (centre + pixels),
        order=1,
        mode="mirror",
    )
    np.testing.assert_allclose(out[0, ..., 0], expected, atol=0.05)


def test_brightness_moves_the_mean_and_contrast_the_distance_from_it():
    grey = 100 + _floats(200, 6, 6) / 10  # far from black and white
    mean, spread = grey.mean((1, 2, 3)), grey.std((1, 2, 3))
    brighter = jitter(jax.random.key(0), grey, 0.1, 0.0)
    shift = np.asarray(brighter.mean((1, 2, 3)) - mean)
    np.testing.assert_allclose(brighter.std((1, 2, 3)), spread, rtol=1e-4)
    assert 20 < np.abs(shift).max() <= 25.51
    assert abs(shift.mean()) < 3
    sharper = jitter(jax.random.key(0), grey, 0.0, 0.4)
    np.testing.assert_allclose(sharper.mean((1, 2, 3)), mean, rtol=1e-4)
    factor = np.asarray(sharper.std((1, 2, 3)) / spread)
    assert 0.6 <= factor.min() < 0.65
    assert 1.35 < factor.max() <= 1.4001


def test_noise_has_the_given_deviation():
    grey = jnp.full((4, 40, 40, 1), 128.0)
    noise = add_noise(jax.random.key(0), grey, 0.04) - grey
    assert float(noise.std()) == pytest.approx(0.04 * 255, rel=0.05)
    assert abs(float(noise.mean())) < 0.5


def test_erasing_fills_one_rectangle_of_the_right_area_in_a_share_of_the_images():
    n, height, width = 400, 24, 30
    erased = erase(jax.random.key(0), jnp.full((n, height, width, 1), -1.0), 0.5)
    filled = np.asarray(erased[..., 0] >= 0)
    some = filled.any(axis=(1, 2))
    assert 150 < some.sum() < 250
    rows, columns = filled.any(axis=2)[some], filled.any(axis=1)[some]
    np.testing.assert_array_equal(filled[some], rows[:, :, None] & columns[:, None])
    for side in (rows, columns):  # one stretch each
        assert (np.abs(np.diff(side.astype(int), axis=1)).sum(axis=1) <= 2).all()
    area = filled[some].mean(axis=(1, 2))
    assert 0.005 < area.min() < 0.06
    assert 0.3 < area.max() < 0.45
    assert area.mean() == pytest.approx(0.21, abs=0.03)
    assert 100 < float(erased[jnp.asarray(filled)[..., None]].mean()) < 155
    np.testing.assert_array_equal(erase(jax.random.key(0), erased, 0.0), erased)
