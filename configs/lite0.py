"""EfficientNet-Lite0 from ImageNet weights: a recipe that a CPU can train.

    pip install "charm-jax[lite]"
    charm-jax train --config lite0
    charm-jax train --config lite0:small --config.data.source=csv_folder --config.data.dir=DIR

It needs the NIH folder (42 GB) in data/nih_chest_xray14 or $CHARM_DATA, or a part of it with
--config.data.missing=skip. The weights come with the extra; no network is needed.

Variants: lite0:small is for some hundred or thousand images. A new classifier then sees too few
batches beside a trunk that already moves, so it trains alone for up to 20 epochs, at ten times the
trunk's later rate, and is fitted again at the end.

Length: stage "bce" takes 1 epoch with the trunk frozen and up to 5 more, on the abnormal images of
the training split; stage "focal" takes up to 2 epochs of all. At 23 images a second on 2 cores an
epoch of 1,000 images takes 45 seconds, one of all 75,966 takes 55 minutes. The variant takes up to
20, 10 and 10 epochs; on 415 images it stopped after 8, 5 and 8.

Score of lite0:small, on 576 X-rays by patient folds: macro AUROC 0.729, 0.699 without the vote of
stored cases, where a logistic regression on the frozen network reaches 0.687. With the other
values and five epochs of each stage the network without a vote reached 0.551, too little trained
to be of use (benchmarks/RESULTS.md).
"""

from ml_collections import ConfigDict

_STAGES = {
    "large": {
        "bce": {"frozen_epochs": 1, "epochs": 5, "peak_lr": 5e-4},
        "focal": {"epochs": 2, "peak_lr": 2e-4},
    },
    "small": {
        "bce": {"frozen_epochs": 20, "epochs": 10, "peak_lr": 5e-3, "lr_spread": 10.0},
        "focal": {"epochs": 10, "peak_lr": 1e-3, "lr_spread": 10.0},
    },
}


def get_config(size: str = "large") -> ConfigDict:
    """Return the recipe for a set of this size; values that are absent are the published ones."""
    if size not in _STAGES:
        raise ValueError(f"its variants are {' and '.join(_STAGES)}, not {size}")
    config = ConfigDict()
    config.name = "lite0"
    config.preset = "vote"
    config.data = ConfigDict({"source": "nih_chest_xray14", "image_size": 224})
    config.model = ConfigDict({"backbone": "efficientnet_lite0", "init_from": "imagenet"})
    config.stages = ConfigDict({k: v | {"batch_size": 32} for k, v in _STAGES[size].items()})
    if size == "small":
        config.refit = "plain"
    config.checkpoint = ConfigDict({"every_steps": 200})
    return config
