"""PyTorch is the judge: what its networks say, ours say with the same weights."""

import dataclasses
import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import RETRIEVAL_K, charm, nchw
from torch_networks import (
    Charm,
    DenseNet,
    EfficientNetLite,
    EfficientNetV2,
    ResNet,
    VggLka,
    load,
    randomised,
    save,
    torch,
)

from charm_jax.models import memory_bank, state
from charm_jax.models.backbones import BACKBONES, densenet, efficientnet_lite, resnet, vgg_lka
from charm_jax.models.backbones.backbone import without_stochastic_depth
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Cases
from charm_jax.weights import files
from charm_jax.weights import load as pretrained

pytestmark = pytest.mark.torch

SLOTS, FINDINGS = 16, 14
NANO = "efficientnet_v2_nano"
FULL = ("efficientnet_v2_s", "efficientnet_lite0", "resnet50", "densenet121", "vgg16_lka")
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
SHORT_LITE = (
    efficientnet_lite.Stage(1, 1, 3, 16),
    efficientnet_lite.Stage(2, 2, 5, 24),
    efficientnet_lite.Stage(1, 2, 3, 40),
)
NARROW_VGG = ((8, 1), (16, 2), (24, 3), (32, 2), (512, 3))


def reduced(member, trunk, **changes):
    """A member of a family with fewer layers."""
    trunk = without_stochastic_depth(trunk)
    return dataclasses.replace(BACKBONES[member], trunk=trunk, **changes)


OURS = BACKBONES | {
    "lite": dataclasses.replace(
        BACKBONES["efficientnet_lite0"],
        trunk=functools.partial(efficientnet_lite.Trunk, SHORT_LITE),
    ),
    "resnet": reduced(
        "resnet50",
        functools.partial(resnet.Trunk, (1, 2, 1)),
        expansion=functools.partial(resnet.Layer, 512, 1, 2),
    ),
    "densenet": reduced(
        "densenet121", functools.partial(densenet.Trunk, (2, 1, 3, 2), 16), feature_dim=68
    ),
    "vgg_lka": reduced("vgg16_lka", functools.partial(vgg_lka.Trunk, NARROW_VGG[:-1])),
}
THEIRS = {
    NANO: lambda: EfficientNetV2(*BACKBONES[NANO].trunk.args, 256),
    "lite": lambda: EfficientNetLite(SHORT_LITE),
    "resnet": lambda: ResNet((1, 2, 1, 1)),
    "densenet": lambda: DenseNet((2, 1, 3, 2), 16),
    "vgg_lka": lambda: VggLka(NARROW_VGG),
    "efficientnet_v2_s": lambda: EfficientNetV2(*BACKBONES["efficientnet_v2_s"].trunk.args, 1280),
    "efficientnet_lite0": lambda: EfficientNetLite(BACKBONES["efficientnet_lite0"].trunk.args[0]),
    "resnet50": lambda: ResNet((3, 4, 6, 3)),
    "densenet121": lambda: DenseNet((6, 12, 24, 16), 32),
    "vgg16_lka": lambda: VggLka(VGG16),
}
FAMILIES = [name for name in THEIRS if name not in FULL]
for_each_family = pytest.mark.parametrize("name", FAMILIES)
for_each_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in FULL)) for name in THEIRS]
)
for_each_suffix = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def new_charm(name):
    return Charm(THEIRS[name](), SLOTS, RETRIEVAL_K)


@functools.cache
def trained(make, name):
    """A network of torch in eval mode; no test changes it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return randomised(make(name))


def new_plain(name):
    return THEIRS[name]()


@functools.cache
def images():
    return np.random.default_rng(2).standard_normal((3, 64, 96, 3), np.float32)


def in_torch(module):
    with torch.inference_mode():
        return module(torch.from_numpy(nchw(images()))).numpy()


@functools.cache
def plain_network(name):
    ours = OURS[name]
    return Baseline(ours.trunk(drop_rate=0.0), ours.expansion(), ours.final, FINDINGS)


@functools.cache
def charm_network(name):
    return charm(OURS[name])


def random_leaf(path, like):
    """Values that make neither zeros nor giants of the activations."""
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    leaf = path[-1].key
    if leaf in ("scale", "var"):
        return rng.uniform(0.5, 1.5, like.shape).astype(np.float32)
    spread = math.sqrt(2 / math.prod(like.shape[:-1])) if leaf == "kernel" else 0.1
    return rng.normal(0, spread, like.shape).astype(np.float32)


def random_state(network, memory):
    """A state whose every tensor differs from every one of torch's."""
    create = functools.partial(state.create, network)
    like = jax.eval_shape(create, jax.random.key(0), jnp.zeros((1, 64, 96, 3)), memory)
    fill = functools.partial(jax.tree_util.tree_map_with_path, random_leaf)
    branch = like.momentum
    if branch is not None:
        branch = branch.replace(params=fill(branch.params), batch_stats=fill(branch.batch_stats))
    return like.replace(
        step=jnp.zeros((), jnp.int32),
        params=fill(like.params),
        batch_stats=fill(like.batch_stats),
        momentum=branch,
        memory=memory,
        rng=jax.random.key(0),
    )


