"""Write, lock and find the folder of a run."""

import errno
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from filelock import FileLock, Timeout

from charm_jax.config.settings import PHASES, Settings
from charm_jax.metrics.from_json import build
from charm_jax.models.state import TrainState
from charm_jax.runs import overview, refitted
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint
from charm_jax.runs.overview import flat
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError, listed
from data_pipelines.tables.case_table import CaseTable

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_LOG = logging.getLogger(__name__)
# Keys that may differ when a run continues: they do not change its results.
_FREE_KEYS = (*overview.PLACES, "preset", "checkpoint.")


def write_json(path: Path, value: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read JSON.

    Raises:
        InputError: the file is missing or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise InputError(
            f"There is no {path}: name a run with --run, or train one first."
        ) from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise damaged(path, "it holds no JSON object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_record(path: Path, kind: type) -> dict[str, Any]:
    """Read a JSON file that must fit a record, such as those of ``runs.records``.

    Raises:
        InputError: it is missing or damaged; with the key.
    """
    content = read_json(path)
    try:
        build(kind, content)
    except ValueError as error:
        raise damaged(path, str(error)) from None
    return content


def damaged(path: Path, fault: str) -> InputError:
    """Return the error for a file that is not as it was written."""
    return InputError(
        f"{path} is damaged ({fault}): copy the folder again, or train the run again."
    )


def check_findings(directory: Path, learned: Sequence[str], table: CaseTable) -> None:
    """Check that a table has the findings of a run, in the same order.

    Raises:
        InputError: they differ.
    """
    if list(learned) != list(table.findings):
        raise InputError(
            f"The run {directory} has the findings {listed(learned)} but {table.source} has "
            f"{listed(table.findings)}: continue it with the same in the same order, or start "
            "another run from its weights with --config.model.init_from."
        )


def prevalence(directory: Path, trained: dict[str, Any]) -> tuple[float | None, ...]:
    """Return the share of a run's training images with each finding, from its ``split.json``.

    It is None where no label is known.

    Raises:
        InputError: an old run without them; with zeros every finding would count as rare.
    """
    shares = trained.get("prevalence", {})
    if shares.keys() != set(trained["findings"]):
        raise InputError(
            f"{directory / 'split.json'} has no prevalence of each finding, which the memory's "
            "selection rule needs: train the run again."
        )
    return tuple(shares[name] for name in trained["findings"])


def environment() -> dict[str, Any]:
    """Return the versions, commit and devices of this process."""
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


def environment_record(directory: Path) -> dict[str, Any]:
    """Return the environment of a run; one that differs at a restart goes into ``restarts``."""
    now, path = environment(), directory / "environment.json"
    if not path.exists():
        return now | {"restarts": []}
    known = read_json(path)
    latest = known["restarts"][-1] if known["restarts"] else known
    if any(latest[key] != value for key, value in now.items()):
        known["restarts"].append(now)
    return known


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the folder of a run and lock it against other processes.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {directory} cannot be made ({error.strerror}): choose another place with "
            "--config.runs_dir."
        ) from error
    with ExitStack() as stack:
        try:
            lock = FileLock(directory / "lock", blocking=False, fallback_to_soft=False)
            stack.enter_context(lock)
        except Timeout:
            raise InputError(
                f"Another process is training in {directory}: wait for it, or choose another "
                "--config.name."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _LOG.warning(
                f"The file system of {directory} has no locks: start no second training in it, "
                "which would not be refused."
            )
        try:
            yield
        finally:
            # A refused command leaves no run behind, and `runs delete` no folder.
            if directory.exists() and os.listdir(directory) == ["lock"]:
                shutil.rmtree(directory)


def has_begun(directory: Path) -> bool:
    """Whether a run has a config and a checkpoint."""
    trained = (directory / "summary.json").exists() or any(_complete(directory))
    return trained and (directory / "config.json").exists()


def check_config(directory: Path, began: Settings, config: Settings) -> None:
    """Check that a config equals the one that a run began with.

    Raises:
        InputError: a key differs that changes the results; with both values.
    """
    old, new = binding_keys(began), binding_keys(config)
    changed = [f"{key}: {old[key]!r} -> {new[key]!r}" for key in new if old[key] != new[key]]
    if changed:
        raise InputError(
            f"The run {directory} began with another config ({listed(changed, '; ')}): choose "
            "another --config.name, or continue it nevertheless with --config.resume=force."
        )


def is_finished(directory: Path, began: Settings, config: Settings) -> bool:
    """Whether a run has nothing left to train or to refit; its last phase, or others, extend it.

    Args:
        directory: of the run.
        began: config that it was trained with.
        config: of now.

    Raises:
        InputError: ``config`` has epochs that can no longer be trained, or lacks some that were.
    """
    if not (directory / "summary.json").exists():
        return False
    before, wanted = phase_epochs(began.raw), phase_epochs(config.raw)
    last = list(began.phases)[-1]
    check_epochs(directory, before, wanted, last, before[last])
    done = config.refit == "none" or "refit" in read_json(directory / "summary.json")
    return before == wanted and began.refit == config.refit and done


def phase_epochs(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the epochs of each phase in a nested config; 0 where it has none."""
    values = flat(config)
    return {phase: values.get(_epochs_key(phase), 0) for phase in PHASES}


def _epochs_key(phase: str) -> str:
    kind = "frozen_epochs" if phase.endswith("_frozen") else "epochs"
    return f"stages.{phase.removesuffix('_frozen')}.{kind}"


def check_epochs(
    directory: Path, began: Mapping[str, int], wanted: Mapping[str, int], phase: str, least: int
) -> None:
    """Check that a run can still train the epochs that are wanted.

    Phases follow each other: those before the newest are over, and later ones are free.

    Args:
        directory: of the run.
        began: epochs of each phase that it was trained with.
        wanted: epochs of each phase now.
        phase: the newest one.
        least: epochs that it cannot do without.

    Raises:
        InputError: with the first key that is wrong.
    """
    for other in PHASES[: PHASES.index(phase) + 1]:
        newest = other == phase
        if wanted[other] == began[other] or (newest and wanted[other] >= least):
            continue
        rule = f"{least} or more" if newest else began[other]
        raise InputError(
            f"config.{_epochs_key(other)} is {wanted[other]} and the run {directory} has come to "
            f"phase {phase}: set it to {rule}, or start a new run with --from and --config.name."
        )


def binding_keys(config: Settings) -> dict[str, Any]:
    """Return the keys that change the results, ``a.b.c``, with their values."""
    return {k: v for k, v in flat(config.raw).items() if not k.startswith(_FREE_KEYS)}


def find(runs_dir: Path, run: str) -> Path:
    """Find a run by path or by name in ``runs_dir``; the newest for an empty string.

    The newest run is that of the newest complete checkpoint.

    Raises:
        InputError: there is no such run.
    """
    if run:
        return overview.find(runs_dir, run)
    ages = {
        path.parent: max((step.stat().st_mtime for step in _complete(path.parent)), default=0.0)
        for path in runs_dir.glob("*/config.json")
    }
    if not any(ages.values()):
        raise InputError(
            f"There is no run with a checkpoint in {runs_dir}: train one with "
            "charm-jax train, or name its folder with --run."
        )
    return max(ages, key=ages.__getitem__)


def find_evaluated(runs_dir: Path, name: str) -> Path:
    """Find the folder of an evaluated run or weight file.

    Raises:
        InputError: there is none of that name.
    """
    places = (runs_dir, runs_dir / "weights", runs_dir / "ensembles", Path())
    for path in (place / name for place in places):
        if (path / "eval").is_dir():
            return path
    return find(runs_dir, name)


def _complete(run: Path) -> Iterator[Path]:
    return (path for path in run.glob("checkpoints/*/*") if path.name.isdigit())


def resolve_checkpoint(checkpoints: Checkpoints, name: str) -> tuple[str, int]:
    """Return stage and step of ``best``, ``last`` or ``<stage>/<step>``.

    The best checkpoint has the best monitored score of the last stage that has one.

    Raises:
        InputError: there is no such checkpoint.
        DamagedCheckpoint: one that records the best step cannot be read.
    """
    every = list(checkpoints.newest_first())
    if name == "last" and every:
        return every[0]
    if name == "best":
        for stage, step in every:
            best = checkpoints.meta(stage, step)["progress"]["best_step"]
            if best is not None:
                return stage, best
    for stage, step in every:
        if name == f"{stage}/{step}":
            return stage, step
    if not every:
        raise InputError(
            f"There is no complete checkpoint in {checkpoints.directory}: train the run with "
            "charm-jax train."
        )
    known = listed(f"{stage}/{step}" for stage, step in every)
    raise InputError(
        f"There is no checkpoint {name!r} in {checkpoints.directory}: choose best, last or one "
        f"of {known}."
    )


class Restored(NamedTuple):
    """A checkpoint's state.

    Attributes:
        name: ``<stage>/<step>``.
        is_refitted: whether a refitted classifier replaced the checkpoint's.
    """

    state: TrainState
    name: str
    is_refitted: bool


def restore(
    run: Path, name: str, like: Callable[[dict[str, Any]], TrainState], *, refit: bool = True
) -> Restored:
    """Restore a checkpoint, with its refitted classifier if it has one.

    Args:
        name: see ``resolve_checkpoint``.
        like: maps the checkpoint's JSON to a state, or the shapes of one, for
            ``Checkpoints.restore``.
        refit: whether a refitted classifier replaces the checkpoint's.

    Raises:
        InputError: there is no such checkpoint, or it is damaged or of another architecture.
    """
    # Orbax warns that a folder which is opened to read is read-only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpoints = Checkpoints(run / "checkpoints", PHASES)
    try:
        stage, step = resolve_checkpoint(checkpoints, name)
        state, _ = checkpoints.restore(stage, step, like(checkpoints.meta(stage, step)))
    except DamagedCheckpoint as error:
        raise InputError(f"{error} Choose another checkpoint.") from error
    finally:
        checkpoints.close()
    name = f"{stage}/{step}"
    used = refitted.replace_layer(run, name, state) if refit else state
    return Restored(used, name, is_refitted=used is not state)
