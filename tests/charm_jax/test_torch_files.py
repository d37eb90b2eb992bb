"""Files that PyTorch itself writes: the honest ones are read, the others refused."""

import argparse
import pickle
import zipfile
from pathlib import Path

import chex
import numpy as np
import pytest
from torch_networks import EfficientNetV2, ResNet, torch
from weight_states import NANO, new_state
from weight_tensors import TENSORS, check_that_a_failed_write_leaves_nothing, refusal

from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import files, load
from data_pipelines.errors import InputError

pytestmark = pytest.mark.torch

for_both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path, value, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def malicious(tmp_path):
    """Checks when the test is over that no code ran, and that it could have."""
    marker = tmp_path / "marker"
    bomb = Malicious(marker)
    yield bomb
    assert not marker.exists()
    pickle.loads(pickle.dumps(bomb))
    assert marker.exists()


@for_both_formats
@pytest.mark.parametrize(
    "hide",
    [lambda bomb: bomb, lambda bomb: {"w": torch.ones(2), "epoch": bomb}, lambda bomb: {bomb: 1}],
    ids=["alone", "beside weights", "as a name"],
)
def test_code_in_a_file_is_refused_and_not_run(path, malicious, hide, zipped):
    save(path, hide(malicious), zipped)
    assert "holds more than weights, such as " in refusal(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_not_run(path, malicious, protocol):
    path.write_bytes(pickle.dumps(malicious, protocol))
    refusal(path)


def test_code_among_what_fastai_stores_is_refused_and_not_run(path, malicious):
    save(path, {"model": {"w": torch.ones(2)}, "opt": {"hypers": [malicious]}})
    assert "holds more than weights, such as " in refusal(path)


def test_what_training_scripts_store_beside_the_weights_is_passed_over(path):
    settings = argparse.Namespace(lr=1e-3, out=Path("runs"))
    loops = {"fit": {"epoch": 3}, "best": Path("best.ckpt")}
    save(path, {"state_dict": {"w": torch.ones(2)}, "hyper_parameters": settings, "loops": loops})
    assert files.read(path).keys() == {"state_dict.w"}


@for_both_formats
def test_a_whole_network_instead_of_its_state_dict_is_refused(path, zipped):
    save(path, torch.nn.Sequential(torch.nn.Linear(2, 2)), zipped)
    assert "ask its author for the state dict alone" in refusal(path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_refused(path):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), path)
    assert "cannot be read" in refusal(path)


@for_both_formats
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, zipped, share):
    save(path, {"w": torch.ones(5000)}, zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("inside", ["notes.txt", "archive/notes.txt"])
def test_a_zip_that_is_no_checkpoint_is_refused(path, inside):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(inside, "text")
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2)], ids=["list", "tensor"])
def test_tensors_without_names_are_refused(path, value):
    save(path, value)
    assert "give a file with a state dict" in refusal(path)


def test_nested_state_dicts_are_read_by_their_paths(path):
    save(path, {"net": {"w": torch.ones(2)}, "ema": {"module": {"w": torch.ones(3)}}, "epoch": 3})
    assert files.read(path).keys() == {"net.w", "ema.module.w"}


def test_a_file_without_tensors_is_named_with_five_of_its_keys(path):
    save(path, {f"key{i}": i for i in range(9)})
    assert "no tensors by name but key0, key1, key2, key3, key4 and 4 more: save" in refusal(path)


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.ones(2, device="meta")], ids=["sparse", "no data"]
)
def test_a_tensor_that_is_no_array_is_named(path, tensor):
    save(path, {"conv.weight": tensor})
    assert "conv.weight" in refusal(path)


def test_names_that_are_numbers_are_read_as_text(path):
    save(path, {0: torch.ones(2)})
    assert files.read(path).keys() == {"0"}


@for_both_formats
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(path, kind, zipped):
    save(path, {"w": torch.tensor([0.5, -2.0], dtype=kind)}, zipped)
    value = files.read(path)["w"]
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, np.array([0.5, -2.0], np.float32))


@for_both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(path, protocol, zipped):
    torch.save(
        {"w": torch.ones(2), "step": 2**40},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    np.testing.assert_array_equal(files.read(path)["w"], np.ones(2))


def test_parameters_and_views_are_read_as_they_are(path):
    turned = torch.arange(6.0).reshape(2, 3).T
    save(path, {"turned": turned, "parameter": torch.nn.Parameter(turned[1:])})
    read = files.read(path)
    np.testing.assert_array_equal(read["turned"], turned.numpy())
    np.testing.assert_array_equal(read["parameter"], turned[1:].numpy())


def test_there_and_back_is_the_identity(path):
    files.write(path, TENSORS)
    back = files.read(path)
    assert back.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_nothing(path):
    check_that_a_failed_write_leaves_nothing(path)


def nano():
    return EfficientNetV2(*BACKBONES[NANO].trunk.args, 256).state_dict()


def misshapen(tensors):
    return tensors | {"features.0.1.bias": torch.zeros(17)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (misshapen, ["features.0.1.bias has shape (17,), not (16,)"]),
        (
            lambda _: ResNet((1, 1, 1, 1)).state_dict(),
            ["of the 111 tensors of the network are in it"],
        ),
    ],
    ids=["misshapen", "another network"],
)
def test_a_file_that_does_not_fit_is_named_with_every_fault(path, spoil, said):
    save(path, nano())
    _, file = load.initial_weights(new_state(NANO), str(path), NANO)
    assert file.file == str(path)
    save(path, spoil(nano()))
    with pytest.raises(InputError) as error:
        load.initial_weights(new_state(NANO), str(path), NANO)
    for part in (str(path), NANO, *said):
        assert part in str(error.value)


def test_tensors_in_lists_are_found_or_named(path):
    """An average may be kept as a list without names, and a state dict within one."""
    network = nano()
    shadow = {"decay": 0.99, "shadow_params": [value + 1 for value in network.values()]}
    save(path, {"state_dict": network, "ema": shadow})
    plain, file = load.initial_weights(new_state(NANO), str(path), NANO)
    classifier = [f"state_dict.classifier.1.{leaf}" for leaf in ("bias", "weight")]
    assert file.left_out == ["ema", *classifier]
    torch.save([network, {"lr": 1e-3}], path)
    again, file = load.initial_weights(new_state(NANO), str(path), NANO)
    assert file.left_out == ["0.classifier.1.bias", "0.classifier.1.weight"]
    chex.assert_trees_all_equal(again.params, plain.params)
