"""The weights of a file in a network's state, and a network's state for a file."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from charm_jax.models import momentum
from charm_jax.models.backbones.backbone import Backbone
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState
from charm_jax.weights import torch_names
from charm_jax.weights.torch_names import Variables

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


def load(
    state: TrainState, tensors: Mapping[str, np.ndarray], backbone: Backbone, *, whole: bool
) -> tuple[TrainState, list[str]]:
    """A state with the weights of a file.

    A file of the reference's whole network fills everything: both branches, attention, classifier,
    running statistics, bank and cursor. The bank's cases are strangers: their labels and patients
    are unknown, and none is ever taken for a query's own.

    A file of a plain network, with torchvision's names or timm's, fills trunk and expansion block,
    of which the momentum branch becomes a copy; the classifier is left out and begins anew. With
    ``whole`` nothing may begin anew: the network must be a plain one, and the file's classifier
    must fit it.

    Args:
        state: a new one of the network to fill.
        tensors: name to array in torch's layout, as ``weights_file.read`` gives them.
        backbone: of the registry.
        whole: whether every number must come from the file, as an evaluation needs it.

    Returns:
        The state, and the names that were left out.

    Raises:
        ValueError: with every missing, unexpected, misshapen, contradictory or not finite name.
    """
    of_reference = any(name.startswith(_REFERENCE) for name in tensors)
    if of_reference:
        others = tuple(_BASE + name for name in _CLASSIFIERS)
    else:
        others = () if whole else _CLASSIFIERS
    left_out = sorted(name for name in tensors if name.startswith(others))
    kept = {name: value for name, value in tensors.items() if name not in left_out}
    if not of_reference:
        return _load_plain(state, kept, backbone, whole), left_out
    if state.memory is None:
        raise ValueError("it is of a CHARM network, not a plain one: set --config.model.charm=True")
    return _load_reference(state, kept, backbone), left_out


def _load_plain(
    state: TrainState, tensors: dict[str, np.ndarray], backbone: Backbone, whole: bool
) -> TrainState:
    renamed, in_file, faults = _renamed(tensors, backbone)
    if whole:
        _check_classifier(state, renamed, backbone)
    parts = ("trunk", "expansion", *(["classifier"] if whole else []))
    like = {
        name: {part: tree[part] for part in parts if part in tree}
        for name, tree in (("params", state.params), ("batch_stats", state.batch_stats))
    }
    new = backbone.not_in_files
    if not whole and new and not any(name.startswith(new) for name in renamed):
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
    """Refuses a plain file that does not say how its features become findings."""
    plain = state.memory is None
    bias = (state.params["classifier"] if plain else state.params["head"]["logits"])["bias"]
    names = [f"{backbone.classifier}.{leaf}" for leaf in ("weight", "bias")]
    outputs = [np.shape(tensors[name])[:1] for name in names if name in tensors]
    if outputs != [bias.shape] * len(names):
        raise ValueError(
            "it holds no classifier for these findings: train from it with charm_jax.train"
        )
    if not plain:
        raise ValueError("it is of a plain network, not CHARM: set --config.model.charm=False")


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
    return state.replace(
        params=loaded["params"],
        batch_stats=loaded["batch_stats"],
        momentum=Momentum(loaded["momentum_params"], loaded["momentum_batch_stats"]),
        memory=_bank(*(bank[name] for name in _BANK), state.memory),
    )


def _renamed(
    tensors: Mapping[str, np.ndarray], backbone: Backbone
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """The tensors by torchvision's names, those names to the file's, and contradictions."""
    renamed: dict[str, np.ndarray] = {}
    in_file: dict[str, str] = {}
    faults = []
    for name, value in tensors.items():
        plain = backbone.torchvision_name(name.removeprefix(_BASE))
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
    if features is not None:
        faults += torch_names.not_finite("memory_bank.memory", features)
    if cursor is not None and (cursor.size != 1 or cursor.item() not in range(slots)):
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
    plain network, which the reference does not have, gets torchvision's names.

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
