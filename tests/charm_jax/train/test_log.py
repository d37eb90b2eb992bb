"""What a run says of itself, on the screen and in its files."""

import dataclasses
import json
import logging

import pytest

from charm_jax.train.log import RunLog, run_log
from charm_jax.train.plan import Plan

PLAN = Plan("bce", "bce", False, 2, 4, 8, 0, 3, 0.0, 100)
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
