import jax
import pytest

from charm_jax.distributed import compiler


@pytest.fixture
def asked_anew():
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options of a CPU")
def test_all_options_are_known_to_this_xla_which_is_asked_once(asked_anew, traces):
    for _ in range(2):
        assert compiler.options("cpu").keys() == compiler._FOR_CPU.keys()
    assert traces["<lambda>"] == len(compiler._FOR_CPU)


def test_an_option_that_xla_does_not_know_is_left_out(asked_anew, monkeypatch):
    monkeypatch.setitem(compiler._FOR_CPU, "xla_cpu_of_another_year", True)
    assert "xla_cpu_of_another_year" not in compiler.options("cpu")


def test_another_platform_gets_none(asked_anew):
    assert compiler.options("gpu") == {}


def test_a_step_is_compiled_with_them(monkeypatch):
    monkeypatch.setattr(compiler, "options", lambda platform: {"xla_of_no_year": True})
    step = compiler.CompiledStep(lambda state, batch: state, None, None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_of_no_year"):
        step._jitted.lower(1.0, {}).compile()
