"""The names and layouts that torch has for our parameters and statistics, and the way back."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from charm_jax.models.backbones.backbone import Backbone

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


def of(variables: Variables, backbone: Backbone) -> dict[tuple[str, ...], str]:
    """The reference's name of every leaf.

    Args:
        variables: ``params``, ``batch_stats`` and, for the momentum branch, ``momentum_params`` and
            ``momentum_batch_stats``; of a CHARM network or a plain one.
        backbone: of the registry; it names its own layers.

    Returns:
        Leaf path, the collection first, to a name such as ``features.0.0.weight``.
    """
    return {path: _name(path, backbone) for path in flatten_dict(dict(variables))}


def _name(path: tuple[str, ...], backbone: Backbone) -> str:
    collection, *layers, leaf = path
    if collection.startswith("momentum"):
        stem = backbone.torch_name(("momentum", *layers))
    elif layers[0] in ("trunk", "expansion"):
        stem = backbone.torch_name(tuple(layers))
    elif layers[0] == "classifier":
        stem = backbone.classifier
    else:
        stem = _PARTS[tuple(layers)]
    return f"{stem}.{_LEAVES[leaf]}"


def from_torch(
    tensors: Mapping[str, np.ndarray],
    like: Variables,
    backbone: Backbone,
    *,
    in_file: Mapping[str, str] | None = None,
    other_faults: Sequence[str] = (),
) -> Variables:
    """Parameters and statistics from tensors with the reference's names.

    Args:
        tensors: name to array in torch's layout (convolutions OIHW, linear layers [out, in]).
        like: variables that give names and shapes (arrays or ShapeDtypeStructs).
        backbone: of the registry.
        in_file: the tensors' names in their file, where those are others; for the error.
        other_faults: what else is wrong with the file; for the error, which it makes by itself.

    Returns:
        Variables shaped as ``like``, float32.

    Raises:
        ValueError: with every missing, unexpected, misshapen or not finite name.
    """
    if found := [*other_faults, *_faults(tensors, like, backbone, in_file or {})]:
        raise ValueError("; ".join(found))
    return unflatten_dict(
        {
            path: jnp.asarray(_from_torch_layout(np.asarray(tensors[name])), jnp.float32)
            for path, name in of(like, backbone).items()
        }
    )


def _faults(
    tensors: Mapping[str, np.ndarray],
    like: Variables,
    backbone: Backbone,
    in_file: Mapping[str, str],
) -> list[str]:
    flat = flatten_dict(dict(like))
    wanted = {name: path for path, name in of(like, backbone).items()}
    found = [f"missing {name}" for name in wanted if name not in tensors]
    for name, value in tensors.items():
        said = in_file.get(name, name)
        if name in wanted:
            path = wanted[name]
            shape = _torch_shape(flat[path].shape)
            found += _shape_fault(said, np.shape(value), shape, _is_last(path))
            found += not_finite(said, value)
        elif _statistic_of(name) not in wanted:
            found.append(f"unexpected {said}")
    return found


def _is_last(path: tuple[str, ...]) -> bool:
    """Whether a leaf is of the layer with an output for each finding."""
    return path[1:-1] in (("head", "logits"), ("classifier",))


def not_finite(name: str, value: np.ndarray) -> list[str]:
    """The fault of a tensor that holds NaN or infinity, if it does."""
    return [] if np.isfinite(value).all() else [f"{name} holds numbers that are not finite"]


def _statistic_of(counter: str) -> str:
    """The running variance beside which torch keeps a counter; the network has no use for it."""
    return counter.removesuffix("num_batches_tracked") + "running_var"


def _shape_fault(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...], last: bool
) -> list[str]:
    if shape == wanted:
        return []
    fault = f"{name} has shape {shape}, not {wanted}"
    if len(shape) == 4 and shape[0] == wanted[0] and shape[2:] == wanted[2:]:
        channels = (shape[1], wanted[1])
        if channels in ((1, 3), (3, 1)):
            fault += f" (its images have {channels[0]} channel{'s' * (channels[0] > 1)}: "
            fault += f"set --config.model.channels={channels[0]})"
    if last and len(shape) == len(wanted) and shape[1:] == wanted[1:]:
        fault += f" (the file has {shape[0]} findings, this data {wanted[0]})"
    return [fault]


def to_torch(variables: Variables, backbone: Backbone) -> dict[str, np.ndarray]:
    """The inverse of ``from_torch``: arrays by the reference's names, in torch's layout."""
    flat = flatten_dict(dict(variables))
    names = of(variables, backbone)
    return {names[path]: _to_torch_layout(np.asarray(value)) for path, value in flat.items()}


_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}


def _from_torch_layout(value: np.ndarray) -> np.ndarray:
    return value.transpose(_FROM_TORCH.get(value.ndim, range(value.ndim)))


def _to_torch_layout(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(_TO_TORCH.get(value.ndim, range(value.ndim))))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))
