"""Build dataclasses from plain JSON, and name the key that does not fit."""

import dataclasses
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any


def build(kind: Any, value: Any, key: str = "") -> Any:
    """Build a value of a type from plain JSON; keys that a dataclass lacks are left out.

    Args:
        kind: a dataclass, or a type that its fields may have: plain ones, ``dict[str, X]``,
            ``tuple[X, ...]``, ``tuple[X, X]``, ``X | None`` and ``Any``.
        key: of the value, for messages.

    Raises:
        ValueError: a key is missing, a value is of another type, or the dataclass refuses it.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        [known] = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else build(known, value, key)
    outer = origin or kind
    is_record = dataclasses.is_dataclass(kind)
    accepted = {tuple: list | tuple, float: float | int}.get(outer, Mapping if is_record else outer)
    if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
        raise ValueError(f"its {key or 'content'} is {reprlib.repr(value)}")
    if kind is float and not abs(value) <= sys.float_info.max:  # 1e999 is JSON
        raise ValueError(f"its {key} is {reprlib.repr(value)}, not a finite number")
    if is_record:
        hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
        for field in fields:
            required = field.default is field.default_factory is dataclasses.MISSING
            if field.name not in value and required:
                raise ValueError(f"it lacks {f'{key}.{field.name}'.lstrip('.')}")
        names = [field.name for field in fields if field.name in value]
        return kind(**{n: build(hints[n], value[n], f"{key}.{n}".lstrip(".")) for n in names})
    if outer is tuple:
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError(f"its {key} is {reprlib.repr(value)}")
        return tuple(build(arguments[0], item, key) for item in value)
    if outer is dict:
        return {name: build(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    return value
