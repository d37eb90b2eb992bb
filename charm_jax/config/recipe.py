"""Define each config key once: its published value, explanation and valid values."""

import dataclasses
import difflib
import math
import os
import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ml_collections import ConfigDict

from charm_jax.models.backbones import BACKBONES
from charm_jax.models.imbalance import CLASS_WEIGHTS, SHIFTED_LOSSES
from charm_jax.models.losses import LOSSES
from charm_jax.models.selection import SELECTION_RULES
from data_pipelines.images.decode import VALUE_RANGES, valid_value_range
from data_pipelines.loading import augment
from data_pipelines.sources import SOURCES, UNCERTAIN_POLICIES, VIEWS
from data_pipelines.tables.splits import FOLD_FORM, IMAGES, RULES, is_rule

STAGES = ("bce", "focal")
TRACKERS = ("tensorboard", "wandb", "mlflow")
SAMPLING = ("uniform", "class_balanced", "class_aware")

# Applied before a config file and the command line.
PRESETS = {
    "published": {},
    # The published notebook in effect, at the rate that the range test of its best run found: its
    # "frozen" epochs froze nothing, all layers had one learning rate, and its split leaks.
    "notebook": {
        "data": {"split": "notebook"},
        "model": {"init_from": "imagenet"},
        "stages": {
            "bce": {
                "schedule": "fine_tune",
                "freeze_trunk": False,
                "peak_lr": 2.290867705596611e-4,
            },
            "focal": {
                "epochs": 5,
                "lr_spread": 1.0,
                "loss": "asymmetric_reference",
                "min_delta": 1e-3,
            },
        },
    },
    # Stored cases vote with their labels, where the published network reads their features.
    "vote": {
        "model": {"memory": "vote", "fusion": False, "retrieval_k": 100, "bank_size": 2048},
    },
}

Value = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Key:
    """Describe a config key.

    Attributes:
        default: published value; its type is the key's.
        help: noun phrase or imperative sentence, without full stop.
        choices: valid values, such as the registry that has them; empty if there is no list.
        valid: valid values in words, completing "set it to ...", and a test for them.
    """

    default: Value
    help: str
    choices: Collection[str] = ()
    valid: tuple[str, Callable[[Any], object]] | None = None


def _at_least(low: int) -> tuple[str, Callable[[int], bool]]:
    return f"{low} or more", lambda value: value >= low


_POSITIVE = "a number above 0", lambda value: 0 < value < math.inf
_FRACTION = "a number from 0 to 1", lambda value: 0 <= value <= 1
_BELOW_ONE = "a number from 0 to below 1", lambda value: 0 <= value < 1
_SEED = f"a number from 0 to {2**31 - 1}", lambda value: 0 <= value < 2**31


def _or_zero(meaning: str) -> tuple[str, Callable[[float], bool]]:
    return f"a number above 0, or 0 for {meaning}", lambda value: 0 <= value < math.inf


