"""Read and write weight files, without running any code that is in them."""

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from charm_jax.weights import card
from charm_jax.weights.card import Card
from data_pipelines.atomic_files import whole_path
from data_pipelines.errors import InputError, listed

# A suffix ".tar" is that of ".pth.tar".
SUFFIXES = {"torch": (".pth", ".pt", ".bin", ".ckpt", ".tar"), "safetensors": (".safetensors",)}
ENDINGS = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_NESTS = (Mapping, list, tuple)
_MAGIC = (b"PK\x03\x04", b"\x80")  # first bytes of torch's zip archives and, up to 1.5, pickles
# Classes that fastai, Lightning and training scripts store beside the weights.
_IGNORED = (
    "argparse.Namespace",
    "fastcore.foundation.L",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


class _Ignored:
    """Replace a class of ``_IGNORED``: accept any state and do nothing."""

    def __init__(self, *_args: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a .safetensors, .pth, .pt, .bin or .ckpt file by name.

    Tensors in nested dicts are named by the path to them, ``state_dict.conv1.weight``.
    Floating-point tensors become float32. Torch files are read with ``weights_only``: no code in
    them is run.

    Raises:
        InputError: the file is missing, truncated, no weight file, or holds more than weights; or
            it needs PyTorch, which is not installed.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the path of a weight file.")
    if not path.is_file():
        raise InputError(f"There is no weight file {path}: give the path of one.")
    tensors = _read_torch(path) if kind_of(path) == "torch" else _read_safetensors(path)
    if not tensors:
        raise InputError(f"{path} holds no tensors: give a file with a state dict.")
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
        torch = import_torch(path)
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
    torch = import_torch(path)
    with path.open("rb") as file:
        if not file.read(4).startswith(_MAGIC):
            raise _unreadable(path, "it does not begin as PyTorch's files do")
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # they advise to run the code in the file
            torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED]),
        ):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds more than weights, and code in such a file could do anything, so "
                "that no pickled network is loaded: ask its author for the state dict alone, "
                "torch.save(model.state_dict(), FILE), best as .safetensors."
            ) from error
        # The text before it advises to load the file without weights_only.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]
        raise _unreadable(path, reason or type(error).__name__) from error
    parts = loaded if isinstance(loaded, list | tuple) else [loaded]
    if not any(isinstance(part, Mapping) for part in parts):
        raise InputError(
            f"{path} holds a {type(loaded).__name__}: give a file with a state dict, tensors by "
            "name."
        )
    tensors = {
        name: _as_numpy(torch, path, name, value)
        for name, value in _flat(loaded)
        if isinstance(value, torch.Tensor)
    }
    if not tensors and isinstance(loaded, Mapping) and loaded:
        raise InputError(
            f"{path} holds no tensors by name but {listed(sorted(map(str, loaded)))}: save the "
            "state dict in it alone."
        )
    return tensors


def _as_numpy(torch: Any, path: Path, name: Any, value: Any) -> np.ndarray:
    value = value.to(torch.float32) if value.is_floating_point() else value
    try:
        return value.detach().numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without data, ...
        raise _unreadable(path, f"{name}: {error}") from error


def _flat(nest: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what dicts and lists hold, by the path to it."""
    for name, value in nest.items() if isinstance(nest, Mapping) else enumerate(nest):
        if isinstance(value, _NESTS):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unreadable(path: Path, reason: str) -> InputError:
    first = reason.strip().splitlines()[0].rstrip(".")[:200]
    return InputError(f"{path} cannot be read ({first}): fetch or make the file again.")


def import_torch(needed_by: Path | str) -> Any:
    """Return the module ``torch``.

    Raises:
        InputError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f'{needed_by} needs PyTorch: pip install "charm-jax[torch]", or convert the weights to '
            ".safetensors where PyTorch is."
        ) from None
    return torch
