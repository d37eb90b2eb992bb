"""The stored numbers of the PyTorch original, and how exactly they must be met."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from charm_jax.models import memory_bank, selection
from charm_jax.models.attention import MultiScaleAttention
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.charm import Cases, Charm, Head
from charm_jax.models.layers import conv_cpu
from charm_jax.models.momentum import Momentum
from charm_jax.weights import torch_names

PUBLISHED = "efficientnet_v2_s"
OTHERS = ("resnet50", "densenet121", "vgg16_lka")
LARGE = ("efficientnet_v2_m",)  # too slow for the default run

FOLDER = Path(__file__).resolve().parent.parent / "golden"
ORIGINALS = sorted(name for name in BACKBONES if (FOLDER / f"{name}.json").exists())
RETRIEVAL_K = 3
FILLED = 384  # rows of the stored bank that hold a feature
_FIRST_STORED_CASE = 1000  # ids of those rows; the batches' own are 0, 1, …


def for_networks(*fast):
    """Runs a test for every network of the golden files; those not named here count as slow."""
    params = [
        arch if arch in fast else pytest.param(arch, marks=pytest.mark.slow)
        for arch in (PUBLISHED, *OTHERS, *LARGE)
    ]
    return pytest.mark.parametrize("arch", params, scope="module")


def for_steps(*fast):
    """Run a test for every network in float32 and float64.

    CI alone runs the other networks than the published one; pairs not named here count as slow.
    """
    pairs = [(a, p) for a in (PUBLISHED, *OTHERS, *LARGE) for p in ("float32", "float64")]
    params = [
        pytest.param(*pair, marks=pytest.mark.daily)
        if pair in fast and pair[0] in OTHERS
        else pair
        if pair in fast
        else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in pairs
    ]
    return pytest.mark.parametrize(("arch", "precision"), params, scope="module")


def _load_fill():
    spec = importlib.util.spec_from_file_location("fill", FOLDER / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = _load_fill()


@functools.cache
def spec(arch):
    return json.loads((FOLDER / f"{arch}.json").read_text())


@functools.cache
def numbers(kind, arch):
    return dict(np.load(FOLDER / f"{kind}_{arch}.npz"))


# In float64, results differ between processors and from torch by 1e-13 of the rms at most.
EXACT = 1e-10
# The noise of the reference is known to two digits, so that 1.0 stands for up to 1.05.
_TWO_DIGITS = 1.06
# In float32, over instruction sets and numbers of threads, the largest error of a value whose
# reference has noise below 2e-5 is 3e-5 of the rms; of a gradient it is 4e-5 of its terms.
_OF_RMS, _OF_TERMS = 2e-4, 3e-4


def rms(values):
    return np.sqrt(np.mean(np.square(values, dtype=np.float64)))


def noise(arch, key):
    """Largest error of what is stored, as a share of its rms; 0 for a pass in float64."""
    return spec(arch)["float32_vs_float64"].get(key, 0.0)


def close(actual, stored, arch, key, terms=None):
    """Assert equality to rounding, by the type of ``actual``: that of the pass that it is of.

    Float32 has the tolerance max(2e-4, 10 × noise of the reference) × rms. For a sum that
    cancels that depends on the processor; give the rms of its ``terms`` (their root sum of squares)
    and that counts instead. In float64, what was computed in float64 is equal, and what was stored
    of a pass in float32 differs by the noise of the reference, no more.
    """
    actual, stored = np.asarray(actual), np.asarray(stored)
    if actual.dtype == np.float64:
        tolerance = (EXACT + _TWO_DIGITS * noise(arch, key)) * rms(stored)
    elif terms is None:
        tolerance = max(_OF_RMS, 10 * noise(arch, key)) * rms(stored)
    else:
        tolerance = max(_OF_TERMS * terms, 10 * noise(arch, key) * rms(stored))
    np.testing.assert_allclose(actual, stored, rtol=0, atol=tolerance, err_msg=key)


def in_precision(tree, dtype):
    """Return a tree with its float32 leaves in another type."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, tree
    )


def with_terms(carriers):
    """Give a gradient to ``carriers``: sums of the squared terms of parameters' gradients.

    Args:
        carriers: path of a layer to its parameters' names to zeros shaped as these. It is used
            within a function whose gradient is taken by the carriers, too.
    """

    def interceptor(layer, args, kwargs, context):
        y = layer(*args, **kwargs)
        path = context.module.path
        if context.method_name != "__call__" or path not in carriers:
            return y
        return _tap(y, args[0], carriers[path])

    return nn.intercept_methods(interceptor)


@jax.custom_vjp
def _tap(y, x, carriers):
    del x, carriers
    return y


def _tap_forward(y, x, carriers):
    return y, (x, carriers)


def _tap_backward(residuals, grad):
    x, carriers = residuals
    grad_y, grad, terms = grad, jnp.square(grad), {}
    for name, carrier in carriers.items():
        if name == "bias":
            terms[name] = grad.sum(tuple(range(grad.ndim - 1)))
        elif name == "scale":
            unit = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
            terms[name] = jnp.sum(grad * jnp.square(unit), 0)
        elif carrier.ndim == 2:
            terms[name] = jnp.square(x).T @ grad
        else:
            strides = x.shape[1] // grad.shape[1]
            conv = functools.partial(conv_cpu.native, jnp.square(x), strides=strides, groups=1)
            (terms[name],) = jax.linear_transpose(conv, carrier)(grad)
    return grad_y, jnp.zeros_like(x), terms


