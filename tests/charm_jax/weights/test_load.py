import dataclasses
import hashlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import LARGE, ORIGINALS, spec
from weight_states import NANO, SLOTS, SMALL, new_baseline_state, new_state, random_like

from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import files, imagenet, load, torch_names
from data_pipelines.errors import InputError

# The largest network shares its family with a smaller one.
EACH = [pytest.param(arch, marks=pytest.mark.slow) if arch in LARGE else arch for arch in ORIGINALS]


def new_gray_state(arch, stem):
    """The same with one input channel; ``stem`` is torchvision's name of the first kernel."""
    state = new_state(arch)
    names = torch_names.leaf_names({"params": state.params}, BACKBONES[arch])
    flat = flatten_dict({"params": state.params})
    path = next(path for path, name in names.items() if name == stem)
    flat[path] = flat[path][:, :, :1]
    return state.replace(params=unflatten_dict(flat)["params"])


def random_tensors(named_shapes):
    rng = np.random.default_rng(1)
    return {
        name: np.zeros((), np.int64)
        if name.endswith("num_batches_tracked")
        else rng.standard_normal(shape, np.float32)
        for name, shape in named_shapes.items()
    }


def plain_file(arch):
    """The plain network's state dict; the classifier is of another task."""
    return random_tensors(spec(arch)["network"])


def reference_file(arch):
    """The state dict of the reference's whole network, duplicates and bank included."""
    lists, every = spec(arch), plain_file(arch)
    network = {name: every[name] for name in lists["charm_network"]}
    file = {f"base_model.{name}": value for name, value in network.items()}
    file |= {alias: network[name] for alias, name in lists["charm_alias"].items()}
    file |= random_tensors(lists["charm"])
    bank = np.zeros((SLOTS, lists["feature_dim"]), np.float32)
    bank[:5] = np.random.default_rng(2).standard_normal(bank[:5].shape)
    return file | {"memory_bank.memory": bank, "memory_bank.index": np.int64(5)}


def into(*arguments, **keywords):
    loaded = load.load(*arguments, **keywords)
    return loaded.state, loaded.left_out


def faults(arch, tensors, state=None):
    with pytest.raises(ValueError) as error:
        into(state or new_state(arch), tensors, BACKBONES[arch])
    return str(error.value).split("; ")


@pytest.mark.parametrize("arch", EACH)
def test_the_references_file_there_and_back_is_the_identity(arch):
    file = reference_file(arch)
    loaded, left_out = into(new_state(arch), file, BACKBONES[arch])
    assert left_out == []
    back = load.to_reference(loaded, BACKBONES[arch])
    assert set(back) == set(file)
    for name, value in file.items():
        assert back[name].dtype == value.dtype, name
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_the_references_bank_is_loaded_with_its_cursor():
    file = reference_file("densenet121")
    bank = into(new_state("densenet121"), file, BACKBONES["densenet121"])[0].memory
    np.testing.assert_array_equal(bank.features, file["memory_bank.memory"])
    assert (int(bank.cursor), int(bank.count)) == (5, 5)
    stored = np.asarray(bank.case_ids)
    assert (stored[5:] == -1).all()
    assert (stored[:5] > 10**9).all()
    assert len(set(stored[:5])) == 5
    assert (np.asarray(bank.patient_ids) == -1).all()
    assert (np.asarray(bank.labels) == -1).all()


def test_either_copy_of_a_tensor_is_enough():
    file = reference_file("vgg16_lka")
    once = {n: v for n, v in file.items() if not n.startswith(("backbone.", "final_block."))}
    first, _ = into(new_state("vgg16_lka"), file, BACKBONES["vgg16_lka"])
    second, _ = into(new_state("vgg16_lka"), once, BACKBONES["vgg16_lka"])
    chex.assert_trees_all_equal(first.params, second.params)


def test_copies_that_contradict_each_other_are_refused():
    file = reference_file("vgg16_lka")
    file["backbone.5.dw_conv1.bias"] = file["backbone.5.dw_conv1.bias"] + 1
    assert faults("vgg16_lka", file) == [
        "backbone.5.dw_conv1.bias contradicts base_model.lka3.dw_conv1.bias"
    ]


def test_the_classifier_under_base_model_is_left_out_and_the_heads_own_is_not():
    file = reference_file(SMALL)
    file["base_model.classifier.1.weight"] = np.ones((1000, 1280), np.float32)
    loaded, left_out = into(new_state(SMALL), file, BACKBONES[SMALL])
    assert left_out == ["base_model.classifier.1.weight"]
    np.testing.assert_array_equal(
        loaded.params["head"]["hidden"]["kernel"], file["classifier.1.weight"].T
    )


