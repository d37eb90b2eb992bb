"""A trained run leaves its folder as a portable model, which does the same without it."""

import dataclasses
import functools
import json
import operator
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import command_here, read
from safetensors.numpy import load_file, save_file

import charm_jax
from charm_jax.export import __main__ as export
from charm_jax.export import portable as writer
from charm_jax.inference import fitted, loaded
from charm_jax.metrics import summary
from charm_jax.report import page
from charm_jax.runs import portable
from data_pipelines.errors import InputError
from data_pipelines.loading.given import GivenImages


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The folder of a portable model, away from its run and its data."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished[0])
        arguments = ["demo", "--out", str(folder / "made"), "--thumbnails", "--quiet"]
        assert export.main(arguments) == 0
    return (folder / "made").rename(folder / "moved")


@pytest.fixture(scope="module")
def images(finished):
    """Paths of images of training and of the test split."""
    every = sorted((finished[0] / "data/phantom/images").iterdir())
    return every[:4] + every[-4:]


def test_it_predicts_what_the_run_predicts(finished, exported, images):
    run, model = charm_jax.load(finished[0] / "runs/demo"), charm_jax.load(exported)
    then, now = run.predict(images), model.predict(images)
    for name in ("probs", "logits", "attention", "is_ood", "positive"):
        np.testing.assert_allclose(getattr(now, name), getattr(then, name), atol=1e-6)
    assert model.thresholds == run.thresholds
    for one, other in zip(then.evidence, now.evidence, strict=True):
        assert [case["cosine"] for case in one] == [case["cosine"] for case in other]
        assert [case["labels"] for case in one] == [case["labels"] for case in other]
        assert not {case["case"] for case in one} & {case["case"] for case in other}


def test_it_leaves_out_the_own_patients_cases_by_digests_of_their_names(exported, images):
    model = loaded.load_run(exported)
    ids = charm_jax.Classifier(model)._predictor.match(
        GivenImages((images[0].name,), (images[0],), 0)
    )
    memory = model.state.memory
    # Every stored case is another one of the patient's.
    memory = memory.replace(
        case_ids=jnp.where(memory.case_ids == ids["case_id"][0], -1, memory.case_ids),
        patient_ids=jnp.full_like(memory.patient_ids, ids["patient_id"][0]),
    )
    own = dataclasses.replace(model, state=model.state.replace(memory=memory))
    assert ids["patient_id"][0] >= 0
    pixels = np.array(Image.open(images[0]).convert("L"))
    assert len(charm_jax.Classifier(own).predict(pixels[None]).evidence[0]) > 0
    assert charm_jax.Classifier(own).predict([images[0]]).evidence == ([],)


def test_the_commands_take_it_in_place_of_a_run(finished, exported, images, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "model")
    predicted = command_here(
        "predict", str(images[0]), "--run", "model", "--nooverlays", cwd=tmp_path
    )
    assert predicted.returncode == 0, predicted.stderr
    record = json.loads(predicted.stdout.splitlines()[0])
    assert record["run"] == "model"
    assert record["seen_in_training"]
    # Most of an evaluation's time goes into groups and report.
    monkeypatch.setattr(summary, "attributes", lambda *columns: {})
    monkeypatch.setattr(page, "write", lambda *arguments: None)
    data = finished[0] / "data/phantom"
    evaluated = command_here("eval", "--run", "model", f"--config.data.dir={data}", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    now = read(tmp_path / "model/eval/test/metrics.json")
    then = read(finished[0] / "runs/demo/eval/test/metrics.json")
    other = ("network_sha256", "data", "subgroups", "fairness")
    assert _rounded(now, other) == _rounded(then, other)


def _rounded(metrics, left_out):
    return json.loads(
        json.dumps({key: value for key, value in metrics.items() if key not in left_out}),
        parse_float=lambda text: round(float(text), 6),
    )


def test_it_names_nobody(finished, exported, images):
    files = [path for path in exported.rglob("*") if path.is_file()]
    texts = {path.name: path.read_bytes() for path in files}
    for name in (*(path.name for path in images), str(finished[0])):
        assert not [file for file, text in texts.items() if name.encode() in text]
    model, run = loaded.load_run(exported), loaded.load_run(finished[0] / "runs/demo")
    ours, theirs = np.asarray(model.state.memory.case_ids), np.asarray(run.state.memory.case_ids)
    assert (ours == theirs).mean() < 0.1
    for case in model.bank_cases()["image"].reindex(ours[ours >= 0]):
        assert portable.thumbnail_path(exported, case).is_file()


def test_image_names_can_stay_but_not_those_of_patients(finished, tmp_path):
    run = loaded.load_run(finished[0] / "runs/demo")
    writer.write(run, tmp_path / "named", thumbnails=False, keep_names=True)
    cases = loaded.load_run(tmp_path / "named").bank_cases()
    assert cases["image"].str.endswith(".png").all()
    assert cases["patient"].str.fullmatch("[0-9a-f]{16}").all()
    assert "Names of images are written out" in (tmp_path / "named/README.md").read_text()
    assert not (tmp_path / "named/thumbnails").exists()


def test_the_card_says_what_the_numbers_are_of(finished, exported):
    text = (exported / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert "library_name: charm-jax" in header
    assert "not a medical device" in body
    metrics = read(finished[0] / "runs/demo/eval/test/metrics.json")
    low, high = metrics["macro_auroc_interval"]
    assert f"{metrics['macro_auroc']:.3f} [{low:.3f}, {high:.3f}]" in body
    for line in body.splitlines():
        assert "AUROC (" not in line or "SIMULATED" in line
    assert body.count("SIMULATED") > 3
    assert "Training and validation saw no image of these patients." in body


def test_nothing_is_left_of_an_export_that_fails(finished, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(writer.model_card, "render", fail)
    run = loaded.load_run(finished[0] / "runs/demo")
    with pytest.raises(OSError, match="disk full"):
        writer.write(run, tmp_path / "made", thumbnails=False, keep_names=False)
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_exported_is_refused(finished, exported, refused, tmp_path):
    run, cwd = str(finished[0] / "runs/demo"), tmp_path
    (tmp_path / "there").mkdir()
    refused(export.main, [run, "--out", "there"], "there already exists", cwd=cwd)
    refused(export.main, [run], "--out is empty", cwd=cwd)
    refused(export.main, [run, run, "--out", "new"], "2 runs are named", cwd=cwd)
    refused(export.main, [str(exported), "--out", "new"], "portable model already", cwd=cwd)
    refused(export.main, [run, "--out", "new", "--thumbnails"], "data/phantom", cwd=cwd)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("params/head/logits/bias"), "missing params/head/logits/bias"),
        (lambda tensors: tensors.update(more=np.zeros(2, np.float32)), "unexpected more"),
        (
            lambda tensors: tensors["memory/features"].fill(np.nan),
            "memory/features is not finite",
        ),
    ],
)
def test_a_damaged_file_is_refused(exported, tmp_path, change, message):
    shutil.copytree(exported, tmp_path / "model")
    path = tmp_path / "model" / portable.FILE
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        charm_jax.load(tmp_path / "model")


