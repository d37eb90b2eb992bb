"""CHARM-JAX: long-tailed multi-label chest X-ray classification in JAX and Flax.

The public API, imported when it is used:

- ``load`` a trained ``Classifier`` and predict with it;
- ``create_model``, ``list_models``, ``load_weights`` and ``save_weights`` for networks;
- ``load_dataset`` for images with labels and splits.
"""

import importlib
from typing import Any

__version__ = "1.0.0rc1"

_API = {
    "Classifier": "charm_jax.inference.classifier",
    "EnsembleClassifier": "charm_jax.inference.classifier",
    "Predictions": "charm_jax.inference.classifier",
    "load": "charm_jax.inference.classifier",
    "create_model": "charm_jax.api",
    "list_models": "charm_jax.api",
    "load_weights": "charm_jax.api",
    "save_weights": "charm_jax.api",
    "load_dataset": "charm_jax.api",
    "InputError": "data_pipelines.errors",
}
__all__ = sorted(_API)


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'charm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_API[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