_tap.defvjp(_tap_forward, _tap_backward)


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def images(n, size):
    return jnp.asarray(fill.image(n, size).transpose(0, 2, 3, 1))


def described(arch):
    """Name to shape of every tensor that a parameter or statistic stands for."""
    used = {name: spec(arch)["network"][name] for name in spec(arch)["charm_network"]}
    every = (used | spec(arch)["charm"]).items()
    return {n: tuple(s) for n, s in every if not n.endswith("num_batches_tracked")}


def charm(backbone, dropout=0.0, dtype=jnp.float32):
    return Charm(
        trunk=backbone.trunk(drop_rate=0.0, dtype=dtype),
        expansion=backbone.expansion(dtype=dtype),
        fusion=MultiScaleAttention(dtype),
        head=Head(14, dropout),
        retrieval_k=RETRIEVAL_K,
        select=functools.partial(
            selection.select, rule="norm_inlier", threshold=0.2, prevalence=(0.5,) * 14
        ),
    )


def model(arch, dropout=0.0, dtype=jnp.float32):
    return charm(BACKBONES[arch], dropout, dtype)


@functools.cache
def shapes(arch):
    """Variables of network and momentum branch, as shapes."""
    network = model(arch)
    with jax.enable_x64(False):
        variables = jax.eval_shape(
            lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), method="initialise")
        )
    return {
        **variables,
        "momentum_params": variables["params"]["expansion"],
        "momentum_batch_stats": variables["batch_stats"]["expansion"],
    }


def tensors(arch):
    used = {name: spec(arch)["network"][name] for name in spec(arch)["charm_network"]}
    return fill.weights(arch, used) | fill.charm(arch, spec(arch)["charm"])


def variables(arch):
    """Parameters and statistics of the recipe: (network, momentum branch)."""
    loaded = torch_names.from_torch(tensors(arch), shapes(arch), BACKBONES[arch])
    network = {name: loaded[name] for name in ("params", "batch_stats")}
    return network, Momentum(loaded["momentum_params"], loaded["momentum_batch_stats"])


def memory(arch):
    """The part-filled bank of the recipe, whose cases are none of the batches'."""
    dim = BACKBONES[arch].feature_dim
    bank = memory_bank.empty(512, dim, 14)
    slots = jnp.arange(512, dtype=jnp.int32)
    ids = jnp.where(slots < FILLED, slots + _FIRST_STORED_CASE, -1)
    return bank.replace(
        features=jnp.asarray(fill.memory(arch, 512, dim, FILLED)),
        case_ids=ids,
        patient_ids=ids,
        cursor=jnp.int32(FILLED),
        count=jnp.int32(FILLED),
    )


def cases(n):
    ids = jnp.arange(n, dtype=jnp.int32)
    labels = jnp.asarray(fill.labels(n).astype(np.int8))
    return Cases(labels, ids, ids)


def plain_stages(arch, size):
    """Outputs of the plain network's stages and its features, in torch's layout."""
    backbone = BACKBONES[arch]
    network, _ = variables(arch)

    @jax.jit
    def forward(network, x):
        def run(module, part, x):
            used = {name: tree[part] for name, tree in network.items() if part in tree}
            y, sown = module.apply(used, x, train=False, mutable=["intermediates"])
            stages = sown.get("intermediates", {}).items()
            return y, {name.removesuffix(".out"): value for name, (value,) in stages}

        x, stages = run(backbone.trunk(drop_rate=0.0), "trunk", x)
        x, last = run(backbone.expansion(), "expansion", x)
        return stages | last, x, backbone.final(x)

    stages, expanded, features = forward(network, images(2, size))
    # What the expansion block gives is the last stage, unless that is something within the block.
    stages.setdefault(_stage_names(arch)[-1], expanded)
    return {name: nchw(value) for name, value in stages.items()}, nchw(features)


def _stage_names(arch):
    keys = (key.split("/") for key in numbers("plain", arch))
    return list(dict.fromkeys(key[2] for key in keys if key[1] == "stage"))


def check_plain_network(arch, size):
    """Asserts that every stage, the features and the logits are the stored ones."""
    stored = numbers("plain", arch)
    stages, features = plain_stages(arch, size)
    assert set(stages) == set(_stage_names(arch))
    for stage, value in stages.items():
        key = f"{size}/stage/{stage}"
        assert value.shape == tuple(stored[f"{key}/shape"])
        close(fill.sample(value, 2048), stored[f"{key}/sample"], arch, f"plain/{key}")
        close(np.float32(fill.stats(value)), stored[f"{key}/stats"], arch, f"plain/{key}")
    key = f"{size}/features"
    assert features.shape == tuple(stored[f"{key}/shape"])
    close(np.float32(fill.stats(features)), stored[f"{key}/stats"], arch, f"plain/{key}")
    if key in stored:
        close(features, stored[key], arch, f"plain/{key}")
    else:
        close(fill.sample(features, 8192), stored[f"{key}/sample"], arch, f"plain/{key}")
    used, every = spec(arch)["charm_network"], spec(arch)["network"]
    weight, bias = fill.weights(arch, {n: s for n, s in every.items() if n not in used}).values()
    logits = features.mean((2, 3)) @ weight.T + bias[None]
    close(logits, stored[f"{size}/logits"], arch, f"plain/{size}/logits")


def check_names_and_shapes(arch):
    """Asserts that the variables are the tensors of the original: no more, no fewer, as shaped."""
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes(arch))
    ours = {n: v.shape for n, v in torch_names.to_torch(zeros, BACKBONES[arch]).items()}
    assert ours == described(arch)
    assert len(jax.tree.leaves(zeros)) == len(ours)
