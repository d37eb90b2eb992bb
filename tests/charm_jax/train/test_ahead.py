import threading
from concurrent.futures import CancelledError

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.distributed.compiler import CompiledStep
from charm_jax.train.ahead import Ahead, batch_shapes, shapes


@pytest.fixture
def compiled():
    """The threads that compiled `step` since."""
    found = []

    def note(event, seconds, **facts):
        if event == "/jax/core/compile/backend_compile_duration" and "step" in facts["fun_name"]:
            found.append(threading.current_thread())

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def make(traced):
    def step(state, batch, factor):
        traced.append(batch["image"].shape)
        return state + factor * batch["image"].sum(), batch["image"].mean()

    return CompiledStep(step, None, None, donate_argnums=0)


STATE = jnp.zeros((), jnp.float32)
BATCH = {"image": np.ones((4, 2), np.float32)}


def test_a_step_that_was_compiled_ahead_is_neither_traced_nor_compiled_again(compiled):
    traced = []
    step, ahead = make(traced), Ahead(enabled=True)
    ahead.compile("later", lambda: step.lower(shapes(STATE), batch_shapes(BATCH, 6), 2.0))
    ahead.wait("later")
    assert traced == [(6, 2)]
    assert compiled != [threading.main_thread()]
    state, mean = step(jnp.copy(STATE), {"image": np.ones((6, 2), np.float32)}, 2.0)
    assert (float(state), float(mean)) == (24, 1)
    assert traced == [(6, 2)]
    assert len(compiled) == 1
    ahead.close()


def test_each_program_is_compiled_once():
    traced, ahead = [], Ahead(enabled=True)
    for _ in range(2):
        step = make(traced)
        ahead.compile("later", lambda: step.lower(STATE, BATCH, 2.0))  # noqa: B023
        ahead.wait("later")
    assert len(traced) == 1
    ahead.close()


def test_an_error_is_left_to_the_call(capfd):
    traced, ahead = [], Ahead(enabled=True)
    step = make(traced)
    ahead.compile("later", lambda: step.lower(STATE, {"labels": BATCH["image"]}, 2.0))
    ahead.wait("later")
    ahead.close()
    assert (
        "the later could not be compiled while training: KeyError('image')"
        in capfd.readouterr().err
    )
    with pytest.raises(KeyError, match="image"):
        step(STATE, {"labels": BATCH["image"]}, 2.0)


def test_what_waits_for_the_thread_is_dropped_at_the_end():
    begun, going_on, dropped = threading.Event(), threading.Event(), []
    traced, ahead = [], Ahead(enabled=True)
    step = make(traced)

    def first():
        begun.set()
        going_on.wait()
        return step.lower(STATE, BATCH, 2.0)

    ahead.compile("first", first)
    ahead.compile("second", lambda: dropped.append(True))
    begun.wait()
    closing = threading.Thread(target=ahead.close)
    closing.start()
    with pytest.raises(CancelledError):
        ahead.wait("second")
    going_on.set()
    closing.join()
    assert len(traced) == 1
    assert not dropped


def test_nothing_is_compiled_ahead_where_that_is_off():
    traced, ahead = [], Ahead(enabled=False)
    ahead.compile("later", lambda: make(traced).lower(STATE, BATCH, 2.0))
    ahead.wait("later")
    ahead.close()
    assert not traced
