"""Write the weights of a run as a file for PyTorch or as safetensors.

usage: charm-jax convert FILE [--run RUN] [--to KIND] [options]

    charm-jax convert weights.pth --run demo --to torch

FILE gets the names and layouts of the reference's state dict; for a baseline, which the reference
does not have, torchvision's. So does a network whose stored cases vote: FILE holds it without them
and without the vote. exit codes: 0 done; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax.traverse_util import unflatten_dict

from charm_jax.config import cli
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState
from charm_jax.runs import folder
from charm_jax.runs.arguments import CHECKPOINT, RUN, find_run, read_settings
from charm_jax.runs.records import Split
from charm_jax.weights import files, load
from charm_jax.weights.card import Card, beside
from data_pipelines.atomic_files import check_writable
from data_pipelines.errors import InputError

_OPTIONS = RUN | CHECKPOINT | {"to": Option("safetensors", "kind of file", list(files.SUFFIXES))}


def main(argv: list[str]) -> int:
    """Write a checkpoint of a run as a weight file and return the exit code.

    Raises:
        InputError: there is no such run or checkpoint, or the file cannot be written.
    """
    target, values, run = _parse(argv)
    _check_target(target, values.to)
    config = read_settings(run)
    state, name, _ = folder.restore(run, values.checkpoint, _shapes)
    try:
        tensors = load.to_reference(state, BACKBONES[config.model.backbone])
    except ValueError as error:
        raise InputError(f"{run} has no such file ({error}): choose another run.") from None
    files.write(target, tensors, _card(run, config, state))
    if config.model.charm and config.model.memory == "vote":
        say(
            f"warning: {target} gives other scores than {run}: no file holds the stored cases and "
            "their vote, which the run's checkpoint has."
        )
    say(f"Wrote {len(tensors)} tensors of checkpoint {name} of {run} to {target}.")
    return 0


def _card(run: Path, config: Settings, state: TrainState) -> Card:
    """Return what the file tells of its numbers."""
    return load.card(
        state,
        config.model.backbone,
        folder.read_record(run / "split.json", Split)["findings"],
        image_size=config.data.image_size,
        channels=config.model.channels,
        input_range=config.model.input_range,
        retrieval_k=None if load.is_plain(state) else config.model.retrieval_k,
    )


def _parse(argv: list[str]) -> tuple[Path, flags.FlagValues, Path]:
    command = cli.Command(__doc__, _OPTIONS, ("runs_dir",), words=True)
    arguments = cli.parse(command, argv)
    if len(arguments.words) != 1:
        raise InputError(
            f"Name one file to write, not {len(arguments.words)}: for example charm-jax convert "
            "weights.safetensors --run RUN."
        )
    target = Path(arguments.words[0])
    files.kind_of(target)  # before the run is sought
    return target, arguments.flags, find_run(arguments)


def _check_target(target: Path, kind: str) -> None:
    if files.kind_of(target) != kind:
        known = " or ".join(files.SUFFIXES[kind])
        raise InputError(
            f"{target} has the suffix of another kind than --to {kind}: give --to "
            f"{files.kind_of(target)}, or use {known}."
        )
    for path in (target, beside(target)):
        if path.exists():
            raise InputError(f"{path} already exists: move it or choose another name.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent}: create it or choose another.")
    check_writable(target.parent, "choose another folder")


def _shapes(meta: dict[str, Any]) -> TrainState:
    """Return the shapes of a checkpoint's network, so that restoring it needs no data."""
    tree = unflatten_dict(
        {
            tuple(name.split("/")): jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
            for name, leaf in meta["leaves"].items()
        }
    )
    return TrainState(
        step=tree["step"],
        params=tree["params"],
        batch_stats=tree["batch_stats"],
        momentum=Momentum(**tree["momentum"]) if "momentum" in tree else None,
        memory=MemoryBank(**tree["memory"]) if "memory" in tree else None,
        opt_state=(),
        average=tree.get("average"),
        rng=jax.eval_shape(lambda: jax.random.key(0)),
    )


if __name__ == "__main__":
    cli.run(main)
