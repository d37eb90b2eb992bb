"""Reduce a finished run to what predictions need, or delete it."""

import logging
import shutil
from pathlib import Path

from charm_jax.config import build
from charm_jax.config.settings import PHASES
from charm_jax.runs import folder as runs
from charm_jax.runs.arguments import read_settings
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint
from data_pipelines.errors import InputError


def slim(directory: Path) -> tuple[str, int]:
    """Keep the best checkpoint alone, without the optimizer's state.

    The run predicts and evaluates as before, to the bit, and cannot be trained further. The new
    checkpoint is whole before an old one is deleted.

    Returns:
        The checkpoint's name, and the bytes that became free.

    Raises:
        InputError: the run has not finished, another process holds it, or its best checkpoint is
            damaged.
    """
    if not (directory / "summary.json").exists():
        raise InputError(
            f"The run {directory} has not finished: finish it with charm-jax train, or delete it."
        )
    with runs.locked(directory):
        before, old = _bytes(directory), directory / "checkpoints"
        new = directory / "checkpoints.slim"
        shutil.rmtree(new, ignore_errors=True)  # of a call that was cut off
        stage, step = _copy_best(directory, old, new)
        aside = directory / "checkpoints.old"
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside)
    return f"{stage}/{step}", before - _bytes(directory)


def delete(directory: Path) -> int:
    """Delete a run that no process is training; return the bytes that became free.

    Raises:
        InputError: another process holds it.
    """
    with runs.locked(directory):
        size = _bytes(directory)
        # Without its config a folder that is only partly deleted is no run.
        (directory / "config.json").unlink()
    shutil.rmtree(directory)
    return size


def _copy_best(directory: Path, old: Path, new: Path) -> tuple[str, int]:
    """Write the best checkpoint without the optimizer's state into another folder."""
    settings, split = read_settings(directory), runs.read_json(directory / "split.json")
    prevalence = runs.prevalence(directory, split)
    network = build.build_network(settings, len(split["findings"]), prevalence)
    # Orbax warns that a folder which is opened to read is read-only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpoints, copies = Checkpoints(old, PHASES), Checkpoints(new, PHASES, keep=1)
    try:
        stage, step = runs.resolve_checkpoint(checkpoints, "best")
        state, meta = checkpoints.restore(stage, step, build.state_shapes(network, settings))
        copies.save(stage, state, meta, step)
        copies.wait()
    except DamagedCheckpoint as error:
        raise InputError(f"{error} The run stays as it is.") from error
    finally:
        checkpoints.close()
        copies.close()
    return stage, step


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
