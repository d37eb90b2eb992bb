"""The names and layouts of torch: which tensor of a state dict is which parameter."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from charm_jax.backbones.backbone import Backbone

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The reference's names of what is not backbone.
_PARTS = {
    ("fusion", "conv1"): "spatial_attention.conv1",
    ("fusion", "conv3"): "spatial_attention.conv3",
    ("fusion", "conv5"): "spatial_attention.conv5",
    ("fusion", "merge"): "spatial_attention.spatial_att.0",
    ("head", "norm"): "classifier.0",
    ("head", "hidden"): "classifier.1",
    ("head", "logits"): "classifier.4",
}

Variables = Mapping[str, PyTree]


def torch_names(variables: Variables, backbone: Backbone) -> dict[tuple[str, ...], str]:
    """The reference's name of every leaf.

    Args:
        variables: ``params``, ``batch_stats`` and, for the momentum branch, ``momentum_params`` and
            ``momentum_batch_stats``.
        backbone: of the registry; it names its own layers.

    Returns:
        Leaf path, the collection first, to a name such as ``features.0.0.weight``.
    """
    return {path: _name(path, backbone) for path in flatten_dict(dict(variables))}


def _name(path: tuple[str, ...], backbone: Backbone) -> str:
    collection, *layers, leaf = path
    if collection.startswith("momentum"):
        stem = backbone.momentum_torch_name(tuple(layers))
    elif layers[0] in ("trunk", "expansion"):
        stem = backbone.torch_name(tuple(layers))
    else:
        stem = _PARTS[tuple(layers)]
    return f"{stem}.{_LEAVES[leaf]}"


def from_torch(tensors: Mapping[str, np.ndarray], like: Variables, backbone: Backbone) -> Variables:
    """Parameters and statistics from tensors with the reference's names.

    Args:
        tensors: name to array in torch's layout (convolutions OIHW, linear layers [out, in]).
        like: variables that give names and shapes (arrays or ShapeDtypeStructs).
        backbone: of the registry.

    Returns:
        Variables shaped as ``like``, float32.

    Raises:
        ValueError: with every missing, unexpected or misshapen name.
    """
    names = torch_names(like, backbone)
    flat_like = flatten_dict(dict(like))
    flat, faults = {}, []
    for path, name in names.items():
        if name not in tensors:
            faults.append(f"missing {name}")
            continue
        value = _from_torch_layout(np.asarray(tensors[name]))
        if value.shape != flat_like[path].shape:
            faults.append(f"{name} has shape {value.shape}, not {flat_like[path].shape}")
        flat[path] = jnp.asarray(value, jnp.float32)
    known = set(names.values())
    extra = [n for n in tensors if n not in known and not n.endswith("num_batches_tracked")]
    faults += [f"unexpected {name}" for name in extra]
    if faults:
        raise ValueError("; ".join(faults))
    return unflatten_dict(flat)


def to_torch(variables: Variables, backbone: Backbone) -> dict[str, np.ndarray]:
    """The inverse of ``from_torch``: arrays by the reference's names, in torch's layout."""
    flat = flatten_dict(dict(variables))
    names = torch_names(variables, backbone)
    return {names[path]: _to_torch_layout(np.asarray(value)) for path, value in flat.items()}


def _from_torch_layout(value: np.ndarray) -> np.ndarray:
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
    return value.transpose(order) if order else value


def _to_torch_layout(value: np.ndarray) -> np.ndarray:
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    return np.ascontiguousarray(value.transpose(order)) if order else value
