"""Describe the device that programs run on, and tell why a GPU is not in use."""

import ctypes
import functools
import importlib.util
import logging

import jax

_LOG = logging.getLogger(__name__)

_CUDA_OF_WHEELS = {"jax_cuda12_plugin": 12, "jax_cuda13_plugin": 13}


def target() -> tuple[str, str]:
    """Return platform and compute capability of the device, the latter empty off CUDA."""
    device = jax.local_devices()[0]
    return device.platform, getattr(device, "compute_capability", "")


@functools.cache
def warn_of_unused_gpu() -> None:
    """Warn once if JAX computes on a CPU although its CUDA wheels are installed."""
    versions = [v for name, v in _CUDA_OF_WHEELS.items() if importlib.util.find_spec(name)]
    asked_for_cpu = "cpu" in (jax.config.jax_platforms or "").split(",")
    if versions and not asked_for_cpu and jax.default_backend() == "cpu":
        _LOG.warning(
            f"JAX computes on the CPU although its wheels for CUDA {versions[-1]} are installed: "
            f"{_cause(versions[-1])}."
        )


def _cause(cuda: int) -> str:
    """Return what keeps programs of a CUDA version from a GPU, and the remedy."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (
            "there is no NVIDIA driver: install one, or pass the GPUs to the container "
            "(docker run --gpus all, apptainer --nv)"
        )
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < 1000 * cuda:
        return (
            f"the driver supports CUDA {version.value // 1000}.{version.value % 1000 // 10}: "
            "update it, or install the wheels of that version"
        )
    if error := driver.cuInit(0):
        return (
            f"the driver finds no GPU (CUDA error {error}): see what nvidia-smi prints, and "
            "CUDA_VISIBLE_DEVICES"
        )
    return "run again with TF_CPP_MIN_LOG_LEVEL=0 to see what fails"
