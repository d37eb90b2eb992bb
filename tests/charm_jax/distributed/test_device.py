import ctypes
import importlib.util
import logging

import jax
import pytest

from charm_jax.distributed import device


class Driver:
    """Stands for NVIDIA's library."""

    def __init__(self, version, error):
        self.version, self.error = version, error

    def cuDriverGetVersion(self, into):
        into._obj.value = self.version

    def cuInit(self, flags):
        return self.error


@pytest.fixture
def warned(monkeypatch, caplog):
    """Return the warning of a machine with the wheels for a CUDA version."""

    def check(driver, *, wheels="jax_cuda13_plugin", backend="cpu", platforms=None):
        def load(name):
            if driver is None:
                raise OSError(name)
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == wheels or None)
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        with caplog.at_level(logging.WARNING):
            monkeypatch.setattr(device.jax, "config", type("C", (), {"jax_platforms": platforms}))
            device.warn_of_unused_gpu.cache_clear()
            for _ in range(2):
                device.warn_of_unused_gpu()
        return [record.getMessage() for record in caplog.records]

    yield check
    device.warn_of_unused_gpu.cache_clear()


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (None, ("no NVIDIA driver", "--gpus all")),
        (Driver(12040, 0), ("CUDA 13", "supports CUDA 12.4", "update it")),
        (Driver(13000, 100), ("finds no GPU (CUDA error 100)", "CUDA_VISIBLE_DEVICES")),
        (Driver(13000, 0), ("TF_CPP_MIN_LOG_LEVEL=0",)),
    ],
)
def test_unused_cuda_wheels_are_told_of_once_with_the_cause(warned, driver, words):
    (message,) = warned(driver)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "case", [{"wheels": None}, {"backend": "gpu"}, {"platforms": "cpu"}, {"platforms": "cuda,cpu"}]
)
def test_nothing_is_said_without_wheels_with_a_gpu_or_where_a_cpu_is_asked_for(warned, case):
    assert warned(None, **case) == []
