"""Checkpoints: save, verify, restore, the best and the newest. The one file that knows Orbax."""

import dataclasses
import errno
import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from charm_jax.models.state import TrainState
from data_pipelines.errors import InputError

_ALIGNMENT = 16  # bytes; a leaf begins at a multiple, so that it can be viewed as its own type
_HEADROOM = 2**20  # bytes for what is not arrays: names, digests, indices


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read or whose numbers are not those that were saved."""


@dataclasses.dataclass
class _KeepNewestAndBest:
    """Orbax's preservation policy: the newest ``keep`` steps and the best one."""

    keep: int
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = {info.step for info in checkpoints[-self.keep :]}
        return [info.step in newest or info.step == self.best_step for info in checkpoints]


class Checkpoints:
    """The checkpoints of a run, ``<directory>/<stage>/<step>``.

    Saving is asynchronous: the state is copied at once and written in the background. It is one
    array of bytes, uncompressed, as a thousand small arrays take far longer, and random mantissas
    do not shrink. Each leaf's digest is saved beside it and compared on restore, because Orbax
    hands a flipped byte back silently.

    Attributes:
        directory: of the run's checkpoints.
        stages: names in the order of training.
    """

    def __init__(self, directory: Path, stages: Sequence[str], keep: int | None = None):
        """Opens the checkpoints.

        Args:
            directory: of the run's checkpoints.
            stages: names in the order of training.
            keep: how many of the newest of each stage remain, beside the best; None to read only,
                which leaves what another process is writing alone.
        """
        self.directory = Path(directory).resolve()
        self.stages = tuple(stages)
        self._read_only = keep is None
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._policies = {stage: _KeepNewestAndBest(keep or 1) for stage in stages}

    def save(
        self, stage: str, state: TrainState, meta: dict[str, Any], best_step: int | None
    ) -> None:
        """Begins to save ``state`` under its step; an earlier save is finished first.

        Args:
            stage: name of the stage.
            state: of the run; it may be donated as soon as this returns.
            meta: JSON of everything else that a restart needs.
            best_step: the step to keep beside the newest.

        Raises:
            OSError: the disk is full or may not be written.
        """
        packed, leaves = _pack(state)
        self._check_space(packed.nbytes)
        meta = meta | {"leaves": leaves}
        self._policies[stage].best_step = best_step
        manager, step = self._manager(stage), int(state.step)
        if step in manager.all_steps():  # a damaged one that the run went back behind
            manager.delete(step)
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave({"bytes": packed}), meta=ocp.args.JsonSave(meta)
            ),
            force=True,
        )

    def wait(self) -> None:
        """Returns when everything is on the disk; raises what went wrong there."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the saves and lets go of the folder."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()

    def newest_first(self) -> Iterator[tuple[str, int]]:
        """All complete checkpoints, (stage, step), the youngest first."""
        for stage in reversed(self.stages):
            for step in self.steps(stage):
                yield stage, step

    def meta(self, stage: str, step: int) -> dict[str, Any]:
        """The JSON saved with a checkpoint.

        Raises:
            DamagedCheckpoint: it cannot be read.
        """
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return self._manager(stage).restore(step, args=args)["meta"]
        except Exception as error:  # Orbax raises many kinds for a damaged file
            raise DamagedCheckpoint(f"{self._path(stage, step)} is damaged: {error}") from error

    def restore(self, stage: str, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """A state and its JSON, every leaf verified.

        Args:
            stage: name of the stage.
            step: of the checkpoint.
            like: a state of the same network (arrays or shapes). The optimizer's state may differ,
                as it is taken from the file only where ``like`` has one.

        Raises:
            InputError: the checkpoint is of another architecture.
            DamagedCheckpoint: it is truncated or a byte of it changed.
        """
        meta = self.meta(stage, step)
        where = self._path(stage, step)
        wanted = jax.eval_shape(lambda s: s.replace(rng=jax.random.key_data(s.rng)), like)
        names, tree = _names(wanted)
        _check_architecture(where, meta["leaves"], names)
        try:
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore())
            packed = np.asarray(self._manager(stage).restore(step, args=args)["state"]["bytes"])
            values = [_unpack(packed, meta["leaves"][name]) for name in names]
        except Exception as error:
            raise DamagedCheckpoint(f"{where} is damaged: {error}") from error
        for name, value in zip(names, values, strict=True):
            if _sha256(value) != meta["leaves"][name]["sha256"]:
                raise DamagedCheckpoint(f"{where} is damaged: {name} is not what was saved.")
        # Copies, so that a later donation cannot reach into the restored arrays.
        state = jax.tree.unflatten(tree, [jnp.array(value) for value in values])
        return state.replace(rng=jax.random.wrap_key_data(state.rng)), meta

    def steps(self, stage: str) -> list[int]:
        """Steps of a stage's complete checkpoints, the youngest first."""
        if not (self.directory / stage).is_dir():
            return []
        return sorted(self._manager(stage).all_steps(), reverse=True)

    def _check_space(self, needed: int) -> None:
        """Looks before it writes: a save that fails in the background may leave rubbish."""
        self.wait()
        self.directory.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.directory).free < needed + _HEADROOM:
            raise OSError(errno.ENOSPC, "no space left", str(self.directory))

    def _path(self, stage: str, step: int) -> Path:
        return self.directory / stage / str(step)

    def _manager(self, stage: str) -> ocp.CheckpointManager:
        if stage not in self._managers:
            if not self._read_only:
                (self.directory / stage).mkdir(parents=True, exist_ok=True)
            # Of several processes the first alone saves: every one has the whole state.
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix=stage
            )
            options = ocp.CheckpointManagerOptions(
                multiprocessing_options=alone,
                create=False,  # Orbax makes no folder for some of the processes alone
                preservation_policy=self._policies[stage],
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
                save_root_metadata=False,
            )
            self._managers[stage] = ocp.CheckpointManager(
                self.directory / stage,
                options=options,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(
                        use_compression=False, multiprocessing_options=alone
                    ),
                    "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                },
            )
        return self._managers[stage]


