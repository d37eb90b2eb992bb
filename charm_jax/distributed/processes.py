"""Several processes that train together: who they are, and what they tell each other.

Every process runs the same command and takes its share of each batch; the first alone reads and
writes the folder of the run, and speaks.
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

_PATIENCE = 60  # seconds that a process which ends waits for the others


def join(process: str, coordinator: str) -> None:
    """Makes this process one of several that train together.

    Args:
        process: ``i/n``, its number from 0 and how many they are; ``auto`` under Slurm, Open MPI
            and other clusters that JAX knows; empty for a process of its own.
        coordinator: ``HOST:PORT`` of the first, which all of them reach.

    Raises:
        InputError: the two contradict each other, or the others cannot be reached.
    """
    if not process:
        if coordinator:
            raise InputError("--coordinator needs --process: give it as i/n, such as 0/2.")
        return
    known: dict[str, Any] = {}
    if process != "auto":
        number, count = _number_of(process)
        if not coordinator:
            raise InputError(
                "--process needs --coordinator: give it as HOST:PORT of the first process."
            )
        known = {"process_id": number, "num_processes": count}
    if coordinator:
        known["coordinator_address"] = coordinator
    try:
        jax.distributed.initialize(**known, shutdown_timeout_seconds=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--process={process} cannot join the others ({str(error).splitlines()[0]}): start all "
            "of them, with the same --coordinator=HOST:PORT."
        ) from error


def _number_of(process: str) -> tuple[int, int]:
    number, _, count = process.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise InputError(
            f"--process is {process!r}: give it as i/n, i from 0 to n - 1, such as 0/2, or auto."
        )
    return int(number), int(count)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def check_batch(batch_size: int, key: str) -> None:
    """Looks whether the devices can share a batch.

    Raises:
        InputError: its size, given by ``key``, is no multiple of their number.
    """
    count = jax.device_count()
    if batch_size % count:
        raise InputError(
            f"{key} is {batch_size} and {count} devices share it: set it to a multiple of {count}, "
            "or let CUDA_VISIBLE_DEVICES name fewer devices."
        )


def all_gather(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes together, in their order; every process has to ask."""
    return rows if jax.process_count() == 1 else multihost_utils.process_allgather(rows, tiled=True)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; every process has to ask."""
    return bool(all_gather(np.array([flag])).any())


def all_succeed(work: Callable[[], T]) -> T:
    """What each process gets from ``work``, if all of them succeed.

    Raises:
        InputError: this one did not, or another.
    """
    failure: Exception | None = None
    try:
        value = work()
    except (InputError, OSError) as error:
        failure = error
    if any_of(failure is not None):
        raise failure or InputError("Another process cannot go on: its own message says why.")
    return value


def check_alike(values: Mapping[str, Any]) -> None:
    """Looks whether all processes have the same values; each must be JSON.

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
    """What the first process gets from ``work``, which it alone does; it must be JSON.

    Raises:
        InputError: in every process, if ``work`` raised it or, in the others, an OSError.
    """
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if is_first():
        try:
            answer = {"value": work()}
        except (InputError, OSError) as error:
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
    """A tree of arrays and the JSON beside it that the first process gets from ``work``.

    Args:
        work: done by the first process alone; a tree of None means that there are no arrays.
        like: from that JSON, a tree of the same shapes in the other processes.

    Raises:
        InputError: in every process, if ``work`` raised it.
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
