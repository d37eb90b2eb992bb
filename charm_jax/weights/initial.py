"""The weights that a run begins with: random, torchvision's of ImageNet, or a file's."""

import dataclasses
import hashlib
from pathlib import Path

from charm_jax.models.backbones import BACKBONES
from charm_jax.models.state import TrainState
from charm_jax.weights import files, imagenet, load
from data_pipelines.errors import InputError

OWN = ("random", "imagenet")  # what is known without a file of the user's
_SHOWN = 4  # names that the sentence lists; more are counted
# What a fault says where it names its remedy.
_REMEDIES = ("set --config.", "train from it")


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What was loaded.

    Attributes:
        init_from: the config's word for it.
        file: its path.
        sha256: of its bytes.
        tensors: how many of it are used.
        left_out: names of the others.
    """

    init_from: str
    file: str
    sha256: str
    tensors: int
    left_out: list[str]


def fill(
    state: TrainState, init_from: str, backbone: str, *, whole: bool
) -> tuple[TrainState, WeightFile | None]:
    """The state with its first weights, and the file that they are of.

    Args:
        state: a new one.
        init_from: ``random`` leaves it as it is; ``imagenet`` fetches torchvision's weights; all
            else is the path of a weight file.
        backbone: name in the registry.
        whole: whether the classifier, too, must come from the file, as an evaluation needs it.

    Raises:
        InputError: there is no such file, it cannot be fetched or read, or a tensor of it is
            missing, unexpected, misshapen, not finite or contradicts another.
    """
    if init_from == "random":
        return state, None
    path = _imagenet(backbone) if init_from == "imagenet" else Path(init_from).expanduser()
    tensors = files.read(path)
    try:
        state, left_out = load.load(state, tensors, BACKBONES[backbone], whole=whole)
    except ValueError as error:
        known = any(remedy in str(error) for remedy in _REMEDIES)
        remedy = "" if known else "; give a file of this network, or choose the file's"
        raise InputError(
            f"{path} does not fit this network (config.model.backbone {backbone}): {error}{remedy}."
        ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    used = len(tensors) - len(left_out)
    return state, WeightFile(init_from, str(path), digest, used, left_out)


def _imagenet(backbone: str) -> Path:
    if backbone in imagenet.FILES:  # before anything is downloaded
        files.import_torch("--config.model.init_from=imagenet")
    return imagenet.fetch(backbone)


def sentence(file: WeightFile | None) -> str:
    """What is said of the weights when a run begins."""
    if file is None:
        return "Weights: random."
    return f"Weights: {file.file}, {file.tensors} tensors{_without(file.left_out)}."


def _without(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; left out: {shown}{more}"
