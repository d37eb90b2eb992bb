import jax
import jax.numpy as jnp
import pytest

from charm_jax.trace import traced


@pytest.mark.parametrize(("calls", "expected"), [(10, False), (12, True), (30, True)])
def test_steps_after_the_tenth_are_traced(tmp_path, calls, expected):
    step = traced(jax.jit(lambda state, batch: (state + batch, {})), tmp_path / "trace", 2)
    state = jnp.zeros(())
    for _ in range(calls):
        state, _ = step(state, 1.0)
    assert state == calls
    assert bool(list(tmp_path.rglob("*.xplane.pb"))) == expected
