import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from preparing import ROOT, SOURCE, content, leftovers, prepare_nih
from tables import small_table

from data_pipelines.images.store import ImageArray
from data_pipelines.prepare import workers
from data_pipelines.prepare.shard_check import finished_shards
from data_pipelines.prepared.dataset import is_prepared
from data_pipelines.prepared.shards import Layout


def test_processes_change_nothing(nih, tmp_path):
    for processes in (1, 2):
        prepare_nih(nih, tmp_path / str(processes), processes=processes)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def _start(many, out, processes=2, **options):
    script = (
        "from pathlib import Path; from data_pipelines.prepare.preparation import prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare({SOURCE!r}, Path({str(many.path)!r}), Path({str(out)!r}), size=300,"
        f" rows_per_shard=2, processes={processes})\n"
    )
    file = out.parent / "script.py"
    file.write_text(script)
    return subprocess.Popen(
        [sys.executable, file], env=os.environ | {"PYTHONPATH": ROOT}, **options
    )


def _wait_for(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_killed_run_is_continued_to_the_same_records(many, tmp_path, shards):
    out = tmp_path / "killed"
    process = _start(many, out)
    progress = out / "progress"
    _wait_for(
        process,
        lambda: len(list(progress.glob("*.json"))) >= shards and list(progress.glob("*.draft")),
    )
    started = _workers(process)
    process.kill()
    process.wait()
    assert not is_prepared(out)
    # A worker may begin another shard before it follows its parent.
    _wait_until_gone(started)
    finished = {path: path.stat().st_mtime_ns for path in progress.glob("*.json")}
    assert len(finished) >= shards
    prepare_nih(many, out, size=300)
    assert {path: path.stat().st_mtime_ns for path in finished}.items() >= finished.items()
    assert leftovers(out) == []
    prepare_nih(many, tmp_path / "whole", size=300)
    assert content(out) == content(tmp_path / "whole")


def _workers(process):
    """Return the process ids of the workers that a process has started."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    children = " ".join((task / "children").read_text() for task in tasks).split()
    return [int(i) for i in children if "spawn_main" in Path(f"/proc/{i}/cmdline").read_text()]


def _wait_until_gone(numbers):
    deadline = time.monotonic() + 60
    for number in numbers:
        while _runs(number):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.01)


def _runs(number):
    process = Path(f"/proc/{number}")
    try:
        # Its first thread may be dead while another one still holds files.
        threads = len(list((process / "task").iterdir()))
        return threads > 1 or ") Z " not in (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until_unlocked(progress):
    """The workers follow their parent."""
    deadline = time.monotonic() + 60
    for draft in progress.glob("*.draft"):
        while True:
            assert time.monotonic() < deadline, "a worker outlived its parent"
            try:
                with draft.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except FileNotFoundError:
                break


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(many, tmp_path):
    prepare_nih(many, tmp_path / "whole", size=300)
    moments = np.random.default_rng(0)
    for run in range(6):
        out = tmp_path / f"killed{run}"
        for _ in range(4):
            process = _start(many, out)
            try:
                process.wait(moments.uniform(1, 6))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _wait_until_unlocked(out / "progress")
        prepare_nih(many, out, size=300)
        assert content(out) == content(tmp_path / "whole")
        assert leftovers(out) == []


def test_a_killed_worker_is_one_sentence(many, tmp_path):
    out = tmp_path / "out"
    process = _start(many, out, stderr=subprocess.PIPE)
    _wait_for(process, lambda: list((out / "progress").glob("*.draft")))
    for worker in _workers(process):
        os.kill(worker, signal.SIGKILL)
    assert b"was killed, perhaps for lack of memory" in process.communicate()[1]
    assert process.returncode == 1
    assert not is_prepared(out)


def test_two_processes_on_the_same_share_do_no_harm(many, tmp_path):
    out = tmp_path / "shared"
    processes = [_start(many, out, processes=1) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert leftovers(out) == []
    prepare_nih(many, tmp_path / "whole", size=300)
    assert content(out) == content(tmp_path / "whole")


def test_interrupted_by_hand_it_leaves_no_worker(many, tmp_path):
    out = tmp_path / "out"
    process = _start(many, out)
    _wait_for(process, lambda: list((out / "progress").glob("*.draft")))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert leftovers(out) == []
    assert not is_prepared(out)


def _layout(tmp_path):
    layout = Layout(tmp_path / "out", "test", 4, 6, 3)
    layout.reports.mkdir(parents=True)
    return layout


def test_images_in_memory_are_not_copied_to_workers(tmp_path, monkeypatch):
    images = np.arange(6, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    table, layout = small_table(6, store=ImageArray(images)), _layout(tmp_path)
    monkeypatch.setattr(ImageArray, "__reduce__", None, raising=False)  # refuses to be pickled
    reports = dict(workers.write_shards(table, layout, range(2), 2))
    assert finished_shards(table, layout, range(2)) == reports
