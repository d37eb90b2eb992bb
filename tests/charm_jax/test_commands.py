"""The two commands as a user runs them, on a small simulated set.

What trains runs in a process of its own, which can be killed; what is refused runs in this one.
"""

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from charm_jax import eval as eval_command
from charm_jax import train as train_command
from charm_jax.command_line import guarded
from data_pipelines.findings import NIH_FINDINGS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

SMALL = [
    "--config.data.phantom.train_images=420",
    "--config.data.phantom.test_images=310",
    "--config.data.phantom.image_size=32",
    "--config.data.image_size=32",
    "--config.stages.bce.epochs=2",
    "--config.stages.focal.epochs=2",
    "--config.stages.focal.batch_size=32",
    "--config.checkpoint.every_steps=3",
    "--config.log.every_steps=4",
]


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """All runs of this file share their compiled steps."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("xla")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield


def command(module, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", f"charm_jax.{module}", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
    )


def train(*arguments, cwd):
    return command("train", *SMALL, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the run `demo`, trained and evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    trained = train(cwd=folder)
    assert trained.returncode == 0, trained.stderr
    evaluated = command("eval", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    return folder, trained, evaluated


def read(path):
    return json.loads(path.read_text())


def test_a_run_leaves_its_files(finished):
    run = finished[0] / "runs" / "demo"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "cases.csv",
        "split.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "summary.json",
        "eval",
    }
    assert not list(run.rglob("*.tmp"))


def test_the_config_is_the_resolved_one(finished):
    config = read(finished[0] / "runs/demo/config.json")
    assert config["data"]["image_size"] == 32
    assert config["stages"]["bce"]["batch_size"] == 32
    assert config["model"]["rarity"] == "norm_inlier"


def test_the_summary_says_how_each_stage_went(finished):
    summary = read(finished[0] / "runs/demo/summary.json")
    split = read(finished[0] / "runs/demo/split.json")
    for stage in ("bce", "focal"):
        entry = summary["stages"][stage]
        assert entry["epochs"] == 2
        assert entry["steps"] == 2 * split["stages"][stage]["steps_per_epoch"]
        assert entry["best_epoch"] in (1, 2)
        assert entry["best_val_loss"] > 0
        assert entry["stopped_early"] is False
    assert summary["simulated"] is True
    assert re.fullmatch("[0-9a-f]{64}", summary["params_sha256"])


def test_the_log_has_a_line_an_interval_and_an_epoch(finished):
    lines = [
        json.loads(line)
        for line in (finished[0] / "runs/demo/metrics.jsonl").read_text().splitlines()
    ]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [(line["stage"], line["epoch"]) for line in epochs] == [
        ("bce", 1),
        ("bce", 2),
        ("focal", 1),
        ("focal", 2),
    ]
    interval = next(line for line in lines if line["kind"] == "interval")
    assert {"loss", "rate", "b1", "grad_norm", "bank_count", "selected", "similarity"} <= set(
        interval
    )
    assert interval["images_per_second"] > 0
    assert list((finished[0] / "runs/demo/tensorboard").iterdir())


def test_the_bank_carries_over_into_the_second_stage(finished):
    lines = [
        json.loads(line)
        for line in (finished[0] / "runs/demo/metrics.jsonl").read_text().splitlines()
    ]
    counts = {
        s: [x["bank_count"] for x in lines if x["stage"] == s and "rate" in x]
        for s in ("bce", "focal")
    }
    assert counts["focal"][0] > counts["bce"][0]


def test_simulated_data_are_called_so_everywhere(finished):
    folder, trained, evaluated = finished
    assert "SIMULATED" in trained.stderr
    assert "SIMULATED" in evaluated.stdout
    assert "not a medical device" in evaluated.stdout
    assert read(folder / "runs/demo/eval/test/metrics.json")["simulated"] is True


def test_the_evaluation_counts_each_test_image_once(finished):
    folder = finished[0]
    metrics = read(folder / "runs/demo/eval/test/metrics.json")
    names = (folder / "data/phantom/test_list.txt").read_text().split()
    with (folder / "runs/demo/eval/test/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == sorted(names)
    assert metrics["n_images"] == len(names) == 310
    assert (
        metrics["split_sha256"]
        == read(folder / "runs/demo/split.json")["stages"]["focal"]["test"]["sha256"]
    )
    assert metrics["leak_images"] == 0
    for finding in NIH_FINDINGS:
        positives = sum(int(row[f"{finding}_label"]) for row in rows)
        assert metrics["findings"][finding]["positives"] == positives
        assert all(0 <= float(row[finding]) <= 1 for row in rows)


def test_the_auroc_is_that_of_the_predictions(finished):
    from sklearn.metrics import roc_auc_score

    folder = finished[0]
    metrics = read(folder / "runs/demo/eval/test/metrics.json")
    with (folder / "runs/demo/eval/test/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = []
    for finding in NIH_FINDINGS:
        labels = [int(row[f"{finding}_label"]) for row in rows]
        scores = [float(row[finding]) for row in rows]
        values.append(roc_auc_score(labels, scores))
        assert metrics["findings"][finding]["auroc"] == pytest.approx(values[-1], abs=1e-3)
    assert metrics["macro_auroc"] == pytest.approx(np.mean(values), abs=1e-3)


def test_a_finished_run_says_so_and_stays_as_it_is(finished):
    folder = finished[0]
    before = (folder / "runs/demo/summary.json").stat().st_mtime_ns
    again = train(cwd=folder)
    assert again.returncode == 0
    assert "finished" in again.stderr
    assert (folder / "runs/demo/summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("checkpoint", ["last", "bce/best?"])
def test_evaluation_of_a_named_checkpoint(finished, checkpoint):
    folder = finished[0]
    result = command("eval", "--checkpoint", checkpoint, "--split", "val", cwd=folder)
    if checkpoint == "last":
        assert result.returncode == 0, result.stderr
        assert read(folder / "runs/demo/eval/val/metrics.json")["split"] == "val"
    else:
        assert result.returncode == 2
        assert "There is no checkpoint 'bce/best?'" in result.stderr
        assert "focal/" in result.stderr


def params(folder):
    return read(folder / "runs/demo/summary.json")["params_sha256"]


def metric_lines(folder):
    """The log without what hangs on the clock."""
    lines = (folder / "runs/demo/metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines
    ]


def wait_for_steps(folder, process, steps):
    """Waits until the run has written that many lines of its log."""
    path = folder / "runs/demo/metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= steps:
            return
        time.sleep(0.02)


def copy_data(finished, folder):
    shutil.copytree(finished[0] / "data", folder / "data")


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "charm_jax.train", *SMALL],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_killed_ends_with_the_same_parameters(finished, tmp_path):
    copy_data(finished, tmp_path)
    for lines in (1, 5):  # one in each stage
        process = start(tmp_path)
        wait_for_steps(tmp_path, process, lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    result = train(cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"Continuing runs/demo from step \d+ of stage", result.stderr)
    assert params(tmp_path) == params(finished[0])
    assert metric_lines(tmp_path) == metric_lines(finished[0])


def test_sigterm_saves_and_says_so(finished, tmp_path):
    copy_data(finished, tmp_path)
    process = start(tmp_path)
    wait_for_steps(tmp_path, process, 1)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 143, messages
    assert "The last good checkpoint is runs/demo/checkpoints/bce/" in messages
    stages = tmp_path / "runs/demo/checkpoints/bce"
    assert any(path.name.isdigit() for path in stages.iterdir())


def test_dry_run_prints_one_json_object_and_leaves_nothing(finished, tmp_path):
    copy_data(finished, tmp_path)
    result = train("--dry_run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout)
    assert described == read(finished[0] / "runs/demo/split.json")
    assert described["rule"] == "official"
    assert described["images_present"] == 730
    assert not (tmp_path / "runs").exists()


def test_the_notebook_rule_shows_its_leak(finished, tmp_path):
    copy_data(finished, tmp_path)
    result = train("--dry_run", "--config.data.split=notebook", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout)
    assert described["leak_images"] > 0
    assert set(described["stages"]["focal"]) >= {"train", "val", "test", "test_published"}


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    folder = tmp_path / "copy"
    (folder / "runs/demo/summary.json").unlink()
    steps = sorted(
        int(p.name) for p in (folder / "runs/demo/checkpoints/focal").iterdir() if p.name.isdigit()
    )
    newest = folder / "runs/demo/checkpoints/focal" / str(steps[-1])
    files = sorted(
        (p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    damage(files[-1])
    result = train(cwd=folder)
    assert result.returncode == 0, result.stderr
    assert f"focal/{steps[-1]} is damaged" in result.stderr
    assert f"from step {steps[-2]} of stage focal" in result.stderr
    assert params(folder) == params(finished[0])


@pytest.fixture
def refused(capfd, monkeypatch):
    """Asserts that a command leaves with code 2 and one sentence that has all the words."""

    def check(main, arguments, *words, cwd):
        monkeypatch.chdir(cwd)
        assert guarded(main, arguments) == 2
        message = capfd.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ")
        for word in words:
            assert word in message, message

    return check


def test_a_changed_config_is_refused_with_the_difference(finished, refused):
    arguments = [*SMALL, "--config.model.momentum=0.9"]
    words = ("model.momentum: 0.99 -> 0.9", "--config.resume=force")
    refused(train_command.main, arguments, *words, cwd=finished[0])


def test_a_second_process_on_the_same_run_is_refused(finished, tmp_path, refused):
    copy_data(finished, tmp_path)
    (tmp_path / "runs/demo").mkdir(parents=True)
    with (tmp_path / "runs/demo/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(train_command.main, SMALL, "Another process", "runs/demo", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.imge_size=64"], ["config.data.imge_size", "config.data.image_size"]),
        (["--config.modle.momentum=1"], ["config.modle", "config.model"]),
        (["--config.data.image_size=big"], ["config.data.image_size"]),
        (["--config.seed=1.5"], ["config.seed"]),
        (["--dryrun"], ["dryrun", "dry_run"]),
        (["--config", "configs/none.py"], ["configs/none.py"]),
        (["--config.model.backbone=resnet5"], ["resnet5", "config.model.backbone"]),
        (["--config.model.rarity=norm"], ["config.model.rarity", "norm_inlier"]),
        (["--config.model.rarity_threshold=-0.5"], ["config.model.rarity_threshold"]),
        (["--config.stages.bce.loss=mse"], ["config.stages.bce.loss"]),
        (["--config.stages.bce.frozen_epochs=3"], ["config.stages.bce.frozen_epochs", "0"]),
        (["--config.stages.bce.find_lr"], ["config.stages.bce.find_lr"]),
        (["--config.data.split=oficial"], ["oficial", "official"]),
        (["--config.data.source=nih"], ["config.data.source", "nih_chest_xray14"]),
        (["--config.stages.bce.batch_size=5000"], ["config.stages.bce.batch_size", "5000"]),
        (["--config.runs_dir=/sys/runs"], ["/sys/runs", "may not be written"]),
        (["--config.runs_dir=data/phantom/phantom.json"], ["phantom.json", "not a folder"]),
    ],
)
def test_bad_input_gets_one_sentence(finished, refused, arguments, words):
    arguments = [*SMALL, "--config.name=other", *arguments]
    refused(train_command.main, arguments, *words, cwd=finished[0])
    assert not (finished[0] / "runs/other").exists()


def test_missing_data_says_where_to_get_them_and_how_to_run_without(tmp_path, refused):
    arguments = ["--config", str(CONFIGS / "effv2s.py")]
    words = ("data/nih_chest_xray14", "https://", "python -m charm_jax.train")
    refused(train_command.main, arguments, *words, cwd=tmp_path)


def test_a_full_disk_gets_one_sentence(finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        result = train(f"--config.runs_dir={disk}", cwd=finished[0])
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "no space" in result.stderr.splitlines()[-1]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_evaluation_without_a_run_says_what_to_do(tmp_path, refused):
    refused(eval_command.main, [], "python -m charm_jax.train", cwd=tmp_path)


def test_evaluation_of_an_unknown_run_names_the_nearest(finished, refused):
    refused(eval_command.main, ["--run", "dmo"], "'dmo'", "'demo'", cwd=finished[0])


def test_evaluation_with_another_architecture_is_refused(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    path = folder / "runs/demo/config.json"
    config = read(path)
    config["model"]["backbone"] = "efficientnet_v2_s"
    path.write_text(json.dumps(config))
    refused(eval_command.main, [], "another architecture", cwd=folder)


def test_a_run_may_not_be_evaluated_as_another_network(finished, refused):
    arguments = ["--config.model.retrieval_k=9"]
    refused(eval_command.main, arguments, "config.model.retrieval_k", cwd=finished[0])


def test_a_loss_that_is_not_finite_stops_the_run(finished, tmp_path):
    copy_data(finished, tmp_path)
    result = train("--config.stages.bce.peak_lr=1e38", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert "step" in message
    assert "case ids" in message
    assert "Traceback" not in result.stderr


def test_ci_has_the_real_data():
    """The real images are in every CI run; elsewhere their tests are skipped."""
    assert os.environ.get("CHARM_TEST_DATA") or not os.environ.get("CI")
