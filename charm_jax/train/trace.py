"""The profiler's trace of a few steps, on request."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from charm_jax.train.loop import TrainStep

_AFTER = 10  # steps: the first ones compile and fill queues


@contextmanager
def traced(step: TrainStep, directory: Path, count: int) -> Iterator[TrainStep]:
    """The step, of whose calls ``count`` after the first ten are traced.

    Args:
        step: jitted.
        directory: for the trace; TensorBoard's profile plug-in and Perfetto read it.
        count: how many; a stage that ends before is traced to its last one, if at all.
    """
    calls, begun, result = 0, False, None

    def stop() -> None:
        nonlocal begun
        jax.block_until_ready(result)
        jax.profiler.stop_trace()
        begun = False

    def call(*arguments: Any) -> Any:
        nonlocal calls, begun, result
        if calls == _AFTER and count:
            jax.profiler.start_trace(directory)
            begun = True
        result = step(*arguments)
        calls += 1
        if begun and calls == _AFTER + count:
            stop()
        return result

    try:
        yield call
    finally:
        if begun:
            stop()
