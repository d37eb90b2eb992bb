"""Load the weights of a file into a state, and convert a state to the tensors of a file."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from charm_jax import __version__
from charm_jax.models import momentum
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.backbones.backbone import Backbone
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState
from charm_jax.weights import card as cards
from charm_jax.weights import files, imagenet, layouts, torch_names
from charm_jax.weights.card import Card
from charm_jax.weights.layouts import Layout
from charm_jax.weights.torch_names import Variables
from data_pipelines.errors import InputError, listed
from data_pipelines.loading.augment import IMAGENET
from data_pipelines.tables.findings import columns_of

NAMED = ("random", "imagenet")  # first weights that need no file of the user's
AUTO = "auto"  # the input range of the weights
# In faults that name their remedy.
_REMEDIES = ("set --config.", "train from it", "choose one of", "name each", "correct its")

_LOG = logging.getLogger(__name__)
_BANK = ("memory_bank.memory", "memory_bank.index")
_REFERENCE_LAST = "classifier.4"  # the reference's name of the last layer
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
        notes: further sentences on what was taken.
    """

    init_from: str
    file: str
    sha256: str
    tensors: int
    left_out: list[str]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Contents:
    """Hold what was read of a weight file.

    Attributes:
        init_from: the config's value.
        tensors: arrays by name.
        told: what the file, or its layout, tells.
        assumed: ends of sentences on what its layout only suggests.
    """

    init_from: str
    path: Path
    tensors: dict[str, np.ndarray]
    told: Card
    assumed: list[str]


def read(init_from: str, backbone: str) -> Contents:
    """Read a weight file and what it, or its layout, tells.

    Args:
        init_from: ``imagenet`` finds an installed or downloaded file; everything else is a path.
        backbone: name in ``BACKBONES``; empty if only the file can tell.

    Raises:
        InputError: the file is missing, or cannot be fetched or read.
    """
    if init_from == "imagenet":
        path = imagenet.fetch(backbone)
    else:
        path = Path(os.path.expanduser(init_from))  # that of Path fails without a home
    tensors, own = files.read(path), cards.read(path).entries()
    layout, reason = layouts.recognise(tensors, usual_range(own.get("backbone", backbone)))
    silent = {key: value for key, value in layout.entries().items() if key not in own}
    assumed = []
    if reason and silent and init_from != "imagenet":
        shown = [f"{key} {v}" if isinstance(v, str) else key for key, v in silent.items()]
        assumed = [f"{reason} and is taken to have their {' and '.join(shown)}"]
    return Contents(init_from, path, tensors, Card(**layout.entries() | own), assumed)


def usual_range(backbone: str) -> str:
    """Return the input range of a backbone with its ImageNet weights."""
    return BACKBONES[backbone].input_range if backbone in BACKBONES else IMAGENET


def input_range(init_from: str, backbone: str) -> str:
    """Return the input range of the weights that a run begins with: the backbone's if unknown.

    Raises:
        InputError: as ``read`` does.
    """
    if init_from in NAMED:
        return usual_range(backbone)
    return read(init_from, backbone).told.input_range or usual_range(backbone)


def initial_weights(
    state: TrainState,
    init_from: str,
    backbone: str,
    *,
    findings: Sequence[str] | None = None,
    values: Mapping[str, Any] | None = None,
    key: str = "",
) -> tuple[TrainState, WeightFile | None]:
    """Fill a new state with the weights that a run begins with.

    Args:
        init_from: ``random`` keeps the state; ``imagenet`` downloads torchvision's weights;
            everything else is the path of a weight file.
        findings: names of the state's outputs; None where they have none.
        values: what the file may tell otherwise, by the names of its card.
        key: part of the path to the network in a file that holds several.

    Returns:
        The state, and the file; None if random.

    Raises:
        InputError: the file is missing, cannot be fetched or read, or does not explain the network,
            or a tensor of it is misshapen, not finite or contradicts another.
    """
    if init_from == "random":
        return state, None
    contents = read(init_from, backbone)
    return fill(state, contents, backbone, findings=findings, values=values, key=key)


