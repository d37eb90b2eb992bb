"""The folder of a run: its files, its lock, and how to find it again."""

import csv
import difflib
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from charm_jax.checkpoints import Checkpoints, DamagedCheckpoint
from data_pipelines.case_table import CaseTable
from data_pipelines.errors import InputError

STAGES = ("bce", "focal")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
# Keys that may differ when a run goes on: they change where things are, not what is computed.
_FREE_KEYS = ("name", "runs_dir", "resume", "data.dir", "log.", "checkpoint.")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON; the file appears whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        InputError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"There is no {path}: name a run with --run, or train one first."
        ) from None
    except ValueError:
        raise InputError(f"{path} is no JSON: the run is damaged, train it again.") from None


def write_cases(path: Path, table: CaseTable) -> None:
    """Writes ``id,image,patient`` of the source's full table."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", newline="", encoding="utf-8") as file:
        rows = zip(range(len(table.images)), table.images, table.patients, strict=True)
        csv.writer(file).writerows([("id", "image", "patient"), *rows])
    os.replace(draft, path)


def environment() -> dict[str, Any]:
    """Versions, commit and devices that a run is made with."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "commit": commit,
        "devices": [device.device_kind for device in jax.devices()],
    }


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the folder of a run and holds it against another process.

    Raises:
        InputError: another process holds it.
        OSError: it may not be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is training in {directory}: wait for it, or choose another "
                "--config.name."
            ) from None
        yield


def check_config(directory: Path, config: ConfigDict, *, force: bool) -> None:
    """Compares a config with the one that the run began with; ``force`` accepts any difference.

    Raises:
        InputError: a key differs that changes what is computed; with the difference.
    """
    path = directory / "config.json"
    if force or not path.exists():
        return
    old, new = _flat(read_json(path)), _flat(config.to_dict())
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE_KEYS)
    ]
    if changed:
        raise InputError(
            f"The run {directory} began with another config ({'; '.join(changed)}): choose another "
            "--config.name, or --config.resume=force to go on all the same."
        )


def find(runs_dir: Path, run: str) -> Path:
    """The folder of a run: a path, a name in ``runs_dir``, or for an empty string the newest.

    The newest is the one with the youngest complete checkpoint.

    Raises:
        InputError: there is no such run.
    """
    if run:
        for path in (runs_dir / run, Path(run)):
            if (path / "config.json").is_file():
                return path
        names = [path.parent.name for path in runs_dir.glob("*/config.json")]
        near = difflib.get_close_matches(run, names, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}?" if near else "train one with python -m charm_jax.train."
        raise InputError(f"There is no run {run!r} in {runs_dir}: {hint}")
    ages = {
        path.parent: max((step.stat().st_mtime for step in _complete(path.parent)), default=0.0)
        for path in runs_dir.glob("*/config.json")
    }
    if not any(ages.values()):
        raise InputError(
            f"There is no run with a checkpoint in {runs_dir}: train one with python -m "
            "charm_jax.train, or name its folder with --run."
        )
    return max(ages, key=ages.__getitem__)


def _complete(run: Path) -> Iterator[Path]:
    return (path for path in run.glob("checkpoints/*/*") if path.name.isdigit())


def resolve_checkpoint(checkpoints: Checkpoints, name: str) -> tuple[str, int]:
    """Stage and step of ``best``, ``last`` or ``<stage>/<step>``.

    Best is the lowest validation loss of the last stage that has one.

    Raises:
        InputError: there is no such checkpoint.
    """
    every = list(checkpoints.newest_first())
    if name == "last" and every:
        return every[0]
    if name == "best":
        for stage, step in every:
            try:
                best = checkpoints.meta(stage, step)["progress"]["best_step"]
            except DamagedCheckpoint:
                continue
            if best is not None:
                return stage, best
    if (name.split("/")[0], name.split("/")[-1]) in [(stage, str(step)) for stage, step in every]:
        stage, step = name.split("/")
        return stage, int(step)
    known = ", ".join(f"{stage}/{step}" for stage, step in every) or "none"
    raise InputError(
        f"There is no checkpoint {name!r} in {checkpoints.directory}: choose best, last or one "
        f"of {known}."
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
