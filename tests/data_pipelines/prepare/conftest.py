import functools
import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@functools.cache
def _noise(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (900, 900), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def many(nih):
    """Images that take long enough to prepare for a kill to come in between."""
    for seed, name in enumerate(nih.names):
        nih.file(name).write_bytes(_noise(seed))
    return nih
