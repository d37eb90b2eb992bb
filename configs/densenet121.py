"""The recipe of configs/effv2s.py with another backbone: DenseNet-121.

    python -m charm_jax.train --config configs/densenet121.py

Needs the NIH folder (42 GB) in data/nih_chest_xray14 or $CHARM_DATA, and one GPU. Epochs, batches,
rates and images are those of configs/effv2s.py, chosen for EfficientNetV2-S and not tuned again, so
expect a score of the same order, not the best that this backbone can reach. The expansion block of
DenseNet-121 is its last batch norm alone, so the momentum branch averages 2,048 numbers. DenseNet
has no stochastic depth: config.model.stochastic_depth changes nothing.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the change to the recipe: the backbone."""
    config = ConfigDict()
    config.name = "densenet121"
    config.model = ConfigDict({"backbone": "densenet121"})
    return config
