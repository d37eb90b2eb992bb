"""A small table for tests that need no files."""

from pathlib import Path

import numpy as np

from data_pipelines.images.store import ImageFiles
from data_pipelines.tables.case_table import CaseTable


def small_table(n: int, path: Path = Path("none.png"), **columns) -> CaseTable:
    """A table of n images that share a file, with one finding that none has."""
    images = np.array([f"{i:05d}.png" for i in range(n)])
    defaults = {
        "source": "test",
        "findings": ("Mass",),
        "images": images,
        "patients": np.arange(n, dtype=np.int32),
        "labels": np.zeros((n, 1), np.int8),
        "official_part": np.full(n, ""),
        "views": np.full(n, ""),
        "sexes": np.full(n, ""),
        "ages": np.full(n, -1, np.int16),
        "store": ImageFiles(images, dict.fromkeys(range(n), path)),
    }
    return CaseTable(**(defaults | columns))
