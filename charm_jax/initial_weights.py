"""The weights that a run begins with: random, torchvision's of ImageNet, or a file's."""

from pathlib import Path

from charm_jax import imagenet, pretrained, weights_file
from charm_jax.backbones import BACKBONES
from charm_jax.state import TrainState
from data_pipelines.errors import InputError

_SHOWN = 4  # names that the sentence lists; more are counted


def fill(state: TrainState, init_from: str, backbone: str) -> tuple[TrainState, str]:
    """The state with its first weights, and a sentence that says which.

    Args:
        state: a new one.
        init_from: ``random`` leaves it as it is; ``imagenet`` fetches torchvision's weights; all
            else is the path of a weight file.
        backbone: name in the registry.

    Raises:
        InputError: there is no such file, it cannot be fetched or read, or a tensor of it is
            missing, unexpected, misshapen or contradicts another.
    """
    if init_from == "random":
        return state, "Weights: random."
    path = imagenet.fetch(backbone) if init_from == "imagenet" else Path(init_from).expanduser()
    tensors = weights_file.read(path)
    try:
        state, left_out = pretrained.load(state, tensors, BACKBONES[backbone])
    except ValueError as error:
        raise InputError(
            f"{path} does not fit config.model.backbone {backbone}: {error}; give a file of this "
            "network, or choose the file's."
        ) from error
    return state, f"Weights: {path}, {len(tensors) - len(left_out)} tensors{_without(left_out)}."


def _without(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; left out, as they are of another task: {shown}{more}"
