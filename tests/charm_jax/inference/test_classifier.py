"""A trained run, used from Python as a reader of the README would."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from running import command

import charm_jax
from data_pipelines.errors import InputError


@pytest.fixture(scope="module")
def model(finished):
    return charm_jax.load(finished[0] / "runs/demo")


@pytest.fixture(scope="module")
def images(finished):
    """Paths of 18 test images: more than one batch."""
    return sorted((finished[0] / "data/phantom/images").iterdir())[-18:]


@pytest.fixture(scope="module")
def out(model, images):
    return model.predict(images)


def test_predictions_equal_those_of_the_command(finished, out, images):
    result = command("predict", *map(str, images), "--nooverlays", cwd=finished[0])
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["file"] for record in records] == list(out.files)
    for row, record in enumerate(records):
        assert list(record["scores"]) == list(out.pathologies)
        np.testing.assert_allclose(out.probs[row], list(record["scores"].values()), atol=1e-6)
        np.testing.assert_allclose(out.logits[row], list(record["logits"].values()), atol=1e-6)
        found = [n for n, yes in zip(out.pathologies, out.positive[row], strict=True) if yes]
        assert found == (record["findings"] or [])
        assert out.is_ood.tolist()[row] is record["unfamiliar"]
        assert out.evidence[row] == record["evidence"]


def test_a_copy_of_a_run_predicts_without_its_data(finished, images, tmp_path):
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/demo/eval")
    moved = charm_jax.load(tmp_path / "runs/demo").predict(images[:2])
    assert not np.ma.getmaskarray(moved.is_ood).any()
    assert len(moved.uncalibrated) < len(moved.pathologies)


def test_an_image_that_uses_a_sliver_of_its_range_is_flagged(model, images, tmp_path):
    twelve = np.asarray(Image.open(images[0]).convert("L")).astype(np.uint16) * 16
    Image.fromarray(twelve).save(tmp_path / "twelve.png")
    found = model.predict([tmp_path / "twelve.png", images[0]])
    assert found.is_ood[0]
    assert not found.positive[0].any()
    assert "--config.data.value_range=4095" in found.warnings[0][0]
    assert found.warnings[1] == ()


def test_shapes_and_ranges(model, out):
    n, f = 18, len(model.pathologies)
    assert out.probs.shape == out.logits.shape == out.positive.shape == (n, f)
    assert out.is_ood.shape == (n,)
    assert len(out.attention) == n
    assert 0 <= out.probs.min() <= out.probs.max() <= 1
    assert set(model.thresholds) == set(model.pathologies)


def test_an_array_is_predicted_as_its_file_is_by_a_model_that_does_not_know_it(
    model, images, tmp_path
):
    """The file is copied under a new name: known files do not read their own cases."""
    pixels = np.array(Image.open(images[0]).convert("L"))
    Image.fromarray(pixels).save(tmp_path / "new.png")
    np.testing.assert_array_equal(
        model.predict(pixels[None]).logits, model.predict(str(tmp_path / "new.png")).logits
    )


def test_the_table_has_a_row_an_image(out):
    frame = out.to_frame()
    assert list(frame.index) == list(out.files)
    assert list(frame.columns) == ["is_ood", *out.pathologies]
    np.testing.assert_array_equal(frame["Mass"], out.probs[:, out.pathologies.index("Mass")])


def test_features_and_heat_maps_have_a_row_an_image(model, images):
    features = model.features(images)
    assert features.shape == (18, 256)
    np.testing.assert_allclose(model.features(images[:2]), features[:2], rtol=1e-5)
    maps = model.grad_cam(images, "Mass")
    assert len(maps) == 18
    assert 0 <= maps.min() <= maps.max() <= 1


def test_forgetting_returns_another_classifier(model):
    cases = model.memory.cases
    image, patient = cases["image"].iloc[0], cases["patient"].iloc[-1]
    fewer = model.memory.forget([image], [patient])
    assert image not in set(fewer.memory.cases["image"])
    assert patient not in set(fewer.memory.cases["patient"])
    assert len(fewer.memory) < len(model.memory)
    assert image in set(model.memory.cases["image"])


def test_a_classifier_and_those_made_of_it_trace_each_step_once(finished, images, traces):
    model = charm_jax.load(finished[0] / "runs/demo")
    model.predict(images)
    model.grad_cam(images[:1], "Mass")
    fewer = model.memory.forget(model.memory.cases["image"][:1])
    fewer.predict(images[:1])
    fewer.grad_cam(images, "Mass")
    assert (traces["explain_step"], traces["grad_cams"]) == (1, 1)
    assert traces["eval_step"] <= 1


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda model: model.grad_cam("x.png", "Massive"), "did you mean 'Mass'"),
        (lambda model: model.memory.forget(["nobody.png"]), "no case of image 'nobody.png'"),
        (lambda model: model.memory.forget(), "No case is named"),
        (lambda model: model.predict([]), "No image is given"),
        (lambda model: model.predict("missing.png"), "missing.png"),
        (lambda model: charm_jax.load("runs/nothing"), "no run 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(model, act, words):
    with pytest.raises(InputError, match=words) as error:
        act(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8), np.float32)], ids=["2-d", "float"]
)
def test_an_array_of_another_kind_is_refused(model, array):
    with pytest.raises(ValueError, match="give uint8 grey levels"):
        model.predict(array)


def test_the_library_prints_nothing(model, images, capfd):
    model.predict(images[:1])
    assert capfd.readouterr() == ("", "")
