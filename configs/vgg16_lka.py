"""The recipe of configs/effv2s.py with another backbone: VGG-16 with large-kernel attention.

    python -m charm_jax.train --config configs/vgg16_lka.py

Needs the NIH folder (42 GB) in data/nih_chest_xray14 or $CHARM_DATA, and one GPU. Epochs, batches,
rates and images are those of configs/effv2s.py, chosen for EfficientNetV2-S and not tuned again, so
expect a score of the same order, not the best that this backbone can reach. This network is not one
of the published ones, and torchvision has no weights for its attention. It has no stochastic depth:
config.model.stochastic_depth changes nothing.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the change to the recipe: the backbone."""
    config = ConfigDict()
    config.name = "vgg16_lka"
    config.model = ConfigDict({"backbone": "vgg16_lka"})
    return config