def fill(
    state: TrainState,
    contents: Contents,
    backbone: str,
    *,
    findings: Sequence[str] | None = None,
    with_classifier: bool = False,
    values: Mapping[str, Any] | None = None,
    key: str = "",
) -> tuple[TrainState, WeightFile]:
    """Fill a new state with the weights of a file; see ``initial_weights``.

    Args:
        with_classifier: whether the whole network must come from the file, as in an evaluation.
    """
    path, told = contents.path, contents.told
    try:
        loaded = load(
            state,
            contents.tensors,
            BACKBONES[backbone],
            findings=findings,
            with_classifier=with_classifier,
            told=told,
            key=key,
        )
    except ValueError as error:
        known = any(remedy in str(error) for remedy in _REMEDIES)
        remedy = "" if known else "; give a file of this network, or choose the file's"
        raise InputError(
            f"{path} does not fit this network (config.model.backbone {backbone}): {error}{remedy}."
        ) from error
    compared = {k: v for k, v in (values or {}).items() if loaded.charm or k != "retrieval_k"}
    notes = [*contents.assumed, *loaded.notes, *compare(told, compared)]
    file = WeightFile(
        init_from=contents.init_from,
        file=str(path),
        sha256=cards.sha256(path),
        tensors=loaded.tensors,
        left_out=loaded.left_out,
        notes=[f"{path} {note}." for note in notes],
    )
    return loaded.state, file


def describe(file: WeightFile | None) -> str:
    """Return sentences on the weights that a run begins with, one a line."""
    if file is None:
        return "Weights: random."
    left_out = f"; left out: {listed(file.left_out)}" if file.left_out else ""
    return "\n".join([f"Weights: {file.file}, {file.tensors} tensors{left_out}.", *file.notes])


def log(file: WeightFile) -> None:
    """Log what was loaded, as a warning where something is left out, lacking or not known."""
    _LOG.log(logging.WARNING if file.notes or file.left_out else logging.INFO, describe(file))


