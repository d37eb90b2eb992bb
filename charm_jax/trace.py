"""The profiler's trace of a few steps, on request."""

from pathlib import Path
from typing import Any

import jax

from charm_jax.stages import TrainStep

_AFTER = 10  # steps: the first ones compile and fill queues


def traced(step: TrainStep, directory: Path, count: int) -> TrainStep:
    """The step, of whose calls ``count`` after the first ten are traced.

    Args:
        step: jitted.
        directory: for the trace; TensorBoard's profile plug-in and Perfetto read it.
        count: how many, 1 or more; a stage with fewer steps is traced to its last one, if at all.
    """
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        if calls == _AFTER:
            jax.profiler.start_trace(directory)
        result = step(*arguments)
        calls += 1
        if calls == _AFTER + count:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
        return result

    return call