def new_bank(name):
    return memory_bank.empty(SLOTS, OURS[name].feature_dim, FINDINGS)


def filled_bank(name):
    """A bank that ran full and on: the cursor is in its midst."""
    features = np.random.default_rng(3).normal(0.5, 0.5, (SLOTS, OURS[name].feature_dim))
    return new_bank(name).replace(
        features=jnp.asarray(features, jnp.float32),
        case_ids=jnp.arange(SLOTS, dtype=jnp.int32),
        cursor=jnp.int32(5),
        count=jnp.int32(SLOTS),
    )


@functools.partial(jax.jit, static_argnums=0)
def _forward(network, params, batch_stats, momentum, memory, x):
    nobody = jnp.full(len(x), -1, jnp.int32)
    cases = Cases(jnp.full((len(x), FINDINGS), -1, jnp.int8), nobody, nobody)
    variables = {"params": params, "batch_stats": batch_stats}
    out = network.apply(variables, x, cases, momentum, memory, train=False)
    return out.main, out.logits


def in_jax(network, s):
    """Features and logits of strangers' images, in torch's layout."""
    main, logits = _forward(
        network, s.params, s.batch_stats, s.momentum, s.memory, jnp.asarray(images())
    )
    return nchw(main), np.asarray(logits)


def close(actual, expected):
    tolerance = 1e-4 * np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@for_each_suffix
@for_each_network
def test_a_plain_network_of_torch_says_the_same_here(tmp_path, name, suffix):
    theirs, network = trained(new_plain, name), plain_network(name)
    save(tmp_path / f"weights{suffix}", theirs.state_dict())
    file = files.read(tmp_path / f"weights{suffix}")
    loaded = pretrained.load(random_state(network, None), file, OURS[name], with_classifier=True)
    assert loaded.left_out == []
    features, logits = in_jax(network, loaded.state)
    close(features, in_torch(torch.nn.Sequential(*theirs.halves())))
    close(logits, in_torch(theirs))


@for_each_suffix
@for_each_family
def test_a_plain_network_of_ours_says_the_same_in_torch(tmp_path, name, suffix):
    network, theirs = plain_network(name), new_plain(name).eval()
    ours = random_state(network, None)
    path = tmp_path / f"weights{suffix}"
    files.write(path, pretrained.to_reference(ours, OURS[name]))
    theirs.load_state_dict(load(path), strict=True)
    close(in_jax(network, ours)[1], in_torch(theirs))


@for_each_suffix
@for_each_network
def test_the_references_network_says_the_same_here(tmp_path, name, suffix):
    theirs = trained(new_charm, name)
    path = tmp_path / f"weights{suffix}"
    save(path, theirs.state_dict())
    check_the_references_network(name, path, theirs)


def check_the_references_network(name, path, theirs):
    network = charm_network(name)
    new = random_state(network, new_bank(name))
    loaded = pretrained.load(new, files.read(path), OURS[name])
    # Fastai saves its optimizer, too.
    assert [other for other in loaded.left_out if other.split(".")[0] != "opt"] == []
    memory = loaded.state.memory
    np.testing.assert_array_equal(memory.features, theirs.memory_bank.memory.numpy())
    assert int(memory.cursor) == int(theirs.memory_bank.index) == 12
    close(in_jax(network, loaded.state)[1], in_torch(theirs))


@for_each_suffix
@for_each_family
def test_a_run_of_ours_says_the_same_in_the_reference(tmp_path, name, suffix):
    network, theirs = charm_network(name), new_charm(name).eval()
    ours = random_state(network, filled_bank(name))
    path = tmp_path / f"weights{suffix}"
    files.write(path, pretrained.to_reference(ours, OURS[name]))
    theirs.load_state_dict(load(path), strict=True)
    assert int(theirs.memory_bank.index) == 5
    close(in_jax(network, ours)[1], in_torch(theirs))


def fastais(network):
    """A learner's file: the optimizer's state lies beside the network's."""
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.classifier.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {"model": network.state_dict(), "opt": optimizer.state_dict()}


def wrapped(network):
    return {f"model.{name}": value for name, value in network.state_dict().items()}


def lightnings(network):
    return {"epoch": 3, "state_dict": wrapped(network), "lr_schedulers": [{"last_lr": [1e-4]}]}


@pytest.mark.parametrize("packed", [fastais, wrapped, lightnings])
def test_the_references_network_is_found_as_trainers_save_it(tmp_path, packed):
    theirs = randomised(new_charm(NANO))
    torch.save(packed(theirs), tmp_path / "weights.pth")
    check_the_references_network(NANO, tmp_path / "weights.pth", theirs)