def compare(told: Card, values: Mapping[str, Any]) -> list[str]:
    """Return ends of sentences on what a file tells otherwise than a config, or not at all.

    Args:
        told: card of the file.
        values: of the config, by the names of the card's fields.
    """
    entries = told.entries()
    other = [
        f"{key} {entries[key]} (here {value})"
        for key, value in values.items()
        if key in entries and entries[key] != value
    ]
    silent = [f"{key} ({value} is taken)" for key, value in values.items() if key not in entries]
    notes = [f"is of {listed(other)}"] if other else []
    return [*notes, *([f"does not tell its {listed(silent)}"] if silent else [])]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Hold a filled state and what was not used of a file.

    Attributes:
        charm: whether the file holds CHARM.
        tensors: number of tensors used.
        left_out: names of the others.
        notes: ends of sentences that begin with the file's name.
    """

    state: TrainState
    charm: bool
    tensors: int
    left_out: list[str]
    notes: list[str]


def load(
    state: TrainState,
    tensors: Mapping[str, np.ndarray],
    backbone: Backbone,
    *,
    findings: Sequence[str] | None = None,
    with_classifier: bool = False,
    told: Card | None = None,
    key: str = "",
) -> Loaded:
    """Fill a state with the tensors of a file.

    The network is sought under every prefix. A file of the reference's CHARM network fills
    everything: both branches, attention, classifier, running statistics, bank and cursor. Patients
    of the bank's cases are unknown, labels too unless ``told``, and none of them is ever taken for
    a query's own. A file with torchvision's or timm's names fills trunk and expansion block, and
    the momentum branch as a copy of the latter.

    Rows of the last layer are matched by the names of their findings; what the file lacks keeps the
    state's values. A plain classifier without names is not used.

    Args:
        state: a new state of the network to fill.
        tensors: arrays in torch's layout by name, from ``files.read``.
        findings: names of the state's outputs; None where they have none.
        with_classifier: whether the whole network must come from the file; rows without names are
            then the state's in their order.
        told: what the file tells.
        key: part of the path to the network in a file that holds several.

    Raises:
        ValueError: the file does not explain the network, or a tensor is misshapen, contradictory
            or not finite; or one is missing, ``with_classifier``; or not every output has a name.
    """
    told = told or Card()
    _check_names(state, findings)
    parts = _backbone_of(state)
    known = set(torch_names.leaf_names(parts, backbone).values())
    layout = layouts.find(tensors, backbone, known, key)
    in_file, faults = _by_own_names(tensors, layout)
    named = {name: tensors[original] for name, original in in_file.items()}
    of_reference = any(name.startswith(layouts.REFERENCE) for name in named)
    if of_reference and is_plain(state):
        key = "model.charm=True" if state.memory is None else "preset=published"
        raise ValueError(f"it holds CHARM, not a linear classifier: set --config.{key}")
    last = _REFERENCE_LAST if of_reference else backbone.classifier
    if not of_reference:
        _rename_classifier(named, in_file, last, backbone.feature_dim)
        if with_classifier:
            _check_classifier(state, named, last)
    whole = of_reference or is_plain(state)
    like = parts
    if whole:
        like = _plain_variables(state) if is_plain(state) else _variables(state)
    ours = torch_names.to_torch(like, backbone)
    used = {name: named[name] for name in ours if name in named}
    notes = _taken(layout)
    if whole:
        rows, said = _rows(
            used, ours, last, told.findings, findings, whole=with_classifier, named=of_reference
        )
        notes += said
        if rows is None:
            used = {name: value for name, value in used.items() if not name.startswith(f"{last}.")}
        else:
            used |= rows
    matched = list(used)
    if not with_classifier:
        silent = (last, *(backbone.not_in_files if _lacks(named, backbone) else ()))
        begun = sorted(name for name in ours if name not in used and not name.startswith(silent))
        if begun:
            notes.append(f"lacks {listed(begun)}, which stay as they were initialised")
        used = ours | used
    bank = {name: named[name] for name in _BANK if name in named}
    if of_reference:
        faults += _bank_faults(bank, state.memory, needed=with_classifier)
    loaded = torch_names.from_torch(used, like, backbone, in_file=in_file, other_faults=faults)
    state = _filled(state, loaded)
    if bank:
        state = state.replace(memory=_bank(bank, state.memory, told, findings))
    taken = {in_file[name] for name in (*matched, *bank)}
    left_out = sorted(name for name in layout.strangers if name not in taken)
    count = len(layout.names) - len(layout.names.keys() & set(left_out))
    return Loaded(state, of_reference, count, left_out, notes)


def _output_bias(state: TrainState) -> Any:
    params = state.params
    return (params["classifier"] if is_plain(state) else params["head"]["logits"])["bias"]


def _check_names(state: TrainState, findings: Sequence[str] | None) -> None:
    n = len(_output_bias(state))
    if findings is not None and len(findings) != n:
        raise ValueError(f"{len(findings)} findings are named for {n} outputs: name each output")


def _by_own_names(
    tensors: Mapping[str, np.ndarray], layout: Layout
) -> tuple[dict[str, str], list[str]]:
    """Return the file's names by the network's, and faults."""
    in_file: dict[str, str] = {}
    faults = [f"unexpected {name}" for name in layout.deeper]
    for name, own in layout.names.items():
        first = in_file.setdefault(own, name)
        if not np.array_equal(tensors[first], tensors[name], equal_nan=True):
            faults.append(f"{name} contradicts {first}")
    return in_file, faults


def _rename_classifier(
    named: dict[str, np.ndarray], in_file: dict[str, str], last: str, dim: int
) -> None:
    """Give the only linear layer on the pooled features the name of the classifier."""
    if f"{last}.weight" in named:
        return
    layers = [name.removesuffix(".weight") for name in named if name.endswith(".weight")]
    found = [
        layer
        for layer in layers
        if named[f"{layer}.weight"].ndim == 2
        and named[f"{layer}.weight"].shape[1] == dim
        and np.shape(named.get(f"{layer}.bias")) == named[f"{layer}.weight"].shape[:1]
    ]
    if len(found) == 1:
        for leaf in ("weight", "bias"):
            named[f"{last}.{leaf}"] = named.pop(f"{found[0]}.{leaf}")
            in_file[f"{last}.{leaf}"] = in_file.pop(f"{found[0]}.{leaf}")


def _taken(layout: Layout) -> list[str]:
    if not layout.others:
        return []
    keys = [prefix.rstrip(".") for prefix in layout.others]
    return [
        f"holds several networks: {layout.prefix.rstrip('.') or 'the outermost'} is taken, not "
        f"{listed(keys)} (--config.model.init_key={keys[0]} takes that, key= in Python)"
    ]


def _rows(
    used: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    last: str,
    theirs: Sequence[str] | None,
    findings: Sequence[str] | None,
    *,
    whole: bool,
    named: bool,
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """Match the rows of the last layer by the names of their findings.

    Args:
        used: tensors of the file by the network's names.
        ours: tensors of the state.
        last: name of the layer.
        theirs: findings of the file's rows.
        findings: findings of the state's rows.
        whole: whether all rows must come from the file.
        named: whether rows without names may be taken in their order all the same.

    Returns:
        Weight and bias of the layer where they are not the file's, None where they begin new, and
        ends of sentences on the match.

    Raises:
        ValueError: the file names more or fewer findings than it has rows, or lacks a row.
    """
    names = [f"{last}.{leaf}" for leaf in ("weight", "bias")]
    if any(name not in used for name in names):
        return {}, []
    weight, bias = (used[name] for name in names)
    fresh = {name: ours[name] for name in names}
    n, n_ours = len(bias), len(fresh[names[1]])
    if len(weight) != n or weight.shape[1:] != fresh[names[0]].shape[1:]:
        return {}, []  # misshapen
    if theirs is not None and len(theirs) != n:
        raise ValueError(f"it names {len(theirs)} findings for {n} outputs: correct its findings")
    if theirs is None or findings is None:
        if n == n_ours and (whole or named or theirs is not None):
            order = f": {listed(theirs or findings)}" if theirs or findings else ""
            what = "findings of its outputs" if theirs is None else "findings of the state"
            subject = "does not tell the" if theirs is None else "is not compared with the"
            return {}, [f"{subject} {what}: taken in this order{order}"]
        if whole:
            return {}, []  # the number of rows is a fault
        return None, [f"has {n} outputs without a match by name: the classifier begins new"]
    columns = columns_of(findings, theirs)
    found = columns >= 0
    lacking = [name for name, known in zip(findings, found, strict=True) if not known]
    if whole and lacking:
        raise ValueError(f"it has no output for {listed(lacking)}")
    rows = {}
    for name, values in zip(names, (weight, bias), strict=True):
        rows[name] = np.array(fresh[name])
        rows[name][found] = values[columns[found]]
    notes = []
    if n != n_ours or (columns != np.arange(n)).any():
        notes = [f"has the findings {listed(theirs)}: {found.sum()} of {n_ours} match by name"]
        notes[0] += f", and {listed(lacking)} begin new" if lacking else ""
    return rows, notes


def _lacks(named: Mapping[str, Any], backbone: Backbone) -> bool:
    """Whether a file has nothing of the layers that no ImageNet file has."""
    return not any(name.startswith(backbone.not_in_files) for name in named)


def _filled(state: TrainState, loaded: Variables) -> TrainState:
    params = {**state.params, **loaded["params"]}
    batch_stats = {**state.batch_stats, **loaded["batch_stats"]}
    branch = state.momentum
    if "momentum_params" in loaded:
        branch = Momentum(loaded["momentum_params"], loaded["momentum_batch_stats"])
    elif branch is not None:
        branch = momentum.copy_of(params["expansion"], batch_stats["expansion"])
    return state.replace(params=params, batch_stats=batch_stats, momentum=branch)


def _backbone_of(state: TrainState) -> Variables:
    return {
        name: {part: tree[part] for part in ("trunk", "expansion") if part in tree}
        for name, tree in (("params", state.params), ("batch_stats", state.batch_stats))
    }


def _check_classifier(state: TrainState, named: Mapping[str, np.ndarray], last: str) -> None:
    """Refuse a file with torchvision's names whose classifier cannot be used."""
    bias = _output_bias(state)
    names = [f"{last}.{leaf}" for leaf in ("weight", "bias")]
    outputs = [np.shape(named[name])[:1] for name in names if name in named]
    if outputs != [bias.shape] * len(names):
        raise ValueError(
            "it holds no classifier for these findings: train from it with charm-jax train"
        )
    if not is_plain(state):
        raise ValueError("it holds a baseline, not CHARM: set --config.model.charm=False")