# Keys that are read, by file; those in brackets may be absent.
READ = {
    "config.json": "format checkpoint provenance [provenance.refit] config [config.model.backbone]",
    "split.json": "source simulated patients_known findings rule prevalence.Mass stages "
    "stages.focal stages.focal.val.sha256 [names_key] [leak_images]",
    "calibration.json": "findings findings.Mass findings.Mass.temperature [images]",
    "novelty.json": "n_images percentiles [percentiles.novelty] mean components",
    "bank/memory.json": "findings [names_key] [sets]",
}


@pytest.fixture(scope="module")
def spoilt(exported, tmp_path_factory):
    """A portable model with a bank of its own, and the same in memory."""
    folder = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(exported, folder)
    (folder / "bank").mkdir()
    bank = {key: read(folder / "split.json")[key] for key in ("findings", "names_key")}
    (folder / "bank/memory.json").write_text(json.dumps(bank | {"sets": {}}))
    return folder, loaded.load_run(folder)


@pytest.mark.parametrize(("name", "key"), [(n, key) for n in READ for key in READ[n].split()])
def test_a_json_file_without_a_key_or_with_another_type_is_refused(spoilt, name, key):
    folder, model = spoilt
    path, required = folder / name, "[" not in key
    *outer, last = key.strip("[]").split(".")
    whole = path.read_text()
    for value in ([None], None)[: 1 + required]:
        content = json.loads(whole)
        inner = functools.reduce(operator.getitem, outer, content)
        inner[last] = value
        if value is None:
            del inner[last]
        path.write_text(json.dumps(content))
        with pytest.raises(InputError) as refused:
            if name in ("config.json", "split.json"):
                loaded.load_run(folder)
            portable.read_bank(folder, model.state)
            fitted.load_calibrator(model)
        path.write_text(whole)
        assert str(path) in str(refused.value)
        assert outer[-1] in str(refused.value) if outer else last in str(refused.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"config": {"model": {"backbone": "resnet5"}}}),
        ("split.json", {"names_key": "no hexadecimal number"}),
        ("split.json", {"findings": ["Mass", "Mass"]}),
        ("calibration.json", {"findings": {}}),
        ("novelty.json", {"percentiles": {"novelty": [0.5, 1.0]}}),
        ("novelty.json", {"components": [[0.5]]}),
        ("novelty.json", {"n_images": float("nan")}),
    ],
)
def test_a_json_file_with_a_value_that_cannot_be_is_refused(spoilt, images, tmp_path, name, change):
    shutil.copytree(spoilt[0], tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_text(json.dumps(read(path) | change))
    with pytest.raises(InputError, match=f"model/{name}"):
        charm_jax.load(tmp_path / "model").predict(images[:1])


def test_a_folder_of_a_later_version_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    about = read(exported / "config.json") | {"format": portable.FORMAT + 1, "charm_jax": "9.0"}
    (tmp_path / "model/config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"version 9\.0"):
        charm_jax.load(tmp_path / "model")
    with pytest.raises(InputError, match="of checkpoint focal/"):
        charm_jax.load(exported, checkpoint="last")
