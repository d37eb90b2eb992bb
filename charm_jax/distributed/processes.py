"""Let several processes train together.

Every process runs the same command and takes its share of each batch; only the first reads and
writes the folder of the run, and prints.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from data_pipelines.errors import InputError

T = TypeVar("T")

_PATIENCE = 60  # seconds that a process waits for the others before it exits


def join(process: str, coordinator: str) -> None:
    """Join the other processes of a training.

    Args:
        process: ``i/n``, this process's number from 0 and their count; ``auto`` under Slurm, Open
            MPI and other clusters that JAX knows; empty for a single process.
        coordinator: ``HOST:PORT`` of the first process.

    Raises:
        InputError: the arguments contradict each other, or the others cannot be reached.
    """
    if not process:
        if coordinator:
            raise InputError("--coordinator needs --process: give it as i/n, such as 0/2.")
        return
    known: dict[str, Any] = {}
    if process != "auto":
        number, _, count = process.partition("/")
        if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
            raise InputError(
                f"--process is {process!r}: give it as i/n, such as 0/2, i from 0 to n - 1, or "
                "auto."
            )
        if not coordinator:
            raise InputError(
                "--process needs --coordinator: give it as HOST:PORT of the first process."
            )
        known = {"process_id": int(number), "num_processes": int(count)}
    if coordinator:
        known["coordinator_address"] = coordinator
    try:
        jax.distributed.initialize(**known, shutdown_timeout_seconds=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--process={process} cannot join the others ({str(error).splitlines()[0]}): start all "
            "of them, with the same --coordinator=HOST:PORT."
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def check_batch(batch_size: int, key: str) -> None:
    """Check that the devices can share a batch.

    Raises:
        InputError: its size, set by ``key``, is no multiple of their number.
    """
    count = jax.device_count()
    if batch_size % count:
        raise InputError(
            f"{key} is {batch_size} and {count} devices share it: set it to a multiple of {count}, "
            "or let CUDA_VISIBLE_DEVICES name fewer devices."
        )


def all_gather(rows: np.ndarray) -> np.ndarray:
    """Gather the rows of all processes in their order; every process must call it."""
    return rows if jax.process_count() == 1 else multihost_utils.process_allgather(rows, tiled=True)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must call it."""
    return bool(all_gather(np.array([flag])).any())


def all_succeed(work: Callable[[], T]) -> T:
    """Run ``work`` in each process and return its value if all of them succeed.

    Raises:
        InputError: it failed in another process; in this one its own error, of whatever kind.
    """
    failure: Exception | None = None
    try:
        value = work()
    except Exception as error:  # the others wait for this process
        failure = error
    if any_of(failure is not None):
        raise failure or InputError("Another process cannot go on: its own message says why.")
    return value


def check_alike(values: Mapping[str, Any]) -> None:
    """Check that all processes have the same values, which must be JSON.

    Raises:
        InputError: in every process, with the first key that differs.
    """
    digests = [hashlib.sha256(json.dumps(value).encode()).digest() for value in values.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(1, len(digests), -1)
    every = all_gather(mine)
    unlike = (every != every[:1]).any((0, 2))
    if unlike.any():
        key = list(values)[int(unlike.argmax())]
        raise InputError(
            f"{key} is not the same in all processes: start all of them with one config on the "
            "same images."
        )


def broadcast_from_first(work: Callable[[], Any]) -> Any:
    """Run ``work`` in the first process alone and return its value, JSON, in all of them.

    Raises:
        InputError: in the other processes, if ``work`` failed; in the first its own error.
    """
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if is_first():
        try:
            answer = {"value": work()}
        except Exception as error:  # the others wait for this process
            failure = error
            answer = {"error": f"The first process cannot go on: {error}"}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = text if is_first() else np.zeros(size, np.uint8)
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(text)).decode())
    if "error" in answer:
        raise failure or InputError(answer["error"])
    return answer["value"]


def broadcast_arrays_from_first(
    work: Callable[[], tuple[PyTree, Any]], like: Callable[[Any], PyTree]
) -> tuple[PyTree, Any]:
    """Run ``work`` in the first process alone; return its arrays and JSON in all of them.

    Args:
        work: returns a tree of arrays, or None, and JSON.
        like: creates from that JSON a tree of the same shapes, in the other processes.

    Raises:
        InputError: as in ``broadcast_from_first``.
    """
    kept: list[PyTree] = []

    def first() -> Any:
        tree, beside = work()
        kept.append(tree)
        return beside, tree is None

    beside, none = broadcast_from_first(first)
    if none or jax.process_count() == 1:
        return (None if none else kept[0]), beside
    tree = kept[0] if kept else like(beside)
    keys = jax.tree.map(lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key), tree)
    data = jax.tree.map(lambda leaf, key: jax.random.key_data(leaf) if key else leaf, tree, keys)
    data = multihost_utils.broadcast_one_to_all(data)
    wrap = jax.random.wrap_key_data
    return jax.tree.map(lambda leaf, key: wrap(leaf) if key else leaf, data, keys), beside
