"""One network under the names of many projects."""

import re

import chex
import numpy as np
import pytest
from golden import spec
from weight_states import NANO, new_baseline_state, new_state, random_like

from charm_jax.models.backbones import BACKBONES
from charm_jax.weights import files, layouts, load
from charm_jax.weights.card import Card
from data_pipelines.tables.findings import NIH_FINDINGS

DENSE, RES = "densenet121", "resnet50"


def network(arch):
    """A state dict with torchvision's names, without classifier."""
    rng = np.random.default_rng(1)
    names = spec(arch)["network"] if arch != NANO else None
    if names is None:
        state = new_baseline_state(NANO)
        state = state.replace(params=random_like(state.params))
        tensors = load.to_reference(state, BACKBONES[NANO])
    else:
        tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in names.items()}
    classifier = BACKBONES[arch].classifier
    return {name: value for name, value in tensors.items() if not name.startswith(classifier)}


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def scalar(value=0):
    return np.array(value)


def linear(prefix, rows, dim):
    rng = np.random.default_rng(2)
    return {
        f"{prefix}.weight": rng.standard_normal((rows, dim), np.float32),
        f"{prefix}.bias": rng.standard_normal(rows, np.float32),
    }


def chexnet(tensors):
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
        for name, value in tensors.items()
    }
    head = linear("module.densenet121.classifier.0", 14, 1024)
    optimizer = {f"optimizer.state.{i}.exp_avg": scalar() for i in range(300)}
    return prefixed("state_dict.", prefixed("module.densenet121.", old) | head) | optimizer


def monai(tensors):
    return {
        re.sub(r"(denselayer\d+)\.", r"\1.layers.", name): value for name, value in tensors.items()
    } | linear("class_layers.out", 14, 1024)


def fastai_resnet(tensors):
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    body = {}
    for name, value in tensors.items():
        child, rest = name.split(".", 1)
        body[f"model.0.{children[child]}.{rest}"] = value
    return body | linear("model.1.8", 14, 512) | {"opt.state.mom": scalar()}


def fastai_dense(tensors):
    return {name.replace("features.", "0.0."): value for name, value in tensors.items()} | linear(
        "1.8", 14, 512
    )


def moco(tensors):
    key = {name: value + 1 for name, value in tensors.items()}
    queue = {"state_dict.module.queue": np.zeros((128, 8), np.float32)}
    return (
        prefixed("state_dict.module.encoder_q.", tensors | linear("fc.0", 2048, 2048))
        | prefixed("state_dict.module.encoder_k.", key)
        | queue
    )


def lightning(tensors):
    return prefixed("state_dict.model.", tensors) | {
        "state_dict.pos_weight": np.ones(14, np.float32),
        "state_dict.train_auroc.preds": scalar(),
    }


