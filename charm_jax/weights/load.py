"""Load the weights of a file into a state, and convert a state to the tensors of a file."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from charm_jax.models import momentum
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.backbones.backbone import Backbone
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState
from charm_jax.weights import files, imagenet, torch_names
from charm_jax.weights.torch_names import Variables
from data_pipelines.errors import InputError

NAMED = ("random", "imagenet")  # first weights that need no file of the user's
_SHOWN = 4  # names that a description lists; further ones are counted
_REMEDIES = ("set --config.", "train from it")  # in faults that already name their remedy

# Prefixes that only the reference's files have.
_REFERENCE = ("spatial_attention.", "momentum_final_block.", "memory_bank.")
_BASE = "base_model."  # the reference's prefix of torchvision's names
_BANK = ("memory_bank.memory", "memory_bank.index")
# Torchvision's and timm's classifiers and TorchXRayVision's thresholds.
_CLASSIFIERS = ("classifier.", "fc.", "head.", "pre_logits.", "op_threshs")
# Case ids of a bank that was filled elsewhere: beyond those of any source, so that none equals a
# query's own.
_FOREIGN_CASES = 2**30


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """Describe a loaded weight file.

    Attributes:
        init_from: the config's value.
        tensors: number of tensors used.
        left_out: names of the other tensors.
    """

    init_from: str
    file: str
    sha256: str
    tensors: int
    left_out: list[str]


def initial_weights(
    state: TrainState, init_from: str, backbone: str, *, with_classifier: bool = False
) -> tuple[TrainState, WeightFile | None]:
    """Fill a new state with the weights that a run begins with.

    Args:
        init_from: ``random`` keeps the state; ``imagenet`` downloads torchvision's weights;
            everything else is the path of a weight file.
        with_classifier: whether the classifier must come from the file too, as in an evaluation.

    Returns:
        The state, and the file; None if random.

    Raises:
        InputError: the file is missing, cannot be fetched or read, or a tensor of it is missing,
            unexpected, misshapen, not finite or contradicts another.
    """
    if init_from == "random":
        return state, None
    if init_from == "imagenet":
        if backbone in imagenet.FILES:  # refuse before downloading
            files.import_torch("The file of ImageNet weights")
        path = imagenet.fetch(backbone)
    else:
        path = Path(init_from).expanduser()
    tensors = files.read(path)
    try:
        state, left_out = load(state, tensors, BACKBONES[backbone], with_classifier=with_classifier)
    except ValueError as error:
        known = any(remedy in str(error) for remedy in _REMEDIES)
        remedy = "" if known else "; give a file of this network, or choose the file's"
        raise InputError(
            f"{path} does not fit this network (config.model.backbone {backbone}): {error}{remedy}."
        ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    used = len(tensors) - len(left_out)
    return state, WeightFile(init_from, str(path), digest, used, left_out)


def describe(file: WeightFile | None) -> str:
    """Return a sentence on the weights that a run begins with."""
    if file is None:
        return "Weights: random."
    names, left_out = file.left_out, ""
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        left_out = f"; left out: {', '.join(names[:_SHOWN])}{more}"
    return f"Weights: {file.file}, {file.tensors} tensors{left_out}."


def load(
    state: TrainState,
    tensors: Mapping[str, np.ndarray],
    backbone: Backbone,
    *,
    with_classifier: bool = False,
) -> tuple[TrainState, list[str]]:
    """Fill a state with the tensors of a file.

    A file of the reference's CHARM network fills everything: both branches, attention, classifier,
    running statistics, bank and cursor. Labels and patients of the bank's cases are unknown, and
    none of them is ever taken for a query's own.

    A file with torchvision's or timm's names fills trunk and expansion block, and the momentum
    branch as a copy of the latter; the classifier stays random. ``with_classifier`` requires a
    baseline whose classifier the file fits.

    Args:
        state: a new state of the network to fill.
        tensors: arrays in torch's layout by name, from ``files.read``.

    Returns:
        The state, and the names that were left out.

    Raises:
        ValueError: with every missing, unexpected, misshapen, contradictory or not finite name.
    """
    of_reference = any(name.startswith(_REFERENCE) for name in tensors)
    if of_reference:
        others = tuple(_BASE + name for name in _CLASSIFIERS)
    else:
        others = () if with_classifier else _CLASSIFIERS
    left_out = sorted(name for name in tensors if name.startswith(others))
    kept = {name: value for name, value in tensors.items() if name not in left_out}
    if not of_reference:
        return _load_torchvision(state, kept, backbone, with_classifier), left_out
    if state.memory is None:
        raise ValueError("it holds CHARM, not a baseline: set --config.model.charm=True")
    return _load_reference(state, kept, backbone), left_out


def _load_torchvision(
    state: TrainState, tensors: dict[str, np.ndarray], backbone: Backbone, with_classifier: bool
) -> TrainState:
    renamed, in_file, faults = _renamed(tensors, backbone)
    parts = ["trunk", "expansion"]
    if with_classifier:
        _check_classifier(state, renamed, backbone)
        parts.append("classifier")
    like = {
        name: {part: tree[part] for part in parts if part in tree}
        for name, tree in (("params", state.params), ("batch_stats", state.batch_stats))
    }
    new = backbone.not_in_files
    if not with_classifier and new and not any(name.startswith(new) for name in renamed):
        ours = torch_names.to_torch(like, backbone)
        renamed |= {name: value for name, value in ours.items() if name.startswith(new)}
    loaded = torch_names.from_torch(renamed, like, backbone, in_file=in_file, other_faults=faults)
    params = {**state.params, **loaded["params"]}
    batch_stats = {**state.batch_stats, **loaded["batch_stats"]}
    branch = state.momentum
    if branch is not None:
        branch = momentum.copy_of(params["expansion"], batch_stats["expansion"])
    return state.replace(params=params, batch_stats=batch_stats, momentum=branch)


def _check_classifier(
    state: TrainState, tensors: Mapping[str, np.ndarray], backbone: Backbone
) -> None:
    """Refuse a file with torchvision's names whose classifier cannot be used."""
    baseline = state.memory is None
    bias = (state.params["classifier"] if baseline else state.params["head"]["logits"])["bias"]
    names = [f"{backbone.classifier}.{leaf}" for leaf in ("weight", "bias")]
    outputs = [np.shape(tensors[name])[:1] for name in names if name in tensors]
    if outputs != [bias.shape] * len(names):
        raise ValueError(
            "it holds no classifier for these findings: train from it with charm-jax train"
        )
    if not baseline:
        raise ValueError("it holds a baseline, not CHARM: set --config.model.charm=False")


