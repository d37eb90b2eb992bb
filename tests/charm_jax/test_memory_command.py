"""The bank of a run, held: what is listed, forgotten and refilled."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from running import command, command_here, read
from safetensors.numpy import load_file

from charm_jax.eval import __main__ as eval_command
from charm_jax.memory import __main__ as memory
from charm_jax.predict import __main__ as predict
from data_pipelines.tables.findings import NIH_FINDINGS


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "copy"
    shutil.copytree(finished[0], folder)
    return folder


@pytest.fixture(scope="module")
def listed(folder):
    result = command("memory", "demo", "list", cwd=folder)
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout))), result.stderr


@pytest.fixture(scope="module")
def forgotten(folder, listed):
    """All cases of the patient of the case that is read most."""
    patient = listed[0][0]["patient"]
    arguments = ("forget", "--patients", patient, "--label", "without")
    result = command("memory", "demo", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return patient, result


@pytest.fixture(scope="module")
def site(folder):
    """Another hospital's folder: the same findings, its own names and patients."""
    site = folder / "site"
    site.mkdir()
    images = sorted((folder / "data/phantom/images").iterdir())[:90]
    lines = [",".join(("image", "patient", *NIH_FINDINGS))]
    for number, path in enumerate(images):
        name = f"ward/{number:03d}.png"
        (site / "ward").mkdir(exist_ok=True)
        shutil.copy(path, site / name)
        labels = ["1" if (number + i) % 5 == 0 else "0" for i in range(len(NIH_FINDINGS))]
        lines.append(",".join((name, f"S{number // 3:02d}", *labels)))
    (site / "labels.csv").write_text("\n".join(lines) + "\n")
    (site / "SIMULATED.txt").write_text("drawn")
    return site


REFILL = [
    *("refill", "--label", "site"),
    *("--config.data.source=csv_folder", "--config.data.dir=site", "--config.data.split=patient"),
]


