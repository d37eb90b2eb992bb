"""Describe the JSON files of a run or a portable model, as far as they are read again.

Keys that nothing reads may be absent or of any type. Other files have records of their own:
``metrics.result.EvaluationResult``, ``metrics.calibration.Calibration``, ``metrics.ood.Reference``.
"""

import dataclasses
import re
from typing import Any

_KEY = re.compile(r"([0-9a-f]{2}){0,64}")  # of digests of names, at most 64 bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Named:
    """How a list of cases names images and patients."""

    names_key: str = ""
    images_named: bool = False
    sets: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.names_key):
            raise ValueError("its names_key is not a key in hexadecimal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """A split of a stage."""

    images: int
    patients: int
    sha256: str
    cases_sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stage:
    train: _Part
    val: _Part
    test: _Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(_Named):
    """``split.json``; ``prevalence`` is absent from early runs."""

    source: str
    simulated: bool
    patients_known: bool
    findings: tuple[str, ...]
    rule: str
    stages: dict[str, _Stage]
    prevalence: dict[str, float | None] = dataclasses.field(default_factory=dict)
    leak_images: int = 0
    leak_of: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({*self.findings}) < max(len(self.findings), 1):
            raise ValueError("its findings are not different names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """``environment.json``."""

    python: str
    packages: dict[str, str]
    commit: str | None
    devices: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Provenance:
    checkpoint: str | None = None
    refit: str | None = None
    trained_on_simulated: bool | None = None
    began_from: str | None = None
    memory: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """``config.json`` of a portable model."""

    format: int
    checkpoint: str
    provenance: _Provenance
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank(_Named):
    """``memory.json``: description of a bank that was made after training."""

    findings: tuple[str, ...]
    source: str | None = None
    simulated: bool | None = None
    split: str | None = None
    images_sha256: str | None = None
    patients_known: bool | None = None
