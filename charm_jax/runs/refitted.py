"""Store a refitted classifier beside a run's checkpoints, in ``classifier.safetensors``.

The file's metadata, ``of``, name its checkpoint and the digest of the layer that it replaces there.
"""

from functools import reduce
from operator import getitem
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array
from safetensors.numpy import save_file

from charm_jax.models.state import TrainState, averaged
from charm_jax.runs.checkpoints import tree_sha256
from data_pipelines.atomic_files import whole_path
from data_pipelines.errors import InputError

Layer = dict[str, Array | np.ndarray]  # ``kernel`` [D, F] and ``bias`` [F]
FILE = "classifier.safetensors"


def layer_path(state: TrainState) -> tuple[str, ...]:
    """Return where the parameters have the last linear layer."""
    return ("head", "logits") if "head" in state.params else ("classifier",)


def layer_of(state: TrainState) -> Layer:
    """Return the last linear layer that an evaluation uses."""
    return reduce(getitem, layer_path(state), averaged(state).params)


def write(run: Path, checkpoint: str, state: TrainState, layer: Layer) -> None:
    """Write a layer that replaces that of a checkpoint, whose state this is."""
    arrays = {name: np.asarray(value) for name, value in layer.items()}
    with whole_path(run / FILE) as draft:
        save_file(arrays, draft, {"of": _replaced(checkpoint, state)})


def replace_layer(run: Path, checkpoint: str, state: TrainState) -> TrainState:
    """Return the state of a checkpoint with the layer that was refitted for it, if any.

    Raises:
        InputError: the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return state
    try:
        with safetensors.safe_open(path, "numpy") as file:
            of = (file.metadata() or {}).get("of")
            layer = {name: jnp.asarray(file.get_tensor(name)) for name in ("kernel", "bias")}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): delete it to use the classifier of training."
        ) from None
    if of != _replaced(checkpoint, state):
        return state
    where = layer_path(state)
    flat = flatten_dict(averaged(state).params) | {(*where, n): v for n, v in layer.items()}
    if state.average is None:
        return state.replace(params=unflatten_dict(flat))
    return state.replace(average=state.average | {"params": unflatten_dict(flat)})


def _replaced(checkpoint: str, state: TrainState) -> str:
    return f"{checkpoint} {tree_sha256(layer_of(state))}"