@pytest.fixture(scope="module")
def refilled(folder, site):
    result = command("memory", "demo", *REFILL, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "runs/demo/memory/site", result


def checkpoint_bytes(folder):
    files = sorted(path for path in folder.glob("runs/demo/checkpoints/**/*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def test_every_case_is_listed_with_how_often_it_is_read(folder, listed):
    rows, notes = listed
    assert "SIMULATED images of 'val'" in notes
    reads = [int(row["read_by_val_images"]) for row in rows]
    assert reads == sorted(reads, reverse=True)
    assert reads[0] > 0
    assert sum(int(row["slots"]) for row in rows) <= 512
    known = set((folder / "runs/demo/trained_on.txt").read_text().split())
    assert {row["image"] for row in rows} <= known
    n_val = read(folder / "runs/demo/split.json")["stages"]["focal"]["val"]["images"]
    assert sum(reads) <= 5 * n_val


def test_a_case_is_shown_with_its_readers(folder, listed):
    row = listed[0][0]
    result = command("memory", "demo", "show", row["image"], cwd=folder)
    assert result.returncode == 0, result.stderr
    assert f"{row['image']}: patient {row['patient']}, {row['findings']}" in result.stdout
    assert f"read by {row['read_by_val_images']} SIMULATED images of 'val'" in result.stdout


def test_a_forgotten_patient_is_gone_from_the_bank_and_not_from_the_weights(
    folder, listed, forgotten
):
    patient, result = forgotten
    assert "The weights are unchanged" in result.stdout
    assert "macro" in result.stdout
    assert "SIMULATED images of 'val'" in result.stdout
    gone = [row for row in listed[0] if row["patient"] == patient]
    again = command("memory", "demo", "list", "--memory", "without", cwd=folder)
    rows = list(csv.DictReader(io.StringIO(again.stdout)))
    assert len(rows) == len(listed[0]) - len(gone)
    assert patient not in {row["patient"] for row in rows}
    description = read(folder / "runs/demo/memory/without/memory.json")
    assert description["forgotten"] == sorted(row["image"] for row in gone)


@pytest.mark.daily
def test_the_change_on_validation_is_that_of_two_evaluations(folder, forgotten):
    macro = forgotten[1].stdout.split("\nmacro")[1].split()
    for label, value in (("trained", macro[0]), ("without", macro[1])):
        arguments = ("--split", "val", "--memory", label)
        result = command("eval", *arguments, cwd=folder)
        assert result.returncode == 0, result.stderr
        where = "" if label == "trained" else f"memory/{label}/"
        metrics = read(folder / f"runs/demo/{where}eval/val/metrics.json")
        # Rounding may part or join two equal scores; that moves a small split's AUROC.
        assert float(value) == pytest.approx(metrics["macro_auroc"], abs=1e-3)
        assert metrics.get("memory", "trained") == label
    assert "with memory without" in result.stdout


def test_a_bank_that_is_made_leaves_the_checkpoint_as_it_was(folder, listed):
    before = checkpoint_bytes(folder)
    arguments = ("forget", listed[0][1]["image"], "--label", "again")
    result = command_here("memory", "demo", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert checkpoint_bytes(folder) == before


@pytest.mark.parametrize("act", ["forget", "refill"])
def test_each_step_is_traced_once(folder, listed, site, traces, act):
    arguments = ("forget", listed[0][1]["image"], "--label", "traced")
    if act == "refill":
        arguments = [word if word != "site" else "traced-site" for word in REFILL]
    assert command_here("memory", "demo", *arguments, cwd=folder).returncode == 0
    steps = {"forget": ("eval_step", "read_step"), "refill": ("eval_step", "write_selected")}
    assert {step: traces[step] for step in steps[act]} == dict.fromkeys(steps[act], 1)


def test_what_forgot_may_forget_more(folder, listed, forgotten):
    image = next(row["image"] for row in listed[0] if row["patient"] != forgotten[0])
    arguments = ("forget", image, "--memory", "without", "--label", "without-more")
    assert command("memory", "demo", *arguments, cwd=folder).returncode == 0
    first, second = (
        read(folder / f"runs/demo/memory/{label}/memory.json")["forgotten"]
        for label in ("without", "without-more")
    )
    assert second == [*first, image]


def test_a_site_fills_the_bank_with_its_own_cases(refilled):
    bank, result = refilled
    assert "The weights are unchanged" in result.stdout
    arrays = load_file(bank / "bank.safetensors")
    with (bank / "cases.csv").open() as file:
        names = {int(row["id"]): row["image"] for row in csv.DictReader(file)}
    stored = arrays["case_ids"][arrays["case_ids"] >= 0]
    assert len(stored) == arrays["count"] > 0
    assert all(names[case].startswith("ward/") for case in stored)
    assert len(np.unique(stored)) == len(stored)
    description = read(bank / "memory.json")
    assert description["source"] == "csv_folder"
    assert description["simulated"] is True


def test_predictions_lean_on_the_site_s_cases_and_never_on_the_own_patient(folder, refilled):
    image = "site/ward/004.png"
    arguments = (image, "--memory", "site", "--nooverlays")
    result = command("predict", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["known_as"] == "ward/004.png"
    assert record["evidence"]
    for entry in record["evidence"]:
        assert entry["case"].startswith("ward/")
        assert entry["patient"] != "S01"
        assert entry["patient"].startswith("S")


@pytest.mark.daily
def test_numbers_of_a_part_that_fills_the_bank_say_so(folder):
    refill = command("memory", "demo", "refill", "--label", "peeked", "--split", "test", cwd=folder)
    assert refill.returncode == 0, refill.stderr
    result = command("eval", "--memory", "peeked", cwd=folder)
    assert result.returncode == 0, result.stderr
    bank = folder / "runs/demo/memory/peeked"
    saved, made = read(bank / "eval/test/metrics.json"), read(bank / "memory.json")
    held = saved["bank"]
    assert held["images_sha256"] == made["images_sha256"] == saved["split_sha256"]
    assert (held["source"], held["split"]) == ("phantom", "test")
    assert made["cases"] <= held["images_here"] <= saved["n_images"]
    said = f"BANK: {held['images_here']:,} of the {saved['n_images']:,} images here"
    assert said in result.stdout
    assert said in (bank / "eval/test/report.html").read_text()
    trained = read(folder / "runs/demo/eval/test/metrics.json")["bank"]
    assert (trained["split"], trained["images_here"]) == ("train", 0)


@pytest.mark.daily
def test_the_same_site_gives_the_same_bank(folder, refilled):
    arguments = [word if word != "site" else "site-again" for word in REFILL]
    arguments[-2] = "--config.data.dir=site"
    assert command("memory", "demo", *arguments, cwd=folder).returncode == 0
    other = load_file(folder / "runs/demo/memory/site-again/bank.safetensors")
    for name, array in load_file(refilled[0] / "bank.safetensors").items():
        np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Name a run"]),
        (["demo"], ["list, show, forget, refill"]),
        (["demo", "lst"], ["'lst'", "'list'"]),
        (["demo", "list", "--config.data.value_range=0"], ["config.data.value_range is '0'"]),
        (["demo", "forget", "x.png", "--config.data.value_range=x"], ["data.value_range is 'x'"]),
        (["demo", "show", "x.png", "--config.data.image_size=4"], ["data.image_size is 4"]),
        (["dmo", "list"], ["'dmo'", "'demo'"]),
        (["demo", "list", "x"], ["Unexpected argument 'x' after list", "options start with --"]),
        (["demo", "list", "--split", "test_published"], ["test_published"]),
        (["demo", "show"], ["No case is named"]),
        (["demo", "show", "x.png"], ["no case of image 'x.png'", "choose one of"]),
        (["demo", "forget", "--patients", "99999", "--label", "x"], ["no case of patient '99999'"]),
        (["demo", "forget", "x.png"], ["--label is ''"]),
        (["demo", "forget", "x.png", "--label", "../x"], ["--label is '../x'"]),
        (["demo", "forget", "x.png", "--label", "trained"], ["--label is 'trained'"]),
        (["demo", "forget", "x.png", "--label", "without"], ["already exists"]),
        (["demo", "list", "--memory", "witout"], ["no memory 'witout'", "'without'"]),
        (["demo", "list", "--config.model.retrieval_k=1"], ["cannot change"]),
        (
            ["demo", "refill", "--label", "x", "--config.data.source=csv_folder"],
            ["not of csv_folder", "--config.data.source=nih_chest_xray14"],
        ),
    ],
)
def test_bad_input_gets_one_sentence(folder, forgotten, refused, arguments, words):
    refused(memory.main, arguments, *words, cwd=folder)


def test_a_site_with_other_findings_is_refused(folder, tmp_path, refused):
    site = tmp_path / "other"
    site.mkdir()
    names = [f"{i}.png" for i in range(20)]
    shutil.copy(next((folder / "data/phantom/images").iterdir()), site / "0.png")
    for name in names[1:]:
        shutil.copy(site / "0.png", site / name)
    lines = [f"{name},{i},{i % 2}" for i, name in enumerate(names)]
    (site / "labels.csv").write_text("\n".join(["image,patient,Rib fracture", *lines]))
    arguments = ["demo", "refill", "--label", "x", "--config.data.source=csv_folder"]
    arguments += [f"--config.data.dir={site}"]
    refused(memory.main, arguments, "knows the findings", "Rib fracture", cwd=folder)
    assert not (folder / "runs/demo/memory/x").exists()


def test_a_bank_of_other_weights_or_findings_is_refused(folder, forgotten, refused):
    path = folder / "runs/demo/memory/without/memory.json"
    kept = path.read_text()
    image = "data/phantom/images"
    try:
        path.write_text(json.dumps(json.loads(kept) | {"weights_sha256": "0"}))
        refused(predict.main, [image, "--memory", "without"], "other weights", cwd=folder)
        path.write_text(json.dumps(json.loads(kept) | {"findings": ["Mass"]}))
        refused(eval_command.main, ["--memory", "without"], "has the findings Mass", cwd=folder)
    finally:
        path.write_text(kept)
    bank = path.with_name("bank.safetensors")
    whole = bank.read_bytes()
    try:
        bank.write_bytes(whole[:100])
        refused(predict.main, [image, "--memory", "without"], "cannot be read", cwd=folder)
    finally:
        bank.write_bytes(whole)


@pytest.mark.parametrize("shares", [None, {"Mass": 0.1}])
def test_a_run_without_the_prevalence_of_each_finding_is_refused(folder, tmp_path, refused, shares):
    """Zeros would make every finding a rare one."""
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs/demo/split.json"
    trained = read(path)
    trained.pop("prevalence")
    path.write_text(json.dumps(trained | ({} if shares is None else {"prevalence": shares})))
    arguments = ["demo", "refill", "--label", "other", *REFILL[3:]]
    refused(memory.main, arguments, "split.json", "no prevalence", "again", cwd=tmp_path)