def test_every_fault_of_a_references_file_is_listed_at_once():
    arch = "densenet121"
    file = reference_file(arch)
    file["classifier.4.bias"] = np.zeros(15, np.float32)
    file["backbone.4.denselayer1.norm1.bias"] = np.zeros(64, np.float32)
    file["memory_bank.memory"] = np.zeros((512, 1024), np.float32)
    file["memory_bank.index"] = np.int64(-1)
    assert sorted(faults(arch, file)) == sorted(
        [
            "classifier.4.bias has shape (15,), not (14,) (the file has 15 findings, this data 14)",
            "backbone.4.denselayer1.norm1.bias contradicts "
            "base_model.features.denseblock1.denselayer1.norm1.bias",
            "memory_bank.memory has shape (512, 1024), not (16, 1024) "
            "(set --config.model.bank_size=512)",
            "memory_bank.index is -1, not a slot of 16",
        ]
    )


def test_a_references_file_without_its_bank_begins_an_empty_one_and_is_no_whole_network():
    file = reference_file("vgg16_lka")
    del file["memory_bank.memory"], file["memory_bank.index"]
    state, _ = into(new_state("vgg16_lka"), file, BACKBONES["vgg16_lka"])
    assert int(state.memory.count) == 0
    with pytest.raises(
        ValueError, match=r"missing memory_bank\.memory; missing memory_bank\.index"
    ):
        into(new_state("vgg16_lka"), file, BACKBONES["vgg16_lka"], with_classifier=True)


@pytest.mark.parametrize("index", [2.5, np.nan, np.inf, 16.0, [1, 2]])
def test_a_cursor_that_is_no_slot_is_refused(index):
    file = reference_file("vgg16_lka") | {"memory_bank.index": np.asarray(index)}
    (fault,) = faults("vgg16_lka", file)
    assert "not a slot of 16" in fault


def test_a_bank_that_is_not_finite_is_refused():
    file = reference_file("vgg16_lka")
    file["memory_bank.memory"][3, 3] = np.inf
    assert faults("vgg16_lka", file) == ["memory_bank.memory holds numbers that are not finite"]


def test_a_references_file_does_not_fit_a_plain_network():
    with pytest.raises(ValueError, match=r"set --config\.model\.charm=True"):
        into(
            new_baseline_state("vgg16_lka"),
            reference_file("vgg16_lka"),
            BACKBONES["vgg16_lka"],
        )


@pytest.mark.parametrize("arch", EACH)
def test_a_plain_file_fills_the_backbone_and_the_momentum_branch(arch):
    backbone, file = BACKBONES[arch], plain_file(arch)
    loaded, left_out = into(new_state(arch), file, backbone)
    assert left_out == sorted(f"{backbone.classifier}.{leaf}" for leaf in ("bias", "weight"))
    named = load.to_reference(loaded, backbone)
    for name in spec(arch)["charm_network"]:
        np.testing.assert_array_equal(named[f"base_model.{name}"], file[name], err_msg=name)
    chex.assert_trees_all_equal(loaded.momentum.params, loaded.params["expansion"])
    chex.assert_trees_all_equal(loaded.momentum.batch_stats, loaded.batch_stats["expansion"])
    ours, copies = (
        jax.tree.leaves(tree) for tree in (loaded.params["expansion"], loaded.momentum.params)
    )
    assert not {x.unsafe_buffer_pointer() for x in ours} & {
        x.unsafe_buffer_pointer() for x in copies
    }
    assert not np.any(loaded.params["head"]["logits"]["kernel"])


def test_a_plain_network_loads_a_plain_file_and_keeps_its_own_classifier():
    arch = "resnet50"
    file = plain_file(arch)
    loaded, left_out = into(new_baseline_state(arch), file, BACKBONES[arch])
    assert left_out == ["fc.bias", "fc.weight"]
    assert not np.any(loaded.params["classifier"]["kernel"])
    assert loaded.momentum is None
    named = load.to_reference(loaded, BACKBONES[arch])
    assert set(named) == set(file)
    np.testing.assert_array_equal(named["layer4.2.conv3.weight"], file["layer4.2.conv3.weight"])
    assert named["fc.weight"].shape == (14, 2048)


