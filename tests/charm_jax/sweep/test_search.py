"""A search has as many trials as asked for, whatever becomes of its workers, and is judged once."""

import json

import pandas as pd
import pytest

from charm_jax.config import cli
from charm_jax.sweep import __main__ as command
from charm_jax.sweep import plan as plans
from charm_jax.sweep import worker
from charm_jax.sweep.queue import RunFailed
from charm_jax.sweep.search import Trials, best
from data_pipelines.errors import InputError

pytest.importorskip("optuna")

FILE = """def get_sweep():
    return {
        "config": "demo",
        "search": {
            "stages.bce.peak_lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "model.retrieval_k": {"low": 1, "high": 9},
            "stages.focal.loss": ["bce", "focal"],
        },
        "trials": %d,
        "sampler": "%s",
    }
"""


@pytest.fixture(params=["tpe", "random"])
def search(tmp_path, request):
    (tmp_path / "mine.py").write_text(FILE % (8, request.param))
    return plans.read("mine.py", {})


def score_of(point):
    return point.keys["model.retrieval_k"] / 10


def test_the_values_of_each_trial_are_within_their_ranges(search):
    points = []

    def run(point, report):
        points.append(point)
        return score_of(point)

    for _ in range(2):
        trials = Trials(search)
        trials.fill(again=True)
        trials.work(run)
    assert [point.name for point in points] == [f"trial-{number:03}" for number in range(8)]
    for point in points:
        assert 1e-4 <= point.keys["stages.bce.peak_lr"] <= 1e-2
        assert point.keys["model.retrieval_k"] in range(1, 10)
        assert point.keys["stages.focal.loss"] in ("bce", "focal")
        assert point.keys["runs_dir"] == "runs/mine"
    assert len({point.keys["stages.bce.peak_lr"] for point in points}) == 8
    assert best(trials.table())["validation"] == max(map(score_of, points))


def test_a_trial_below_the_median_is_pruned(search):
    ended = []

    def run(point, report):
        score = 0.1 if point.name == "trial-006" else 0.8
        for epoch in (1, 2, 3):
            report(epoch, score)
            ended.append((point.name, epoch))
        return score

    trials = Trials(search)
    trials.work(run)
    states = {row["trial"]: row["state"] for row in trials.table()}
    assert states.pop("trial-006") == "pruned"
    assert {*states.values()} == {"done"}
    assert ("trial-006", 1) not in ended
    assert trials.ended() == 8
    assert trials.table()[-1]["validation"] == 0.1


def test_a_failed_trial_is_said_and_tried_again_with_its_values(search):
    tried = []

    def run(point, report):
        tried.append(point)
        if len(tried) == 3:
            raise RunFailed("the disk is full")
        return score_of(point)

    trials = Trials(search)
    trials.work(run)
    assert trials.failures() == {"trial-002": "the disk is full"}
    assert trials.ended() == 7
    trials.fill(again=True)
    trials.work(run)
    assert trials.failures() == {}
    assert trials.ended() == 8
    assert tried[-1] == tried[2]


def test_a_trial_of_a_worker_that_stopped_goes_on(search):
    def stop(point, report):
        raise KeyboardInterrupt

    trials = Trials(search)
    with pytest.raises(KeyboardInterrupt):
        trials.work(stop)
    names = []

    def run(point, report):
        names.append(point.name)
        return score_of(point)

    trials.work(run)
    assert names[0] == "trial-000"
    assert len({*names}) == len(names) == 8


def test_more_trials_can_be_asked_for_and_other_ranges_not(search, tmp_path):
    trials = Trials(search)
    trials.work(lambda point, report: score_of(point))
    text = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace('"trials": 8', '"trials": 10'))
    more = Trials(plans.read("mine.py", {}))
    more.work(lambda point, report: score_of(point))
    assert more.ended() == 10
    (tmp_path / "mine.py").write_text(text.replace("1e-4", "1e-3"))
    with pytest.raises(InputError, match="was begun with other rows or keys"):
        Trials(plans.read("mine.py", {}))


