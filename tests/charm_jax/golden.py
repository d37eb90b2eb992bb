"""The stored numbers of the PyTorch original, and how exactly they must be met."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from charm_jax import memory_bank, pretrained
from charm_jax.backbones import BACKBONES
from charm_jax.fusion import MultiScaleAttention
from charm_jax.model import Cases, Charm, Head
from charm_jax.momentum import Momentum

FOLDER = Path(__file__).resolve().parent.parent / "golden"
RETRIEVAL_K = 3
FILLED = 384  # rows of the stored bank that hold a feature
_FIRST_STORED_CASE = 1000  # ids of those rows; the batches' own are 0, 1, …


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


def close(actual, stored, arch, key):
    """Asserts RECIPE.md's tolerance: max(1e-4, 10 × noise of the reference) × rms."""
    stored = np.asarray(stored)
    noise = spec(arch)["float32_vs_float64"].get(key, 0.0)
    tolerance = max(1e-4, 10 * noise) * np.sqrt(np.mean(np.square(stored, dtype=np.float64)))
    np.testing.assert_allclose(np.asarray(actual), stored, rtol=0, atol=tolerance, err_msg=key)


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def images(n, size):
    return jnp.asarray(fill.image(n, size).transpose(0, 2, 3, 1))


def model(arch, dropout=0.0):
    backbone = BACKBONES[arch]
    return Charm(
        trunk=backbone.trunk(drop_rate=0.0),
        expansion=backbone.expansion(),
        fusion=MultiScaleAttention(),
        head=Head(14, dropout),
        retrieval_k=RETRIEVAL_K,
        select=functools.partial(
            memory_bank.select, rule="norm_inlier", threshold=0.2, prevalence=(0.5,) * 14
        ),
    )


@functools.cache
def shapes(arch):
    """Variables of network and momentum branch, as shapes."""
    network = model(arch)
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), method="initialise")
    )
    return {
        **variables,
        "momentum_params": variables["params"]["expansion"],
        "momentum_batch_stats": variables["batch_stats"]["expansion"],
    }


def tensors(arch):
    described = spec(arch)
    used = {name: described["network"][name] for name in described["charm_network"]}
    return fill.weights(arch, used) | fill.charm(arch, described["charm"])


def variables(arch):
    """Parameters and statistics of the recipe: (network, momentum branch)."""
    loaded = pretrained.from_torch(tensors(arch), shapes(arch), BACKBONES[arch])
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
