"""Create networks, move weights in and out, and load data sets, without a config file."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from charm_jax.config import build, cli, validate
from charm_jax.config.settings import Settings
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.create import Network, create_network
from charm_jax.models.state import TrainState
from charm_jax.runs.data import Data, load_or_draw
from charm_jax.weights import files, load
from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.sources import SOURCES


def list_models() -> list[str]:
    """Return the names of all backbones."""
    return sorted(BACKBONES)


def create_model(
    name: str,
    *,
    num_classes: int = 14,
    in_chans: int = 3,
    charm: bool = True,
    weights: str = "random",
    pathologies: Sequence[str] | None = None,
    image_size: int = 224,
    bank_size: int = 512,
    seed: int = 0,
) -> tuple[Network, TrainState]:
    """Create a network and its state.

    Args:
        name: one of ``list_models()``.
        num_classes: number of findings.
        in_chans: channels of the images, 3 or 1.
        charm: False for the bare backbone with a linear classifier.
        weights: ``random``, ``imagenet`` (downloaded once, or of an installed package) or the path
            of a weight file.
        pathologies: names of the findings, by which the outputs of a weight file are matched.
        image_size: side of the images in pixels.
        bank_size: slots of the memory bank.
        seed: seed of random parameters.

    Returns:
        The Linen module and its state, whose ``params`` and ``batch_stats`` are
        ``module.apply``'s variables.

    Raises:
        InputError: there is no such backbone, the weight file does not fit, or a value is not
            valid.
    """
    if name not in BACKBONES:
        raise InputError(f"There is no model {name!r}: {did_you_mean(name, BACKBONES)}")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: give the number of findings.")
    changes = {
        "seed": seed,
        "data": {"image_size": image_size},
        "model": {"backbone": name, "charm": charm, "channels": in_chans, "bank_size": bank_size},
    }
    network = create_network(name, num_classes=num_classes, charm=charm)
    state = build.new_state(network, _settings(changes))
    return network, _filled(state, weights, name, pathologies, "")


def _settings(changes: dict[str, Any]) -> Settings:
    """Return the checked settings of the defaults with changes."""
    settings = cli.settings_from({"name": "api"} | changes, "charm_jax")
    validate.check(settings)
    return settings


def load_weights(
    state: TrainState,
    path: str | Path,
    *,
    name: str | None = None,
    pathologies: Sequence[str] | None = None,
    key: str = "",
) -> TrainState:
    """Return a state with the weights of a safetensors or PyTorch file.

    A file of a plain network fills trunk and expansion block; one of the reference's CHARM network
    fills everything, the memory bank included. What is not taken or not known is logged.

    Args:
        state: state of a network from ``create_model``.
        path: file with the names of torchvision, timm or the reference.
        name: backbone; by default the one that the parameters of ``state`` belong to.
        pathologies: names of the outputs of ``state``: a file that tells its own is matched by
            name, and outputs that it lacks keep the weights of ``state``. By default outputs are
            taken in their order.
        key: part of the path to the network in a file of several, such as ``state_dict_ema``.

    Raises:
        InputError: the file is missing, unreadable or does not fit.
    """
    return _filled(state, str(path), name or _backbone_of(state), pathologies, key)


def _filled(
    state: TrainState, path: str, backbone: str, pathologies: Sequence[str] | None, key: str
) -> TrainState:
    state, file = load.initial_weights(state, path, backbone, findings=pathologies, key=key)
    if file is not None:
        load.log(file)
    return state


def save_weights(
    state: TrainState,
    path: str | Path,
    *,
    name: str | None = None,
    pathologies: Sequence[str] | None = None,
    image_size: int | None = None,
    input_range: str | None = None,
    retrieval_k: int | None = None,
) -> None:
    """Write the weights of a state as a safetensors or PyTorch file, by its ending.

    The names and layouts are the reference's, or torchvision's for a bare backbone. The file also
    tells what its numbers mean: in its metadata, or in a JSON beside a PyTorch file.

    Args:
        state: state of a network.
        path: new file, ending in ``.safetensors``, ``.pth`` or ``.pt``.
        name: backbone; by default the one that the parameters of ``state`` belong to.
        pathologies: names of the outputs.
        image_size: side of the images in pixels.
        input_range: ``imagenet``, ``unit``, ``xrv`` or two numbers, of black and white.
        retrieval_k: cases that a query reads.

    Raises:
        InputError: the file cannot be written, or a value is not valid.
    """
    backbone = name or _backbone_of(state)
    tensors = load.to_reference(state, BACKBONES[backbone])
    told = load.card(
        state,
        backbone,
        pathologies,
        image_size=image_size,
        channels=_channels(state),
        input_range=input_range,
        retrieval_k=retrieval_k,
    )
    files.write(Path(path), tensors, told)


def _channels(state: TrainState) -> int:
    """Return the channels of the images: 3 if a kernel of several pixels reads 3, else 1."""
    kernels = [leaf.shape for leaf in jax.tree.leaves(state.params["trunk"]) if leaf.ndim == 4]
    return 3 if any(shape[0] > 1 and shape[2] == 3 for shape in kernels) else 1


def _backbone_of(state: TrainState) -> str:
    """Find the backbone with these parameters.

    Raises:
        InputError: no registered backbone has them.
    """
    shapes = jax.tree.map(lambda leaf: leaf.shape, state.params["trunk"])

    def params(name: str, channels: int) -> PyTree[jax.ShapeDtypeStruct]:
        trunk = BACKBONES[name].trunk(drop_rate=0.0, dtype=jnp.float32)
        images = jnp.zeros((1, 64, 64, channels))
        create = functools.partial(trunk.init, train=False)
        return jax.eval_shape(create, jax.random.key(0), images)["params"]

    for name, channels in itertools.product(BACKBONES, (3, 1)):
        if jax.tree.map(lambda leaf: leaf.shape, params(name, channels)) == shapes:
            return name
    raise InputError("The state belongs to no registered backbone: give its name with `name`.")


def load_dataset(
    source: str,
    root: str | Path,
    *,
    split_rule: str = "official",
    split_seed: int = 0,
    csv: str = "",
    image_size: int = 224,
    missing: str = "error",
    max_unreadable: float = 0.001,
    value_range: str | int = "container",
    uncertain: str = "ignore",
    views: str = "frontal",
    **options: int,
) -> Data:
    """Load a data set: its table, its splits and where its images are.

    Args:
        source: value of ``config.data.source``, such as ``csv_folder``.
        root: folder of the data, raw or prepared; ``phantom`` draws its images if it is absent.
        split_rule: value of ``config.data.split``.
        split_seed: seed of random splits.
        csv: file to read in place of the source's own table.
        image_size: side of the images in pixels.
        missing: ``skip`` uses the images that are there.
        max_unreadable: share of the image files that may be unreadable.
        value_range: value of ``config.data.value_range``, such as 4095.
        uncertain: value of ``config.data.uncertain``, for labels that a report calls possible.
        views: ``all`` for the lateral images of a set, too.
        **options: what this source alone takes, such as ``train_images`` of ``phantom``.

    Returns:
        The data; ``table`` holds images, labels and patients, and
        ``split.rows("focal", "test")`` the rows of a split of all images.

    Raises:
        InputError: an unknown source or option, a value that is not valid, or the first fault of
            the data.
    """
    if source not in SOURCES:
        raise InputError(f"There is no source {source!r}: {did_you_mean(source, SOURCES)}")
    data = {
        "source": source,
        "dir": str(root),
        "split": split_rule,
        "split_seed": split_seed,
        "csv": csv,
        "image_size": image_size,
        "missing": missing,
        "max_unreadable": max_unreadable,
        "value_range": value_range,
        "uncertain": uncertain,
        "views": views,
    }
    return load_or_draw(_settings({"data": data | ({source: options} if options else {})}))
