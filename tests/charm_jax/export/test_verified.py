"""An exported program computes what JAX does, or is not written."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from running import read

import charm_jax
from charm_jax.export import __main__ as export
from charm_jax.export import function, verified
from charm_jax.inference import fitted, loaded
from data_pipelines.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def model(finished):
    return loaded.load_run(finished[0] / "runs/demo")


@pytest.fixture(scope="module")
def pixels(finished):
    paths = sorted((finished[0] / "data/phantom/images").iterdir())[:5]
    return jnp.stack([jnp.array(Image.open(path).convert("L")) for path in paths])


def test_the_function_gives_what_predict_gives(model, pixels):
    """Arrays, not files: the images are nobody's."""
    memory = model.state.memory
    one = memory.replace(case_ids=jnp.full_like(memory.case_ids, -1).at[7].set(3))
    model = dataclasses.replace(model, state=model.state.replace(memory=one))
    found = jax.jit(function.of_model(model, fitted.load_calibrator(model)))(pixels)
    out = charm_jax.Classifier(model).predict(np.array(pixels))
    np.testing.assert_allclose(found["scores"], out.probs, atol=1e-6)
    np.testing.assert_allclose(found["logits"], out.logits, atol=1e-5)
    np.testing.assert_allclose(found["attention"], out.attention, atol=1e-6)
    best = [cases[0]["cosine"] for cases in out.evidence]
    np.testing.assert_allclose(found["similarities"].max(1), best, atol=1e-5)
    assert {*np.unique(found["slots"]).tolist()} == {-1, 7}  # nothing fills the others


@pytest.mark.daily
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_a_program_is_written_with_its_differences(
    finished, model, pixels, tmp_path, monkeypatch, kind, capfd
):
    if kind == "onnx":
        for name in ("onnx", "onnxruntime", "jax2onnx"):
            pytest.importorskip(name)
    monkeypatch.chdir(finished[0])
    path = tmp_path / f"demo.{kind}"
    assert export.main(["demo", "--format", kind, "--out", str(path)]) == 0
    shown = capfd.readouterr()
    assert "Largest differences from JAX in batches of 1, 3, 64: scores " in shown.err
    assert len(shown.err.splitlines()) == 2
    about = read(tmp_path / f"demo.{kind}.json")
    assert about["trained_on_simulated"] is True
    assert list(about["differences"]) == ["1", "3", "64"]
    assert max(max(found.values()) for found in about["differences"].values()) < 1e-4
    assert about["thresholds"] == charm_jax.Classifier(model).thresholds
    if kind == "stablehlo":
        program = jax_export.deserialize(bytearray(path.read_bytes()))
        assert program.platforms == ("cpu", "cuda")
        expected = charm_jax.Classifier(model).predict(np.array(pixels[:3])).probs
        np.testing.assert_allclose(program.call(pixels[:3])["scores"], expected, atol=2e-5)
        return
    images = sorted((finished[0] / "data/phantom/images").iterdir())[:2]
    for number, image in enumerate(images):  # a known file does not read its own cases
        shutil.copy(image, tmp_path / f"{number}.png")
    example = ROOT / "docs/examples/predict_onnx.py"
    result = subprocess.run(
        [sys.executable, example, "demo.onnx", "0.png", "1.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    out = charm_jax.Classifier(model).predict([tmp_path / "0.png", tmp_path / "1.png"])
    blocks = result.stdout.split(".png\n")[1:]
    for row, block in enumerate(blocks):
        lines = [line.split() for line in block.splitlines() if line.startswith("  ")]
        scores = {name: float(score) for name, score, *_ in lines}
        np.testing.assert_allclose([scores[n] for n in out.pathologies], out.probs[row], atol=2e-5)
        reported = {name for name, _, *found in lines if found}
        limits = charm_jax.Classifier(model).thresholds.items()
        assert reported == {n for n, t in limits if t is not None and scores[n] >= t}


def test_a_program_with_other_outputs_is_not_written(model, tmp_path, monkeypatch):
    def mean(images):
        return {name: images.mean((1, 2))[:, None] for name in ("scores", "logits")}

    def wrong(made, names, side, path):
        path.write_bytes(b"wrong")
        return lambda images: {
            "scores": np.array(made(jnp.asarray(images))["scores"]),
            "logits": np.array(made(jnp.asarray(images))["logits"]) + 0.01 * (len(images) == 3),
        }

    monkeypatch.setattr(function, "of_model", lambda *arguments: mean)
    monkeypatch.setitem(verified.FORMATS, "stablehlo", wrong)
    with pytest.raises(
        InputError, match=r"its logits would differ from JAX's by .* in a batch of 3"
    ):
        verified.write(model, tmp_path / "demo.hlo", "stablehlo")
    assert not [*tmp_path.iterdir()]


def test_another_slot_of_the_same_similarity_is_no_difference():
    reference = {"slots": np.array([[1, 2]]), "similarities": np.array([[0.5, 0.5]])}
    swapped = {"slots": np.array([[2, 1]]), "similarities": np.array([[0.5, 0.5]])}
    other = {"slots": np.array([[3, 2]]), "similarities": np.array([[0.4, 0.5]])}
    assert verified._differences(reference, swapped)["slots"] == 0
    assert verified._differences(reference, other)["slots"] == 1


def test_what_does_not_apply_is_refused(finished, refused, tmp_path, monkeypatch):
    run = str(finished[0] / "runs/demo")
    given = [run, "--format", "onnx", "--out", "demo.onnx"]
    refused(export.main, [*given, "--thumbnails"], "--thumbnails is for", cwd=tmp_path)
    (tmp_path / "demo.onnx.json").write_text(json.dumps({}))
    refused(export.main, given, "demo.onnx.json already exists", cwd=tmp_path)
    (tmp_path / "demo.onnx.json").unlink()
    monkeypatch.setattr(verified.device, "target", lambda: ("gpu", "9.0"))
    refused(export.main, given, "JAX_PLATFORMS=cpu", cwd=tmp_path)
