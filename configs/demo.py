"""A few minutes on a CPU without any data: simulated chest X-rays, a small network, both stages.

    python -m charm_jax.train

Draws phantoms (see data_pipelines/phantom.py) into data/phantom on first use. About two minutes
on 2 cores; macro AUROC about 0.94 on the simulated test images, which says nothing of real X-rays.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the recipe at a size for a laptop, from random weights and never frozen."""
    config = ConfigDict()
    config.name = "demo"
    config.data = ConfigDict({"source": "phantom", "dir": "data/phantom", "image_size": 64})
    config.model = ConfigDict({"backbone": "efficientnet_v2_nano"})
    config.stages = ConfigDict(
        {
            "bce": {"frozen_epochs": 0, "epochs": 8, "batch_size": 32, "peak_lr": 2e-3},
            "focal": {"epochs": 4, "batch_size": 64, "peak_lr": 1e-3, "lr_spread": 1.0},
        }
    )
    config.checkpoint = ConfigDict({"every_steps": 50})
    return config
