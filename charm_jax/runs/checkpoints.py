"""Save, verify and restore checkpoints; the one module that imports Orbax."""

import dataclasses
import errno
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jaxtyping import PyTree

from charm_jax.models.state import TrainState
from data_pipelines.errors import InputError

_HEADROOM = 2**22  # bytes for all but the arrays: names, shapes, digests and indices


class DamagedCheckpoint(Exception):
    """A checkpoint that is unreadable, or whose arrays differ from those that were saved."""


@dataclasses.dataclass
class _KeepNewestAndBest:
    """Keep the newest ``keep`` steps and the best one; an Orbax preservation policy."""

    keep: int
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = {info.step for info in checkpoints[-self.keep :]}
        return [info.step in newest or info.step == self.best_step for info in checkpoints]


class Checkpoints:
    """The checkpoints of a run, ``<directory>/<phase>/<step>``.

    Each holds two Orbax items. ``state`` is a PyTree of the ``TrainState`` as nested dicts, with
    the random key as ``jax.random.key_data``; ``meta`` is JSON, with each leaf's shape, type and
    SHA-256, because Orbax restores a flipped byte without an error. Saving is asynchronous.
    """

    def __init__(self, directory: Path, phases: Sequence[str], keep: int | None = None):
        """Open the checkpoints.

        Args:
            directory: holds a folder for each phase.
            phases: in the order of training.
            keep: how many of the newest of each phase to keep, beside the best. None opens the
                folder read-only and leaves unfinished saves of other processes alone.
        """
        self.directory = Path(directory).resolve()
        self.phases = tuple(phases)
        self._read_only = keep is None
        self._managers: dict[str, ocp.CheckpointManager] = {}
        self._policies = {phase: _KeepNewestAndBest(keep or 1) for phase in phases}

    def save(
        self, phase: str, state: TrainState, meta: dict[str, Any], best_step: int | None
    ) -> None:
        """Start to save ``state`` under its step, after any earlier save has finished.

        Args:
            state: may be donated once this returns.
            meta: JSON of everything else that a restart needs.
            best_step: step to keep beside the newest.

        Raises:
            OSError: the disk is full or read-only.
        """
        leaves = {
            name: np.asarray(value)
            for name, value in jax.device_get(_named_leaves(_without_key(state))).items()
        }
        self._check_space(sum(value.nbytes for value in leaves.values()))
        meta = meta | {"leaves": {name: _described(value) for name, value in leaves.items()}}
        self._policies[phase].best_step = best_step
        manager, step = self._manager(phase), int(state.step)
        if step in manager.all_steps():  # damaged: the run continued from an earlier one
            manager.delete(step)
        # Orbax copies NumPy arrays before it returns, and refuses empty ones.
        tree = {name: value if value.size else None for name, value in leaves.items()}
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(tree, sep="/")),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def wait(self) -> None:
        """Wait until all saves are on the disk, and raise their errors."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Finish all saves and release the folder."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()

    def newest_first(self) -> Iterator[tuple[str, int]]:
        """Yield (phase, step) of all complete checkpoints, the newest first."""
        for phase in reversed(self.phases):
            for step in self.steps(phase):
                yield phase, step

    def steps(self, phase: str) -> list[int]:
        """Return the steps of a phase's complete checkpoints, the newest first."""
        if not (self.directory / phase).is_dir():
            return []
        return sorted(self._manager(phase).all_steps(), reverse=True)

    def meta(self, phase: str, step: int) -> dict[str, Any]:
        """Return the JSON saved with a checkpoint.

        Raises:
            DamagedCheckpoint: it is unreadable.
        """
        return self._restore(phase, step, meta=ocp.args.JsonRestore())

    def holds_optimizer(self, phase: str, step: int, like: TrainState) -> bool:
        """Whether a checkpoint holds the optimizer's state of ``like``.

        Raises:
            DamagedCheckpoint: it is unreadable.
        """
        leaves = self.meta(phase, step)["leaves"].items()
        wanted = _named_leaves({"opt_state": like.opt_state})
        return {name: list(leaf.shape) for name, leaf in wanted.items()} == {
            name: leaf["shape"] for name, leaf in leaves if name.startswith("opt_state/")
        }

    def restore(self, phase: str, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return a checkpoint's state and JSON, after comparing the digest of each leaf.

        Args:
            like: a state of the same network (arrays or shapes). Its ``opt_state`` may be empty,
                to read none.

        Raises:
            InputError: the checkpoint is of another architecture.
            DamagedCheckpoint: it is truncated, or a byte of it changed.
        """
        meta = self.meta(phase, step)
        where, saved = self.directory / phase / str(step), meta["leaves"]
        wanted = jax.eval_shape(_without_key, like)
        names = _named_leaves(wanted)
        _check_architecture(where, saved, names)
        tree = traverse_util.unflatten_dict(
            {name: 0 for name in names if 0 not in saved[name]["shape"]}, sep="/"
        )
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(item=tree, restore_args=numpy, partial_restore=True)
        found = traverse_util.flatten_dict(self._restore(phase, step, state=args), sep="/")
        values = []
        for name, shape in names.items():
            value = np.asarray(found.get(name, np.zeros(shape.shape, saved[name]["dtype"])))
            if _described(value) != saved[name]:
                raise DamagedCheckpoint(f"{where} is damaged: {name} differs from what was saved.")
            values.append(value)
        # Without a copy, which would be a program of its own for each shape.
        state = jax.tree.unflatten(jax.tree.structure(wanted), jax.device_put(values))
        return state.replace(rng=jax.random.wrap_key_data(state.rng)), meta

    def _restore(self, phase: str, step: int, **item: Any) -> Any:
        """Restore one item of a checkpoint.

        Raises:
            DamagedCheckpoint: it is unreadable.
        """
        try:
            args = ocp.args.Composite(**item)
            (restored,) = self._manager(phase).restore(step, args=args).values()
        except Exception as error:  # Orbax raises many kinds for a damaged file
            where = self.directory / phase / str(step)
            raise DamagedCheckpoint(f"{where} is damaged: {error}") from error
        return restored

    def _check_space(self, needed: int) -> None:
        """Refuse to start a save that would fail half-way in the background."""
        self.wait()
        self.directory.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.directory).free < needed + _HEADROOM:
            raise OSError(errno.ENOSPC, "no space left", str(self.directory))

    def _manager(self, phase: str) -> ocp.CheckpointManager:
        if phase not in self._managers:
            if not self._read_only:
                (self.directory / phase).mkdir(parents=True, exist_ok=True)
            # Every process holds the whole state, so the first alone saves.
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix=phase
            )
            options = ocp.CheckpointManagerOptions(
                multiprocessing_options=alone,
                create=False,  # Orbax cannot create folders for a subset of the processes
                preservation_policy=self._policies[phase],
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
                save_root_metadata=False,
            )
            self._managers[phase] = ocp.CheckpointManager(
                self.directory / phase,
                options=options,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(
                        use_compression=False,  # random mantissas do not shrink
                        multiprocessing_options=alone,
                    ),
                    "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                },
            )
        return self._managers[phase]


def tree_sha256(tree: PyTree) -> str:
    """Return a digest of all leaves with their names, types and shapes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ):
        digest.update(f"{path} {leaf.dtype} {leaf.shape} {_sha256(leaf)}".encode())
    return digest.hexdigest()


