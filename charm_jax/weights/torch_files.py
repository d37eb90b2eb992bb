"""Read files of PyTorch, its zip archives and those of before version 1.6, without PyTorch."""

import io
import math
import mmap
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from charm_jax.weights.torch_pickle import Storage, Tensor, unpickle

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # magic number and version
_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
_MOST_AXES = 32

Elements = dict[str, np.ndarray]


def load(path: Path) -> tuple[Any, Elements]:
    """Read a file.

    Returns:
        What ``torch_pickle.unpickle`` returns, and the elements of each storage by its key;
        floating-point ones are float32.

    Raises:
        ForeignError: it names a class or function other than those of tensors and containers.
        Exception: of many kinds: it is none of PyTorch's, truncated, or contradicts itself.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start == _ZIP:
            return _from_zip(path)
        if not start.startswith(_PICKLE):
            raise ValueError("it does not begin as PyTorch's files do")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _from_pickles(content)


def _from_zip(path: Path) -> tuple[Any, Elements]:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, as PyTorch's files are not")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are larger than the whole")
        names = [part.filename for part in parts]
        roots = [name[:-8] for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1 or f"{roots[0]}constants.pkl" in names:
            raise ValueError("it is another archive, such as TorchScript")
        root = roots[0]
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it is of a big-endian machine")
        content, storages = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))
        elements = {
            key: _elements(storage, archive.read(f"{root}data/{key}"))
            for key, storage in storages.items()
        }
    return content, elements


def _from_pickles(file: mmap.mmap) -> tuple[Any, Elements]:
    """Read pickles in a row: magic number, version, machine, content, order of the storages."""
    (magic, _), (version, _), (machine, _) = (unpickle(file) for _ in range(3))
    if (magic, version) != _LEGACY or not machine["little_endian"]:
        raise ValueError("it is of no known version of PyTorch")
    content, storages = unpickle(file)
    order, _ = unpickle(file)
    if sorted(order) != sorted(storages):
        raise ValueError("it lists other storages than it refers to")
    elements = {}
    for key in order:
        (size,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if size != storage.size:
            raise ValueError(f"storage {key!r} has {size} elements, not {storage.size}")
        elements[key] = _elements(storage, file.read(size * _dtype(storage).itemsize))
    return content, elements


def _dtype(storage: Storage) -> np.dtype:
    if storage.kind not in _DTYPES:
        raise ValueError(f"{storage.kind!r} is of no type that arrays have")
    return np.dtype(_DTYPES[storage.kind])


def _elements(storage: Storage, content: bytes) -> np.ndarray:
    dtype = _dtype(storage)
    if len(content) != storage.size * dtype.itemsize:
        raise ValueError(f"storage {storage.key!r} has {len(content)} bytes, not its elements'")
    values = np.frombuffer(content, dtype)
    with np.errstate(over="ignore"):  # overflow becomes infinite, and is refused as such
        return values.astype(np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype)


def array(tensor: Tensor, elements: Elements) -> np.ndarray:
    """Return a view of a storage.

    Raises:
        ValueError: the tensor does not lie in its storage, or repeats elements.
    """
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    if not isinstance(tensor.storage, Storage) or not isinstance(shape, tuple):
        raise ValueError("it has no storage or no shape")
    if not isinstance(strides, tuple) or not len(shape) == len(strides) <= _MOST_AXES:
        raise ValueError("it has no strides")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise ValueError("its shape or strides are no numbers from 0 up")
    values = elements[tensor.storage.key]
    count = math.prod(shape)
    if not count:
        return np.empty(shape, values.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if max(count, last + 1) > len(values):
        raise ValueError(f"its shape {shape} is larger than its storage of {len(values)} elements")
    steps = [step * values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps)