# Values of the stages "bce" and "focal", then the explanation.
_STAGE_KEYS = {
    "images": (("abnormal", "all"), "images to train on", IMAGES, None),
    "loss": (("bce", "focal"), "loss function", ChainMap(SHIFTED_LOSSES, LOSSES), None),
    "class_weights": (
        ("none", "none"),
        "weights in the loss: absent over present labels for a finding's positives (positive), or "
        "one of each finding by its effective number of positives (effective)",
        CLASS_WEIGHTS,
        None,
    ),
    "label_smoothing": (
        (0.0, 0.0),
        "ε, the share of each target that is taken from both classes alike",
        (),
        _BELOW_ONE,
    ),
    "mixup": (
        (0.0, 0.0),
        "parameter of the beta distribution by which images and labels are mixed in pairs",
        (),
        _or_zero("none"),
    ),
    "sampling": (
        ("uniform", "uniform"),
        "training images of an epoch: each once (uniform), those of a random finding or of none "
        "(class_balanced), or of each finding and of none in turn (class_aware)",
        SAMPLING,
        None,
    ),
    "epochs": ((20, 10), "maximum number of epochs after the frozen ones", (), _at_least(0)),
    "frozen_epochs": ((3, 0), "initial epochs with the trunk frozen", (), _at_least(0)),
    "freeze_trunk": ((True, True), "False trains the trunk in frozen_epochs, too", (), None),
    "schedule": (
        ("one_cycle", "one_cycle"),
        "learning rate by step: one_cycle rises for 25% of the epochs; fine_tune is fastai's and "
        "halves peak_lr after the frozen epochs",
        ("one_cycle", "fine_tune"),
        None,
    ),
    "batch_size": ((64, 128), "images in a batch, over all devices", (), _at_least(2)),
    "peak_lr": ((2e-4, 8e-5), "largest learning rate of the head", (), _POSITIVE),
    "lr_spread": (
        (1.0, 4.0),
        "learning rate of the head over that of the trunk; the expansion block is between",
        (),
        _POSITIVE,
    ),
    "find_lr": ((False, False), "find peak_lr by a range test", (), None),
    "clip_norm": ((0.0, 0.0), "maximum norm of the gradients", (), _or_zero("none")),
    "accumulate": ((1, 1), "batches averaged for one update", (), _at_least(1)),
    "monitor": (
        ("loss", "loss"),
        "validation score that picks the best epoch and stops early: the loss, or macro AUROC or "
        "average precision",
        ("loss", "auroc", "ap"),
        None,
    ),
    "patience": (
        (3, 3),
        "epochs without a better monitored score before a stop, counted after the rate's peak",
        (),
        _at_least(1),
    ),
    "min_delta": (
        (1e-3, 1e-4),
        "improvement of the monitored score that counts as better; of a summed loss, per label",
        (),
        ("a number from 0 up", lambda value: 0 <= value < math.inf),
    ),
}

