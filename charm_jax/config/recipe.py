"""Every key of a config with its published value; a config file states what it changes."""

import os

from ml_collections import ConfigDict

# What a preset sets before a config file and the command line do.
PRESETS = {
    "": {},
    # What the published notebook effectively did: its trunk was never frozen, its rates were one
    # group's, its second loss was asymmetric, and its split leaks.
    "notebook": {
        "data": {"split": "notebook"},
        "stages": {
            "bce": {"frozen_epochs": 0, "lr_spread": 1.0},
            "focal": {"frozen_epochs": 0, "lr_spread": 1.0, "loss": "asymmetric_reference"},
        },
    },
}


def defaults() -> ConfigDict:
    """Return the two-stage recipe, locked, so that a misspelt key is an error."""
    config = ConfigDict()
    config.name = ""  # of the run; the config file's stem when empty
    config.preset = ""  # or notebook: see PRESETS
    config.runs_dir = "runs"  # holds a folder a run
    config.seed = 0  # of parameters, augmentation, dropout and the order of the images
    config.resume = "auto"  # "force" continues a run although its config has changed
    config.deterministic = False  # the same bits from run to run on CUDA too; slower

    config.data = data = ConfigDict()
    data.source = "nih_chest_xray14"  # or csv_folder, chestmnist, pneumoniamnist, phantom
    data.dir = os.environ.get("CHARM_DATA", "data/nih_chest_xray14")
    data.csv = ""  # another table than the source's own; for MedMNIST, which .npz file
    data.split = "official"  # or patient, notebook
    data.split_seed = 0  # independent of config.seed: runs with other seeds share their parts
    data.image_size = 224  # pixels, square
    data.missing = "error"  # "skip" uses the images that are there
    data.resident = False  # True: all images in the device's memory, batches gathered there
    data.processes = 0  # that decode images; 0: threads do, which is faster on few cores
    # Of the source "phantom" alone: what is drawn on first use.
    data.phantom = ConfigDict(
        {"train_images": 2400, "test_images": 800, "image_size": 64, "seed": 0}
    )

    config.model = model = ConfigDict()
    model.backbone = "efficientnet_v2_s"
    model.init_from = "random"  # or imagenet, or the path of a weight file
    model.charm = True  # False: the plain backbone with a linear classifier, as a baseline
    model.channels = 3  # of the images; 1 for weights with a grayscale stem
    model.stochastic_depth = 0.2  # drop rate of the last block, rising linearly from 0
    model.fusion = True  # False: the mean over space in place of multi-scale attention
    model.momentum_branch = True  # False: the fused feature is the main branch's alone
    model.momentum = 0.99  # m of the momentum branch
    model.retrieval_k = 5  # 0: the bank is not read
    model.rarity = "norm_inlier"  # or norm_outlier, angle_outlier, rare_finding
    model.rarity_threshold = -1.0  # the rule's default
    model.bank_size = 512
    model.average = 0.0  # decay of an average of all weights, which is then evaluated; 0 for none

    config.stages = ConfigDict()
    config.stages.bce = ConfigDict(
        {
            "images": "abnormal",
            "loss": "bce",
            "epochs": 20,
            "frozen_epochs": 3,  # before those, with the trunk as it is
            "batch_size": 64,
            "peak_lr": 2e-4,  # of the head
            "lr_spread": 1.0,  # the head's rate over the trunk's; expansion block between
            "find_lr": False,  # True: the peak comes from a range test
            "clip_norm": 0.0,  # largest norm of the gradients; 0 for no limit
            "accumulate": 1,  # batches whose gradients are averaged for one update
            "patience": 3,  # epochs without a better validation loss, counted after the rate's peak
            "min_delta": 1e-3,
        }
    )
    config.stages.focal = ConfigDict(
        {
            "images": "all",
            "loss": "focal",
            "epochs": 10,
            "frozen_epochs": 0,
            "batch_size": 128,
            "peak_lr": 8e-5,
            "lr_spread": 4.0,
            "find_lr": False,
            "clip_norm": 0.0,
            "accumulate": 1,
            "patience": 3,
            "min_delta": 1e-4,
        }
    )

    config.checkpoint = ConfigDict(
        {
            "every_steps": 500,
            "every_minutes": 5.0,  # since the last save; 0 for never
            "keep": 2,  # newest of each phase, beside the best
        }
    )
    config.log = ConfigDict(
        {
            "every_steps": 20,
            "trace_steps": 0,  # of each stage that the profiler traces, after the first ten
        }
    )
    return config.lock()
