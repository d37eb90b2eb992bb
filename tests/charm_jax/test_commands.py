"""What a run and an evaluation leave behind."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from html_check import Page
from PIL import Image
from running import command_here, copy_data, read, train, train_here

from charm_jax.config import cli
from data_pipelines.tables.findings import NIH_FINDINGS


def test_a_run_leaves_its_files(finished):
    run = finished[0] / "runs" / "demo"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "cases.csv",
        "split.json",
        "metrics.jsonl",
        "curves.png",
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
        ("bce_frozen", 1),
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
    assert 0.05 < interval["memory_gib"] < 100
    assert list((finished[0] / "runs/demo/tensorboard").iterdir())


def test_a_piped_log_has_a_line_an_epoch_and_no_bar(finished):
    run, said = finished[0] / "runs/demo", finished[1].stderr
    assert "\r" not in said + finished[2].stderr
    number = r"[\d.]+"
    epochs = re.findall(
        rf"^stage (\w+), epoch (\d)/(\d): training loss {number}, validation loss {number}, "
        rf"macro AUROC (?:{number}|undefined), {number} images/s, [\d:]+ left$",
        said,
        flags=re.MULTILINE,
    )
    assert epochs == [
        ("bce_frozen", "1", "1"),
        ("bce", "1", "2"),
        ("bce", "2", "2"),
        ("focal", "1", "2"),
        ("focal", "2", "2"),
    ]
    # run.log has the same lines, each with the time.
    kept = [line.split(" ", 2)[2] for line in (run / "run.log").read_text().splitlines()]
    assert kept[0].startswith("Started: charm-jax train --config.data.phantom.train_images=420")
    printed = said.splitlines()
    assert kept[1:] == printed[printed.index(kept[1]) :]


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


def test_the_evaluation_ends_by_naming_its_report(finished):
    folder, _, evaluated = finished
    assert evaluated.stderr.splitlines()[-1] == "Report: runs/demo/eval/test/report.html"
    text = (folder / "runs/demo/eval/test/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.faults == []
    metrics = read(folder / "runs/demo/eval/test/metrics.json")
    for known in (metrics["split_sha256"], metrics["checkpoint"], "phantom (SIMULATED)"):
        assert known in page.text
    assert f"{metrics['macro_auroc']:.4f}" in page.text
    environment = read(folder / "runs/demo/environment.json")
    assert f"Trained withcommit {environment['commit'] or 'unknown'}" in page.text
    for section in ("Most confident errors", "Memory bank", "Training"):
        assert f"<h2>{section}<small>" in text
    assert "most like stored 0" in page.text


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
    again = train_here(cwd=folder)
    assert again.returncode == 0
    assert "finished" in again.stderr
    assert (folder / "runs/demo/summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("checkpoint", [pytest.param("last", marks=pytest.mark.daily), "bce/best?"])
def test_evaluation_of_a_named_checkpoint(finished, checkpoint):
    folder = finished[0]
    result = command_here("eval", "--checkpoint", checkpoint, "--split", "val", cwd=folder)
    if checkpoint == "last":
        assert result.returncode == 0, result.stderr
        assert read(folder / "runs/demo/eval/val/metrics.json")["split"] == "val"
    else:
        assert result.returncode == 2
        assert "There is no checkpoint 'bce/best?'" in result.stderr
        assert "focal/" in result.stderr


def test_dry_run_prints_one_json_object_and_leaves_nothing(finished, tmp_path):
    result = train_here("--dry_run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout)
    assert described == read(finished[0] / "runs/demo/split.json")
    assert described["rule"] == "official"
    assert described["images_present"] == 730
    assert not list(tmp_path.iterdir())


@pytest.mark.daily
def test_an_estimate_has_the_steps_of_the_run_and_leaves_nothing(finished, tmp_path):
    result = train_here("--dry_run", "--estimate", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout)
    found = described.pop("estimate")
    assert described == read(finished[0] / "runs/demo/split.json")
    stages = read(finished[0] / "runs/demo/summary.json")["stages"]
    assert {phase: part["steps"] for phase, part in found["phases"].items()} == {
        phase: part["steps"] for phase, part in stages.items()
    }
    trained = sum(part["steps"] * part["seconds_per_step"] for part in found["phases"].values())
    assert trained <= 3600 * found["hours"] + 2
    assert 0 <= found["compile_hours"] <= found["hours"]  # rounded
    assert "Estimate of a new run: " in result.stderr
    kept = (finished[0] / "runs/demo/checkpoints").rglob("*")
    assert sum(path.stat().st_size for path in kept) < 1.2 * found["checkpoints_gib"] * 2**30 + 2e6
    assert not list(tmp_path.iterdir())


def test_one_bad_image_among_a_thousand_is_named_and_the_others_are_used(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("L", (8, 8), 90).save(data / "one.png")
    names = [f"{i:08d}_000.png" for i in range(1100)]
    for name in names:
        os.link(data / "one.png", data / name)
    (data / names[7]).unlink()
    (data / names[7]).write_bytes(b"no image")
    rows = [f"{name},{('Mass', 'No Finding')[i % 2]},{i // 4}" for i, name in enumerate(names)]
    table = "\n".join(["Image Index,Finding Labels,Patient ID", *rows])
    (data / "Data_Entry_2017.csv").write_text(table)
    (data / "train_val_list.txt").write_text("\n".join(names[:900]))
    (data / "test_list.txt").write_text("\n".join(names[900:]))
    keys = ["data.source=nih_chest_xray14", f"data.dir={data}", "name=bad", "data.image_size=32"]
    arguments = [f"--config.{key}" for key in keys]
    result = command_here("train", "--dry_run", *arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert json.loads(result.stdout)["refused"] == 1
    assert f"warning: {names[7]} is refused: " in result.stderr


def test_the_notebook_rule_shows_its_leak(finished, tmp_path):
    copy_data(finished, tmp_path)
    result = train_here("--dry_run", "--config.data.split=notebook", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout)
    assert described["leak_images"] > 0
    assert set(described["stages"]["focal"]) >= {"train", "val", "test", "test_published"}


@pytest.mark.parametrize("given", [["--config.preset=notebook"], ["--config.preset", "notebook"]])
def test_a_preset_lies_below_the_file_and_the_command_line(tmp_path, given):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'stages': {'bce': {'frozen_epochs': 2}}})\n"
    )
    overrides = [*given, "--config.stages.focal.loss=bce"]
    command = cli.Command("", {}, config=True)
    config = cli.load_settings(cli.parse(command, overrides), path)
    assert config.data.split == config.preset == "notebook"
    assert config.stages["focal"].epochs == 5
    assert config.stages["bce"].frozen_epochs == 2
    assert config.stages["focal"].loss == "bce"


@pytest.mark.daily
def test_evaluating_the_training_part_says_that_it_is_one(finished, traces):
    result = command_here("eval", "--split", "train", cwd=finished[0])
    assert result.returncode == 0, result.stderr
    metrics = read(finished[0] / "runs/demo/eval/train/metrics.json")
    assert 0 < metrics["leak_images"] == metrics["leak_of"]
    assert traces["eval_step"] == 1  # for these images and for calibration
    assert "LEAK" in result.stdout


@pytest.mark.daily
def test_evaluation_leaves_a_save_in_progress_alone(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    saving = folder / "runs/demo/checkpoints/focal/99.orbax-checkpoint-tmp"
    saving.mkdir()
    assert command_here("eval", cwd=folder).returncode == 0
    assert saving.is_dir()


def test_ci_has_the_real_data():
    """The real images are in every CI run; elsewhere their tests are skipped."""
    assert os.environ.get("CHARM_TEST_DATA") or not os.environ.get("CI")


@pytest.mark.daily
def test_images_on_the_device_train_the_same_network(finished, tmp_path):
    copy_data(finished, tmp_path)
    result = train("--config.data.resident", "--config.stages.focal.epochs=0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "loading images" in result.stderr
    here, there = (read(folder / "runs/demo/summary.json") for folder in (tmp_path, finished[0]))
    assert here["stages"].keys() == there["stages"].keys() - {"focal"}
    for stage, trained in here["stages"].items():
        expected = there["stages"][stage]
        assert trained["steps"] == expected["steps"]
        assert trained["best_epoch"] == expected["best_epoch"]
        assert trained["best_val_loss"] == pytest.approx(expected["best_val_loss"], rel=1e-4)