KEYS: dict[str, Key] = {
    "name": Key(
        "",
        "name of the run's folder, by default that of the config",
        valid=(
            "a folder's name, made of letters, digits and . + - _",
            lambda value: re.fullmatch(r"[\w.+-]+", value) and value.strip("."),
        ),
    ),
    "preset": Key("published", "set of values to start from", choices=PRESETS),
    "runs_dir": Key("runs", "folder that holds a folder for each run"),
    "seed": Key(0, "seed of parameters, augmentation, dropout and image order", valid=_SEED),
    "resume": Key(
        "auto", "continue a run with the same config, or also with another", ("auto", "force")
    ),
    "deterministic": Key(False, "give the same bits from run to run on CUDA too; slower"),
    "refit": Key(
        "none",
        "fit the last linear layer again after training, on all images alike (plain) or with equal "
        "weights of a finding's classes (balanced); kept if the loss on validation falls",
        ("none", "plain", "balanced"),
    ),
    "data.source": Key("nih_chest_xray14", "kind of data set", SOURCES),
    "data.dir": Key("data/nih_chest_xray14", "folder of the data; $CHARM_DATA if that is set"),
    "data.csv": Key("", "table to read in place of the source's own; for MedMNIST its .npz file"),
    "data.split": Key(
        "official",
        "split rule; kfold:i/n tests fold i of n (from 0), grouped by patient",
        valid=(f"{', '.join(RULES)}, or {FOLD_FORM}", is_rule),
    ),
    "data.split_seed": Key(0, "seed of random splits, independent of seed", valid=_SEED),
    "data.image_size": Key(224, "height and width of the images in pixels", valid=_at_least(32)),
    "data.missing": Key(
        "error",
        "treatment of absent images: a stop at more than 0.1%, or leaving them out",
        ("error", "skip"),
    ),
    "data.max_unreadable": Key(
        0.001, "share of the image files that may be unreadable", valid=_FRACTION
    ),
    "data.value_range": Key(
        "container",
        "values that are black and white: all that the format allows (container), those of each "
        "image (image), or 0 and a number such as 4095",
        valid=(VALUE_RANGES, valid_value_range),
    ),
    "data.uncertain": Key(
        "ignore",
        "labels that a report calls possible: ignore them, count them as absent (zeros) or present "
        "(ones), or as the CheXpert paper chose for each finding (chexpert)",
        UNCERTAIN_POLICIES,
    ),
    "data.views": Key("frontal", "images of a set that also has lateral ones to use", VIEWS),
    "data.equal_sets": Key(
        False, "train on as many images of each merged set, however many it has"
    ),
    "data.resident": Key(False, "keep all images in the device's memory"),
    "data.processes": Key(
        0, "processes that decode images; 0 for threads, faster on few cores", valid=_at_least(0)
    ),
    "data.phantom.train_images": Key(2400, "simulated images to draw for training"),
    "data.phantom.test_images": Key(800, "simulated images to draw for testing"),
    "data.phantom.image_size": Key(64, "height and width of simulated images in pixels"),
    "data.phantom.seed": Key(0, "seed of simulated images"),
    "augment.flip": Key(True, "mirror half of the training images; False keeps left and right"),
    "augment.rotate": Key(
        10.0,
        "largest angle of rotation in degrees, of half of the images; 0 for none",
        valid=("a number from 0 to 180", lambda value: 0 <= value <= 180),
    ),
    "augment.scale": Key(0.0, "largest relative change of size; 0 for none", valid=_BELOW_ONE),
    "augment.translate": Key(
        0.0, "largest shift as a share of the side; 0 for none", valid=_BELOW_ONE
    ),
    "augment.brightness": Key(
        0.0, "largest change of brightness as a share of white; 0 for none", valid=_FRACTION
    ),
    "augment.contrast": Key(
        0.0, "largest relative change of contrast; 0 for none", valid=_BELOW_ONE
    ),
    "augment.noise": Key(
        0.0,
        "standard deviation of Gaussian noise as a share of white; 0 for none",
        valid=_FRACTION,
    ),
    "augment.erase": Key(
        0.0, "probability that a rectangle is filled with random grey levels", valid=_FRACTION
    ),
    "model.backbone": Key("efficientnet_v2_s", "backbone", BACKBONES),
    "model.init_from": Key(
        "random",
        "initial weights",
        valid=("random, imagenet or the path of a weight file", str.strip),
    ),
    "model.init_key": Key(
        "", "part of the path to the initial weights in a file of several, such as state_dict_ema"
    ),
    "model.input_range": Key(
        "auto",
        "grey levels as the network reads them: imagenet, unit (0 to 1), xrv (-1024 to 1024), or "
        "the numbers of black and white; auto for those of the initial weights",
        valid=(
            "auto, imagenet, unit, xrv or two numbers such as -1,1",
            lambda value: value == "auto" or augment.is_input_range(value),
        ),
    ),
    "model.charm": Key(True, "False trains the backbone with a linear classifier as a baseline"),
    "model.memory": Key(
        "published",
        "what CHARM reads of similar cases in the memory bank: their features (published), or "
        "their labels (vote; see preset vote)",
        ("published", "vote"),
    ),
    "model.channels": Key(
        3,
        "channels of the images; 1 for weights with a grayscale stem",
        valid=("3 or 1", lambda value: value in (1, 3)),
    ),
    "model.stochastic_depth": Key(
        0.2,
        "drop rate d: block i of n (from 0) is dropped with probability d · i / n",
        valid=_BELOW_ONE,
    ),
    "model.fusion": Key(True, "multi-scale attention; False takes the mean over space"),
    "model.momentum_branch": Key(True, "False takes the main branch's features alone"),
    "model.momentum": Key(0.99, "m, the decay of the momentum branch", valid=_FRACTION),
    "model.retrieval_k": Key(
        5, "K, the cases read from the memory bank; 0 for none", valid=_at_least(0)
    ),
    "model.rarity": Key(
        "norm_inlier", "rule that selects cases for the memory bank", SELECTION_RULES
    ),
    "model.rarity_threshold": Key(-1.0, "τ of that rule, from 0 up; -1 for the rule's default"),
    "model.bank_size": Key(512, "slots of the memory bank", valid=_at_least(1)),
    "model.vote_weight": Key(
        0.4, "λ, the factor of the vote in the logits; 0 for none", valid=_or_zero("none")
    ),
    "model.vote_temperature": Key(
        0.05, "temperature of the cosines in a prediction's vote", valid=_POSITIVE
    ),
    "model.vote_training_temperature": Key(
        0.1, "temperature of the cosines in training's vote", valid=_POSITIVE
    ),
    "model.vote_loss_share": Key(
        0.5, "factor of the loss on the vote; 0 for none", valid=_or_zero("none")
    ),
    "model.average": Key(
        0.0,
        "decay of an average of all weights to evaluate and to go on from; 0 for none",
        valid=_BELOW_ONE,
    ),
    **{
        f"stages.{stage}.{name}": Key(values[i], explanation, choices, valid)
        for i, stage in enumerate(STAGES)
        for name, (values, explanation, choices, valid) in _STAGE_KEYS.items()
    },
    "checkpoint.every_steps": Key(500, "steps between checkpoints", valid=_at_least(1)),
    "checkpoint.every_minutes": Key(
        5.0, "minutes after a checkpoint until the next", valid=_or_zero("never")
    ),
    "checkpoint.keep": Key(
        2, "newest checkpoints to keep of each phase, beside the best", valid=_at_least(1)
    ),
    "log.every_steps": Key(20, "steps between lines of metrics", valid=_at_least(1)),
    "log.trackers": Key(
        "tensorboard",
        "experiment trackers beside metrics.jsonl; wandb and mlflow send metrics and config away",
        valid=(
            f"some of {', '.join(TRACKERS)}, with commas between them, or empty",
            lambda value: {*value.split(",")} <= {"", *TRACKERS},
        ),
    ),
    "log.trace_steps": Key(
        0, "steps of each stage to profile, after the first ten", valid=_at_least(0)
    ),
}
GROUPS = tuple(
    dict.fromkeys(
        key.rsplit(".", depth)[0] for depth in (2, 1) for key in KEYS if key.count(".") >= depth
    )
)

