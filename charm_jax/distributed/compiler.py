"""Compile steps for one device or several, with the right options for XLA."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from charm_jax.distributed import mesh
from data_pipelines.loading.resident import ResidentCases

Batch = Mapping[str, Array | np.ndarray]
BatchShapes = Mapping[str, Array | np.ndarray | jax.ShapeDtypeStruct]

# XLA's default on a CPU orders a program for concurrency, which keeps more intermediate results in
# memory: EfficientNetV2-S at 224 pixels and a batch of 16 takes 3.4 GB, which the system zeroes in
# every step, rather than 2.1.
_FOR_CPU = {
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
    "xla_cpu_prefer_vector_width": 512,  # by default 256, even where the CPU has 512
}


@functools.cache
def options(platform: str) -> dict[str, bool | int]:
    """Return the ``compiler_options`` of ``jax.jit`` that this XLA knows, for a platform.

    They change the speed of a program and its order of summation.
    """
    known: dict[str, bool | int] = {}
    if platform == "cpu":
        for name, value in _FOR_CPU.items():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
                known[name] = value
    return known


class CompiledStep:
    """Compile a step for one device, or for all devices of a mesh.

    Call it with a replicated state, this process's share of a batch, which its devices divide, and
    what else the step takes, which is the same on all. With ``cases`` on the devices, only the
    batch's ``case_id`` is sent there.
    """

    def __init__(
        self, step: Callable, cases: ResidentCases | None, over: Mesh | None, **jit_options: Any
    ):
        """Prepare ``step(state, batch, *others)``; ``jit_options`` go to ``jax.jit``."""
        self._over, self._cases = over, cases
        if over is not None:
            jit_options["out_shardings"] = mesh.replicated_sharding(over)

        # The cases are an argument: a constant would be compiled into the program.
        def gather_and_step(
            state: PyTree, batch: Batch, cases: ResidentCases, *others: PyTree
        ) -> object:
            return step(state, cases.batch(batch["case_id"]), *others)

        function = step if cases is None else gather_and_step
        compiler_options = options(jax.default_backend())
        self._jitted = jax.jit(function, compiler_options=compiler_options, **jit_options)

    def __call__(self, state: PyTree, batch: Batch, *others: PyTree) -> Any:
        """Run the step."""
        return self._on_devices(self._jitted, state, batch, others)

    def lower(
        self, state: PyTree, batch: BatchShapes, *others: PyTree, platform: str | None = None
    ) -> Any:
        """Lower the step, as ``jax.jit(step).lower`` does; on one device shapes are enough.

        Args:
            platform: to lower for, such as ``cuda``; it need not be there. By default JAX's.
        """
        platforms = None if platform is None else (platform,)

        def lowered(*arguments: Any) -> Any:
            return self._jitted.trace(*arguments).lower(lowering_platforms=platforms)

        return self._on_devices(lowered, state, batch, others)

    def _on_devices(
        self, function: Callable, state: PyTree, batch: BatchShapes, others: tuple[PyTree, ...]
    ) -> Any:
        cases = ()
        if self._cases is not None:
            batch, cases = {"case_id": batch["case_id"]}, (self._cases,)
        if self._over is None:
            return function(state, batch, *cases, *others)
        with jax.set_mesh(self._over):
            return function(state, mesh.shard_batch(batch, self._over), *cases, *others)