def test_epochs_are_reported_while_a_run_is_at_work(search, monkeypatch):
    told = []

    def run(steps, log, environment, look):
        assert [step[2] for step in steps] == ["charm_jax.train"]
        (search.folder / "trial-000").mkdir(parents=True)
        with (search.folder / "trial-000/metrics.jsonl").open("a", buffering=1) as file:
            for value in (0.5, None, 0.7):
                look()
                file.write('{"kind": "interval", "loss": 1}\n')
                file.write(json.dumps({"kind": "epoch", "val_macro_auroc": value}) + "\n")
        look()
        stages = {"bce": {"best_val_macro_auroc": 0.7}}
        (search.folder / "trial-000/summary.json").write_text(json.dumps({"stages": stages}))

    monkeypatch.setattr(worker, "run_commands", run)
    point = search.point("trial-000", {})
    assert worker.do_trial(search, point, {}, lambda *given: told.append(given)) == 0.7
    assert told == [(1, 0.5), (3, 0.7)]


def test_what_a_look_raises_stops_the_command(tmp_path):
    class Enough(Exception):
        pass

    def look():
        if (tmp_path / "ready").exists():
            raise Enough

    text = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\npathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )
    with pytest.raises(Enough):
        worker.run_commands([[worker.sys.executable, "-c", text]], tmp_path / "a.log", {}, look)
    assert (tmp_path / "saved").exists()


def test_the_best_on_validation_alone_is_evaluated_and_reported(search, monkeypatch, capfd):
    evaluated = []

    def together(plan, storage, workers, look):
        def run(point, report):
            if point.name == "trial-003":
                raise RunFailed("no disk")
            report(1, 0.5)
            return score_of(point)

        worker.open_study(plan, storage).work(run)
        look()

    def commands(steps, log, environment):
        (step,) = steps
        evaluated.append(step[step.index("--run") + 1])
        folder = search.folder / evaluated[-1] / "eval/test"
        folder.mkdir(parents=True)
        found = {"macro_auroc": 0.61, "macro_auroc_interval": [0.6, 0.62], "simulated": True}
        (folder / "metrics.json").write_text(json.dumps(found))

    monkeypatch.setattr(worker, "work_together", together)
    monkeypatch.setattr(worker, "run_commands", commands)
    assert cli.guarded(command.main, ["mine.py"]) == 1
    assert cli.guarded(command.main, ["report", "mine.py"]) == 0
    out = capfd.readouterr().out
    table = pd.read_csv("runs/mine/report.csv")
    top = table.loc[table[table.state == "done"].validation.idxmax()]
    assert len(table) == 8
    assert evaluated == [top.trial]
    assert f"Best on validation: {top.trial} ({top.validation:.4f}): --config.stages.bce" in out
    assert "On the test images it has 0.6100 (0.6000 to 0.6200)." in out
    assert "SIMULATED images" in out
    assert "1 of 8 trials are not done." in out
    assert "trial-003 failed: no disk" in out
    assert (search.folder / "report.html").read_text().count("<tr>") == 9
    assert (search.folder / "report.png").stat().st_size > 5000


def test_a_report_before_the_first_trial_is_refused(search, refused, tmp_path):
    refused(command.main, ["report", "mine.py"], "No trial of the search mine", cwd=tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"trials": 8', '"trials": 0', "number of its 'trials'"),
        ('"trials": 8,', "", "number of its 'trials'"),
        ('"trials"', '"seeds": [1], "trials"', "a search has no seeds"),
        ('"search": {', '"search": {}, "keys": {', "the search has no keys"),
        ('"tpe"', '"grid"', "sampler 'grid': choose one of"),
        ('"low": 1,', '"low": 10,', "low < high"),
        ('"low": 1,', '"low": "a",', "low < high"),
        ('"low": 1e-4,', '"low": 0,', "logarithmic scale above 0"),
        ('["bce", "focal"]', "[]", "a list of plain values"),
        ('["bce", "focal"]', "[[1]]", "a list of plain values"),
        ('"high": 9', '"high": "9"', "low < high"),
        ('"high": 9', '"height": 9', "low and"),
        ("model.retrieval_k", "model.retrieval", "retrieval_k"),
        ('"bce", "focal"', '"bce", "vocal"', "focal"),
        ('"high": 1e-2', '"high": -1e-2', "low < high"),
        ('"search"', '"keys": {"model.retrieval_k": 2}, "search"', "is set for all trials"),
        ('"search"', '"axes"', "'trials' belongs to a search"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tmp_path, old, new, words):
    text = FILE % (8, "tpe")
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new))
    with pytest.raises(InputError) as refused:
        plans.read("mine.py", {})
    assert words in str(refused.value)
