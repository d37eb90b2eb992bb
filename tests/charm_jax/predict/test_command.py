"""Predictions of files, as a user gets them, against the evaluation of the same images."""

import csv
import json
import os
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pydicom
import pytest
from dicom_files import make_dicom, save
from dicomweb_server import serving
from PIL import Image
from running import command, read

from charm_jax.config.cli import guarded
from charm_jax.predict import __main__ as predict
from data_pipelines.tables.findings import NIH_FINDINGS

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """A copy of the run, and `in/`: 20 test images, a training image, a photograph, a bad file."""
    folder = tmp_path_factory.mktemp("predict") / "copy"
    shutil.copytree(finished[0], folder)
    given = folder / "in"
    given.mkdir()
    phantom = folder / "data/phantom"
    shutil.copy(phantom / "SIMULATED.txt", given)
    tests = (phantom / "test_list.txt").read_text().split()[:20]
    trained = (folder / "runs/demo/trained_on.txt").read_text().split()[0]
    for name in (*tests, trained):
        shutil.copy(phantom / "images" / name, given)
    (given / "deep").mkdir()
    shutil.copy(PHOTOGRAPH, given / "deep/photograph.jpg")
    (given / "bad.png").write_bytes(b"no image")
    (folder / "empty/below").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def predicted(folder):
    result = command("predict", "in", cwd=folder)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    return result, {record["file"].removeprefix("in/"): record for record in records}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_bad_image_is_listed_and_the_others_are_done(predicted):
    result, records = predicted
    assert result.returncode == 1, result.stderr
    assert len(records) == 23
    assert records["bad.png"] == {
        "file": "in/bad.png",
        "error": "not a PNG, JPEG, TIFF or DICOM file of a known kind",
    }
    assert "warning: in/bad.png is left out" in result.stderr
    assert "1 of 23 images could not be read" in result.stderr
    assert "SIMULATED" in result.stderr
    assert [name for name, record in records.items() if "error" in record] == ["bad.png"]


def test_scores_are_the_evaluation_s_calibrated(folder, predicted):
    fitted = read(folder / "runs/demo/calibration.json")["findings"]
    evaluated = {row["image"]: row for row in rows(folder / "runs/demo/eval/test/predictions.csv")}
    compared = 0
    for name, record in predicted[1].items():
        if name not in evaluated:
            continue
        compared += 1
        for finding in NIH_FINDINGS:
            logit = float(evaluated[name][f"{finding}_logit"])
            assert record["logits"][finding] == pytest.approx(logit, abs=1e-3)
            temperature = fitted[finding]["temperature"] or 1.0
            score = 1 / (1 + np.exp(-logit / temperature))
            assert record["scores"][finding] == pytest.approx(score, abs=1e-3)
            limit = fitted[finding]["threshold"]
            above = limit is not None and record["scores"][finding] >= limit
            assert (finding in record["findings"]) == (above and not record["unfamiliar"])
    assert compared == 20


def test_evidence_is_what_the_evaluation_read(folder, predicted):
    read_there = {}
    for row in rows(folder / "runs/demo/eval/test/retrieval.csv"):
        read_there.setdefault(row["image"], []).append(row["case"])
    for name, record in predicted[1].items():
        if name in read_there:
            cases = [entry["case"] for entry in record["evidence"]]
            assert cases == list(dict.fromkeys(read_there[name]))


def test_a_known_image_is_named(folder, predicted):
    trained = (folder / "runs/demo/trained_on.txt").read_text().split()[0]
    record = predicted[1][trained]
    assert record["known_as"] == trained
    assert record["seen_in_training"] is True
    assert predicted[1]["deep/photograph.jpg"]["known_as"] is None