LAYOUTS = {
    "compiled": (NANO, lambda t: prefixed("_orig_mod.", t), []),
    "compiled layers": (
        RES,
        lambda t: {re.sub(r"^(layer\d)", r"\1._orig_mod", n): v for n, v in t.items()},
        [],
    ),
    # PyTorch also wraps modules for sharding and for activation checkpoints.
    "sharded": (
        DENSE,
        lambda t: {
            n.replace("block1.", "block1._fsdp_wrapped_module._checkpoint_wrapped_module."): v
            for n, v in prefixed("_fsdp_wrapped_module.", t).items()
        },
        [],
    ),
    "parallel": (NANO, lambda t: prefixed("module.", t), []),
    "compiled in parallel": (NANO, lambda t: prefixed("_orig_mod.module.", t), []),
    "averaged": (
        NANO,
        lambda t: prefixed("module.", t) | {"n_averaged": scalar(3)},
        ["n_averaged"],
    ),
    "lightning": (NANO, lightning, ["state_dict.pos_weight", "state_dict.train_auroc.preds"]),
    "backbone": (
        RES,
        lambda t: prefixed("backbone.", t) | linear("head", 14, 2048),
        ["head.bias", "head.weight"],
    ),
    "features alone": (
        DENSE,
        lambda t: {n.removeprefix("features."): v for n, v in t.items()},
        [],
    ),
    "chexnet": (
        DENSE,
        chexnet,
        ["optimizer"]
        + [f"state_dict.module.densenet121.classifier.0.{n}" for n in ("bias", "weight")],
    ),
    "monai": (DENSE, monai, ["class_layers.out.bias", "class_layers.out.weight"]),
    "fastai resnet": (RES, fastai_resnet, ["model.1.8.bias", "model.1.8.weight", "opt"]),
    "fastai densenet": (DENSE, fastai_dense, ["1"]),
    "moco": (
        RES,
        moco,
        [
            "state_dict.module.encoder_q.fc.0.bias",
            "state_dict.module.encoder_q.fc.0.weight",
            "state_dict.module.queue",
        ],
    ),
    # One that no list names: a student within a trainer within a bundle.
    "distilled": (NANO, lambda t: prefixed("bundle.trainer.student.net.", t), []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_network_is_found_under_any_prefix_and_strangers_are_named(name):
    arch, wrap, left_out = LAYOUTS[name]
    tensors = network(arch)
    plain = load.load(new_state(arch), tensors, BACKBONES[arch])
    wrapped = load.load(new_state(arch), wrap(tensors), BACKBONES[arch])
    chex.assert_trees_all_equal(wrapped.state.params, plain.state.params)
    chex.assert_trees_all_equal(wrapped.state.batch_stats, plain.state.batch_stats)
    chex.assert_trees_all_equal(wrapped.state.momentum, plain.state.momentum)
    assert wrapped.left_out == left_out
    assert plain.left_out == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("state_dict.", "state_dict_ema."),
        ("model.", "model_ema.module."),
        ("", "ema."),
        ("student.", "teacher."),  # distillation
        ("online_encoder.net.", "target_encoder.net."),  # BYOL
        ("net.", "EMA.net."),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_copy_beside_the_network_is_said_and_a_key_takes_it(first, second, swapped):
    tensors = network(NANO)
    copy = {name: value + 1 for name, value in tensors.items()}
    parts = [prefixed(first, tensors), prefixed(second, copy)]
    file = {name: value for part in parts[:: -1 if swapped else 1] for name, value in part.items()}
    loaded = load.load(new_state(NANO), file, BACKBONES[NANO])
    plain = load.load(new_state(NANO), tensors, BACKBONES[NANO])
    other = load.load(new_state(NANO), copy, BACKBONES[NANO])
    chex.assert_trees_all_equal(loaded.state.params, plain.state.params)
    key = second.split(".")[0]
    (note,) = loaded.notes
    assert (first.rstrip(".") or "the outermost") + " is taken" in note
    assert f"--config.model.init_key={key}" in note
    assert loaded.left_out == []
    chosen = load.load(new_state(NANO), file, BACKBONES[NANO], key=key)
    chex.assert_trees_all_equal(chosen.state.params, other.state.params)
    with pytest.raises(ValueError, match="under 'emma': choose one of "):
        load.load(new_state(NANO), file, BACKBONES[NANO], key="emma")


def test_a_name_that_only_holds_the_letters_of_a_copy_is_none():
    tensors = network(NANO)
    other = {name: value + 1 for name, value in tensors.items()}
    file = prefixed("semantic.", tensors) | prefixed("zoom.", other)
    loaded = load.load(new_state(NANO), file, BACKBONES[NANO])
    (note,) = loaded.notes
    assert "semantic is taken, not zoom" in note


def test_a_plain_classifier_is_found_by_its_shape_and_taken_where_its_findings_match():
    names = tuple("abcdefghijklmn")
    file = network(DENSE) | linear("class_layers.out", 14, 1024)
    state = new_baseline_state(DENSE)
    loaded = load.load(
        state, file, BACKBONES[DENSE], findings=names[::-1], told=Card(findings=names)
    )
    bias = np.asarray(loaded.state.params["classifier"]["bias"])
    np.testing.assert_array_equal(bias, file["class_layers.out.bias"][::-1])
    assert loaded.left_out == []


def test_half_of_the_network_is_enough_and_less_is_refused():
    tensors = network(NANO)
    names = [name for name in tensors if not name.endswith("num_batches_tracked")]
    half = {name: tensors[name] for name in names[: len(names) // 2 + 1]}
    loaded = load.load(new_state(NANO), half, BACKBONES[NANO])
    (note,) = loaded.notes
    assert note.startswith("lacks features.")
    less = {name: tensors[name] for name in names[: len(names) // 2 - 1]}
    with pytest.raises(ValueError, match=r"only 5\d of the 111 tensors of the network are in it"):
        load.load(new_state(NANO), less, BACKBONES[NANO])


def grey_dense(inputs, classifier="classifier", rows=18):
    """A DenseNet with a grey stem whose running statistics are those of inputs around a value."""
    file = network(DENSE) | linear(classifier, rows, 1024)
    file["features.conv0.weight"] = file["features.conv0.weight"][:, :1]
    file["features.norm0.running_mean"] = inputs * file["features.conv0.weight"].sum((1, 2, 3))
    file["features.norm0.running_var"] = np.ones(64, np.float32)
    return file


WIDE = lambda: grey_dense(500.0)  # noqa: E731 - of inputs from -1024 to 1024


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (WIDE, "xrv"),
        (lambda: prefixed("model.", WIDE()), "xrv"),
        # Without its statistics nothing is sure; with others it is not TorchXRayVision's.
        (lambda: {n: v for n, v in WIDE().items() if "norm0.running" not in n}, None),
        (lambda: grey_dense(0.5), None),
        (lambda: grey_dense(2.4), None),
        (lambda: grey_dense(500.0, "class_layers.out"), None),
        (lambda: grey_dense(500.0, rows=14), None),
        (lambda: grey_dense(0.5) | {"op_threshs": np.ones(18, np.float32)}, "xrv"),
        (
            lambda: (
                prefixed("model.", network(RES) | linear("fc", 18, 2048))
                | {"op_threshs": np.ones(18, np.float32)}
            ),
            "xrv",
        ),
        (lambda: network(RES) | linear("fc", 1000, 2048), "imagenet"),
        (lambda: chexnet(network(DENSE)), "imagenet"),
        (lambda: {"module.memory_bank.index": scalar()}, "imagenet"),
        (lambda: monai(network(DENSE)), None),
    ],
)
def test_the_input_range_of_known_projects_is_known(tensors, expected):
    card, _ = layouts.recognise(tensors())
    assert card.input_range == expected
    if expected == "xrv":
        assert len(card.findings) == 18


def test_the_input_range_of_imagenet_s_networks_is_the_backbones():
    tensors = network(RES) | linear("fc", 1000, 2048)
    assert layouts.recognise(tensors, "-0.9921875,1")[0].input_range == "-0.9921875,1"
    assert layouts.recognise(chexnet(network(DENSE)), "-1,1")[0].input_range == "imagenet"


@pytest.mark.parametrize(
    ("tensors", "backbone", "words"),
    [
        (WIDE, DENSE, "has 18 outputs and wide grey inputs as TorchXRayVision's networks have"),
        (
            lambda: network(RES) | linear("fc", 1000, 2048),
            RES,
            "has 1000 outputs as ImageNet's networks have and is taken to have their input_range",
        ),
        (
            lambda: chexnet(network(DENSE)),
            DENSE,
            "has the names and 14 outputs that CheXNet's networks have and is taken to have their "
            "findings and input_range imagenet",
        ),
    ],
)
def test_what_a_layout_only_suggests_is_said_unless_the_file_tells(
    tmp_path, tensors, backbone, words
):
    path = tmp_path / "w.safetensors"
    files.write(path, tensors())
    (said,) = load.read(str(path), backbone).assumed
    assert said.startswith(words)
    told = Card(charm_jax="0.1.0", input_range="unit", findings=("a", "b"))
    files.write(path, tensors(), told)
    contents = load.read(str(path), backbone)
    assert contents.assumed == []
    assert contents.told == told


def test_outputs_of_chexnet_are_not_in_the_order_of_the_table():
    file = chexnet(network(DENSE))
    card, _ = layouts.recognise(file)
    state = new_baseline_state(DENSE)
    loaded = load.load(state, file, BACKBONES[DENSE], findings=NIH_FINDINGS, told=card)
    bias = dict(
        zip(NIH_FINDINGS, np.asarray(loaded.state.params["classifier"]["bias"]), strict=True)
    )
    theirs = file["state_dict.module.densenet121.classifier.0.bias"]
    assert (bias["Cardiomegaly"], bias["Effusion"], bias["Hernia"]) == tuple(theirs[[1, 2, 13]])


def test_torchxrayvisions_resnet_loads_around_its_thresholds():
    file = prefixed("model.", network(RES)) | {"op_threshs": np.ones(18, np.float32)}
    loaded = load.load(new_state(RES), file, BACKBONES[RES])
    assert loaded.left_out == ["op_threshs"]