@pytest.mark.parametrize("arch", EACH)
def test_a_plain_networks_own_file_there_and_back_is_the_identity(arch):
    backbone, state = BACKBONES[arch], new_baseline_state(arch)
    original = state.replace(
        params=random_like(state.params), batch_stats=random_like(state.batch_stats)
    )
    file = load.to_reference(original, backbone)
    loaded, left_out = into(state, file, backbone, with_classifier=True)
    assert left_out == []
    chex.assert_trees_all_equal(loaded.params, original.params)
    chex.assert_trees_all_equal(loaded.batch_stats, original.batch_stats)


def no_classifier(file):
    return {name: value for name, value in file.items() if not name.startswith("fc.")}


def with_findings(n):
    classifier = {"fc.weight": np.ones((n, 2048), np.float32), "fc.bias": np.ones(n, np.float32)}
    return lambda file: file | classifier


@pytest.mark.parametrize(
    ("new", "change", "said"),
    [
        (new_baseline_state, no_classifier, "no classifier for these findings: train from it"),
        (
            new_baseline_state,
            with_findings(1000),
            "no classifier for these findings: train from it",
        ),
        (new_state, no_classifier, "no classifier for these findings: train from it"),
        (new_state, with_findings(1000), "no classifier for these findings: train from it"),
        (new_state, with_findings(14), "set --config.model.charm=False"),
    ],
)
def test_a_file_without_the_whole_network_does_not_pass_for_it(new, change, said):
    file = change(plain_file("resnet50"))
    with pytest.raises(ValueError, match=re.escape(said)):
        into(new("resnet50"), file, BACKBONES["resnet50"], with_classifier=True)


def test_an_attention_that_would_begin_anew_is_no_whole_network():
    backbone, state = BACKBONES["vgg16_lka"], new_baseline_state("vgg16_lka")
    file = load.to_reference(state, backbone)
    file = {name: value for name, value in file.items() if not name.startswith("lka")}
    with pytest.raises(ValueError, match="missing lka"):
        into(state, file, backbone, with_classifier=True)
    into(state, file, backbone)


def test_one_renamed_key_is_left_out_and_said_to_be_lacking():
    file = plain_file("resnet50")
    file["layer1.0.conv1.weights"] = file.pop("layer1.0.conv1.weight")
    loaded = load.load(new_state("resnet50"), file, BACKBONES["resnet50"])
    assert loaded.left_out == ["fc.bias", "fc.weight", "layer1.0.conv1.weights"]
    assert loaded.notes == ["lacks layer1.0.conv1.weight, which stay as they were initialised"]


def test_the_file_of_another_network_is_refused():
    (fault,) = faults("densenet121", plain_file("resnet50"))
    assert fault.startswith("only 5 of the 604 tensors of the network are in it (it has bn1.bias, ")
    assert fault.endswith(" more)")
    # Larger and smaller network share names; what is misshapen or left over shows.
    listed = faults(SMALL, plain_file("efficientnet_v2_m"))
    assert "unexpected features.1.2.block.0.0.weight" in listed
    assert len(listed) == 5
    assert len("; ".join(listed)) < 600


def test_a_deeper_network_of_the_family_does_not_pass_for_it():
    file = plain_file("resnet50")
    deeper = {
        name.replace("layer3.5.", f"layer3.{block}."): value
        for name, value in file.items()
        for block in range(6, 23)
    }
    listed = faults("resnet50", deeper | file)
    assert listed[0] == "unexpected layer3.6.conv1.weight"
    assert listed[-1].endswith(" more")


def same_backbone(arch, file):
    """Asserts that a file with other names loads as the plain one does."""
    expected, _ = into(new_state(arch), plain_file(arch), BACKBONES[arch])
    loaded, left_out = into(new_state(arch), file, BACKBONES[arch])
    for name in ("params", "batch_stats"):
        chex.assert_trees_all_equal(getattr(loaded, name), getattr(expected, name))
    return left_out


TIMM_LAYERS = {
    "narrow": ["conv", "bn1"],
    "fused": ["conv_exp", "bn1", "conv_pwl", "bn2"],
    "mbconv": [
        *("conv_pw", "bn1", "conv_dw", "bn2"),
        *("se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"),
    ],
}
TIMM_BLOCKS = {
    "efficientnet_v2_s": [2, 4, 4, 6, 9, 15],
    "efficientnet_v2_m": [3, 5, 5, 7, 14, 18, 5],
}


