"""The public names of the package."""

import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import charm_jax
from charm_jax.models.backbones import BACKBONES
from data_pipelines.errors import InputError

NANO = {"name": "efficientnet_v2_nano", "num_classes": 3, "image_size": 32, "bank_size": 8}


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import charm_jax; dir(charm_jax)\n"
        "found = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(found - sys.stdlib_module_names)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "{'charm_jax'}", result.stderr


def test_every_public_name_is_there():
    for name in charm_jax.__all__:
        assert getattr(charm_jax, name).__doc__
        assert name in dir(charm_jax)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        charm_jax.lod  # noqa: B018


def test_the_models_are_the_registry():
    assert charm_jax.list_models() == sorted(BACKBONES)


@pytest.mark.parametrize(
    ("in_chans", "charm"),
    [
        (1, True),
        *(pytest.param(*x, marks=pytest.mark.daily) for x in [(1, False), (3, True), (3, False)]),
    ],
)
def test_weights_come_back_from_a_file(tmp_path, in_chans, charm):
    _, state = charm_jax.create_model(**NANO, charm=charm, in_chans=in_chans, seed=1)
    charm_jax.save_weights(state, tmp_path / "w.safetensors")
    _, other = charm_jax.create_model(**NANO, charm=charm, in_chans=in_chans, seed=2)
    back = charm_jax.load_weights(other, tmp_path / "w.safetensors")
    trunk = [tree.params["trunk"] for tree in (state, other, back)]
    chex.assert_trees_all_equal(trunk[0], trunk[2])
    kernels = [jax.tree.leaves(tree)[0] for tree in trunk]
    assert not np.array_equal(kernels[0], kernels[1])


def test_a_seed_gives_the_same_weights_and_another_others(traces):
    states = [charm_jax.create_model(**NANO, seed=seed)[1].params for seed in (1, 1, 2)]
    assert traces["create"] == len(states)  # each network is new
    chex.assert_trees_all_equal(states[0], states[1])
    head = [state["head"]["logits"]["kernel"] for state in states]
    assert not np.array_equal(head[0], head[2])


def test_a_data_set_is_loaded_with_its_splits(tmp_path):
    data = charm_jax.load_dataset(
        "phantom", tmp_path / "set", image_size=32, train_images=420, test_images=310
    )
    parts = [set(data.split.rows("focal", split).tolist()) for split in ("train", "val", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(data.table.images)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: charm_jax.create_model("efficientnet"), "did you mean 'efficientnet_v2_"),
        (lambda: charm_jax.create_model(**NANO, weights="none.pth"), "none.pth"),
        (lambda: charm_jax.load_dataset("nih", "folder"), "no source 'nih': did you mean 'nih_"),
        (lambda: charm_jax.load_dataset("csv", "folder"), "no source 'csv': did you mean 'csv_"),
        (lambda: charm_jax.load_dataset("csv_folder", "nowhere"), "nowhere"),
        (
            lambda: charm_jax.load_dataset("csv_folder", "x", value_range="12 bits"),
            "value_range is '12 bits': set it to",
        ),
        (
            lambda: charm_jax.load_dataset("csv_folder", "x", uncertain="one"),
            "uncertain is 'one': did you mean 'ones'",
        ),
        (lambda: charm_jax.load_dataset("csv_folder", "x", value_range=0), "value_range is '0'"),
        (lambda: charm_jax.load_dataset("csv_folder", "x", missing="skp"), "missing is 'skp'"),
        (lambda: charm_jax.load_dataset("csv_folder", "x", image_size=8), "image_size is 8"),
        (
            lambda: charm_jax.load_dataset("phantom", "x", train_image=9),
            "did you mean config.data.phantom.train_images",
        ),
        (lambda: charm_jax.create_model("resnet50", in_chans=2), "channels is 2: set it to 3 or 1"),
        (lambda: charm_jax.create_model("resnet50", num_classes=0), "num_classes is 0: give"),
        (lambda: charm_jax.create_model("resnet50", bank_size=0), "bank_size is 0"),
        (lambda: charm_jax.create_model("resnet50", seed=-1), "seed is -1"),
    ],
)
def test_bad_input_is_one_sentence(act, words):
    with pytest.raises(InputError, match=words) as error:
        act()
    assert "\n" not in str(error.value)