def _load_reference(
    state: TrainState, tensors: dict[str, np.ndarray], backbone: Backbone
) -> TrainState:
    bank = {name: np.asarray(tensors[name]) for name in _BANK if name in tensors}
    network = {name: value for name, value in tensors.items() if name not in bank}
    renamed, in_file, faults = _renamed(network, backbone)
    loaded = torch_names.from_torch(
        renamed,
        _variables(state),
        backbone,
        in_file=in_file,
        other_faults=faults + _bank_faults(bank, state.memory),
    )
    features, cursor = (bank[name] for name in _BANK)
    filled = (features != 0).any(axis=1)
    slots = np.arange(len(features), dtype=np.int32)
    return state.replace(
        params=loaded["params"],
        batch_stats=loaded["batch_stats"],
        momentum=Momentum(loaded["momentum_params"], loaded["momentum_batch_stats"]),
        memory=state.memory.replace(
            features=jnp.asarray(features, jnp.float32),
            case_ids=jnp.asarray(np.where(filled, _FOREIGN_CASES + slots, -1), jnp.int32),
            cursor=jnp.asarray(cursor.item(), jnp.int32),
            count=jnp.asarray(filled.sum(), jnp.int32),
        ),
    )


def _renamed(
    tensors: Mapping[str, np.ndarray], backbone: Backbone
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return tensors by torchvision's names, those names to the file's, and contradictions."""
    renamed: dict[str, np.ndarray] = {}
    in_file: dict[str, str] = {}
    faults = []
    for name, value in tensors.items():
        known = backbone.torchvision_name(name.removeprefix(_BASE))
        if known in renamed and not np.array_equal(renamed[known], value, equal_nan=True):
            faults.append(f"{name} contradicts {in_file[known]}")
        renamed.setdefault(known, value)
        in_file.setdefault(known, name)
    return renamed, in_file, faults


def _bank_faults(bank: dict[str, np.ndarray], like: MemoryBank) -> list[str]:
    faults = [f"missing {name}" for name in _BANK if name not in bank]
    features, cursor = (bank.get(name) for name in _BANK)
    slots, dim = like.features.shape
    if features is not None:
        if features.shape != (slots, dim):
            fault = f"memory_bank.memory has shape {features.shape}, not {(slots, dim)}"
            if features.shape[1:] == (dim,):
                fault += f" (set --config.model.bank_size={len(features)})"
            faults.append(fault)
        faults += torch_names.not_finite("memory_bank.memory", features)
    if cursor is not None and (cursor.size != 1 or cursor.item() not in range(slots)):
        faults.append(f"memory_bank.index is {cursor.tolist()}, not a slot of {slots}")
    return faults


def to_reference(state: TrainState, backbone: Backbone) -> dict[str, np.ndarray]:
    """Return every tensor of the reference's state dict, the inverse of ``load``.

    The reference holds trunk and last block twice, as ``base_model.*`` and as ``backbone.*`` or
    ``final_block.*``. Its bank has features and cursor: labels, cases and patients are lost. The
    average of the weights is used if the state keeps one. A baseline gets torchvision's names.

    Raises:
        ValueError: it is a CHARM network without fusion or momentum branch.
    """
    if state.memory is not None and (state.momentum is None or "fusion" not in state.params):
        raise ValueError("the reference has no network without fusion or momentum branch")
    tensors = torch_names.to_torch(_variables(state), backbone)
    for name in [name for name in tensors if name.endswith("running_var")]:
        counter = name.removesuffix("running_var") + "num_batches_tracked"
        tensors[counter] = np.zeros((), np.int64)
    if state.memory is None:
        return tensors
    named = {}
    for name, value in tensors.items():
        if name.startswith((*_REFERENCE, "classifier.")):
            named[name] = value
        else:
            named[_BASE + name] = value
            named[backbone.reference_name(name)] = value
    named["memory_bank.memory"] = np.asarray(state.memory.features)
    named["memory_bank.index"] = np.asarray(state.memory.cursor, np.int64)
    return named


def _variables(state: TrainState) -> Variables:
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    variables = dict(state.average or weights)
    if state.momentum is not None:
        variables["momentum_params"] = state.momentum.params
        variables["momentum_batch_stats"] = state.momentum.batch_stats
    return variables