def tree_sha256(tree: PyTree) -> str:
    """Digest of all leaves with their names, types and shapes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ):
        digest.update(f"{path} {leaf.dtype} {leaf.shape} {_sha256(leaf)}".encode())
    return digest.hexdigest()


def _names(tree: PyTree) -> tuple[dict[str, Any], Any]:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in paths
    }, structure


def _pack(state: TrainState) -> tuple[np.ndarray, dict[str, Any]]:
    """All leaves in one array of bytes, and by name where each is, what it is and its digest.

    It is a copy: a mere view would change when the state is donated.
    """
    names, _ = _names(state.replace(rng=jax.random.key_data(state.rng)))
    values = {name: np.asarray(value) for name, value in jax.device_get(names).items()}
    starts = np.cumsum([0, *(-(-value.nbytes // _ALIGNMENT) for value in values.values())])
    packed = np.zeros(starts[-1] * _ALIGNMENT, np.uint8)
    leaves = {}
    for (name, value), start in zip(values.items(), starts * _ALIGNMENT, strict=False):
        place = {"start": int(start), "shape": list(value.shape), "dtype": str(value.dtype)}
        copied = _unpack(packed, place)
        copied[...] = value
        leaves[name] = place | {"sha256": _sha256(copied)}
    return packed, leaves


def _unpack(packed: np.ndarray, leaf: dict[str, Any]) -> np.ndarray:
    """A view of one leaf."""
    dtype, size = jnp.dtype(leaf["dtype"]), math.prod(leaf["shape"])
    part = packed[leaf["start"] : leaf["start"] + size * dtype.itemsize]
    return part.view(dtype).reshape(leaf["shape"])


def _sha256(value: np.ndarray) -> str:
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return hashlib.sha256(memoryview(flat)).hexdigest()


def _check_architecture(where: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, like in wanted.items():
        if name not in saved:
            raise InputError(
                f"{where} is a checkpoint of another architecture, it has no {name}: use the "
                "config that it was trained with."
            )
        if tuple(saved[name]["shape"]) != like.shape:
            raise InputError(
                f"{where} is a checkpoint of another architecture, {name} has shape "
                f"{saved[name]['shape']} and not {list(like.shape)}: use the config that it was "
                "trained with."
            )