def test_own_case_and_patient_are_left_out_also_of_copies(folder):
    """Under other names the same images do read their own case."""
    cases = [row["case"] for row in rows(folder / "runs/demo/eval/test/retrieval.csv")]
    given = folder / "again"
    for place in ("a", "b"):
        (given / place).mkdir(parents=True)
    (given / "SIMULATED.txt").write_text("drawn")
    asked = sorted(set(cases), key=cases.count)[-8:]
    for number, name in enumerate(asked):
        image = folder / "data/phantom/images" / name
        for place in (f"a/{name}", f"b/{name}", f"stranger{number}.png"):
            shutil.copy(image, given / place)
    result = command("predict", "again", "--nooverlays", cwd=folder)
    assert result.returncode == 0, result.stderr
    made = [json.loads(line) for line in result.stdout.splitlines()]
    records = {record["file"].removeprefix("again/"): record for record in made}
    own = 0
    for number, name in enumerate(asked):
        stranger = records[f"stranger{number}.png"]
        assert stranger["known_as"] is None
        own += name in [entry["case"] for entry in stranger["evidence"]]
        for place in ("a", "b"):
            record = records[f"{place}/{name}"]
            assert record["known_as"] == name
            assert record["evidence"]
            patient = str(int(name.split("_")[0]))
            assert patient not in [entry["patient"] for entry in record["evidence"]]
    assert own > 0


def test_a_photograph_is_flagged_and_not_diagnosed(predicted):
    record = predicted[1]["deep/photograph.jpg"]
    assert record["unfamiliar"] is True
    assert record["findings"] == []
    assert set(record["scores"]) == set(NIH_FINDINGS)
    others = [r["unfamiliar"] for r in predicted[1].values() if "unfamiliar" in r]
    assert sum(others) <= 4


def test_pictures_are_of_the_map_and_of_each_reported_finding(folder, predicted):
    drawn = 0
    for record in predicted[1].values():
        if "error" in record:
            continue
        assert set(record["overlays"]) == {"attention", *record["findings"]}
        for path in record["overlays"].values():
            drawn += 1
            with Image.open(folder / path) as picture:
                assert picture.size == (512, 512)
                assert picture.mode == "RGB"
    assert drawn > 22
    deep = predicted[1]["deep/photograph.jpg"]["overlays"]["attention"]
    assert deep == "predictions/deep/photograph.attention.png"
    written = {str(path.relative_to(folder)) for path in folder.glob("predictions/**/*.png")}
    assert len(written) == drawn
    assert not list((folder / "in").glob("**/*.attention.png"))


def test_every_line_says_where_it_is_from(predicted):
    for record in predicted[1].values():
        if "error" not in record:
            assert record["run"] == "runs/demo"
            assert record["checkpoint"].startswith("focal/")
            assert record["memory"] == "trained"
            assert record["trained_on_simulated"] is True
            assert "not a medical device" in record["note"]


def test_dicom_files_get_dicom_results(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    original = next((folder / "in").glob("0*.png"))
    shutil.copy(original, given)
    for number in (1, 2):
        tags = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "PatientName": "A^B"}
        tags["SOPInstanceUID"] = "1.4.1"  # of both
        dataset = make_dicom(np.asarray(Image.open(original).convert("L")), **tags)
        save(dataset, given / f"{number}.dcm")
    options = ["--nooverlays", "--dicom_out", str(out)]
    assert guarded(predict.main, [str(given), *options]) == 1
    shown = capfd.readouterr()
    records = {Path(r["file"]).name: r for r in map(json.loads, shown.out.splitlines())}
    assert "1 of 3 images are no DICOM files" in shown.err
    assert "1 of 3 images got no DICOM results" in shown.err
    assert "another image has its SOPInstanceUID" in records["2.dcm"]["warnings"][-1]
    assert [name for name, record in records.items() if "dicom" in record] == ["1.dcm"]
    files = records["1.dcm"]["dicom"]
    assert {*files.values()} == {str(path) for path in out.iterdir()}
    report, capture = pydicom.dcmread(files["report"]), pydicom.dcmread(files["overlay"])
    assert report.PatientName == capture.PatientName == "A^B"
    [measured] = [item for item in report.ContentSequence if len(item.get("ContentSequence", []))]
    assert len(measured.ContentSequence) == len(NIH_FINDINGS)
    assert "SIMULATED" in report.ContentSequence[-1].TextValue


