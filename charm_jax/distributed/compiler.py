"""What XLA is told when it compiles a step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from charm_jax.distributed import mesh

# XLA's default on a CPU orders a program so that much of it could run at the same time. What the
# backward pass prepares of the forward's results then waits in memory: EfficientNetV2-S at 224
# pixels and a batch of 16 takes 3.4 GB, which the system zeroes in every step, rather than 2.1.
_FOR_CPU = {
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
    "xla_cpu_prefer_vector_width": 512,  # by default 256, even where the CPU has 512
}


@functools.cache
def options() -> dict[str, bool | int]:
    """``compiler_options`` of ``jax.jit`` for the default backend, as far as this XLA knows them.

    They change how fast a program is; what it computes, only in the order of summation.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _FOR_CPU.items() if _known({name: value})}


def _known(option: dict[str, bool | int]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=option).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@runtime_checkable
class DeviceCases(Protocol):
    """Cases in the device's memory: a pytree of arrays."""

    def batch(self, case_ids: Array) -> Mapping[str, Array]:
        """The batch with these case ids."""


class CompiledStep:
    """A step compiled for one device, or for all of a mesh.

    Called with a state, whole on every device, and a batch: this process's share of it, which its
    devices divide. Where the cases are on the devices, of a batch only ``case_id`` is sent there.
    """

    def __init__(
        self, step: Callable, cases: DeviceCases | None, over: Mesh | None, **jit_options: Any
    ):
        """Prepares ``step(state, batch)``; ``jit_options`` are those of ``jax.jit``."""
        self._over, self._cases = over, cases
        if over is not None:
            jit_options["out_shardings"] = mesh.replicated_sharding(over)

        # The cases are an argument: as a constant they would be compiled into the program.
        def gather_and_step(
            state: PyTree, batch: Mapping[str, Array], cases: DeviceCases
        ) -> object:
            return step(state, cases.batch(batch["case_id"]))

        function = step if cases is None else gather_and_step
        self._jitted = jax.jit(function, compiler_options=options(), **jit_options)

    def __call__(self, state: PyTree, batch: Mapping[str, Array | np.ndarray]) -> Any:
        """What the step gives."""
        return self._on_devices(self._jitted, state, batch)

    def lower(self, state: PyTree, batch: Mapping[str, Array | np.ndarray]) -> Any:
        """The step before compilation, as ``jax.jit`` gives it."""
        return self._on_devices(self._jitted.lower, state, batch)

    def _on_devices(
        self, function: Callable, state: PyTree, batch: Mapping[str, Array | np.ndarray]
    ) -> Any:
        cases = ()
        if self._cases is not None:
            batch, cases = {"case_id": batch["case_id"]}, (self._cases,)
        if self._over is None:
            return function(state, batch, *cases)
        with jax.set_mesh(self._over):
            return function(state, mesh.shard_batch(batch, self._over), *cases)
