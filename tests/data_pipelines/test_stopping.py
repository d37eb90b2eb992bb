"""Ctrl-C and SIGTERM, from the first import on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from preparing import ROOT

from data_pipelines import stopping

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SENTENCES = {
    signal.SIGINT: "stopped by Ctrl-C: start the same command again.\n",
    signal.SIGTERM: "stopped by SIGTERM: start the same command again.\n",
}
# The first package that takes time to import, for each command.
MODULES = {
    **{f"charm_jax.{name}": "jax" for name in ("train", "eval", "predict", "memory", "convert")},
    **{f"data_pipelines.{name}": "numpy" for name in ("prepare", "inspect", "phantom")},
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("module", [*MODULES, "charm_jax"])
def test_a_signal_during_the_imports_is_one_sentence(module, number, tmp_path):
    slow = MODULES.get(module, "jax")
    (tmp_path / f"{slow}.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{number.name})\ntime.sleep(60)\n"
    )
    command = [module, "train"] if module == "charm_jax" else [module]
    result = subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (CODES[number], SENTENCES[number])


@pytest.mark.parametrize("number", CODES)
def test_signals_are_noted_or_raised_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stopping.caught(raising=False) as received:
        os.kill(os.getpid(), number)
    assert received == [number]
    with pytest.raises(stopping.Stopped) as raised, stopping.caught(raising=True):
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert raised.value.number == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("slow", ["compile", "swallow"])
def test_a_command_that_does_not_react_is_ended(slow, number):
    """A long call, like XLA's, runs no handler, and a library may swallow the exception."""
    code = (
        "import contextlib, hashlib, time\n"
        "from data_pipelines import stopping\n"
        "from data_pipelines.command_line import guarded\n"
        "def compile():\n"
        "    print(flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
        "def swallow():\n"
        "    with contextlib.suppress(BaseException):\n"
        "        print(flush=True)\n"
        "        time.sleep(60)\n"
        "    time.sleep(60)\n"
        "stopping._PATIENCE = 0.1\n"
        f"raise SystemExit(guarded({slow}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    process.stdout.readline()
    time.sleep(0.2)  # until the call has begun
    process.send_signal(number)
    assert process.communicate()[1] == SENTENCES[number]
    assert process.returncode == CODES[number]


def test_an_exception_that_python_ignores_is_raised_again(capfd):
    class Collected:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(stopping.Stopped), stopping.caught(raising=True):
        Collected()
        time.sleep(60)
    assert capfd.readouterr().err == ""


def test_a_training_that_finishes_its_step_is_not_ended(monkeypatch):
    monkeypatch.setattr(stopping, "_PATIENCE", 0.0)
    with stopping.caught(raising=True):
        with stopping.caught(raising=False) as received:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        assert received == [signal.SIGTERM]
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_ignored_stays_ignored():
    """A shell starts background commands like this, and their Ctrl-C is not theirs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping.caught(raising=True) as received:
        os.kill(os.getpid(), signal.SIGINT)
    assert received == []


def test_ctrl_c_a_second_time_does_not_wait(monkeypatch):
    clock = iter(
        [0.0, 5.0, 5.5, 6.5]
    )  # entry, Ctrl-C, the same passed on by a wrapper, Ctrl-C again
    monkeypatch.setattr(time, "monotonic", clock.__next__)
    with pytest.raises(stopping.Stopped), stopping.caught(raising=False) as received:
        for count in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGINT)
            assert len(received) == count < 3


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGTERM]])
def test_some_signals_do_not_reach_children(numbers):
    with stopping.for_children(*numbers):
        child = subprocess.Popen([sys.executable, "-c", "print(input())"], stdin=-1, stdout=-1)
    for number in numbers:
        child.send_signal(number)
    assert child.communicate(b"alive\n")[0] == b"alive\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