def timm_layers(arch):
    """timm's layers in the order of its state dict."""
    yield from ("conv_stem", "bn1")
    for i, blocks in enumerate(TIMM_BLOCKS[arch]):
        kind = "narrow" if i == 0 else "fused" if i < 3 else "mbconv"
        for j in range(blocks):
            yield from (f"blocks.{i}.{j}.{layer}" for layer in TIMM_LAYERS[kind])
    yield from ("conv_head", "bn2", "classifier")


@pytest.mark.parametrize("arch", [SMALL, pytest.param(*LARGE, marks=pytest.mark.slow)])
def test_timms_names_of_efficientnet_are_known(arch):
    ours = list(dict.fromkeys(name.rpartition(".")[0] for name in spec(arch)["network"]))
    timm = dict(zip(ours, timm_layers(arch), strict=True))
    file = {}
    for name, value in plain_file(arch).items():
        layer, _, leaf = name.rpartition(".")
        file[f"{timm[layer]}.{leaf}"] = value
    assert same_backbone(arch, file) == ["classifier.bias", "classifier.weight"]


def test_the_first_names_of_torchvisions_densenet_are_known():
    arch = "densenet121"
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
        for name, value in plain_file(arch).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    same_backbone(arch, old)


def vgg16_bn_layers():
    """Numbers of the convolutions and batch norms in torchvision's row of layers."""
    layer = 0
    for convs in (2, 2, 3, 3, 3):
        for _ in range(convs):
            yield from (layer, layer + 1)
            layer += 3
        layer += 1


def vgg16_bn_file():
    network = plain_file("vgg16_lka")
    blocks = {n: v for n, v in network.items() if n.startswith("block")}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in blocks))
    layers.sort(key=lambda layer: [int(part) for part in layer.removeprefix("block").split(".")])
    numbers = dict(zip(layers, vgg16_bn_layers(), strict=True))
    file = {}
    for name, value in blocks.items():
        layer, _, leaf = name.rpartition(".")
        file[f"features.{numbers[layer]}.{leaf}"] = value
    assert {"features.0.weight", "features.41.running_var"} <= file.keys()
    return file | {"classifier.6.weight": np.zeros((1000, 4096), np.float32)}


def test_vgg16_bn_fills_all_but_the_attention_which_stays_as_it_is():
    arch, file = "vgg16_lka", vgg16_bn_file()
    state = new_state(arch)
    state.params["trunk"]["lka3"]["dw_conv1"]["kernel"] += 7
    state.params["expansion"]["lka5"]["pw_conv"]["bias"] += 8
    loaded, left_out = into(state, file, BACKBONES[arch])
    assert left_out == ["classifier.6.weight"]
    assert (np.asarray(loaded.params["trunk"]["lka3"]["dw_conv1"]["kernel"]) == 7).all()
    assert (np.asarray(loaded.momentum.params["lka5"]["pw_conv"]["bias"]) == 8).all()
    np.testing.assert_array_equal(
        loaded.params["expansion"]["block5"]["0"]["bias"], file["features.34.bias"]
    )


def test_a_file_with_some_of_the_attention_lacks_the_rest():
    file = {n: v for n, v in plain_file("vgg16_lka").items() if not n.startswith("lka4.")}
    loaded = load.load(new_state("vgg16_lka"), file, BACKBONES["vgg16_lka"])
    (note,) = loaded.notes
    assert note.startswith("lacks lka4.dw_conv1.bias, ")
    assert note.endswith(" and 1 more, which stay as they were initialised")


@pytest.mark.parametrize(
    ("arch", "stem"),
    [
        ("resnet50", "conv1.weight"),
        ("densenet121", "features.conv0.weight"),
        (SMALL, "features.0.0.weight"),
    ],
)
def test_a_grayscale_stem_loads_into_a_stem_of_one_channel_only(arch, stem):
    file = plain_file(arch)
    file[stem] = file[stem][:, :1]
    assert faults(arch, file)[0].endswith(
        "(its images have 1 channel: set --config.model.channels=1)"
    )
    loaded, _ = into(new_gray_state(arch, stem), file, BACKBONES[arch])
    named = load.to_reference(loaded, BACKBONES[arch])
    np.testing.assert_array_equal(named[f"base_model.{stem}"], file[stem])


def test_a_colour_stem_does_not_load_into_a_stem_of_one_channel():
    fault = faults("resnet50", plain_file("resnet50"), new_gray_state("resnet50", "conv1.weight"))
    assert fault == [
        "conv1.weight has shape (64, 3, 7, 7), not (64, 1, 7, 7) "
        "(its images have 3 channels: set --config.model.channels=3)"
    ]


