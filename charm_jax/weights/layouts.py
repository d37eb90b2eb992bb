"""Find a network among the tensors of a file, whatever wraps it."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from charm_jax.models.backbones.backbone import Backbone
from charm_jax.weights.card import Card
from data_pipelines.errors import listed
from data_pipelines.loading.augment import IMAGENET

BASE = "base_model."  # the reference's prefix of torchvision's names
# Prefixes that only the reference's files have.
REFERENCE = ("spatial_attention.", "momentum_final_block.", "memory_bank.")
_WIDE_INPUT = 3.0  # unit inputs and those of ImageNet's scale stay below
_FEW = 5  # tensors beside the network that are named one by one
_ENOUGH = 0.5  # share of the backbone's tensors that makes a file one of this network
# Copies of a network beside it.
_COPY = re.compile(
    r"(?<![a-z])(ema|swa)(?![a-z])|averag|shadow|teacher|target|momentum|encoder_k|key_encoder",
    re.I,
)
# What PyTorch puts between a module and its child to compile, share or checkpoint it.
_WRAPPED = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Outputs of TorchXRayVision's classifiers.
_XRV_FINDINGS = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema"),
    *("Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass"),
    *("Hernia", "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum"),
)
# Outputs of CheXNet's implementations, in the order of the data set's paper.
_CHEXNET_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Say where a file holds a network.

    Attributes:
        prefix: before the network's names, such as ``state_dict.module.``.
        names: from a name in the file to the network's, or to the rest after the prefix.
        deeper: names that a larger network of the same family would have.
        strangers: names of the other tensors; of those beside the network's nest only the nest.
        others: prefixes under which the file holds such a network, too.
    """

    prefix: str
    names: Mapping[str, str]
    deeper: tuple[str, ...]
    strangers: tuple[str, ...]
    others: tuple[str, ...]


def find(
    names: Collection[str], backbone: Backbone, known: Collection[str], key: str = ""
) -> Layout:
    """Find the prefix whose rest explains most of a backbone.

    Of equal ones, a network goes before its copies (EMA, SWA, teacher, key encoder), then the
    shortest path counts, then the first in the file.

    Args:
        names: of the file's tensors.
        backbone: to look for.
        known: torchvision's names of all its tensors, without classifier.
        key: part of the path to the wanted one, such as ``state_dict_ema``.

    Raises:
        ValueError: no prefix explains half of the backbone, or none with that key does.
    """
    cache: dict[str, str | None] = {}

    def own(rest: str) -> str | None:
        if rest not in cache:
            cache[rest] = next((name for name in _forms(rest, backbone) if name in known), None)
        return cache[rest]

    counts = Counter(
        prefix
        for name in names
        if name.endswith(("weight", "running_var"))
        for prefix, rest in _splits(name)
        if own(rest)
    )
    by_name = {
        prefix: {name: own(name[len(prefix) :]) for name in names if name.startswith(prefix)}
        for prefix, count in counts.items()
        if count >= max(counts.values()) / 2
    }
    matched = {prefix: {n for n, own in names.items() if own} for prefix, names in by_name.items()}
    covered = {prefix: len(set(filter(None, own.values()))) for prefix, own in by_name.items()}
    order = sorted(
        covered,
        key=lambda prefix: (-covered[prefix], bool(_COPY.search(prefix)), prefix.count(".")),
    )
    enough = [prefix for prefix in order if covered[prefix] >= _ENOUGH * len(known)]
    if not enough:
        best = max(covered.values(), default=0)
        raise ValueError(
            f"only {best} of the {len(known)} tensors of the network are in it (it has "
            f"{listed(sorted(names))})"
        )
    chosen = [prefix for prefix in enough if not key or f".{key.strip('.')}." in f".{prefix}"]
    if not chosen:
        keys = [prefix.rstrip(".") or "no key" for prefix in _apart(enough, matched)]
        raise ValueError(f"it holds no such network under {key!r}: choose one of {listed(keys)}")
    prefix = chosen[0]
    others = _apart([prefix, *enough], matched)[1:]
    inside = by_name[prefix]
    patterns = {_pattern(name) for name in known}
    strangers, deeper = [], []
    for name in names:
        if inside.get(name) or name.endswith("num_batches_tracked"):
            continue
        if any(name.startswith(other) for other in others):
            continue
        rest = name.removeprefix(prefix)
        if name in inside and any(_pattern(form) in patterns for form in _forms(rest, backbone)):
            deeper.append(name)
        else:
            strangers.append(name)
    return Layout(
        prefix=prefix,
        names={name: known or name[len(prefix) :] for name, known in inside.items()},
        deeper=tuple(deeper),
        strangers=tuple(_shown(strangers, prefix)),
        others=tuple(others),
    )


