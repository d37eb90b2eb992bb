"""What XLA is told when it compiles a step."""

import functools

import jax

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
