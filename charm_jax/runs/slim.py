"""Reduce a finished run to what predictions need, or delete it."""

import logging
import shutil
from pathlib import Path

from charm_jax.config import build
from charm_jax.config.settings import PHASES
from charm_jax.runs import banks, overview
from charm_jax.runs import folder as runs
from charm_jax.runs.arguments import read_settings
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint
from charm_jax.runs.records import Split
from data_pipelines.errors import InputError


def slim(directory: Path) -> tuple[str, int]:
    """Keep the best checkpoint alone, without the optimizer's state.

    The run predicts and evaluates as before, to the bit, and cannot be trained further. The new
    checkpoint is whole before an old one is deleted.

    Returns:
        The checkpoint's name, and the bytes that became free.

    Raises:
        InputError: the run has not finished, another process holds it, its best checkpoint is
            damaged, or a memory bank belongs to another one.
    """
    _check_run(directory)
    if not (directory / "summary.json").exists():
        raise InputError(
            f"The run {directory} has not finished: finish it with charm-jax train, or delete it."
        )
    with runs.locked(directory):
        old = (directory / "checkpoints").resolve()  # the folder, where that is a link
        new, aside = (old.with_name(f"{old.name}.{end}") for end in ("slim", "before-slim"))
        if aside.exists() and not old.exists():  # a call was cut off between two renames
            aside.rename(old)
        for rest in (new, aside):
            shutil.rmtree(rest, ignore_errors=True)
        name = _copy_best(directory, old, new)
        free = overview.size(old) - overview.size(new)
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside)
    return name, free


def delete(directory: Path) -> int:
    """Delete a run that no process is training; return the bytes that became free.

    Raises:
        InputError: another process holds it, it is a link, or it holds more than a run.
    """
    _check_run(directory)
    if directory.is_symlink():
        raise InputError(
            f"{directory} is a link to {directory.resolve()}: delete that run, then the link."
        )
    if nested := next(directory.glob("*/**/config.json"), None):
        raise InputError(f"{directory} holds another run, {nested.parent}: move that away first.")
    with runs.locked(directory):
        size = overview.size(directory)
        # Without its config a folder that is only partly deleted is no run.
        (directory / "config.json").unlink()
        shutil.rmtree(directory)
    return size


def _check_run(directory: Path) -> None:
    """Check that a folder is a run: other programs write a ``config.json``, too.

    Raises:
        InputError: it lacks what training writes beside its config.
    """
    if not (directory / "split.json").is_file():
        raise InputError(
            f"{directory} has no split.json, so it may be something else than a run: name the "
            "folder of a run, or remove this one by hand."
        )


def _copy_best(directory: Path, old: Path, new: Path) -> str:
    """Write the best checkpoint without the optimizer's state into another folder.

    Returns:
        Its name.
    """
    settings, split = read_settings(directory), runs.read_record(directory / "split.json", Split)
    prevalence = runs.prevalence(directory, split)
    network = build.build_network(settings, len(split["findings"]), prevalence)
    # Orbax warns that a folder which is opened to read is read-only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpoints, copies = Checkpoints(old, PHASES), Checkpoints(new, PHASES, keep=1)
    try:
        stage, step = runs.resolve_checkpoint(checkpoints, "best")
        _check_banks(directory, f"{stage}/{step}")
        state, meta = checkpoints.restore(stage, step, build.state_shapes(network, settings))
        copies.save(stage, state, meta, step)
        copies.wait()
    except DamagedCheckpoint as error:
        raise InputError(f"{error} The run stays as it is.") from error
    finally:
        checkpoints.close()
        copies.close()
    return f"{stage}/{step}"


def _check_banks(directory: Path, kept: str) -> None:
    """Check that no memory bank loses the checkpoint that it was made with.

    Raises:
        InputError: one would.
    """
    for path in sorted(directory.glob("memory/*/memory.json")):
        other = runs.read_json(path).get("checkpoint")
        if path.parent.name != banks.TRAINED and other != kept:
            raise InputError(
                f"{path.parent} was made with the checkpoint {other} and only {kept} would be "
                "left: delete that bank first, or leave the run as it is."
            )
