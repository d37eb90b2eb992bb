import logging
import warnings

import pytest

from data_pipelines.images.decoders import MAX_PIXELS, check_size, quiet_decoders


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5), (MAX_PIXELS, 2)])
def test_an_impossible_size_is_refused(width, height):
    with pytest.raises(ValueError, match=f"claims {width} x {height} pixels"):
        check_size(width, height)


def test_the_largest_size_is_allowed():
    check_size(MAX_PIXELS // 8, 8)


def test_warnings_of_decoders_alone_are_silenced_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet_decoders()
        n = len(warnings.filters)
        quiet_decoders()
        assert len(warnings.filters) == n
        warnings.warn_explicit("odd tag", UserWarning, "tags.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn_explicit("mine", UserWarning, "mine.py", 1, module="mine")
    assert not logging.getLogger("pydicom").isEnabledFor(logging.CRITICAL)
