"""Convert parameters and statistics to torch's names and layouts, and back."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from charm_jax.models.backbones.backbone import Backbone
from data_pipelines.errors import listed

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The reference's names of layers outside the backbone.
_PARTS = {
    ("fusion", "conv1"): "spatial_attention.conv1",
    ("fusion", "conv3"): "spatial_attention.conv3",
    ("fusion", "conv5"): "spatial_attention.conv5",
    ("fusion", "merge"): "spatial_attention.spatial_att.0",
    ("head", "norm"): "classifier.0",
    ("head", "hidden"): "classifier.1",
    ("head", "logits"): "classifier.4",
}
# Axes of kernels by rank: convolutions are OIHW in torch, linear layers [out, in].
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}

Variables = Mapping[str, PyTree]


def leaf_names(variables: Variables, backbone: Backbone) -> dict[tuple[str, ...], str]:
    """Return the reference's name of every leaf.

    Args:
        variables: ``params``, ``batch_stats`` and, with a momentum branch, ``momentum_params`` and
            ``momentum_batch_stats``.

    Returns:
        From a leaf's path, the collection first, to a name such as ``features.0.0.weight``.
    """
    return {path: _name(path, backbone) for path in flatten_dict(dict(variables))}


def _name(path: tuple[str, ...], backbone: Backbone) -> str:
    collection, *layers, leaf = path
    of_momentum = collection.startswith("momentum")
    part, *names = ["expansion", *layers] if of_momentum else layers
    names.append(_LEAVES[leaf])
    if part == "trunk":
        return ".".join(names)
    if part == "expansion":
        name = backbone.expansion_name + ".".join(names)
        return f"momentum_final_block.{backbone.reference_name(name)}" if of_momentum else name
    stem = backbone.classifier if part == "classifier" else _PARTS[tuple(layers)]
    return f"{stem}.{names[-1]}"


def from_torch(
    tensors: Mapping[str, np.ndarray],
    like: Variables,
    backbone: Backbone,
    *,
    in_file: Mapping[str, str] | None = None,
    other_faults: Sequence[str] = (),
) -> Variables:
    """Convert tensors with the reference's names to parameters and statistics.

    Args:
        tensors: arrays in torch's layout.
        like: variables with the wanted names and shapes (arrays or ShapeDtypeStructs).
        in_file: the tensors' names in their file, for the error, where they differ.
        other_faults: further faults of the file, raised with those found here.

    Returns:
        Variables shaped like ``like``, float32.

    Raises:
        ValueError: with missing, unexpected, misshapen or not finite names, five at most.
    """
    names, shapes = leaf_names(like, backbone), flatten_dict(dict(like))
    paths = {name: path for path, name in names.items()}
    faults = [*other_faults, *(f"missing {name}" for name in paths if name not in tensors)]
    for name, value in tensors.items():
        shown = (in_file or {}).get(name, name)
        if path := paths.get(name):
            shape = shapes[path].shape
            wanted = tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))
            is_last = path[1:-1] in (("head", "logits"), ("classifier",))
            faults += _shape_fault(shown, np.shape(value), wanted, is_last)
            faults += not_finite(shown, value)
        # Torch keeps a counter beside each running variance; the network has no use for it.
        elif name.removesuffix("num_batches_tracked") + "running_var" not in paths:
            faults.append(f"unexpected {shown}")
    if faults:
        raise ValueError(listed(faults, "; "))
    arrays = {path: np.asarray(tensors[name]) for path, name in names.items()}
    return unflatten_dict(
        {
            path: jnp.asarray(v.transpose(_FROM_TORCH.get(v.ndim, range(v.ndim))), jnp.float32)
            for path, v in arrays.items()
        }
    )


def not_finite(name: str, value: np.ndarray) -> list[str]:
    """Return the fault of a tensor that holds NaN or infinity, if it does."""
    return [] if np.isfinite(value).all() else [f"{name} holds numbers that are not finite"]


def _shape_fault(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...], is_last: bool
) -> list[str]:
    if shape == wanted:
        return []
    fault = f"{name} has shape {shape}, not {wanted}"
    if len(shape) == 4 and shape[0] == wanted[0] and shape[2:] == wanted[2:]:
        channels = (shape[1], wanted[1])
        if channels in ((1, 3), (3, 1)):
            fault += f" (its images have {channels[0]} channel{'s' * (channels[0] > 1)}: "
            fault += f"set --config.model.channels={channels[0]})"
    if is_last and len(shape) == len(wanted) and shape[1:] == wanted[1:]:
        fault += f" (the file has {shape[0]} findings, this data {wanted[0]})"
    return [fault]


def to_torch(variables: Variables, backbone: Backbone) -> dict[str, np.ndarray]:
    """Return arrays in torch's layout by the reference's names, the inverse of ``from_torch``."""
    flat, tensors = flatten_dict(dict(variables)), {}
    for path, name in leaf_names(variables, backbone).items():
        value = np.asarray(flat[path])
        turned = value.transpose(_TO_TORCH.get(value.ndim, range(value.ndim)))
        tensors[name] = np.ascontiguousarray(turned)
    return tensors
