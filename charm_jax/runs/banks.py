"""Store memory banks beside a run's checkpoints, in ``memory/<label>/``.

| file | content |
| --- | --- |
| ``bank.safetensors`` | the arrays of the bank |
| ``memory.json`` | how it was made, the checkpoint and the findings |
| ``cases.csv``, ``patients.csv`` | images and patients of its ids, where they are not the run's |
"""

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.state import TrainState
from charm_jax.runs import cases as run_cases
from charm_jax.runs import folder as runs
from charm_jax.runs.checkpoints import weights_sha256
from data_pipelines.atomic_files import check_writable, draft_of
from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.tables.case_table import CaseTable

_LOG = logging.getLogger(__name__)
TRAINED = "trained"  # label of a checkpoint's own bank, or of the one that training ended with
_FIELDS = tuple(field.name for field in dataclasses.fields(MemoryBank))


@dataclasses.dataclass(frozen=True)
class StoredBank:
    """A bank that was made from a run; ``description`` is the content of ``memory.json``."""

    folder: Path
    memory: MemoryBank
    description: dict[str, Any]

    @property
    def has_cases(self) -> bool:
        """Whether its ids belong to a table of its own."""
        return (self.folder / "cases.csv").exists()


def check_label(run: Path, label: str) -> None:
    """Check the name of a new bank before anything is computed.

    Raises:
        InputError: it is no plain name, or is taken, or the run is read-only.
    """
    if not re.fullmatch(r"[\w.-]+", label) or not label.strip(".") or label == TRAINED:
        raise InputError(
            f"--label is {label!r}: name the new bank with letters, digits, - and _; "
            f"{TRAINED!r} is the checkpoint's own bank."
        )
    if (run / "memory" / label).exists():
        raise InputError(
            f"{run / 'memory' / label} already exists: choose another --label, or remove it."
        )
    check_writable(run / "memory", "copy the run to a folder where it can be")


def write(
    run: Path,
    label: str,
    memory: MemoryBank,
    state: TrainState,
    description: dict[str, Any],
    cases: CaseTable | Path | None = None,
) -> Path:
    """Write a bank; its folder appears whole or not at all.

    Args:
        state: network that computed its features; its digest is added to ``description``.
        cases: table of its ids, or the folder of the bank whose table it shares; None for the
            run's own.

    Returns:
        Its folder.
    """
    if label != TRAINED:
        check_label(run, label)
    folder = run / "memory" / label
    draft = draft_of(folder)
    draft.mkdir(parents=True)
    try:
        arrays = {name: np.asarray(getattr(memory, name)) for name in _FIELDS}
        save_file(arrays, draft / "bank.safetensors")
        runs.write_json(
            draft / "memory.json", description | {"weights_sha256": weights_sha256(state)}
        )
        if isinstance(cases, CaseTable):
            run_cases.write_cases(draft, cases, np.zeros(0, np.int64))
        elif cases is not None:
            for file in run_cases.FILES:
                if (cases / file).exists():
                    shutil.copyfile(cases / file, draft / file)
        if label == TRAINED:  # an older one that training ended with
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def refilled(run: Path, state: TrainState) -> MemoryBank | None:
    """Return the bank that training ended with; None if there is none for these weights."""
    path = run / "memory" / TRAINED / "memory.json"
    if not path.is_file():
        return None
    made = runs.read_json(path)
    if made["weights_sha256"] != weights_sha256(state):
        return None
    try:
        return read(run, TRAINED, state, made["findings"]).memory
    except InputError:
        _LOG.warning(f"{path.parent} is damaged and not read: delete it.")
        return None


def read(run: Path, label: str, state: TrainState, findings: Sequence[str]) -> StoredBank:
    """Read a bank of a run, for a network with these weights and findings.

    Raises:
        InputError: there is none of that name, it is damaged, or it was made with other weights or
            other findings.
    """
    folder = run / "memory" / label
    if not (folder / "memory.json").is_file():
        names = sorted({TRAINED, *(p.parent.name for p in run.glob("memory/*/memory.json"))})
        raise InputError(f"The run {run} has no memory {label!r}: {did_you_mean(label, names)}")
    description = runs.read_json(folder / "memory.json")
    if description["findings"] != list(findings):
        raise InputError(
            f"{folder} has the findings {', '.join(description['findings'])} but the run {run} "
            f"has {', '.join(findings)}: make the bank again with charm-jax memory."
        )
    if description["weights_sha256"] != weights_sha256(state):
        raise InputError(
            f"{folder} holds features of other weights (checkpoint {description['checkpoint']}): "
            "choose that checkpoint with --checkpoint, or make the bank again."
        )
    try:
        arrays = load_file(folder / "bank.safetensors")
        memory = MemoryBank(**{name: jnp.asarray(arrays[name]) for name in _FIELDS})
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{folder / 'bank.safetensors'} cannot be read ({error}): make the bank again."
        ) from None
    return StoredBank(folder, memory, description)
