"""Tensors of a weight file, and what a fault of it must leave."""

import errno
import resource
from contextlib import contextmanager

import numpy as np
import pytest

from charm_jax.weights import files
from data_pipelines.errors import InputError

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "norm.num_batches_tracked": np.array(3, np.int64),
}


def refusal(path):
    with pytest.raises(InputError) as error:
        files.read(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@contextmanager
def small_files():
    """No file may grow beyond 10,000 bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_that_a_failed_write_leaves_nothing(path):
    with small_files(), pytest.raises(OSError) as error:
        files.write(path, {"w": np.zeros(9999, np.float32)})
    assert error.value.errno == errno.EFBIG
    assert not list(path.parent.iterdir())
