"""Read and write weight files, without running any code that is in them."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from charm_jax.weights import card, torch_files
from charm_jax.weights.card import Card
from charm_jax.weights.torch_pickle import ForeignError, NoArray, Tensor
from data_pipelines.atomic_files import whole_path
from data_pipelines.errors import InputError, listed

# A suffix ".tar" is that of ".pth.tar".
SUFFIXES = {"torch": (".pth", ".pt", ".bin", ".ckpt", ".tar"), "safetensors": (".safetensors",)}
ENDINGS = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_NESTS = (Mapping, list, tuple)
# Entries of a file, characters of a name and of all names above others.
_MOST, _LONGEST, _TOGETHER = 1_000_000, 1_000, 100_000_000


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a .safetensors, .pth, .pt, .bin or .ckpt file by name.

    Tensors in nested dicts are named by the path to them, ``state_dict.conv1.weight``.
    Floating-point tensors become float32. Tensors that share memory in the file do so here.

    Raises:
        InputError: the file is missing, truncated, no weight file, or holds more than weights.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the path of a weight file.")
    if not path.is_file():
        raise InputError(f"There is no weight file {path}: give the path of one.")
    tensors = _read_torch(path) if kind_of(path) == "torch" else _read_safetensors(path)
    if not tensors:
        raise InputError(f"{path} holds no tensors: give a file with a state dict.")
    for name in tensors:
        if not name.isprintable():  # nor can it be logged
            raise _unreadable(path, f"it has a tensor named {name!a}")
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray], told: Card | None = None) -> None:
    """Write tensors atomically, as .safetensors or as a torch state dict.

    Args:
        path: of the file.
        tensors: arrays by name.
        told: what the numbers mean: metadata of a .safetensors file, a JSON beside a torch file.

    Raises:
        InputError: the suffix belongs to neither kind, or PyTorch is needed and not installed.
        OSError: the disk is full or cannot be written.
    """
    kind = kind_of(path)
    if told is not None:
        card.check(path, told)
    own = {name: np.array(value, order="C") for name, value in tensors.items()}
    # Serialised in memory, since the errors of the libraries' own writers hide a full disk.
    if kind == "safetensors":
        content = safetensors.numpy.save(own, None if told is None else card.metadata(told))
    else:
        torch = _import_torch(path)
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(value) for name, value in own.items()}, buffer)
        content = buffer.getvalue()
    with whole_path(path) as draft:
        draft.write_bytes(content)
        if told is not None and kind == "torch":
            card.write_beside(path, told, hashlib.sha256(content).hexdigest())


def kind_of(path: Path) -> str:
    """Return ``torch`` or ``safetensors``, by the suffix.

    Raises:
        InputError: the suffix belongs to neither.
    """
    for kind, suffixes in SUFFIXES.items():
        if path.suffix.casefold() in suffixes:
            return kind
    raise InputError(f"{path} has no suffix of a weight file: use one of {', '.join(ENDINGS)}.")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    with np.errstate(over="ignore"):  # overflow becomes infinite, and is refused as such
        return {
            name: value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
            for name, value in loaded.items()
        }


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded, elements = torch_files.load(path)
        parts = loaded if isinstance(loaded, list | tuple) else [loaded]
        by_name = any(isinstance(part, Mapping) for part in parts)
        flat = _flat(loaded) if by_name else {}
    except ForeignError as error:
        raise InputError(
            f"{path} holds more than weights, such as {str(error)[:80]!r}, which could run code: "
            "ask its author for the state dict alone, torch.save(model.state_dict(), FILE), best "
            "as .safetensors."
        ) from error
    except Exception as error:  # of many kinds, for a file that is not PyTorch's
        raise _unreadable(path, str(error) or type(error).__name__) from error
    if not by_name:
        kind = "tensor" if isinstance(loaded, Tensor) else type(loaded).__name__
        raise InputError(f"{path} holds a {kind}: give a file with a state dict, tensors by name.")
    tensors = {
        name: _array(path, name, value, elements)
        for name, value in flat.items()
        if isinstance(value, Tensor | NoArray)
    }
    if not tensors and isinstance(loaded, Mapping) and loaded:
        raise InputError(
            f"{path} holds no tensors by name but {listed(sorted(map(str, loaded)))}: save the "
            "state dict in it alone."
        )
    return tensors


def _array(path: Path, name: str, value: Any, elements: torch_files.Elements) -> np.ndarray:
    if isinstance(value, NoArray):
        raise _unreadable(path, f"{name} is no plain array but of {value.name}")
    try:
        return torch_files.array(value, elements)
    except (ValueError, OverflowError) as error:
        raise _unreadable(path, f"{name}: {error}") from error


def _flat(nest: Any) -> dict[str, Any]:
    """Return what dicts and lists hold, by the path to it.

    Raises:
        ValueError: there is no end of it, as where a list holds itself.
    """
    found, todo, together = {}, [("", nest)], 0
    for _ in range(_MOST):
        if not todo:
            return found
        path, value = todo.pop()
        if not isinstance(value, _NESTS):
            found[path] = value
            continue
        together += len(path) * len(value)
        if together > _TOGETHER:
            break
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        below = [(f"{path}.{name}" if path else str(name), part) for name, part in items]
        todo += reversed(below)
        if len(todo) > _MOST or any(len(name) > _LONGEST for name, _ in below):
            break
    raise ValueError("it nests too many or too long names")


def _unreadable(path: Path, reason: str) -> InputError:
    first = reason.strip().splitlines()[0].rstrip(".")[:200]
    return InputError(f"{path} cannot be read ({first}): fetch or make the file again.")


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f'{path} needs PyTorch to be written: pip install "charm-jax[torch]", or write a '
            ".safetensors file."
        ) from None
    return torch
