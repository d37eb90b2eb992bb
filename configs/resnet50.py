"""The recipe of configs/effv2s.py with another backbone: ResNet-50.

    python -m charm_jax.train --config configs/resnet50.py

Needs the NIH folder (42 GB) in data/nih_chest_xray14 or $CHARM_DATA, and one GPU. Epochs, batches,
rates and images are those of configs/effv2s.py, chosen for EfficientNetV2-S and not tuned again, so
expect a score of the same order, not the best that this backbone can reach. ResNet-50 has no
stochastic depth: config.model.stochastic_depth changes nothing.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the change to the recipe: the backbone."""
    config = ConfigDict()
    config.name = "resnet50"
    config.model = ConfigDict({"backbone": "resnet50"})
    return config
