"""What the command leaves, calibrates with, compares and refuses."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from running import command, read
from scipy.special import expit

from charm_jax.eval import __main__ as eval_command
from charm_jax.eval import files
from charm_jax.metrics import calibration, classification
from charm_jax.report import page
from data_pipelines.tables.findings import NIH_FINDINGS

RUN = "runs/demo"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def columns(rows, suffix, kind=float):
    return np.array([[kind(row[f"{name}{suffix}"]) for name in NIH_FINDINGS] for row in rows])


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run and its data, to change."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy"


def evaluate(*arguments, cwd, monkeypatch, capfd, drawn=False):
    """Run the command; its report, whose figures take most of the time, is left out."""
    if not drawn:
        monkeypatch.setattr(page, "write", lambda *_: None)
    monkeypatch.chdir(cwd)
    assert eval_command.main(list(arguments)) == 0
    return capfd.readouterr()


def test_the_numbers_are_those_of_the_predictions_and_the_stored_calibration(finished):
    run = finished[0] / RUN
    saved, fitted = read(run / "eval/test/metrics.json"), read(run / "calibration.json")
    rows = table(run / "eval/test/predictions.csv")
    logits = columns(rows, "_logit").astype(np.float32)
    labels = columns(rows, "_label", int)
    np.testing.assert_allclose(columns(rows, ""), expit(logits), rtol=1e-6)
    expected = classification.per_finding(
        logits,
        labels,
        NIH_FINDINGS,
        calibration.calibrated(logits, fitted),
        calibration.thresholds(fitted),
    )
    for name, entry in expected.items():
        for metric in (*classification.METRICS, "tp", "fp", "fn", "tn", "positives"):
            value = getattr(entry, metric)
            assert saved["findings"][name][metric] == pytest.approx(value, abs=1e-12), metric
        assert saved["findings"][name]["threshold"] == fitted["findings"][name]["threshold"]


def test_the_calibration_is_of_the_validation_split_and_the_checkpoint(finished):
    run = finished[0] / RUN
    fitted, saved = read(run / "calibration.json"), read(run / "eval/test/metrics.json")
    assert fitted["checkpoint"] == saved["checkpoint"]
    split = read(run / "split.json")["stages"]["focal"]["val"]
    assert fitted["split_sha256"] == split["sha256"] != saved["split_sha256"]
    assert saved["calibration"] == {
        "checkpoint": fitted["checkpoint"],
        "split_sha256": split["sha256"],
        "on_these_images": False,
        "averaged": False,
    }
    for entry in fitted["findings"].values():
        assert entry["positives"] + entry["negatives"] == split["images"]
        assert (entry["temperature"] is None) <= (entry["threshold"] is None)


@pytest.mark.parametrize(
    "key", [None, "checkpoint", "network_sha256", "split_sha256", "cases_sha256", "input_range"]
)
def test_it_is_fitted_anew_for_another_checkpoint_or_split_alone(copy, key, monkeypatch, capfd):
    path = copy / RUN / "calibration.json"
    before = read(path)
    # An older network's file, whose numbers would show.
    marked = json.loads(json.dumps(before).replace('"positives"', '"seen"'))
    path.write_text(json.dumps(marked if key is None else marked | {key: "focal/0"}))
    shown = evaluate(cwd=copy, monkeypatch=monkeypatch, capfd=capfd)
    assert ("are fitted on" in shown.err) == (key is not None)
    assert read(path) == (marked if key is None else before)


@pytest.mark.daily
def test_a_read_only_run_is_evaluated_elsewhere(copy, monkeypatch, capfd, refused):
    def state():
        return {path: path.stat().st_mtime_ns for path in (copy / RUN).rglob("*")}

    before, access = state(), os.access
    inside = str(copy / RUN)
    monkeypatch.setattr(
        os, "access", lambda p, m: inside not in os.path.abspath(p) and access(p, m)
    )
    refused(eval_command.main, [], "runs/demo/eval/test", "another folder with --out", cwd=copy)
    evaluate("--out=seen/it", cwd=copy, monkeypatch=monkeypatch, capfd=capfd, drawn=True)
    assert state() == before
    assert read(copy / "seen/it/metrics.json") == read(copy / RUN / "eval/test/metrics.json")
    assert (copy / "seen/it/report.html").is_file()


def test_validation_judged_by_its_own_thresholds_says_so(copy, monkeypatch, capfd):
    shown = evaluate("--split=val", cwd=copy, monkeypatch=monkeypatch, capfd=capfd)
    assert "fitted on THESE IMAGES" in shown.out
    assert read(copy / RUN / "eval/val/metrics.json")["calibration"]["on_these_images"] is True


def test_without_its_data_a_run_has_no_thresholds_and_says_so(copy, monkeypatch, capfd):
    """The test split moved elsewhere alone, and the validation images are gone."""
    (copy / RUN / "calibration.json").unlink()
    elsewhere = copy / "elsewhere"
    shutil.move(copy / "data/phantom", elsewhere)
    tests = set((elsewhere / "test_list.txt").read_text().split())
    for path in (elsewhere / "images").iterdir():
        if path.name not in tests:
            path.unlink()
    config = read(copy / RUN / "config.json")
    config["data"] |= {"source": "nih_chest_xray14", "dir": "gone"}  # phantoms would be drawn anew
    (copy / RUN / "config.json").write_text(json.dumps(config))
    where = [f"--config.data.dir={elsewhere}"]
    where.append("--config.data.missing=skip")
    shown = evaluate(*where, cwd=copy, monkeypatch=monkeypatch, capfd=capfd)
    assert "warning: there are no thresholds and temperatures" in shown.err
    assert "F1, Brier score and calibration are undefined" in shown.out
    (path,) = (copy / RUN / "eval").glob("test-nih_chest_xray14-*/metrics.json")
    saved = read(path)
    assert saved["calibration"] is None
    assert saved["macro"]["brier"]["value"] is None
    assert saved["macro"]["auroc"]["findings"] == 14
    assert not (copy / RUN / "calibration.json").exists()


def test_what_was_read_of_the_bank_is_listed(finished):
    run = finished[0] / RUN
    images = {row["image"]: row["patient"] for row in table(run / "eval/test/predictions.csv")}
    cases = {row["image"]: row["patient"] for row in table(run / "cases.csv")}
    learned = set((run / "trained_on.txt").read_text().split())
    rows = table(run / "eval/test/retrieval.csv")
    assert {row["image"] for row in rows} == set(images)
    for row in rows:
        assert row["case"] in learned
        assert row["patient"] == cases[row["case"]] != images[row["image"]]
        assert 1 <= int(row["rank"]) <= 5
        assert -1 <= float(row["similarity"]) <= 1


def test_groups_are_by_the_prevalence_of_the_training_split(finished):
    run = finished[0] / RUN
    shares = read(run / "split.json")["prevalence"]
    groups = read(run / "eval/test/metrics.json")["groups"]
    assert all(shares[name] >= 0.05 for name in groups["head"]["findings"])
    assert all(shares[name] < 0.02 for name in groups["tail"]["findings"])
    assert sum(len(group["findings"]) for group in groups.values()) == 14


def test_subgroups_are_counted_whole(finished):
    saved = read(finished[0] / RUN / "eval/test/metrics.json")
    assert {"sex", "age"} <= set(saved["subgroups"])
    for values in saved["subgroups"].values():
        assert sum(entry["n_images"] for entry in values.values()) == saved["n_images"]


def test_a_checkpoint_is_compared_with_another(copy, monkeypatch, capfd):
    before = read(copy / RUN / "eval/test/metrics.json")
    first = sorted((copy / RUN / "checkpoints/bce").iterdir())[0].name
    shutil.copytree(copy / RUN, copy / "runs/other")
    arguments = ["--run=demo", f"--checkpoint=bce/{first}", "--compare=other"]
    shown = evaluate(
        *arguments, "--interval=delong", cwd=copy, monkeypatch=monkeypatch, capfd=capfd
    )
    saved = read(copy / RUN / "eval/test/metrics.json")
    compared = saved["comparison"]
    assert (compared["run"], compared["checkpoint"]) == ("other", before["checkpoint"])
    macro = compared["macro"]["auroc"]
    assert macro["value"] == saved["macro_auroc"] != before["macro_auroc"]
    assert macro["other"] == pytest.approx(before["macro_auroc"], abs=1e-12)
    assert macro["interval"][0] <= macro["difference"] <= macro["interval"][1]
    assert "Differences from other" in shown.out
    assert "DeLong" in shown.out
    assert saved["interval_method"]["auroc"] == "delong"


def test_a_run_that_knows_fewer_findings_is_compared_in_these(copy, monkeypatch, capfd):
    shutil.copytree(copy / RUN, copy / "runs/other")
    path = copy / "runs/other/eval/test/metrics.json"
    saved = read(path)
    some = {name: saved["findings"][name] for name in ("Nodule", "Mass", "Effusion")}
    path.write_text(json.dumps(saved | {"findings": some}))
    shown = evaluate(
        "--run=demo", "--compare=other", cwd=copy, monkeypatch=monkeypatch, capfd=capfd
    )
    compared = read(copy / RUN / "eval/test/metrics.json")["comparison"]
    assert list(compared["findings"]) == ["Effusion", "Nodule", "Mass"]
    mean = np.mean([entry["auroc"] for entry in some.values()])
    assert compared["macro"]["auroc"]["value"] == pytest.approx(mean, abs=1e-12)
    assert compared["macro"]["auroc"]["difference"] == 0
    assert "warning: other does not know Atelectasis, Consolidation, Infil" in shown.err


def test_what_cannot_be_compared_is_refused_before_anything_is_evaluated(copy, refused):
    shutil.copytree(copy / RUN, copy / "runs/other")
    arguments = ["--run=demo", "--compare=other"]
    path = copy / "runs/other/eval/test/metrics.json"
    saved = read(path)
    path.write_text(json.dumps(saved | {"split_sha256": "0" * 64}))
    refused(eval_command.main, arguments, "on other images", "000000000000", cwd=copy)
    path.write_text(json.dumps(saved | {"findings": {"Cyst": saved["findings"]["Mass"]}}))
    refused(eval_command.main, arguments, "on the findings Cyst and on none that", cwd=copy)
    path.write_text(json.dumps(saved))
    predictions = path.parent / "predictions.csv"
    kept = predictions.read_text()
    image = table(predictions)[0]["image"]
    predictions.write_text(re.sub(rf"(?m)^{re.escape(image)},\d+,", f"{image},9999,", kept))
    words = ("of the same names with other labels or patients", f"another patient for {image}")
    refused(eval_command.main, arguments, *words, cwd=copy)
    path.unlink()
    refused(eval_command.main, arguments, "not evaluated on the split 'test'", cwd=copy)
    refused(eval_command.main, ["--run=demo", "--compare=othr"], "'othr'", "'other'", cwd=copy)
    assert read(copy / RUN / "eval/test/metrics.json")["comparison"] is None


def test_logits_of_one_checkpoint_are_never_beside_the_metrics_of_another(
    copy, monkeypatch, refused
):
    shutil.copytree(copy / RUN, copy / "runs/other")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(copy)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_retrieval", killed)
        with pytest.raises(KeyboardInterrupt):
            eval_command.main(["--run=other", "--checkpoint=last"])
    assert (copy / "runs/other/eval/test/predictions.csv").exists()
    arguments = ["--run=demo", "--compare=other"]
    refused(eval_command.main, arguments, "not evaluated on the split 'test'", cwd=copy)


def test_a_run_without_a_checkpoint_is_refused(copy, refused):
    shutil.rmtree(copy / RUN / "checkpoints")
    refused(eval_command.main, ["--run=demo"], "no complete checkpoint", "train", cwd=copy)


def test_an_empty_split_is_refused(copy, refused):
    path = copy / "data/phantom/test_list.txt"
    names = path.read_text().split()
    for name in names:
        (copy / "data/phantom/images" / name).unlink()
    arguments = ["--config.data.missing=skip"]
    words = ("The split 'test'", "holds no images", "--config.data.split=official")
    refused(eval_command.main, arguments, *words, cwd=copy)


def test_help_says_what_can_be_asked():
    result = command("eval", "--help", cwd=".")
    assert "--compare" in result.stdout
    assert "<bootstrap|delong>" in result.stdout
