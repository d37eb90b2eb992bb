"""EfficientNetV2-S with CHARM on ChestX-ray14, or another backbone, in two stages.

    charm-jax train --config effv2s --config.model.init_from=imagenet
    charm-jax train --config effv2s:resnet50 --config.model.init_from=imagenet
    charm-jax train --config effv2s --config.model.init_from=imagenet --config.preset=published

Stored cases vote with their labels (preset vote). The published memory, which reads their features,
scored below the plain backbone wherever it was measured (docs/METHOD.md); the third command trains
it.

It needs the NIH folder (42 GB) in data/nih_chest_xray14 or $CHARM_DATA, and one GPU.

Length: stage "bce" takes 3 epochs with the trunk frozen and up to 20 more, on the 31,553 abnormal
images of the training split; stage "focal" takes up to 10 epochs of all 75,966. The published run
began from ImageNet weights; to start from random ones set --config.stages.bce.frozen_epochs=0.

Score: not measured. Nobody has run this config on the whole set yet. Published networks of this
size reach a macro AUROC of 0.80 to 0.82 on the official split. The 0.8752 that was published for
the published form was taken on 2,794 images of a random split; a third of them had been trained on.

Variants: the name of any backbone after a colon. All other values were chosen for
EfficientNetV2-S and are not tuned again.
    effv2s:efficientnet_v2_m   57 blocks instead of 40, and wider: lower batch_size if need be
    effv2s:resnet50            without stochastic depth: model.stochastic_depth has no effect
    effv2s:densenet121         without it, too; the momentum branch averages only the last batch
                               norm, 2,048 numbers
    effv2s:vgg16_lka           without it, too; unpublished, and torchvision has no weights for its
                               attention

`charm-jax train --help` explains these and all other keys.
"""

from ml_collections import ConfigDict


def get_config(backbone: str = "efficientnet_v2_s") -> ConfigDict:
    """Return the values that a reader looks for; they are the recipe's own."""
    config = ConfigDict()
    config.name = "effv2s" if backbone == "efficientnet_v2_s" else backbone
    config.preset = "vote"
    config.data = ConfigDict({"source": "nih_chest_xray14", "image_size": 224})
    config.model = ConfigDict(
        {
            "backbone": backbone,
            "momentum": 0.99,  # of the momentum branch
            "rarity": "norm_inlier",  # what the published memory stores
            "rarity_threshold": -1.0,  # the rule's own, 0.2
        }
    )
    # Keys that presets set are absent here, because a config outranks a preset. The preset vote:
    # model.memory, fusion, retrieval_k and bank_size; notebook: data.split, model.init_from,
    # bce.peak_lr (2e-4), focal.epochs (10), and loss (bce, focal), lr_spread (1, 4) and min_delta
    # (1e-3, 1e-4) of the stages.
    config.stages = ConfigDict(
        {
            "bce": {"epochs": 20, "frozen_epochs": 3, "batch_size": 64, "patience": 3},
            "focal": {"batch_size": 128, "peak_lr": 8e-5, "patience": 3},
        }
    )
    return config