def recognise(tensors: Mapping[str, np.ndarray], input_range: str = IMAGENET) -> tuple[Card, str]:
    """Return what a file of a known project tells by its tensors.

    Args:
        tensors: arrays by name.
        input_range: of the backbone with its ImageNet weights.

    Returns:
        The card, and the end of a sentence on the reason where it is no more than likely.
    """
    rows = {len(value) for value in tensors.values() if value.ndim == 2}
    if any(name.endswith("op_threshs") for name in tensors):  # TorchXRayVision's alone
        return Card(input_range="xrv", findings=_XRV_FINDINGS if 18 in rows else None), ""
    chexnet = [len(v) for name, v in tensors.items() if "densenet121.classifier.0." in name]
    if 14 in chexnet:
        card = Card(input_range=IMAGENET, findings=_CHEXNET_FINDINGS)
        return card, "has the names and 14 outputs that CheXNet's networks have"
    if chexnet or any(f".{part}" in f".{name}" for name in tensors for part in REFERENCE):
        return Card(input_range=input_range), ""
    stem = next((name for name, value in tensors.items() if _is_grey_stem(name, value)), None)
    if 1000 in rows and stem is None:
        return Card(input_range=input_range), "has 1000 outputs as ImageNet's networks have"
    last = [name for name, value in tensors.items() if value.ndim == 2 and len(value) == 18]
    classifies = any(name.endswith(("classifier.weight", "fc.weight")) for name in last)
    if classifies and stem and _least_input(tensors, stem) > _WIDE_INPUT:
        card = Card(input_range="xrv", findings=_XRV_FINDINGS)
        return card, "has 18 outputs and wide grey inputs as TorchXRayVision's networks have"
    return Card(), ""


def _is_grey_stem(name: str, value: np.ndarray) -> bool:
    return name.endswith(("conv0.weight", "conv1.weight")) and value.shape[1:] == (1, 7, 7)


def _least_input(tensors: Mapping[str, np.ndarray], stem: str) -> float:
    """Return a magnitude that some inputs of a network reach, by its first batch norm; 0 if none.

    The root mean square of a channel is at most the largest input times the sum of the magnitudes
    in its kernel.
    """
    norm = stem.replace("conv0.weight", "norm0").replace("conv1.weight", "bn1")
    mean, var = (tensors.get(f"{norm}.running_{leaf}") for leaf in ("mean", "var"))
    if mean is None or var is None:
        return 0.0
    kernel = np.abs(tensors[stem]).sum(axis=(1, 2, 3), dtype=np.float64)
    square = np.square(mean, dtype=np.float64) + np.maximum(var, 0)
    return float((np.sqrt(square[kernel > 0]) / kernel[kernel > 0]).max(initial=0))


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """Yield each prefix that ends at a dot, the empty one first, and the rest."""
    at = 0
    while at >= 0:
        yield name[:at], name[at:]
        at = name.find(".", at) + 1 or -1


def _forms(rest: str, backbone: Backbone) -> Iterable[str]:
    """Yield torchvision's names of a tensor of the network, its features, or numbered children."""
    rest = _WRAPPED.sub("", rest)
    yield backbone.torchvision_name(rest.removeprefix(BASE))
    yield backbone.torchvision_name(f"features.{rest}")
    if rest[:1].isdigit():
        yield backbone.torchvision_name(f"backbone.{rest}")


def _shown(names: Iterable[str], prefix: str) -> list[str]:
    """Name tensors outside the network's nest, and many beside it, by the nest that they are in."""
    path = prefix.split(".")[:-1]
    nests = {}
    for name in names:
        parts, shared = name.split("."), 0
        while shared < len(path) and parts[shared : shared + 1] == path[shared : shared + 1]:
            shared += 1
        nests[name] = shared, ".".join(parts[: shared + 1])
    sizes = Counter(nest for _, nest in nests.values())
    shown = [
        name if shared >= len(path) - (sizes[nest] <= _FEW) else nest
        for name, (shared, nest) in nests.items()
    ]
    return list(dict.fromkeys(shown))


def _apart(prefixes: list[str], matched: Mapping[str, set[str]]) -> list[str]:
    """Return prefixes whose networks share no tensor with those before them."""
    apart: list[str] = []
    for prefix in prefixes:
        if all(matched[prefix].isdisjoint(matched[other]) for other in apart):
            apart.append(prefix)
    return apart


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)
