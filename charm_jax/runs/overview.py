"""Describe runs by the JSON files in their folders, without reading a checkpoint."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from data_pipelines.errors import InputError, did_you_mean

# Keys that say where a run is, not what it is.
PLACES = ("name", "runs_dir", "resume", "data.dir", "data.processes", "data.resident", "log.")
_SHOWN = 4  # differing keys of a run in the table


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold what the files of a run tell; parts that are missing or damaged are empty.

    Attributes:
        config: values of all keys, ``a.b.c``.
        split: content of ``split.json``.
        summary: content of ``summary.json``, which a finished run has.
        epochs: lines of ``metrics.jsonl`` for whole epochs.
        evaluations: content of ``metrics.json`` of each evaluation, by the name of its folder.
        busy: whether a process is training it.
    """

    folder: Path
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    summary: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]
    busy: bool

    @property
    def state(self) -> str:
        """Whether it is training, finished, stopped or damaged, and where."""
        if not self.config:
            return "damaged: config.json"
        if self.summary and not self.busy:
            return "finished"
        last = self.epochs[-1] if self.epochs else None
        at = f" after {last['stage']} epoch {last['epoch']}" if last else ""
        return ("training" if self.busy else "stopped") + at

    @property
    def age(self) -> float:
        """Seconds since its training last wrote something."""
        files = [self.folder / name for name in ("config.json", "metrics.jsonl", "summary.json")]
        return time.time() - max(path.stat().st_mtime for path in files if path.exists())

    @property
    def score(self) -> str:
        """Macro AUROC on its own test images with its interval; empty without an evaluation."""
        return score(self.evaluations.get("test", {}))


def epochs(folder: Path) -> list[Mapping[str, Any]]:
    """Return the lines of ``metrics.jsonl`` for whole epochs; none where a run has no such file."""
    if not (folder / "metrics.jsonl").exists():
        return []
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    return [line for line in map(_parsed, text.splitlines()) if line.get("kind") == "epoch"]


def read(folder: Path) -> Run:
    """Read the files of a run."""
    found = sorted(folder.glob("eval/*/metrics.json"))
    return Run(
        folder=folder,
        config=flat(_json(folder / "config.json")),
        split=_json(folder / "split.json"),
        summary=_json(folder / "summary.json"),
        epochs=epochs(folder),
        evaluations={path.parent.name: _json(path) for path in found},
        busy=is_busy(folder),
    )


def find(runs_dir: Path, name: str) -> Path:
    """Return the folder of a run by its name in ``runs_dir`` or its path.

    Raises:
        InputError: there is none.
    """
    for folder in (runs_dir / name, Path(name)):
        if name and (folder / "config.json").is_file():
            return folder
    known = [path.parent.name for path in sorted(runs_dir.glob("*/config.json"))]
    hint = did_you_mean(name, known) if known else "train one with charm-jax train."
    raise InputError(f"There is no run {name!r} in {runs_dir}: {hint}")


def is_busy(folder: Path) -> bool:
    """Whether a process holds the lock of a run."""
    if not (folder / "lock").exists():
        return False
    try:
        with FileLock(folder / "lock", blocking=False, fallback_to_soft=False):
            return False
    except Timeout:
        return True
    except OSError:  # a file system without locks, or a read-only one
        return False


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder, which may lose some meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def table(runs: Sequence[Run]) -> str:
    """Return a line for each run: state, score, what its config has of its own, size and age."""
    common = shared(run.config for run in runs)
    lines = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if common.get(key) != value}
        own = {key: value for key, value in own.items() if not key.startswith(PLACES)}
        lines[run.folder.name] = {
            "state": run.state,
            "data": run.split.get("source", run.config.get("data.source", ""))
            + (" (SIMULATED)" if run.split.get("simulated") else ""),
            "macro AUROC, test": run.score or "-",
            "MB": f"{size(run.folder) / 1e6:,.0f}",
            "age": _age(run.age),
            "differs in": _listed(own),
        }
    width = max(len(line["differs in"]) for line in lines.values())
    for line in lines.values():
        line["differs in"] = line["differs in"].ljust(width)
    text = pd.DataFrame.from_dict(lines, orient="index").to_string()
    return "\n".join(line.rstrip() for line in text.splitlines())


def shared(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the most frequent value of each key; of equally frequent ones the first."""
    values: dict[str, list[Any]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, []).append(value)
    return {key: max(found, key=found.count) for key, found in values.items()}


def difference(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """Return the keys that differ between two configs, with both values; None where one lacks it.

    Keys that only say where a run is are left out.
    """
    keys = [key for key in {**one.config, **other.config} if not key.startswith(PLACES)]
    pairs = [(key, one.config.get(key), other.config.get(key)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def score(metrics: Mapping[str, Any]) -> str:
    """Return ``0.9553 (0.9455-0.9644)`` from the content of ``metrics.json``; empty without it.

    ``SIMULATED`` follows where a program drew the images.
    """
    value, interval = metrics.get("macro_auroc"), metrics.get("macro_auroc_interval")
    if value is None:
        return ""
    known = interval and None not in interval
    return (
        f"{value:.4f}"
        + (f" ({interval[0]:.4f}-{interval[1]:.4f})" if known else "")
        + (" SIMULATED" if metrics.get("simulated") else "")
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by ``a.b.c``."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return values


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:  # a line that was cut off
        return {}
    return content if isinstance(content, dict) else {}


def _listed(values: Mapping[str, Any]) -> str:
    shown = [f"{key}={value}" for key, value in values.items()]
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
