"""The command: a sweep of two rows from start to report, and what it refuses."""

import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
from running import SMALL

from charm_jax.config import cli
from charm_jax.sweep import __main__ as command
from charm_jax.sweep import plan as plans
from charm_jax.sweep import worker
from charm_jax.sweep.queue import Queue

FILE = """def get_sweep():
    return {
        "config": "demo",
        "rows": [
            {"title": "one", "published": 0.9},
            {"title": "two", "keys": {"model.charm": False}, "published": 0.8},
            {"title": "three", "keys": {"model.fusion": False}, "published": 0.7},
        ],
        "seeds": [0, 1],
    }
"""


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return "mine.py"


def stand_in(plan, name):
    """Write what a run leaves: the better the row, the stronger its scores."""
    point = next(point for point in plan.points if point.name == name)
    labels = (np.random.default_rng(0).random((200, 2)) < 0.3).astype(int)
    strength = {"one": 2.0, "two": 0.1, "three": 2.0}[point.row]
    noise = np.random.default_rng(point.seed).normal(size=labels.shape)
    table = {"image": [f"{i}.png" for i in range(200)], "patient": np.arange(200) // 2}
    for i, finding in enumerate(("A", "B")):
        table[f"{finding}_label"] = labels[:, i]
        table[f"{finding}_logit"] = strength * labels[:, i] + noise[:, i]
    folder = plan.folder / name / "eval" / "test"
    folder.mkdir(parents=True)
    pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({"simulated": True}))
    return strength


def test_the_report_compares_finished_rows(sweep, capsys):
    plan = plans.read(sweep, {})
    queue = Queue(plan)
    queue.fill(again=True)
    queue.work(lambda name: stand_in(plan, name))
    assert command.main(["report", sweep]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "baseline" in lines["one"]
    assert "worse" in lines["two"]
    assert "no difference that these seeds can show" in lines["three"]
    assert "SIMULATED images" in out
    assert "Best on validation: " in out
    assert "rank correlation" in out
    assert "Differ from one: two." in out
    table = pd.read_csv("runs/mine/report.csv").set_index("row")
    assert table.loc["two", "difference"] < -0.2
    assert table.loc["two", "p_holm"] < 0.05
    assert table.loc["one", "published"] == 0.9
    page = (plan.folder / "report.html").read_text()
    assert page.count("<tr>") == 4
    assert "://" not in page
    assert (plan.folder / "report.png").stat().st_size > 5000


def test_a_report_says_what_is_missing(sweep, capsys):
    plan = plans.read(sweep, {})
    queue = Queue(plan)
    queue.fill(again=True)

    def run(name):
        if name == "two-seed1":
            raise worker.RunFailed("no disk")
        return stand_in(plan, name)

    queue.work(run)
    assert command.main(["report", sweep]) == 0
    out = capsys.readouterr().out
    assert "1 of 6 runs are not done." in out
    assert "two-seed1 failed: no disk" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["name or file of one sweep"]),
        (["report"], ["name or file of one sweep"]),
        (["mine.py", "other.py"], ["name or file of one sweep"]),
        (["mine.py", "--workers=0"], ["--workers is '0'"]),
        (["mine.py", "--workers=two"], ["--workers is 'two'"]),
        (["mine.py", "--storage=nonsense"], ["storage nonsense cannot be used"]),
        (["mine.py", "--config.model.charm=False"], ["--config.model.charm is what the rows"]),
        (["report", "mine.py"], ["No run of the sweep mine is done"]),
    ],
)
def test_bad_arguments_are_refused(sweep, arguments, words, refused, tmp_path):
    refused(command.main, arguments, *words, cwd=tmp_path)


def test_a_report_without_the_files_of_a_run_names_the_remedy(sweep, refused, tmp_path):
    plan = plans.read(sweep, {})
    queue = Queue(plan)
    queue.fill(again=True)
    queue.work(lambda name: 0.5)
    words = ["charm-jax eval --run one-seed0 --config.runs_dir=runs/mine"]
    refused(command.main, ["report", sweep], *words, cwd=tmp_path)


def test_without_optuna_the_extra_is_named(sweep, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(command.main, [sweep], 'pip install "charm-jax[sweep]"', cwd=tmp_path)


def test_a_sweep_goes_on_with_what_is_left_and_tells_what_failed(sweep, capfd, monkeypatch):
    broken, ran = {"two-seed0"}, []

    def together(plan, storage, workers, look):
        def run(name):
            ran.append(name)
            if name in broken:
                raise worker.RunFailed("no disk")
            return 0.5

        Queue(plan, storage).work(run)
        look()

    monkeypatch.setattr(worker, "work_together", together)
    assert cli.guarded(command.main, [sweep]) == 1
    said = capfd.readouterr().err
    assert "warning: two-seed0 failed: no disk" in said
    assert "5 of 6 runs are done" in said
    broken.clear()
    ran.clear()
    assert cli.guarded(command.main, [sweep]) == 0
    assert cli.guarded(command.main, [sweep]) == 0
    assert ran == ["two-seed0"]


@pytest.mark.slow
def test_two_rows_are_trained_and_compared(tmp_path, capfd):
    small = [flag for flag in SMALL if "preset" not in flag]
    text = '{"config": "demo", "rows": [{"title": "vote"}, {"title": "plain", "keys": %s}]}'
    keys = '{"model.charm": False}'
    (tmp_path / "real.py").write_text(f"def get_sweep():\n    return {text % keys}\n")
    small = [*small, "--config.stages.bce.frozen_epochs=0", "--config.stages.bce.epochs=1"]
    small += ["--config.stages.focal.epochs=1"]
    assert cli.guarded(command.main, ["real.py", *small, "--workers=1"]) == 0
    assert cli.guarded(command.main, ["real.py", *small]) == 0  # nothing is left to do
    assert "2 runs in runs/real, 2 are done" in capfd.readouterr().err
    assert cli.guarded(command.main, ["report", "real.py", *small]) == 0
    assert len(pd.read_csv("runs/real/report.csv")) == 2
    assert os.path.exists("runs/real/vote-seed0/summary.json")