@pytest.mark.parametrize("arch", ORIGINALS)
def test_the_references_second_names_are_the_listed_ones(arch):
    for alias, name in spec(arch)["charm_alias"].items():
        assert BACKBONES[arch].torchvision_name(alias) == name
        assert BACKBONES[arch].reference_name(name) == alias


def test_the_classifier_has_no_second_name():
    with pytest.raises(ValueError, match="neither"):
        BACKBONES["resnet50"].reference_name("fc.weight")


@pytest.fixture
def filled():
    state = new_state(NANO)
    return state.replace(params=random_like(state.params))


@pytest.fixture
def file(tmp_path, filled):
    path = tmp_path / "weights.safetensors"
    files.write(path, load.to_reference(filled, BACKBONES[NANO]))
    return path


def refusal(state, path):
    with pytest.raises(InputError) as error:
        load.initial_weights(state, str(path), NANO)
    return str(error.value)


def changed(tmp_path, file, changes):
    tensors = files.read(file)
    path = tmp_path / "changed.safetensors"
    files.write(path, tensors | changes)
    return path


def test_random_leaves_the_state_as_it_is():
    state = new_state(NANO)
    same, file = load.initial_weights(state, "random", NANO)
    assert same is state
    assert file is None
    assert load.describe(file) == "Weights: random."


def test_a_file_of_a_whole_network_fills_the_state(file, filled):
    contents = load.read(str(file), NANO)
    loaded, record = load.fill(new_state(NANO), contents, NANO, with_classifier=True)
    chex.assert_trees_all_equal(loaded.params, filled.params)
    assert dataclasses.asdict(record) == {
        "init_from": str(file),
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "tensors": len(files.read(file)),
        "left_out": [],
        "notes": [f"{file} does not tell the findings of its outputs: taken in this order."],
    }
    assert str(file) in load.describe(record)
    assert "left out" not in load.describe(record)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}


def test_what_is_left_out_is_said(tmp_path, filled):
    tensors = torch_names.to_torch(
        {
            collection: {part: tree[part] for part in ("trunk", "expansion")}
            for collection, tree in (("params", filled.params), ("batch_stats", filled.batch_stats))
        },
        BACKBONES[NANO],
    )
    others = {f"classifier.{i}.weight": np.zeros((2, 2), np.float32) for i in range(6)}
    path = tmp_path / "plain.safetensors"
    files.write(path, tensors | others)
    _, record = load.initial_weights(new_state(NANO), str(path), NANO)
    assert f"{len(tensors)} tensors" in load.describe(record)
    assert "classifier.4.weight and 1 more" in load.describe(record)


def test_imagenet_is_fetched(monkeypatch, file, filled):
    asked = []
    monkeypatch.setattr(imagenet, "fetch", lambda backbone: asked.append(backbone) or file)
    loaded, _ = load.initial_weights(new_state(NANO), "imagenet", NANO)
    assert asked == [NANO]
    chex.assert_trees_all_equal(loaded.params, filled.params)


def test_a_file_that_does_not_fit_is_named_with_its_faults(tmp_path, file):
    path = changed(tmp_path, file, {"classifier.1.bias": np.zeros(9, np.float32)})
    message = refusal(new_state(NANO), path)
    for part in (str(path), NANO, "classifier.1.bias has shape (9,), not (512,)"):
        assert part in message
    assert message.endswith("; give a file of this network, or choose the file's.")


def test_a_fault_with_its_own_remedy_gets_no_other(file):
    message = refusal(new_baseline_state(NANO), file)
    assert message.endswith("set --config.model.charm=True.")


def test_a_number_that_is_not_finite_is_refused(tmp_path, file):
    path = changed(tmp_path, file, {"classifier.4.bias": np.full(14, np.nan, np.float32)})
    assert "classifier.4.bias holds numbers that are not finite" in refusal(new_state(NANO), path)


def test_a_file_of_other_findings_says_how_many(tmp_path, file):
    path = changed(tmp_path, file, {"classifier.4.bias": np.zeros(15, np.float32)})
    said = "classifier.4.bias has shape (15,), not (14,) (the file has 15 findings, this data 14)"
    assert said in refusal(new_state(NANO), path)


def test_a_missing_file_is_named(tmp_path):
    assert "absent.safetensors" in refusal(new_state(NANO), tmp_path / "absent.safetensors")
