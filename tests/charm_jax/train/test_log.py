"""What a run says of itself, on the screen and in its files."""

import dataclasses
import errno
import json
import logging
import struct

import pytest
from tensorboardX.proto import event_pb2

from charm_jax.train import log as log_module
from charm_jax.train.log import RunLog, run_log
from charm_jax.train.optim import Cycle
from charm_jax.train.plan import Plan
from charm_jax.train.trackers import TensorBoard

PLAN = Plan("bce", "bce", False, 2, 4, 0, 8, Cycle(), 0, "loss", 3, 0.0, 100)
FIRST, SECOND = (
    dataclasses.replace(PLAN, phase=phase, steps_per_epoch=5) for phase in ("bce_frozen", "bce")
)
VALUES = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25, "val_macro_auroc": 0.75}


@pytest.fixture
def logger():
    found = logging.getLogger("charm_jax")
    found.setLevel(logging.INFO)
    return found


def epoch(log):
    log.begin_epoch(PLAN, 0, 0)
    for step in range(1, 5):
        log.step(PLAN, step, {"loss": 0.5})
    log.epoch(PLAN, 4, VALUES)


def test_an_epoch_is_a_line_without_carriage_returns(tmp_path, capfd, logger):
    later = dataclasses.replace(PLAN, phase="focal", stage="focal")
    with RunLog(tmp_path, [PLAN, later], ("bce", 0), 2) as log:
        epoch(log)
    shown = capfd.readouterr().err
    assert "\r" not in shown
    [line] = [line for line in shown.splitlines() if line.startswith("stage bce, epoch 1/2: ")]
    for words in ("training loss 0.5000", "validation loss 0.2500", "macro AUROC 0.7500"):
        assert words in line
    assert "images/s" in line
    assert line.endswith(" left")


def test_intervals_and_epochs_are_lines_of_json(tmp_path):
    with RunLog(tmp_path, [PLAN], ("bce", 0), 2) as log:
        epoch(log)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("interval", 2),
        ("interval", 4),
        ("epoch", 4),
    ]
    assert lines[-1] | VALUES == lines[-1]


def events(folder):
    """The steps of the events in a folder, each with its values by tag, or what it hides."""
    [path] = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        values = {value.tag: value.simple_value for value in event.summary.value}
        found.append((event.step, values or event.WhichOneof("what")))
        data = data[16 + size :]
    return found


def test_tensorboard_gets_the_same_values_without_processes(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")  # /dev/shm

    monkeypatch.setattr("multiprocessing.Queue", refuse)
    tracker = TensorBoard(tmp_path, ("bce", 0), {})
    with RunLog(tmp_path, [PLAN], ("bce", 0), 2, [tracker]) as log:
        epoch(log)
    version, start, *lines, last = events(tmp_path / "tensorboard/bce")
    assert (version, start) == ((0, "file_version"), (1, "session_log"))
    assert [step for step, _ in (*lines, last)] == [2, 4, 4]
    assert lines[0][1]["interval/loss"] == 0.5
    assert last[1] == {f"epoch/{name}": value for name, value in VALUES.items()}


def test_a_full_disk_names_the_run(tmp_path, monkeypatch, capfd, logger):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        close = flush = lambda self: self.write("")

    with (
        pytest.raises(OSError) as raised,
        run_log("start") as begin,
        RunLog(tmp_path, [PLAN], ("bce", 0), 2) as log,
    ):
        begin(tmp_path)
        log._file.close()
        log._file = logger.handlers[-1].stream = Full()
        epoch(log)
    assert raised.value.filename == str(tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_the_run_log_has_what_came_before_its_folder_and_what_follows(tmp_path, logger):
    for number in (1, 2):  # a restart appends
        with run_log(f"start {number}") as begin:
            logger.info("early")
            begin(tmp_path)
            logger.warning("late")
    lines = (tmp_path / "run.log").read_text().splitlines()
    texts = [line.split(" ", 2)[2] for line in lines]
    assert texts == ["start 1", "early", "warning: late", "start 2", "early", "warning: late"]


def test_an_error_is_the_last_line_of_the_run_log(tmp_path):
    with pytest.raises(ValueError, match="too bad"), run_log("start") as begin:
        begin(tmp_path)
        raise ValueError("too bad")
    assert (tmp_path / "run.log").read_text().endswith(" error: too bad\n")


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_module.time, "perf_counter", lambda: now[0])
    return now


def timed_epoch(run, clock, plan, number, *, done=0, seconds=2.0, validation=5.0):
    run.begin_epoch(plan, number, done)
    for step in range(plan.steps_per_epoch * number + done, plan.steps_per_epoch * (number + 1)):
        clock[0] += seconds
        run.step(plan, step + 1, {"loss": 0.5})
    clock[0] += validation
    run.epoch(plan, plan.steps_per_epoch * (number + 1), VALUES | {"epoch": number + 1})


def test_an_epoch_is_one_line_with_rate_and_time_left(tmp_path, capsys, clock):
    with RunLog(tmp_path, [FIRST, SECOND], ("bce_frozen", 0), 5) as run:
        timed_epoch(run, clock, FIRST, 0)
        timed_epoch(run, clock, FIRST, 1, done=3)
        timed_epoch(run, clock, SECOND, 0)
    # 5 steps of 8 images in 10 s are 4 images/s; with validation 15 s an epoch, 3 epochs left.
    shared = "training loss 0.5000, validation loss 0.2500, macro AUROC 0.7500, 4.0 images/s, "
    assert capsys.readouterr().err.splitlines() == [
        f"stage bce_frozen, epoch 1/2: {shared}00:45 left",
        f"stage bce_frozen, epoch 2/2: {shared}00:45 left",  # 9 s for 2 steps, 10 steps left
        f"stage bce, epoch 1/2: {shared}00:15 left",
    ]


def test_an_undefined_auroc_is_named(tmp_path, capsys, clock):
    with RunLog(tmp_path, [FIRST, SECOND], ("bce_frozen", 0), 5) as run:
        run.begin_epoch(FIRST, 0, 4)
        clock[0] += 1
        run.step(FIRST, 5, {"loss": 0.5})
        run.epoch(FIRST, 5, VALUES | {"val_macro_auroc": None})
    assert "macro AUROC undefined" in capsys.readouterr().err
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_macro_auroc"] is None


def test_a_monitored_ap_is_shown_beside_the_auroc(tmp_path, capsys, clock):
    monitored = dataclasses.replace(FIRST, monitor="ap")
    with RunLog(tmp_path, [monitored], ("bce_frozen", 0), 5) as run:
        run.begin_epoch(monitored, 0, 4)
        clock[0] += 1
        run.step(monitored, 5, {"loss": 0.5})
        run.epoch(monitored, 5, VALUES | {"val_macro_ap": 0.25})
    assert "macro AUROC 0.7500, macro AP 0.2500, " in capsys.readouterr().err


def test_inside_a_long_epoch_there_is_a_line_a_minute(tmp_path, capsys, clock, monkeypatch):
    monkeypatch.setattr("data_pipelines.progress.time.monotonic", lambda: clock[0])
    with RunLog(tmp_path, [FIRST, SECOND], ("bce_frozen", 0), 100) as run:
        timed_epoch(run, clock, FIRST, 0, seconds=25.0)
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert len(lines) == 2  # after 75 s, and the epoch
    assert lines[0].startswith("stage bce_frozen, epoch 1/2: 24/40 images")
    assert "loss=0.5000" in lines[0]
    assert "\r" not in text
