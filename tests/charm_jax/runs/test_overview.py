"""What ``charm-jax runs`` tells of runs, reduces and deletes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock
from running import train_here

import charm_jax
from charm_jax.runs import overview
from charm_jax.runs.__main__ import main


@pytest.fixture
def runs(tmp_path):
    """Folders of runs that have their JSON files alone."""

    def write(name, config, summary=None, epochs=0, auroc=None):
        folder = tmp_path / "runs" / name
        (folder / "eval/test").mkdir(parents=True)
        content = {"name": name, "data": {"source": "phantom"}, "seed": 0} | config
        (folder / "config.json").write_text(json.dumps(content))
        (folder / "split.json").write_text(json.dumps({"source": "phantom", "simulated": True}))
        lines = [{"kind": "epoch", "stage": "bce", "epoch": i + 1} for i in range(epochs)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + '{"kind": "epo')  # cut off
        if summary:
            (folder / "summary.json").write_text(json.dumps(summary))
        if auroc:
            metrics = {"macro_auroc": auroc, "macro_auroc_interval": [auroc - 0.01, auroc + 0.01]}
            (folder / "eval/test/metrics.json").write_text(json.dumps(metrics))
        return folder

    write("one", {}, {"seconds": 1}, auroc=0.9)
    write("two", {"seed": 1}, epochs=3)
    write("three", {})
    return tmp_path / "runs"


def called(capsys, *arguments):
    code = main([*map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_list_has_a_line_a_run(runs, capsys):
    code, out, _ = called(capsys, "list", "--runs_dir", runs)
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert code == 0
    assert lines.keys() == {"one", "two", "three"}
    assert "finished" in lines["one"]
    assert "0.9000 (0.8900-0.9100)" in lines["one"]
    assert "phantom (SIMULATED)" in lines["one"]
    assert "stopped after bce epoch 3" in lines["two"]
    assert lines["two"].endswith("seed=1")
    assert "seed" not in lines["one"] + lines["three"]


def test_a_damaged_run_is_listed_and_can_be_deleted(runs, capsys):
    (runs / "two/config.json").write_text("{")
    code, out, _ = called(capsys, "list", "--runs_dir", runs)
    assert code == 0
    assert "damaged: config.json" in next(line for line in out.splitlines() if "two" in line)
    assert called(capsys, "delete", "two", "two", runs / "two", "--yes", "--runs_dir", runs)[0] == 0
    assert {path.name for path in runs.iterdir()} == {"one", "three"}


def test_files_that_go_meanwhile_are_not_counted(runs):
    (runs / "one/gone").symlink_to(runs / "nowhere")
    assert overview.size(runs / "one") > 0


def test_scores_of_simulated_images_say_so():
    assert overview.score({"macro_auroc": 0.9, "simulated": True}) == "0.9000 SIMULATED"


def test_a_run_in_training_is_called_so(runs):
    with FileLock(runs / "two/lock"):
        assert overview.read(runs / "two").state == "training after bce epoch 3"
    assert overview.read(runs / "two").state == "stopped after bce epoch 3"


def test_a_difference_leaves_out_where_a_run_is(runs, capsys):
    _, out, _ = called(capsys, "diff", "one", "two", "--runs_dir", runs)
    keys = [line.split()[0] for line in out.splitlines()[1:]]
    assert keys == ["macro", "seed"]


def test_damaged_files_are_absent_ones(runs):
    (runs / "one/summary.json").write_bytes(b"\xff{")
    (runs / "one/eval/test/metrics.json").write_text("[]")
    run = overview.read(runs / "one")
    assert (run.state, run.score) == ("stopped", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], ["'lst'", "did you mean 'list'"]),
        (["list", "one"], ["takes no run, not 1"]),
        (["show"], ["takes one run, not 0"]),
        (["diff", "one"], ["takes two runs, not 1"]),
        (["slim"], ["takes one run or more, not 0"]),
        (["show", "tow"], ["no run 'tow'", "did you mean 'two'"]),
        (["slim", "two"], ["two has not finished"]),
        (["delete", "one", "two"], ["one", "two", "--yes"]),
        (["delete", "one", "zzz", "--yes"], ["no run 'zzz'"]),
        (["list", "--runs_dir", "none"], ["no run in none"]),
        (["diff", "one", "one/"], ["Both names", "name two runs"]),
        (["delete", "other", "--yes"], ["other has no split.json", "by hand"]),
        (["delete", "link", "--yes"], ["is a link to", "delete that run"]),
        (["delete", ".", "--yes"], ["holds another run", "move that away"]),
        (["show", "damaged"], ["damaged has no readable config.json"]),
        (["slim", "damaged"], ["damaged", "no JSON object"]),
    ],
)
def test_bad_input_is_refused_and_nothing_is_lost(runs, capsys, arguments, words):
    (runs / "other").mkdir()
    (runs / "other/config.json").write_text("{}")  # a model of another program
    (runs / "link").symlink_to(runs / "one")
    shutil.copytree(runs / "one", runs / "damaged")
    (runs / "damaged/config.json").write_text("{")
    for name in ("config.json", "split.json"):  # a run with others in its folder
        shutil.copyfile(runs / "one" / name, runs / name)
    before = sorted(runs.rglob("*"))
    given = arguments if "--runs_dir" in arguments else [*arguments, "--runs_dir", runs]
    code, _, err = called(capsys, *given)
    assert code == 2
    for word in words:
        assert word in err
    assert sorted(path for path in runs.rglob("*") if path.name != "lock") == before


@pytest.mark.parametrize("command", ["slim", "delete"])
def test_a_run_in_training_is_left_alone(runs, capsys, command):
    with FileLock(runs / "one/lock"):
        code, _, err = called(capsys, command, "one", "--yes", "--runs_dir", runs)
    assert code == 2
    assert "Another process" in err
    assert (runs / "one/config.json").exists()


def test_the_list_starts_without_jax(runs):
    command = [sys.executable, "-X", "importtime", "-m", "charm_jax.runs", "list"]
    listed = subprocess.run(command, cwd=runs.parent, capture_output=True, text=True, check=True)
    assert "finished" in listed.stdout
    assert " jax\n" not in listed.stderr


def test_a_slim_run_predicts_as_before_and_a_deleted_one_is_gone(finished, tmp_path, capsys):
    shutil.copytree(finished[0] / "runs/demo", tmp_path / "runs/demo")
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    before = charm_jax.load("runs/demo").predict(images).logits
    bank = tmp_path / "runs/demo/memory/late/memory.json"
    bank.parent.mkdir(parents=True)
    bank.write_text('{"checkpoint": "focal/1"}')
    assert "focal/1 and only" in called(capsys, "slim", "demo")[2]
    shutil.rmtree(bank.parent)
    old, aside = (
        tmp_path / "runs/demo" / name for name in ("checkpoints", "checkpoints.before-slim")
    )
    old.rename(aside)  # as a call that was cut off left it
    assert called(capsys, "slim", "demo")[0] == 0
    assert not aside.exists()
    shutil.copytree(old, aside)  # another that was cut off later
    kept = sorted(path.name for path in (tmp_path / "runs/demo/checkpoints").glob("*/*"))
    assert len(kept) == 1
    np.testing.assert_array_equal(charm_jax.load("runs/demo").predict(images).logits, before)
    assert called(capsys, "slim", "demo")[0] == 0  # again: nothing is left to do
    assert not aside.exists()
    (tmp_path / "data").symlink_to(finished[0] / "data")
    more = train_here("--config.stages.focal.epochs=3", "--config.resume=force", cwd=tmp_path)
    assert more.returncode == 2
    assert "reduced by charm-jax runs slim" in more.stderr
    code, out, _ = called(capsys, "show", "demo")
    assert code == 0
    assert "stage focal: train" in out
    assert "evaluated on test: macro AUROC 0." in out
    assert called(capsys, "delete", "demo", "--yes")[0] == 0
    assert not (tmp_path / "runs/demo").exists()
