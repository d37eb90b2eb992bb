"""An overlay shows the map where it is and the image where it is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm_jax.report.overlays import attention_overlay, stretched

GREY = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 40), st.integers(2, 40))
def test_an_overlay_has_the_image_s_size(h, w, height, width):
    image = np.zeros((height, width), np.uint8)
    drawn = attention_overlay(image, np.ones((h, w), np.float32))
    assert drawn.shape == (height, width, 3)
    assert drawn.dtype == np.uint8


def test_where_the_map_is_nothing_the_image_is_untouched():
    drawn = attention_overlay(GREY, np.zeros((4, 4), np.float32))
    np.testing.assert_array_equal(drawn, np.repeat(GREY[..., None], 3, axis=2))


def test_the_colour_is_where_the_map_is():
    heat = np.zeros((6, 6), np.float32)
    heat[0, 5] = 1  # top right
    drawn = attention_overlay(np.full((48, 48), 100, np.uint8), heat)
    away = np.abs(drawn.astype(int) - 100).sum(axis=2)
    assert np.unravel_index(away.argmax(), away.shape)[0] < 8
    assert np.unravel_index(away.argmax(), away.shape)[1] >= 40
    assert away[24:, :24].max() == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_not_drawn(bad):
    heat = np.full((3, 3), bad, np.float32)
    np.testing.assert_array_equal(attention_overlay(GREY, heat)[..., 0], GREY)


def test_a_map_is_stretched_over_its_own_range():
    heat = np.array([[0.2, 0.3], [0.4, 0.6]], np.float32)
    np.testing.assert_allclose(stretched(heat), [[0, 0.25], [0.5, 1]], atol=1e-6)
    np.testing.assert_array_equal(stretched(np.full((2, 2), 0.7, np.float32)), np.zeros((2, 2)))


def test_a_map_that_is_nearly_flat_looks_it():
    heat = np.array([[0.90, 0.95], [0.92, 1.0]], np.float32)
    np.testing.assert_allclose(stretched(heat, 0.25), [[0, 0.2], [0.08, 0.4]], atol=1e-6)