def weights_sha256(state: TrainState) -> str:
    """Return a digest of everything that features depend on: the network without its bank."""
    return tree_sha256(_weights(state))


def network_sha256(state: TrainState) -> str:
    """Return a digest of everything that predictions depend on.

    Names such as focal/123 do not identify a network: they recur in the next run.
    """
    return tree_sha256(_weights(state) | {"memory": state.memory})


def _weights(state: TrainState) -> dict[str, PyTree]:
    names = ("params", "batch_stats", "momentum", "average")
    return {name: getattr(state, name) for name in names}


def _without_key(state: TrainState) -> TrainState:
    return state.replace(rng=jax.random.key_data(state.rng))


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _described(value: np.ndarray) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": _sha256(value)}


def _sha256(value: np.ndarray) -> str:
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return hashlib.sha256(memoryview(flat)).hexdigest()


def _check_architecture(where: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, like in wanted.items():
        if name not in saved:
            raise InputError(
                f"{where} is a checkpoint of another architecture and has no {name}: use the "
                "config that it was trained with."
            )
        if tuple(saved[name]["shape"]) != like.shape:
            raise InputError(
                f"{where} is a checkpoint of another architecture, {name} has shape "
                f"{saved[name]['shape']} and not {list(like.shape)}: use the config that it was "
                "trained with."
            )
