"""Warnings of images that are probably not shown as they were meant."""

from data_pipelines.images.decode import Sliver
from data_pipelines.tables.oddities import warnings_of


def _warning(whites):
    slivers = {f"{i}.png": Sliver(0.05, white) for i, white in enumerate(whites)}
    (warning,) = warnings_of(slivers, len(whites), {})
    return warning


def test_the_proposed_value_is_that_of_the_set_and_not_of_a_single_image():
    assert "value_range=4095," in _warning([2047] * 20 + [4095] * 79 + [16383])
    assert "value_range=4095," in _warning([2047, 4095])
    assert "value_range=4095," in _warning([4095] * 9 + [None])


def test_images_whose_tags_give_the_scale_are_shown_by_their_own_range():
    warning = _warning([None] * 9 + [4095])
    assert "value_range=image" in warning
    assert "4095" not in warning
