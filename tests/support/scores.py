"""Scores drawn for tests: with ties, unknown labels and patients of several images."""

import numpy as np

NAMES = ("Mass", "Hernia", "Edema")


def drawn(seed=0, images=60, patients=15):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, (images, len(NAMES)), dtype=np.int8)
    scores = np.round(rng.normal(size=labels.shape) + labels, 1).astype(np.float32)  # with ties
    return scores, labels, rng.integers(0, patients, images)
