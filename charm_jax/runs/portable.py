"""Keep a model in a folder of its own, which works without its run and names nobody.

| file | content |
| --- | --- |
| ``model.safetensors`` | weights, momentum branch and memory bank |
| ``config.json`` | architecture, findings, normalisation, and the config of the run |
| ``split.json``, ``environment.json`` | those of the run |
| ``cases.csv``, ``patients.csv``, ``trained_on.txt`` | its cases, by digests of their names |
| ``bank/`` | description, and cases of its own, of a bank that was made after training |
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState
from charm_jax.runs.banks import StoredBank
from charm_jax.runs.folder import read_json, read_record
from charm_jax.runs.records import About, Bank
from charm_jax.weights import files
from charm_jax.weights.card import Card
from data_pipelines.errors import InputError, listed

FILE, BANK, THUMBNAILS = "model.safetensors", "bank", "thumbnails"
FORMAT = 1  # of the folder; a later version that changes it counts on
_PARTS = ("params", "batch_stats", "momentum", "memory")


def is_portable(directory: Path) -> bool:
    """Whether a folder holds a portable model."""
    return (directory / FILE).is_file()


def thumbnail_path(directory: Path, case: str) -> Path:
    """Return where a portable model with thumbnails keeps that of a case of its evidence."""
    digest = hashlib.sha256(case.encode(errors="surrogateescape")).hexdigest()
    return directory / THUMBNAILS / f"{digest[:16]}.png"


def write_weights(directory: Path, state: TrainState, card: Card) -> None:
    """Write the weights that predictions use, the momentum branch and the bank.

    Args:
        state: without an average of the weights.
        card: metadata of the file.
    """
    tensors = {name: np.asarray(value) for name, value in _leaves(state).items()}
    files.write(directory / FILE, tensors, card)


def read_weights(directory: Path, like: TrainState) -> TrainState:
    """Read weights, momentum branch and bank.

    Args:
        like: a state, or the shapes of one, of the same network.

    Raises:
        InputError: the file is damaged, or of another network than ``config.json`` tells.
    """
    path = directory / FILE
    tensors, wanted = files.read(path), _leaves(like)
    faults = [f"missing {name}" for name in wanted if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        value, shape = tensors[name], wanted[name].shape
        if value.shape != shape or value.dtype != wanted[name].dtype:
            faults.append(
                f"{name} is {value.dtype} {value.shape}, not {wanted[name].dtype} {shape}"
            )
        elif value.dtype.kind == "f" and not np.isfinite(value).all():
            faults.append(f"{name} is not finite")
    if faults:
        raise InputError(
            f"{path} does not fit {directory / 'config.json'} ({listed(sorted(faults))}): copy the "
            "whole folder again."
        )
    tree = unflatten_dict({tuple(n.split("/")): jnp.asarray(tensors[n]) for n in wanted})
    return like.replace(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key(0),
        params=tree["params"],
        batch_stats=tree["batch_stats"],
        momentum=Momentum(**tree["momentum"]) if "momentum" in tree else None,
        memory=MemoryBank(**tree["memory"]) if "memory" in tree else None,
        average=None,
    )


def _leaves(state: TrainState) -> dict[str, Any]:
    """Return the arrays of a state by name; a part that the network lacks has none."""
    tree = {}
    for name in _PARTS:
        part = getattr(state, name)
        if isinstance(part, Momentum | MemoryBank):
            part = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        if part is not None:
            tree[name] = part
    return flatten_dict(tree, sep="/")


def read_about(directory: Path) -> dict[str, Any]:
    """Read ``config.json``.

    Raises:
        InputError: it is missing, damaged or of a later version.
    """
    path = directory / "config.json"
    about = read_json(path)
    version, newest = about.get("format"), FORMAT
    if type(version) is int and version > newest:
        raise InputError(
            f"{path} was written by version {about.get('charm_jax')}: install that version of "
            "charm-jax or a later one."
        )
    return read_record(path, About)


def read_bank(directory: Path, state: TrainState) -> StoredBank | None:
    """Return the description of a bank that was made after training; None for training's."""
    path = directory / BANK / "memory.json"
    return (
        StoredBank(path.parent, state.memory, read_record(path, Bank)) if path.is_file() else None
    )
