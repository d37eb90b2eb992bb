"""What processes that train together tell each other, and two real ones."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from running import SMALL, copy_data, read, train

from charm_jax import convert
from charm_jax.distributed import processes
from charm_jax.train import __main__ as train_command
from data_pipelines.errors import InputError


def failing():
    raise InputError("no such thing.")


def test_a_process_of_its_own_asks_nobody():
    assert processes.is_first()
    assert processes.broadcast_from_first(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(InputError, match="no such thing"):
        processes.broadcast_from_first(failing)
    rows = np.arange(3)
    assert processes.all_gather(rows) is rows
    assert processes.any_of(True)
    assert not processes.any_of(False)
    tree, beside = processes.broadcast_arrays_from_first(lambda: ({"a": rows}, 5), failing)
    assert tree["a"] is rows
    assert beside == 5
    assert processes.broadcast_arrays_from_first(lambda: (None, {}), failing) == (None, {})
    assert processes.all_succeed(lambda: 3) == 3
    with pytest.raises(InputError, match="no such thing"):
        processes.all_succeed(failing)
    processes.check_alike({"config.seed": 0})


@pytest.mark.parametrize("kind", [InputError, OSError, ValueError, MemoryError])
def test_whatever_ends_one_process_is_told_to_the_others_before(kind, monkeypatch):
    """An error that leaves without a word lets them wait for a minute and more."""
    told = []
    monkeypatch.setattr(processes, "any_of", lambda flag: told.append(flag) or flag)

    def fail():
        raise kind("no such thing.")

    with pytest.raises(kind, match="no such thing"):
        processes.all_succeed(fail)
    assert told == [True]

    def broadcast(value):
        told.append(value)
        return value

    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
    with pytest.raises(kind, match="no such thing"):
        processes.broadcast_from_first(fail)
    assert "The first process cannot go on: no such thing." in bytes(told[-1]).decode()


def test_processes_that_differ_are_told_in_what(monkeypatch):
    def also_of_another(mine):
        theirs = mine.copy()
        theirs[0, 1, 0] ^= 1
        return np.concatenate([mine, theirs])

    monkeypatch.setattr(processes, "all_gather", also_of_another)
    with pytest.raises(InputError, match=r"config\.seed is not the same in all processes"):
        processes.check_alike({"config.name": "a", "config.seed": 0, "rule": "official"})


def test_one_that_cannot_go_on_ends_all(monkeypatch):
    monkeypatch.setattr(processes, "any_of", lambda flag: True)
    with pytest.raises(InputError, match="Another process cannot go on"):
        processes.all_succeed(lambda: 3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--process=0/2"], ["--coordinator", "HOST:PORT"]),
        (["--coordinator=localhost:1"], ["--process", "0/2"]),
        (["--process=2/2", "--coordinator=localhost:1"], ["2/2", "n - 1"]),
        (["--process=one", "--coordinator=localhost:1"], ["one", "i/n"]),
        (["--process=auto"], ["--process=auto", "cannot join"]),
        (["--process=0/2", "--coordinator=localhost"], ["--process=0/2", "HOST:PORT"]),
    ],
)
def test_who_does_not_say_how_to_join_is_told(flags, words, tmp_path, refused):
    refused(train_command.main, [*SMALL, *flags], *words, cwd=tmp_path)


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(processes.jax, "device_count", lambda: 3)
    processes.check_batch(6, "config.stages.bce.batch_size")
    with pytest.raises(InputError, match=r"config\.stages\.bce\.batch_size is 8 and 3 devices"):
        processes.check_batch(8, "config.stages.bce.batch_size")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(folder, *arguments, second=None):
    """Run the command in two processes, with their messages in files.

    The second may run in a folder of its own.
    """
    port = free_port()
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "charm_jax.train", *SMALL, "--config.log.every_steps=1"),
                *(f"--process={i}/2", f"--coordinator=127.0.0.1:{port}", *arguments),
            ],
            cwd=second if i and second else folder,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"process{i}.txt").open("w"),
            env=os.environ | {"XLA_FLAGS": ""},
        )
        for i in (0, 1)
    ]


def interval_losses(folder):
    lines = (folder / "runs/demo/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {(e["stage"], e["step"]): e["loss"] for e in entries if e["kind"] == "interval"}


@pytest.mark.daily
def test_two_processes_end_together_and_one_goes_on_alone(finished, tmp_path):
    """SIGTERM to the one that does not write; the losses are those of a run without any break."""
    copy_data(finished, tmp_path)
    pair = start_two(tmp_path)
    log = tmp_path / "runs/demo/metrics.jsonl"
    while all(p.poll() is None for p in pair) and not (log.exists() and '"bce"' in log.read_text()):
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=300) for process in pair]
    messages = [(tmp_path / f"process{i}.txt").read_text() for i in (0, 1)]
    assert codes == [143, 143], messages
    assert "2 devices" in messages[0]
    assert "in 2 processes" in messages[0]
    assert "The last good checkpoint is runs/demo/checkpoints/bce/" in messages[0]
    assert "Done" not in messages[1]

    together = interval_losses(tmp_path)
    result = train("--config.log.every_steps=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Continuing runs/demo from step" in result.stderr
    expected, losses = interval_losses(finished[0]), interval_losses(tmp_path)
    assert together.items() <= losses.items()
    assert expected.keys() <= losses.keys()
    for at, loss in expected.items():
        assert abs(loss - losses[at]) < 1e-5, at
    assert read(tmp_path / "runs/demo/summary.json")["stages"].keys() == {
        "bce_frozen",
        "bce",
        "focal",
    }


@pytest.mark.daily
def test_weights_that_one_of_two_processes_lacks_end_both(finished, tmp_path):
    """Neither waits for the other."""
    copy_data(finished, tmp_path)
    second = tmp_path / "second"
    copy_data(finished, second)
    arguments = ["--run", str(finished[0] / "runs/demo"), str(tmp_path / "w.safetensors")]
    assert convert.main(arguments) == 0
    pair = start_two(tmp_path, "--config.model.init_from=w.safetensors", second=second)
    codes = [process.wait(timeout=120) for process in pair]
    messages = [(tmp_path / f"process{i}.txt").read_text() for i in (0, 1)]
    assert codes == [2, 2], messages
    assert "Another process cannot go on" in messages[0]
    assert "w.safetensors" in messages[1]
    assert not (tmp_path / "runs/demo").exists()