# Usual names of other projects for a key's last word.
_SYNONYMS = {
    "lr": "peak_lr",
    "learning_rate": "peak_lr",
    "max_lr": "peak_lr",
    "bs": "batch_size",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "k": "retrieval_k",
    "top_k": "retrieval_k",
    "m": "momentum",
    "ema": "average",
    "tau": "rarity_threshold",
    "threshold": "rarity_threshold",
    "memory_size": "bank_size",
    "drop_path": "stochastic_depth",
    "dropout": "stochastic_depth",
    "arch": "backbone",
    "network": "backbone",
    "pretrained": "init_from",
    "weights": "init_from",
    "in_chans": "channels",
    "num_workers": "processes",
    "workers": "processes",
    "size": "image_size",
    "img_size": "image_size",
    "resolution": "image_size",
    "data_dir": "dir",
    "root": "dir",
    "path": "dir",
    "dataset": "source",
    "output_dir": "runs_dir",
    "random_seed": "seed",
    "grad_clip": "clip_norm",
    "criterion": "loss",
    "pos_weight": "class_weights",
    "sampler": "sampling",
    "smoothing": "label_smoothing",
    "mixup_alpha": "mixup",
    "rotation": "rotate",
    "random_erasing": "erase",
    "metric": "monitor",
    "early_stopping": "patience",
}
_NEAR = 0.75  # least similarity of a suggestion


def defaults() -> ConfigDict:
    """Return the published two-stage recipe, locked so that a misspelt key is an error."""
    config = ConfigDict()
    for path, key in KEYS.items():
        *groups, name = path.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[name] = key.default
    config.data.dir = os.environ.get("CHARM_DATA", config.data.dir)
    return config.lock()


def nearest(path: str, known: Iterable[str] = (*KEYS, *GROUPS)) -> list[str]:
    """Return the keys that an unknown one may stand for: none, one or one of each stage.

    It compares the last word and usual synonyms of it, then the whole path.
    """
    known, path = list(known), path.casefold().replace("-", "_")
    *groups, word = path.split(".")
    last = [key.rsplit(".")[-1] for key in known]
    words = {name.replace("_", ""): name for name in last}
    words |= {name.replace("_", ""): name for name in _SYNONYMS if _SYNONYMS[name] in last}
    close = difflib.get_close_matches(word.replace("_", ""), words, n=1, cutoff=_NEAR)
    if not close:
        level = [key for key in known if key.count(".") == len(groups)]
        return difflib.get_close_matches(path, level, n=1, cutoff=_NEAR)
    found = words[close[0]]
    name = found if found in last else _SYNONYMS[found]
    shared = {
        key: (sum(group in groups for group in key.split(".")[:-1]), -key.count("."))
        for key, own in zip(known, last, strict=True)
        if own == name
    }
    return [key for key in shared if shared[key] == max(shared.values())][:2]
