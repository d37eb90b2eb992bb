"""Say what the numbers of a weight file mean: a card inside the file or beside it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from jaxtyping import Int8

from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.loading import augment

_DIGITS = "?01"  # labels -1, 0 and 1 of a stored case


@dataclasses.dataclass(frozen=True)
class Card:
    """Describe a weight file; None where it does not tell.

    Attributes:
        charm_jax: version of the library that wrote the file.
        findings: names of the outputs, in their order.
        input_range: ``config.model.input_range``.
        retrieval_k: cases read from the memory bank.
        bank_size: slots of the memory bank.
        bank_labels: labels of the stored cases by finding, a character a slot: 0, 1 or ? (unknown).
    """

    charm_jax: str | None = None
    backbone: str | None = None
    charm: bool | None = None
    findings: tuple[str, ...] | None = None
    image_size: int | None = None
    channels: int | None = None
    input_range: str | None = None
    retrieval_k: int | None = None
    bank_size: int | None = None
    bank_labels: Mapping[str, str] | None = None

    def entries(self) -> dict[str, Any]:
        """Return what is told, ready for JSON."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def labels(self, finding: str, slots: int) -> Int8[np.ndarray, " slots"]:
        """Return the labels of the stored cases for a finding; -1 where the card has none."""
        text = (self.bank_labels or {}).get(finding, "")
        values = [_DIGITS.find(digit) - 1 for digit in text] if len(text) == slots else [-1] * slots
        return np.array(values, np.int8)


def bank_labels(
    labels: Int8[np.ndarray, "slots findings"], findings: tuple[str, ...]
) -> dict[str, str]:
    """Write the labels of stored cases as a card has them."""
    return {
        name: "".join(_DIGITS[label + 1] for label in column)
        for name, column in zip(findings, labels.T.tolist(), strict=True)
    }


def beside(path: Path) -> Path:
    """Return the path of the JSON that describes a weight file."""
    return path.with_name(f"{path.name}.json")


def read(path: Path) -> Card:
    """Read the card of a weight file; a JSON beside it counts more than its own metadata.

    Raises:
        InputError: an entry is of another type or value than it should be.
    """
    entries: dict[str, Any] = {}
    if path.suffix.casefold() == ".safetensors":
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        # Other programs' metadata may use the same words.
        if "charm_jax" in metadata:
            entries = {key: _json(path, key, text) for key, text in metadata.items()}
    own = beside(path)
    if own.is_file():
        text = own.read_text(encoding="utf-8")
        told = _json(own, "the whole", text)
        if not isinstance(told, dict):
            raise InputError(f"{own} holds no JSON object: correct or delete it.")
        if told.get("sha256", sha256(path)) != sha256(path):
            raise InputError(f"{own} describes another file than {path}: correct or delete it.")
        return _checked(own, entries | told)
    return _checked(path, entries)


def _json(path: Path, key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: {key} is not JSON ({error}): correct or delete it.") from None


def _checked(path: Path, entries: Mapping[str, Any]) -> Card:
    known = {field.name for field in dataclasses.fields(Card)}
    entries = {key: value for key, value in entries.items() if key in known and value is not None}
    for key, value in entries.items():
        rule, holds = _RULES[key]
        if not holds(value):
            raise InputError(f"{path}: {key} is {str(value)[:80]!r}: make it {rule}.")
    if "findings" in entries:
        entries["findings"] = tuple(entries["findings"])
    return Card(**entries)


def check(path: Path, card: Card) -> None:
    """Check the entries of a card before it is written.

    Raises:
        InputError: one is of another type or value than it should be.
    """
    entries = card.entries()
    _checked(path, entries | {"findings": list(card.findings)} if card.findings else entries)


def _is_range(value: Any) -> bool:
    return isinstance(value, str) and augment.is_input_range(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_TEXT = "text", lambda value: isinstance(value, str)
_COUNT = "a whole number", _is_count
_RULES = {
    "charm_jax": _TEXT,
    "backbone": _TEXT,
    "charm": ("true or false", lambda value: isinstance(value, bool)),
    "findings": (
        "a list of different names",
        lambda value: (
            isinstance(value, list)
            and all(isinstance(name, str) for name in value)
            and len(set(value)) == len(value) > 0
        ),
    ),
    "image_size": _COUNT,
    "channels": _COUNT,
    "input_range": ("imagenet, unit, xrv or two numbers such as -1,1", _is_range),
    "retrieval_k": _COUNT,
    "bank_size": _COUNT,
    "bank_labels": (
        "an object of texts",
        lambda value: (
            isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        ),
    ),
}


def metadata(card: Card) -> dict[str, str]:
    """Return a card as the metadata of a safetensors file, each entry as JSON."""
    return {key: json.dumps(value) for key, value in card.entries().items()}


def write_beside(path: Path, card: Card, digest: str) -> None:
    """Write a card as the JSON beside a weight file with this SHA-256."""
    with whole_file(beside(path)) as file:
        file.write(json.dumps(card.entries() | {"sha256": digest}, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
