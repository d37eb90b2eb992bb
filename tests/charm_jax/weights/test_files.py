import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from weight_tensors import TENSORS, check_that_a_failed_write_leaves_nothing, refusal

from charm_jax.weights import files
from data_pipelines.errors import InputError


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_safetensors_there_and_back_is_the_identity(tmp_path, no_torch):
    path = tmp_path / "weights.safetensors"
    files.write(path, TENSORS)
    back = files.read(path)
    assert back.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        np.testing.assert_array_equal(back[name], value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_transposed_and_jax_arrays_are_written_as_they_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    files.write(path, {"turned": turned, "jax": np.asarray(jnp.arange(4.0))})
    back = files.read(path)
    np.testing.assert_array_equal(back["turned"], turned)
    np.testing.assert_array_equal(back["jax"], np.arange(4.0))


@pytest.mark.parametrize("kind", [np.float16, np.float64, jnp.bfloat16])
def test_other_precisions_become_float32(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"w": np.array([0.5, -2.0], kind)}, path)
    value = files.read(path)["w"]
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, np.array([0.5, -2.0], np.float32))


@pytest.mark.parametrize("content", [b"", b"hello, I am no weight file", b"PK\x03\x04" + bytes(60)])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    files.write(path, TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "cannot be read" in refusal(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    files.write(path, {})
    assert "holds no tensors" in refusal(path)


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path):
    assert "There is no weight file" in refusal(tmp_path / "weights.safetensors")
    archive = tmp_path / "weights.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    assert ".safetensors" in refusal(archive)
    with pytest.raises(InputError, match=r"use one of \.pth"):
        files.write(tmp_path / "weights.npz", TENSORS)


def test_a_folder_is_refused_as_one(tmp_path):
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.ckpt", "torch"), ("a.PTH", "torch"), ("a.SafeTensors", "safetensors")],
)
def test_the_suffix_says_the_kind_in_capitals_too(tmp_path, name, kind):
    assert files.kind_of(tmp_path / name) == kind


def test_numbers_beyond_float32_become_infinite_without_a_warning(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"w": np.array([1e300])}, path)
    assert np.isinf(files.read(path)["w"]).all()


def test_to_write_pytorchs_files_one_sentence_names_the_extra_and_safetensors(tmp_path, no_torch):
    with pytest.raises(InputError, match=r"charm-jax\[torch\].* or write a \.safetensors file"):
        files.write(tmp_path / "new.pth", TENSORS)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path):
    check_that_a_failed_write_leaves_nothing(tmp_path / "weights.safetensors")
