"""The recipe of configs/effv2s.py with another backbone: EfficientNetV2-M.

    python -m charm_jax.train --config configs/effv2m.py

Needs the NIH folder (42 GB) in data/nih_chest_xray14 or $CHARM_DATA, and one GPU. Epochs, batches,
rates and images are those of configs/effv2s.py, chosen for EfficientNetV2-S and not tuned again, so
expect a score of the same order, not the best that this backbone can reach. EfficientNetV2-M has 57
blocks against 40 of S, and wider ones: where its batches do not fit the GPU, lower
config.stages.{bce,focal}.batch_size.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the change to the recipe: the backbone."""
    config = ConfigDict()
    config.name = "effv2m"
    config.model = ConfigDict({"backbone": "efficientnet_v2_m"})
    return config
