import pytest
from golden import check_plain_network


@pytest.mark.parametrize("size", [128, pytest.param(224, marks=pytest.mark.slow)])
def test_the_plain_network_equals_the_original(size):
    check_plain_network("vgg16_lka", size)
