"""Experiments without images, to ask what a config makes of its stages."""

from types import SimpleNamespace

import numpy as np

from charm_jax.config import settings
from charm_jax.train.setup import Experiment


def experiment_of(config, images, findings=14):
    """An experiment that knows how many images a stage trains on, and no more of the data."""
    table = SimpleNamespace(findings=("x",) * findings, source="x", simulated=False)
    split = SimpleNamespace(rows=lambda stage, part: np.arange(images[stage]))
    experiment = object.__new__(Experiment)
    object.__setattr__(experiment, "settings", settings.from_dict(config.to_dict()))
    object.__setattr__(experiment, "data", SimpleNamespace(split=split, table=table))
    return experiment
