"""Interpret the pickles of PyTorch's files: tensors, containers and numbers, and nothing else.

No module is imported and no class or function of a file is called: what a pickle may name is listed
here, and stands for itself.
"""

import dataclasses
import io
import mmap
import pickletools
import re
from collections.abc import Callable, Iterable
from typing import Any

# What fastai, Lightning and training scripts store beside the weights.
_PASSED_OVER = re.compile(
    r"argparse\.Namespace|fastcore\.foundation\.L|pathlib\.(_local\.)?(Posix|Windows)Path"
    r"|(builtins|__builtin__)\.(set|bytearray|complex)"
    r"|(lightning[._]fabric\.utilities\.data|pytorch_lightning\.utilities\.parsing)\.AttributeDict"
    r"|numpy\._?core\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|_codecs\.encode"
    r"|collections\.Counter|torch\.(device|bool|b?float\d+|u?int\d+|complex\d+)"
)
# Tensors that are no plain arrays, and the arguments of their functions.
_NO_ARRAY = re.compile(
    r"torch\._utils\._rebuild_(sparse_tensor|qtensor|meta_tensor_no_storage|tensor_v3)"
    r"|torch\.serialization\._get_layout|torch\.per_(tensor|channel)_affine"
)
_STORAGE = re.compile(r"torch\.(\w+Storage)|torch\.storage\.(UntypedStorage)")
# The memo can repeat what is long in a few bytes: nothing long is copied or searched twice.
_LONGEST_NAME, _MOST_ARGUMENTS = 100, 16


class ForeignError(ValueError):
    """Name a class or function of a pickle that is not listed here."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Describe elements that lie elsewhere in the file; ``kind`` is such as ``FloatStorage``."""

    kind: str
    key: str
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """Describe an array by its place in a storage, with strides in elements; nothing is checked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


@dataclasses.dataclass(frozen=True, eq=False)
class NoArray:
    """Stand for a tensor that is no plain array."""

    name: str


class PassedOver:
    """Stand for an object whose content has no meaning here."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Global:
    name: str


def _dict(pairs: Iterable[Any]) -> dict[Any, Any]:
    return {_key(name): value for name, value in pairs}


def _ordered_dict(*pairs: list[Any]) -> dict[Any, Any]:
    """Make a dict; Python 2 writes its pairs as a list, which serves once."""
    made = {}
    for some in pairs:
        made |= _dict(some)
        some.clear()
    return made


def _size(sides: Any) -> tuple[Any, ...]:
    if not isinstance(sides, tuple):
        raise ValueError("a size is no tuple")
    return sides


def _parameter(data: Any, *_: Any) -> Any:
    return data


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": lambda *fields: Tensor(*fields[:4]),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": lambda function, _, fields, __: _made(function, fields),
}


def _made(function: Any, arguments: Any) -> Any:
    """Return what stands for the result of a call."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise ValueError(f"a {type(function).__name__} is called")
    if len(arguments) > _MOST_ARGUMENTS:
        raise ValueError(f"{function.name} has {len(arguments)} arguments")
    if function.name in _FUNCTIONS:
        return _FUNCTIONS[function.name](*arguments)
    return NoArray(function.name) if _NO_ARRAY.fullmatch(function.name) else PassedOver()


def _key(name: Any) -> Any:
    """Check a key of a dict: hashing or naming nested ones could take for ever."""
    if name is not None and not isinstance(name, str | bytes | int | float | PassedOver):
        raise ValueError(f"a {type(name).__name__} is a key")
    return name


class _Machine:
    """Hold the stack of an unpickler; each method does an opcode or a part of one."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise ValueError("its stack is empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return tuple(values)

    def pop_to_mark(self) -> tuple[Any, ...]:
        return self.pop(max(0, len(self.stack) - self.marks.pop()))

    def name(self, *names: Any) -> None:
        if not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names):
            raise ValueError("a name is no text or too long")
        full = ".".join(names)
        known = full in _FUNCTIONS or any(
            pattern.fullmatch(full) for pattern in (_PASSED_OVER, _NO_ARRAY, _STORAGE)
        )
        if not known:
            raise ForeignError(full)
        self.push(_Global(full))

    def call(self) -> None:
        self.push(_made(*self.pop(2)))

    def extend(self, values: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, PassedOver):
            raise ValueError(f"a {type(target).__name__} is extended")

    def set_items(self, values: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update(_dict(pairs))
        elif not isinstance(target, PassedOver):
            raise ValueError(f"a {type(target).__name__} gets items")

    def build(self) -> None:
        """Drop the attributes of an object, such as the versions of a state dict's modules."""
        self.pop(1)
        if not isinstance(self.stack[-1], dict | PassedOver):
            raise ValueError(f"a {type(self.stack[-1]).__name__} gets attributes")

    def refer(self) -> None:
        """Push the storage that a reference describes."""
        (reference,) = self.pop(1)
        if len(reference) > _MOST_ARGUMENTS:
            raise ValueError(f"a reference has {len(reference)} parts")
        tag, kind, key, _, size, *view = reference
        named = _STORAGE.fullmatch(kind.name) if isinstance(kind, _Global) else None
        if tag != "storage" or named is None or any(part is not None for part in view):
            raise ValueError("a reference is to no storage, or to a part of one")
        if type(key) is not str or type(size) is not int or size < 0:
            raise ValueError("the key or size of a storage is none")
        storage = Storage(named[1] or named[2], key, size)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} is described in two ways")
        self.push(storage)


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
            *("SHORT_BINUNICODE", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES"),
        ),
        _Machine.push,
    ),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(PassedOver()),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "TUPLE": lambda machine, _: machine.push(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"), lambda machine, at: machine.memo.update({at: machine.stack[-1]})
    ),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, at: machine.push(machine.memo[at])),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.refer(),
}


def unpickle(file: io.BytesIO | mmap.mmap) -> tuple[Any, dict[str, Storage]]:
    """Interpret the pickle that begins here, and leave the file at its end.

    Args:
        file: of a kind that asks for no more memory than is left of it, whatever length it reads.

    Returns:
        Containers of numbers, text, ``Tensor`` and other stand-ins; and the storages that these
        refer to, by key.

    Raises:
        ForeignError: it names a class or function that is not listed here.
        Exception: of many kinds: it is none of PyTorch's.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        if opcode.name not in _OPCODES:
            raise ValueError(f"the opcode {opcode.name} is not used by PyTorch")
        _OPCODES[opcode.name](machine, argument)
    (result,) = machine.pop(1)
    return result, machine.storages