def test_a_study_of_a_server_gets_its_results(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4"}
    grey = np.asarray(Image.open(next((folder / "in").glob("0*.png"))).convert("L"))
    with serving() as server:
        server.instances.append(make_dicom(grey, Modality="DX", **uids))
        url = f"{server.url}/studies/1.2"
        assert guarded(predict.main, ["--dicomweb", url, "--nooverlays"]) == 0
        record = json.loads(capfd.readouterr().out)
        assert record["file"] == f"{url}/series/1.3/instances/1.4"
        assert "dicom" not in record  # the files are on the server alone
        stored = {d.SOPInstanceUID: d.Modality for d in server.instances[1:]}
        assert stored == {record["stored"]["report"]: "SR", record["stored"]["overlay"]: "OT"}
        server.refused = 409
        assert guarded(predict.main, ["--dicomweb", url, "--nooverlays"]) == 1
        [warning] = json.loads(capfd.readouterr().out)["warnings"]
        assert "409" in warning


@pytest.mark.daily
def test_forgetting_a_case_changes_logits_by_its_contribution(folder, predicted):
    """The whole way: forget it by the command, predict again by the other bank."""
    name, record = next(item for item in predicted[1].items() if item[1].get("evidence"))
    entry = record["evidence"][0]
    made = command("memory", "demo", "forget", entry["case"], "--label", "less", cwd=folder)
    assert made.returncode == 0, made.stderr
    again = command("predict", f"in/{name}", "--memory", "less", "--nooverlays", cwd=folder)
    assert again.returncode == 0, again.stderr
    after = json.loads(again.stdout)
    assert after["memory"] == "less"
    assert entry["case"] not in [other["case"] for other in after["evidence"]]
    for finding in NIH_FINDINGS:
        change = record["logits"][finding] - after["logits"][finding]
        assert change == pytest.approx(entry["contributions"][finding], abs=1e-5)
    assert any(abs(value) > 1e-3 for value in entry["contributions"].values())


def test_without_the_run_s_data_nothing_is_calibrated_and_that_is_said(folder, tmp_path):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    for name in ("calibration.json", "novelty.json"):
        (tmp_path / "runs/demo" / name).unlink(missing_ok=True)
    path = tmp_path / "runs/demo/config.json"
    config = read(path)
    config["data"] |= {"source": "csv_folder", "dir": "gone"}
    path.write_text(json.dumps(config))
    image = str(next((folder / "in").glob("0*.png")))
    result = command("predict", image, "--nooverlays", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["findings"] is None
    assert record["uncalibrated"] == list(NIH_FINDINGS)
    assert "novelty" in record
    assert "novelty_percentile" not in record
    assert "The data folder gone does not exist" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["No image is given"]),
        (["none.png"], ["no file or folder none.png"]),
        (["in", "empty"], ["The folder empty has no image"]),
        (["in", "--out", "in/pictures"], ["inside the image folder in", "--out"]),
        (["in", "--dicom_out", "in/out"], ["inside the image folder in", "--dicom_out"]),
        (["in", "--dicom_out", "out"], ["None of the images is a DICOM file"]),
        (["in", "--dicomweb", "http://127.0.0.1/studies/1"], ["--dicomweb", "leave out in"]),
        (["--dicomweb", "http://127.0.0.1/"], ["give a study or a series"]),
        (["in", "--run", "dmo"], ["'dmo'", "'demo'"]),
        (["in", "--checkpoint", "focal/7"], ["There is no checkpoint 'focal/7'"]),
        (["in", "--memory", "traind"], ["no memory 'traind'", "'trained'"]),
        (["in", "--rn", "demo"], ["rn"]),
        (["in", "--config.model.retrieval_k=9"], ["config.model.retrieval_k", "cannot change"]),
        (["in", "--config.data.value_range=0"], ["config.data.value_range is '0': set it to"]),
        (["in", "--config.data.value_range=foo"], ["config.data.value_range is 'foo': set it to"]),
    ],
)
def test_bad_input_gets_one_sentence(folder, refused, arguments, words):
    refused(predict.main, arguments, *words, cwd=folder)


