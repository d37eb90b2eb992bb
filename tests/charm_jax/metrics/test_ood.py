"""A measure is judged by where it lies among those of validation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm_jax.metrics import ood

RNG = np.random.default_rng(0)
_Y, _X = np.mgrid[0:32, 0:32] / 32


def chests(n, seed):
    """Two dark ellipses on grey, a little different each: alike, as X-rays are."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        shift, width = rng.normal(0, 0.03, 2), rng.uniform(0.15, 0.2)
        lungs = sum(
            np.exp(-(((_X - side - shift[0]) / width) ** 2 + ((_Y - 0.5 - shift[1]) / 0.3) ** 2))
            for side in (0.27, 0.73)
        )
        made.append(160 - 110 * lungs + rng.normal(0, 4, (32, 32)))
    return np.stack(made)


def spread(n=200):
    return {"novelty": np.linspace(0, 1, n), "disagreement": np.linspace(0, 0.1, n)}


@pytest.fixture(scope="module")
def reference():
    return ood.fit(spread(), chests(200, 0))


def judge(reference, thumbnails, **values):
    n = len(thumbnails)
    given = {name: np.full(n, float(value)) for name, value in values.items()}
    return ood.judge(reference, given, thumbnails)


def test_a_reference_is_json(reference):
    assert json.loads(json.dumps(reference, allow_nan=False)) == reference


@settings(max_examples=30)
@given(value=st.floats(0, 1))
def test_a_percentile_is_the_share_of_validation_below(reference, value):
    got = judge(reference, chests(1, 1), novelty=value)["novelty"][0]
    below = 100 * np.mean(spread()["novelty"] < value)
    assert got == pytest.approx(below, abs=1.0)


def test_beyond_validation_is_100_and_what_all_have_is_0(reference):
    assert judge(reference, chests(1, 1), novelty=1.5)["novelty"][0] == 100
    same = ood.fit({"novelty": np.ones(60)}, chests(60, 2))
    assert judge(same, chests(1, 1), novelty=1.0)["novelty"][0] == 0
    assert judge(same, chests(1, 1), novelty=1.1)["novelty"][0] == 100


def test_new_images_of_the_kind_are_as_familiar_as_validation(reference):
    """Folds: components would draw their own images better than new ones."""
    got = judge(reference, chests(400, 7))["appearance"]
    assert 35 < got.mean() < 65
    assert np.mean(got >= ood.LIMIT) < 0.03


@pytest.mark.parametrize(
    "picture",
    [
        RNG.uniform(0, 255, (1, 32, 32)),
        255.0 * (_X > 0.5)[None],
        chests(1, 3)[:, :, ::-1].transpose(0, 2, 1),
    ],
    ids=["noise", "edge", "turned"],
)
def test_other_pictures_are_unfamiliar(reference, picture):
    assert judge(reference, picture)["appearance"][0] >= ood.LIMIT


@pytest.mark.parametrize(("gain", "offset"), [(0.3, 0), (0.5, 100), (1, 60)])
def test_brightness_and_contrast_do_not_count(reference, gain, offset):
    x = chests(20, 9)
    plain = judge(reference, x)["appearance"]
    np.testing.assert_allclose(judge(reference, gain * x + offset)["appearance"], plain, atol=0.2)


def test_a_blank_image_is_unfamiliar_whatever_the_rest_says():
    assert ood.reasons({"novelty": 3.0}, grey_sd=0.5) == ["nearly constant"]
    assert ood.reasons({"novelty": 3.0}, grey_sd=40.0) == []
    assert ood.reasons({"novelty": 99.5, "appearance": 1}, grey_sd=40.0) == ["novelty"]


def test_few_images_have_no_components_but_percentiles():
    reference = ood.fit({"novelty": np.linspace(0, 1, 19)}, chests(19, 0))
    assert "components" not in reference
    assert set(judge(reference, chests(2, 1), novelty=0.5)) == {"novelty"}


def test_measures_are_those_that_the_network_has():
    outputs = {
        "logits": np.zeros((2, 3)),
        "similarities": np.array([[0.9, 0.8], [0.7, 0.0]], np.float32),
        "valid": np.array([[True, True], [False, False]]),
    }
    found = ood.measures(outputs)
    np.testing.assert_allclose(found["novelty"], [0.1, 1.0], atol=1e-6)
    assert set(found) == {"novelty"}
    assert ood.measures({"logits": outputs["logits"]}) == {}
    nothing_read = {"similarities": np.zeros((2, 0)), "valid": np.zeros((2, 0), bool)}
    assert ood.measures(nothing_read) == {}
