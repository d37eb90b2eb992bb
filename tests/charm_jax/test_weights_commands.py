"""Weights leave a run, are evaluated alone and begin another run."""

import hashlib
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from running import SMALL, command, command_here, copy_data, read, train, train_here

import charm_jax
from charm_jax import convert
from charm_jax.eval import __main__ as eval_command
from charm_jax.metrics.result import EvaluationResult
from charm_jax.train import __main__ as train_command
from charm_jax.weights import files
from data_pipelines.sources import nih_chest_xray14
from data_pipelines.tables.findings import NIH_FINDINGS

SELDOM = "--config.checkpoint.every_steps=1000"
ALONE = ["--config", "demo", *SMALL]


@pytest.fixture(scope="module")
def weights(finished, tmp_path_factory):
    """The run `demo` as a weight file."""
    path = tmp_path_factory.mktemp("weights") / "demo.safetensors"
    assert convert.main([f"--run={finished[0]}/runs/demo", str(path)]) == 0
    return path


def evaluate(path, *arguments, cwd):
    """The metrics of a weight file."""
    result = command("eval", *ALONE, f"--config.model.init_from={path}", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    (out,) = (cwd / "runs" / "weights" / f"{path.stem}-{digest}" / "eval").glob("test-phantom-*")
    assert f"Written to {out.relative_to(cwd)}." in result.stderr
    return read(out / "metrics.json"), result.stdout


@pytest.mark.daily
def test_the_file_of_a_run_says_what_the_run_said(finished, weights, tmp_path):
    copy_data(finished, tmp_path)
    metrics, shown = evaluate(weights, cwd=tmp_path)
    expected = read(finished[0] / "runs/demo/eval/test/metrics.json")
    # No patient is in two parts, so that the bank's own patients, which the file lacks, are none.
    assert metrics["macro_auroc"] == expected["macro_auroc"]
    assert metrics["findings"] == expected["findings"]
    assert metrics["leak_images"] is None
    assert metrics["trained_on_simulated"] is None
    assert "It is not known what these weights were trained on." in shown


def test_a_dry_run_compares_the_weights_with_images_that_it_draws_for_a_while(weights, tmp_path):
    result = train_here("--dry_run", f"--config.model.init_from={weights}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Weights: {weights}" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.daily
def test_a_run_that_begins_from_a_file_says_so_wherever_it_is_judged(
    finished, weights, tmp_path, refused
):
    copy_data(finished, tmp_path)
    begin = ["--config.stages.focal.epochs=0", SELDOM]
    # A mistyped file does not use the run's name up.
    wrong = [*SMALL, *begin, "--config.model.init_from=typo.safetensors"]
    refused(train_command.main, wrong, "There is no weight file typo.safetensors", cwd=tmp_path)
    trained = train(*begin, f"--config.model.init_from={weights}", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert f"Weights: {weights}" in trained.stderr
    run = tmp_path / "runs" / "demo"
    assert read(run / "weights.json") == {
        "init_from": str(weights),
        "file": str(weights),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "tensors": len(files.read(weights)),
        "left_out": [],
        "notes": [],
    }
    evaluated = command("eval", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    said = f"The run began from {weights}; it is not known here what that was trained on."
    assert said in evaluated.stdout
    assert "saw no image of these patients" not in evaluated.stdout
    assert read(run / "eval/test/metrics.json")["began_from"] == str(weights)


def test_a_run_of_its_own_began_from_nothing(finished):
    assert read(finished[0] / "runs/demo/eval/test/metrics.json")["began_from"] is None
    assert not (finished[0] / "runs/demo/weights.json").exists()
    assert "saw no image of these patients" in finished[2].stdout


def test_a_leak_shows_beside_what_is_not_known(finished):
    metrics = read(finished[0] / "runs/demo/eval/test/metrics.json")
    result = EvaluationResult.from_json(metrics | {"leak_images": 3, "began_from": "a.pth"})
    shown = eval_command.table(result)
    assert "LEAK: 3 of the" in shown
    assert "The run began from a.pth; it is not known here what that was trained on." in shown


@pytest.mark.daily
def test_the_file_of_a_plain_run_keeps_its_classifier(finished, tmp_path, refused):
    copy_data(finished, tmp_path)
    plain = ["--config.model.charm=False", "--config.stages.focal.epochs=0"]
    trained = train(*plain, "--config.stages.bce.epochs=1", SELDOM, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "efficientnet_v2_nano without CHARM" in trained.stderr
    assert command("eval", cwd=tmp_path).returncode == 0
    path = tmp_path / "plain.safetensors"
    assert convert.main([f"--run={tmp_path}/runs/demo", str(path)]) == 0
    metrics, _ = evaluate(path, *plain, cwd=tmp_path)
    expected = read(tmp_path / "runs/demo/eval/test/metrics.json")
    assert metrics["findings"] == expected["findings"]
    # Without the classifier nothing is left to evaluate.
    tensors = files.read(path)
    headless = tmp_path / "headless.safetensors"
    files.write(headless, {n: v for n, v in tensors.items() if not n.startswith("classifier.")})
    arguments = [*ALONE, *plain, f"--config.model.init_from={headless}"]
    words = (str(headless), "holds no classifier for these findings: train from it")
    refused(eval_command.main, arguments, *words, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.model.init_from=imagenet"], ["imagenet holds no classifier", "train from"]),
        (["--config.model.init_from=a.pth", "--checkpoint=best"], ["neither --run nor --check"]),
        (["--config.model.init_from=a.pth", "--run=demo"], ["neither --run nor --checkpoint"]),
        ([], ["--config.model.init_from=FILE"]),
    ],
)
def test_what_means_nothing_without_a_run_is_refused(tmp_path, refused, arguments, words):
    refused(eval_command.main, [*ALONE, *arguments], *words, cwd=tmp_path)


def as_own_folder(phantoms, folder, findings):
    """The simulated set as a user's table with some columns, in their order."""
    table = nih_chest_xray14.load(phantoms)
    shutil.copytree(phantoms / "images", folder / "images")
    columns = {
        name.replace("_", " "): table.labels[:, NIH_FINDINGS.index(name)] for name in findings
    }
    split = np.where(table.official_part == "test", "test", "train")
    images = [f"images/{name}" for name in table.images]
    frame = pd.DataFrame({"image": images, "patient": table.patients, "split": split} | columns)
    frame.to_csv(folder / "labels.csv", index=False)
    (folder / "SIMULATED.txt").touch()
    return [f"--config.data.dir={folder}", "--config.data.source=csv_folder"]


@pytest.mark.parametrize("what", [pytest.param("file", marks=pytest.mark.daily), "run"])
def test_findings_are_matched_by_name(finished, weights, tmp_path, monkeypatch, what):
    """Other columns in another order: those in common have the scores that they had."""
    some = [*reversed(NIH_FINDINGS[3:])]
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    where = as_own_folder(finished[0] / "data/phantom", tmp_path, some)
    model = [*ALONE, f"--config.model.init_from={weights}"] if what == "file" else ["--run=demo"]
    result = command_here("eval", *model, *where, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning: 11 findings are shared with csv_folder and scored" in result.stderr
    assert "unknown there: Atelectasis, Consolidation, Infiltration." in result.stderr
    (path,) = (tmp_path / "runs").glob("**/eval/test-csv_folder-*/metrics.json")
    scores = read(path)["findings"]
    expected = read(finished[0] / "runs/demo/eval/test/metrics.json")["findings"]
    assert list(scores) == list(expected)
    for name in NIH_FINDINGS:
        same = expected[name]["auroc"] if name in some else None
        assert scores[name]["auroc"] == pytest.approx(same, abs=1e-6)


def test_a_weight_file_alone_predicts_what_its_run_does(finished, weights, caplog):
    images = sorted((finished[0] / "data/phantom/images").iterdir())[-2:]
    alone, run = charm_jax.load(weights), charm_jax.load(finished[0] / "runs/demo")
    assert (alone.pathologies, alone.image_size) == (run.pathologies, run.image_size)
    assert len(alone.memory) == len(run.memory)
    made, expected = alone.predict(images), run.predict(images)
    np.testing.assert_allclose(made.logits, expected.logits, atol=1e-6)
    np.testing.assert_allclose(made.attention, expected.attention, atol=1e-6)
    for ours, theirs in zip(made.evidence, expected.evidence, strict=True):
        assert [case["labels"] for case in ours] == [case["labels"] for case in theirs]
    # Its validation images are unknown: nothing is decided or judged.
    assert np.ma.getmaskarray(made.positive).all()
    assert np.ma.getmaskarray(made.is_ood).all()
    assert made.uncalibrated == alone.pathologies
    assert set(alone.thresholds.values()) == {None}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
