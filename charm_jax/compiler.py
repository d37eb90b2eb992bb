"""What XLA is told when it compiles a step."""

import functools

import jax

# On a CPU XLA orders a program so that much of it could run at the same time, and what the backward
# pass prepares of the forward's results waits in memory: 3.4 rather than 2.0 GB for
# EfficientNetV2-S at 224 pixels, which the system hands over page by page in every step.
_FOR_CPU = {
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
    "xla_cpu_prefer_vector_width": 512,  # 256 by default, of a CPU that has 512, too
}


@functools.cache
def options() -> dict[str, bool | int]:
    """Options of ``jax.jit`` for the default backend, but for those that this XLA does not know.

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