def test_a_run_without_checkpoint_is_refused(folder, tmp_path, refused):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/demo/checkpoints")
    given = str(folder / "in")
    refused(predict.main, [given, "--run", "demo"], "runs/demo", "checkpoint", cwd=tmp_path)
    refused(predict.main, [given], "There is no run with a checkpoint", cwd=tmp_path)


def test_a_run_without_prevalences_is_refused(folder, tmp_path, refused):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs/demo/split.json"
    trained = read(path)
    del trained["prevalence"]
    path.write_text(json.dumps(trained))
    arguments = [str(folder / "in"), "--run", "demo"]
    refused(predict.main, arguments, "split.json", "no prevalence", cwd=tmp_path)


@pytest.mark.daily
def test_other_images_are_not_what_the_run_was_validated_on(folder, tmp_path):
    """The user names data whose validation part is another: there are no thresholds."""
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.copytree(folder / "data/phantom", tmp_path / "moved")
    for name in ("calibration.json", "novelty.json"):
        (tmp_path / "runs/demo" / name).unlink(missing_ok=True)
    path = tmp_path / "runs/demo/config.json"
    config = read(path)
    config["data"] |= {"source": "nih_chest_xray14", "dir": "gone"}  # phantoms would be drawn anew
    path.write_text(json.dumps(config))
    lists = [tmp_path / "moved" / name for name in ("train_val_list.txt", "test_list.txt")]
    texts = [file.read_text() for file in lists]
    for file, text in zip(lists, reversed(texts), strict=True):
        file.write_text(text)
    image = str(next((folder / "in").glob("0*.png")))
    asked = ("predict", image, "--nooverlays", "--config.data.dir=moved")
    result = command(*asked, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "is not the one in runs/demo/split.json" in result.stderr
    assert json.loads(result.stdout)["uncalibrated"] == list(NIH_FINDINGS)
    for file, text in zip(lists, texts, strict=True):
        file.write_text(text)
    result = command(*asked, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["uncalibrated"] != list(NIH_FINDINGS)


def test_each_bad_entry_of_a_folder_has_its_own_error(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    given = tmp_path / "given"
    given.mkdir()
    original = next((folder / "in").glob("0*.png"))
    shutil.copy(original, given / "1.2.840.113619")
    shutil.copy(original, given / f"{'x' * 250}.png")
    twelve = np.asarray(Image.open(original).convert("L")).astype(np.uint16) * 16
    Image.fromarray(twelve).save(given / "twelve.png")
    os.mkfifo(given / "pipe")
    (given / "gone.png").symlink_to("nowhere.png")
    assert guarded(predict.main, [str(given), "--out", str(tmp_path / "out")]) == 1
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    errors = {Path(r["file"]).name: r["error"] for r in records if "error" in r}
    assert errors == {
        "gone.png": "it is a link to a file that does not exist",
        "pipe": "it is a named pipe, not a file",
    }
    done = {Path(r["file"]).name: r for r in records if "error" not in r}
    assert len(done) == 3
    assert done["1.2.840.113619"]["logits"] == done[f"{'x' * 250}.png"]["logits"]
    assert "range" in done["twelve.png"]["unfamiliar_in"]
    assert done["twelve.png"]["findings"] == []
    for record in done.values():
        assert all(Path(path).is_file() for path in record["overlays"].values())


def test_a_stated_value_range_shows_12_bits_in_full(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    original = next((folder / "in").glob("0*.png"))
    twelve = np.asarray(Image.open(original).convert("L")).astype(np.uint16) * 16
    Image.fromarray(twelve).save(tmp_path / "twelve.png")
    options = ["--nooverlays", "--config.data.value_range=4080"]
    assert guarded(predict.main, [str(original), str(tmp_path / "twelve.png"), *options]) == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert "range" not in second["unfamiliar_in"]
    for name, logit in first["logits"].items():
        assert second["logits"][name] == pytest.approx(logit, abs=0.02)


def test_a_person_gets_text(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    name = next((folder / "in").glob("0*.png")).name
    assert guarded(predict.main, [f"in/{name}", "--nooverlays"]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith(f"in/{name}\n")
    assert "leaned on" in shown
    assert "not a medical device" in shown
