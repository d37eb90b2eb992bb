"""Build experiments without images, to test the plans that a config leads to."""

from types import SimpleNamespace

import numpy as np

from charm_jax.config import settings
from charm_jax.train.setup import Experiment


def experiment_of(config, images, findings=14, labels=None):
    """Return an experiment without pixels, with the given number of training images a stage.

    Validation uses all rows of ``labels``.
    """
    table = SimpleNamespace(
        findings=tuple(map(str, range(findings))), source="x", simulated=False, labels=labels
    )

    def rows(stage, split):
        return np.arange(images[stage] if split == "train" else len(labels))

    experiment = object.__new__(Experiment)
    object.__setattr__(experiment, "settings", settings.from_dict(config.to_dict()))
    split = SimpleNamespace(rows=rows)
    object.__setattr__(experiment, "data", SimpleNamespace(split=split, table=table))
    return experiment