def _bank(
    bank: Mapping[str, np.ndarray],
    like: MemoryBank,
    told: Card,
    findings: Sequence[str] | None,
) -> MemoryBank:
    """Return the file's bank, its labels matched by name."""
    features, cursor = (bank[name] for name in _BANK)
    filled = (features != 0).any(axis=1)
    slots = np.arange(len(features), dtype=np.int32)
    labels = np.full(like.labels.shape, -1, np.int8)
    theirs = told.findings or ()
    columns = columns_of(theirs if findings is None else findings, theirs)
    for own, column in enumerate(columns[: labels.shape[1]]):
        if column >= 0:
            labels[:, own] = told.labels(theirs[column], len(slots))
    return like.replace(
        features=jnp.asarray(features, jnp.float32),
        labels=jnp.asarray(labels),
        case_ids=jnp.asarray(np.where(filled, _FOREIGN_CASES + slots, -1), jnp.int32),
        cursor=jnp.asarray(cursor.item(), jnp.int32),
        count=jnp.asarray(filled.sum(), jnp.int32),
    )


def _bank_faults(bank: dict[str, np.ndarray], like: MemoryBank, *, needed: bool) -> list[str]:
    faults = [f"missing {name}" for name in _BANK if name not in bank and (needed or bank)]
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
    average of the weights is used if the state keeps one. A baseline gets torchvision's names, and
    so does a network whose stored cases vote, which is a plain one without the vote.

    Raises:
        ValueError: it is a CHARM network without fusion or momentum branch, or a voting one with
            fusion.
    """
    plain = is_plain(state)
    if plain and "fusion" in state.params:
        raise ValueError("no file format has a linear classifier on features with fusion")
    if not plain and (state.momentum is None or "fusion" not in state.params):
        raise ValueError("the reference has no network without fusion or momentum branch")
    variables = _plain_variables(state) if plain else _variables(state)
    tensors = torch_names.to_torch(variables, backbone)
    for name in [name for name in tensors if name.endswith("running_var")]:
        counter = name.removesuffix("running_var") + "num_batches_tracked"
        tensors[counter] = np.zeros((), np.int64)
    if plain:
        return tensors
    named = {}
    for name, value in tensors.items():
        if name.startswith((*layouts.REFERENCE, "classifier.")):
            named[name] = value
        else:
            named[layouts.BASE + name] = value
            named[backbone.reference_name(name)] = value
    named["memory_bank.memory"] = np.asarray(state.memory.features)
    named["memory_bank.index"] = np.asarray(state.memory.cursor, np.int64)
    return named


def card(
    state: TrainState,
    backbone: str,
    findings: Sequence[str] | None = None,
    **known: Any,
) -> Card:
    """Return the card of a state's file.

    Args:
        state: to be written.
        backbone: name in ``BACKBONES``.
        findings: names of its outputs.
        **known: further fields, which the state does not tell: ``image_size``, ``channels``,
            ``input_range`` and ``retrieval_k``.

    Raises:
        InputError: there is not one name for each output.
    """
    bank = None if is_plain(state) else state.memory
    names = None if findings is None else tuple(findings)
    try:
        _check_names(state, names)
    except ValueError as error:
        raise InputError(f"{error}.") from None
    return Card(
        charm_jax=__version__,
        backbone=backbone,
        charm=bank is not None,
        findings=names,
        bank_size=None if bank is None else len(bank.case_ids),
        bank_labels=None
        if bank is None or names is None
        else cards.bank_labels(np.asarray(bank.labels), names),
        **known,
    )


def is_plain(state: TrainState) -> bool:
    """Whether its classifier is linear: a baseline, or a network whose stored cases vote."""
    return "classifier" in state.params


def _plain_variables(state: TrainState) -> Variables:
    weights = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    return {
        name: {part: tree[part] for part in ("trunk", "expansion", "classifier") if part in tree}
        for name, tree in weights.items()
    }


def _variables(state: TrainState) -> Variables:
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    variables = dict(state.average or weights)
    if state.momentum is not None:
        variables["momentum_params"] = state.momentum.params
        variables["momentum_batch_stats"] = state.momentum.batch_stats
    return variables
