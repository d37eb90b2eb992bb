import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def many(nih):
    """Enough images for a kill to fall into the middle: 12 patients' worth of noise."""
    rng = np.random.default_rng(0)
    for name in nih.names:
        Image.fromarray(rng.integers(0, 256, (900, 900), np.uint8)).save(
            nih.file(name), compress_level=1
        )
    return nih
