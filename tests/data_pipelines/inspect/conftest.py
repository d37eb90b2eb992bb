import numpy as np
import pytest
from PIL import Image

from data_pipelines.inspect import inspection


@pytest.fixture
def no_pictures(monkeypatch):
    """Skip the pictures, which take most of the time of an inspection."""
    monkeypatch.setattr(inspection, "_draw", lambda *_: None)


@pytest.fixture
def films(nih):
    """The small folder with films that can be told apart."""
    for number, name in enumerate(nih.names):
        noise = np.random.default_rng(number).integers(0, 60, (32, 32))
        noise[8:24, 8:24] += 150
        Image.fromarray(noise.astype(np.uint8)).save(nih.file(name))
    return nih
