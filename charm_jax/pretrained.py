"""Weights of torch as parameters and back: names, layouts, and what is loaded where."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from charm_jax import momentum
from charm_jax.backbones.backbone import Backbone
from charm_jax.memory_bank import MemoryBank
from charm_jax.momentum import Momentum
from charm_jax.state import TrainState

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The reference's names of what is not backbone.
_PARTS = {
    ("fusion", "conv1"): "spatial_attention.conv1",
    ("fusion", "conv3"): "spatial_attention.conv3",
    ("fusion", "conv5"): "spatial_attention.conv5",
    ("fusion", "merge"): "spatial_attention.spatial_att.0",
    ("head", "norm"): "classifier.0",
    ("head", "hidden"): "classifier.1",
    ("head", "logits"): "classifier.4",
}
# Beginnings of names that only the reference's files have.
_REFERENCE = ("spatial_attention.", "momentum_final_block.", "memory_bank.")
_BASE = "base_model."  # what the reference puts before the plain network's names
_BANK = ("memory_bank.memory", "memory_bank.index")
# What plain networks have for their own task: torchvision's and timm's classifiers and
# TorchXRayVision's thresholds.
_CLASSIFIERS = ("classifier.", "fc.", "head.", "pre_logits.", "op_threshs")
# Cases of a bank that was filled elsewhere: beyond the ids of any source, so that none is taken for
# the query's own.
_FOREIGN_CASES = 2**30

Variables = Mapping[str, PyTree]


def torch_names(variables: Variables, backbone: Backbone) -> dict[tuple[str, ...], str]:
    """The reference's name of every leaf.

    Args:
        variables: ``params``, ``batch_stats`` and, for the momentum branch, ``momentum_params`` and
            ``momentum_batch_stats``; of a CHARM network or a plain one.
        backbone: of the registry; it names its own layers.

    Returns:
        Leaf path, the collection first, to a name such as ``features.0.0.weight``.
    """
    return {path: _name(path, backbone) for path in flatten_dict(dict(variables))}


def _name(path: tuple[str, ...], backbone: Backbone) -> str:
    collection, *layers, leaf = path
    if collection.startswith("momentum"):
        stem = backbone.momentum_torch_name(tuple(layers))
    elif layers[0] in ("trunk", "expansion"):
        stem = backbone.torch_name(tuple(layers))
    elif layers[0] == "classifier":
        stem = backbone.classifier
    else:
        stem = _PARTS[tuple(layers)]
    return f"{stem}.{_LEAVES[leaf]}"


def from_torch(tensors: Mapping[str, np.ndarray], like: Variables, backbone: Backbone) -> Variables:
    """Parameters and statistics from tensors with the reference's names.

    Args:
        tensors: name to array in torch's layout (convolutions OIHW, linear layers [out, in]).
        like: variables that give names and shapes (arrays or ShapeDtypeStructs).
        backbone: of the registry.

    Returns:
        Variables shaped as ``like``, float32.

    Raises:
        ValueError: with every missing, unexpected or misshapen name.
    """
    _stop_at(_faults(tensors, like, backbone))
    return unflatten_dict(
        {
            path: jnp.asarray(_from_torch_layout(np.asarray(tensors[name])), jnp.float32)
            for path, name in torch_names(like, backbone).items()
        }
    )


def _faults(
    tensors: Mapping[str, np.ndarray],
    like: Variables,
    backbone: Backbone,
    in_file: Mapping[str, str] | None = None,
) -> list[str]:
    """What is wrong, by the names that the tensors have ``in_file``."""
    in_file = in_file or {}
    flat = flatten_dict(dict(like))
    wanted = {
        name: _torch_shape(flat[path].shape) for path, name in torch_names(like, backbone).items()
    }
    faults = [f"missing {name}" for name in wanted if name not in tensors]
    for name, value in tensors.items():
        if name in wanted:
            faults += _shape_fault(in_file.get(name, name), np.shape(value), wanted[name])
        elif _statistic_of(name) not in wanted:
            faults.append(f"unexpected {in_file.get(name, name)}")
    return faults


def _statistic_of(counter: str) -> str:
    """The running variance beside which torch keeps a counter; the network has no use for it."""
    return counter.removesuffix("num_batches_tracked") + "running_var"


def _shape_fault(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[str]:
    if shape == wanted:
        return []
    fault = f"{name} has shape {shape}, not {wanted}"
    if len(shape) == 4 and shape[0] == wanted[0] and shape[2:] == wanted[2:]:
        channels = (shape[1], wanted[1])
        if channels in ((1, 3), (3, 1)):
            fault += f" (its images have {channels[0]} channel{'s' * (channels[0] > 1)}: "
            fault += f"set --config.model.channels={channels[0]})"
    return [fault]


def to_torch(variables: Variables, backbone: Backbone) -> dict[str, np.ndarray]:
    """The inverse of ``from_torch``: arrays by the reference's names, in torch's layout."""
    flat = flatten_dict(dict(variables))
    names = torch_names(variables, backbone)
    return {names[path]: _to_torch_layout(np.asarray(value)) for path, value in flat.items()}


_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}


def _from_torch_layout(value: np.ndarray) -> np.ndarray:
    return value.transpose(_FROM_TORCH.get(value.ndim, range(value.ndim)))


def _to_torch_layout(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(_TO_TORCH.get(value.ndim, range(value.ndim))))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))


def load(
    state: TrainState, tensors: Mapping[str, np.ndarray], backbone: Backbone
) -> tuple[TrainState, list[str]]:
    """A state that begins with the weights of a file.

    A file of the reference's whole network fills everything: both branches, attention, classifier,
    running statistics, bank and cursor. The bank's cases are strangers: their labels and patients
    are unknown, and none is ever taken for a query's own.

    A file of a plain network, with torchvision's names or timm's, fills trunk and expansion block,
    of which the momentum branch becomes a copy; its classifier is of another task and is left out.

    Args:
        state: a new one of the network to fill.
        tensors: name to array in torch's layout, as ``weights_file.read`` gives them.
        backbone: of the registry.

    Returns:
        The state, and the names that were left out.

    Raises:
        ValueError: with every missing, unexpected, misshapen or contradictory name.
    """
    whole = any(name.startswith(_REFERENCE) for name in tensors)
    classifiers = tuple(_BASE + name for name in _CLASSIFIERS) if whole else _CLASSIFIERS
    left_out = sorted(name for name in tensors if name.startswith(classifiers))
    kept = {name: value for name, value in tensors.items() if name not in left_out}
    if not whole:
        return _load_plain(state, kept, backbone), left_out
    if state.memory is None:
        raise ValueError("it is of a CHARM network, not a plain one: set --config.model.charm=True")
    return _load_reference(state, kept, backbone), left_out


def _load_plain(
    state: TrainState, tensors: dict[str, np.ndarray], backbone: Backbone
) -> TrainState:
    renamed, in_file, faults = _renamed(tensors, backbone)
    like = {
        name: {part: tree[part] for part in ("trunk", "expansion") if part in tree}
        for name, tree in (("params", state.params), ("batch_stats", state.batch_stats))
    }
    new = backbone.not_in_files
    if new and not any(name.startswith(new) for name in renamed):
        ours = to_torch(like, backbone)
        renamed |= {name: value for name, value in ours.items() if name.startswith(new)}
    _stop_at(faults + _faults(renamed, like, backbone, in_file))
    loaded = from_torch(renamed, like, backbone)
    params = {**state.params, **loaded["params"]}
    batch_stats = {**state.batch_stats, **loaded["batch_stats"]}
    branch = state.momentum
    if branch is not None:
        branch = momentum.copy_of(params["expansion"], batch_stats["expansion"])
    return state.replace(params=params, batch_stats=batch_stats, momentum=branch)


def _load_reference(
    state: TrainState, tensors: dict[str, np.ndarray], backbone: Backbone
) -> TrainState:
    bank = {name: np.asarray(tensors[name]) for name in _BANK if name in tensors}
    network = {name: value for name, value in tensors.items() if name not in bank}
    renamed, in_file, faults = _renamed(network, backbone)
    like = _variables(state)
    faults += _faults(renamed, like, backbone, in_file)
    _stop_at(faults + _bank_faults(bank, state.memory))
    loaded = from_torch(renamed, like, backbone)
    return state.replace(
        params=loaded["params"],
        batch_stats=loaded["batch_stats"],
        momentum=Momentum(loaded["momentum_params"], loaded["momentum_batch_stats"]),
        memory=_bank(*(bank[name] for name in _BANK), state.memory),
    )


def _stop_at(faults: list[str]) -> None:
    if faults:
        raise ValueError("; ".join(faults))


def _renamed(
    tensors: Mapping[str, np.ndarray], backbone: Backbone
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """The tensors by torchvision's names, those names to the file's, and contradictions."""
    renamed: dict[str, np.ndarray] = {}
    in_file: dict[str, str] = {}
    faults = []
    for name, value in tensors.items():
        plain = backbone.plain_name(name.removeprefix(_BASE))
        if plain in renamed and not np.array_equal(renamed[plain], value, equal_nan=True):
            faults.append(f"{name} contradicts {in_file[plain]}")
        renamed.setdefault(plain, value)
        in_file.setdefault(plain, name)
    return renamed, in_file, faults


def _bank_faults(bank: dict[str, np.ndarray], like: MemoryBank) -> list[str]:
    faults = [f"missing {name}" for name in _BANK if name not in bank]
    features, cursor = (bank.get(name) for name in _BANK)
    slots, dim = like.features.shape
    if features is not None and features.shape != (slots, dim):
        fault = f"memory_bank.memory has shape {features.shape}, not {(slots, dim)}"
        if features.shape[1:] == (dim,):
            fault += f" (set --config.model.bank_size={len(features)})"
        faults.append(fault)
    if cursor is not None and (cursor.size != 1 or not 0 <= cursor.item() < slots):
        faults.append(f"memory_bank.index is {cursor.tolist()}, not a slot of {slots}")
    return faults


def _bank(features: np.ndarray, cursor: np.ndarray, like: MemoryBank) -> MemoryBank:
    filled = (features != 0).any(axis=1)
    slots = np.arange(len(features), dtype=np.int32)
    return like.replace(
        features=jnp.asarray(features, jnp.float32),
        case_ids=jnp.asarray(np.where(filled, _FOREIGN_CASES + slots, -1), jnp.int32),
        cursor=jnp.asarray(cursor.item(), jnp.int32),
        count=jnp.asarray(filled.sum(), jnp.int32),
    )


def to_reference(state: TrainState, backbone: Backbone) -> dict[str, np.ndarray]:
    """Every tensor of the reference's state dict: the inverse of ``load`` for such a file.

    The reference holds trunk and last block twice, as ``base_model.*`` and as ``backbone.*`` or
    ``final_block.*``; so does this. Of the bank it has features and cursor: labels, cases and
    patients stay behind. Of a state with an average of all weights, that is what is written. A
    plain network, which the reference does not have, gets torchvision's
    names.
    """
    tensors = to_torch(_variables(state), backbone)
    for name in [name for name in tensors if name.endswith("running_var")]:
        counter = name.removesuffix("running_var") + "num_batches_tracked"
        tensors[counter] = np.zeros((), np.int64)
    if state.momentum is None:
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
