import logging

import jax.numpy as jnp
import pytest

from charm_jax.config import build, cli
from charm_jax.distributed import device


@pytest.mark.parametrize(
    ("target", "dtype", "said"),
    [
        (("gpu", "7.5"), jnp.float32, ["A GPU of compute capability 7.5 computes in float32"]),
        (("gpu", "8.0"), jnp.bfloat16, []),
        (("cpu", ""), jnp.float32, []),
    ],
)
def test_a_network_computes_in_the_type_of_its_device(monkeypatch, caplog, target, dtype, said):
    monkeypatch.setattr(device, "target", lambda: target)
    with caplog.at_level(logging.INFO, "charm_jax"):
        network = build.build_network(cli.settings_from({}, "nothing"), 3, (0.1, 0.1, 0.1))
    assert network.trunk.dtype == dtype
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == said
