"""``python -m charm_jax.convert --run RUN --to torch FILE``: a run's weights for PyTorch.

FILE, which comes last, gets the names and layouts of the reference's state dict; a plain run's,
which the reference does not have, torchvision's.
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax.traverse_util import unflatten_dict

from charm_jax.config import cli
from charm_jax.config.cli import say
from charm_jax.models.backbones import BACKBONES
from charm_jax.models.memory_bank import MemoryBank
from charm_jax.models.momentum import Momentum
from charm_jax.models.state import TrainState
from charm_jax.runs import folder
from charm_jax.runs.arguments import define_run_flags, read_settings
from charm_jax.weights import files, load
from data_pipelines.errors import InputError


def main(argv: list[str]) -> int:
    """Writes a checkpoint of a run as a weight file; returns the exit code.

    Raises:
        InputError: no such run or checkpoint, or a file that may not be written.
    """
    target, values, run = _parse(argv)
    _check_target(target, values.to)
    config = read_settings(run)
    state, name = folder.restore(run, values.checkpoint, _shapes)
    try:
        tensors = load.to_reference(state, BACKBONES[config.model.backbone])
    except ValueError as error:
        raise InputError(f"{run} cannot be written as such a file: {error}.") from None
    files.write(target, tensors)
    say(f"Written {len(tensors)} tensors of checkpoint {name} of {run} to {target}.")
    return 0


def _parse(argv: list[str]) -> tuple[Path, flags.FlagValues, Path]:
    path, argv = cli.split_config_flag(argv)
    if path is not None:
        raise InputError("--config means nothing here: name a run with --run.")
    target = Path(argv[-1] if argv else "")
    known = [suffix for kind in files.SUFFIXES.values() for suffix in kind]
    asks_help = {"--help", "-help", "-h"} & set(argv)
    if not asks_help and target.suffix.casefold() not in known:
        raise InputError(
            f"The file to write comes last and ends in one of {', '.join(known)}: "
            "charm_jax.convert --run RUN --to torch|safetensors FILE."
        )
    config, values = cli.parse_defaults(argv if asks_help else argv[:-1], _define_flags)
    cli.allow_only(argv, ("config.runs_dir",), "--config.runs_dir")
    return target, values, folder.find(Path(config.runs_dir), values.run)


def _define_flags(values: flags.FlagValues) -> None:
    define_run_flags(values, memory=False)
    flags.DEFINE_enum(
        "to", "safetensors", list(files.SUFFIXES), "The kind of file.", flag_values=values
    )


def _check_target(target: Path, kind: str) -> None:
    if files.kind_of(target) != kind:
        known = " or ".join(files.SUFFIXES[kind])
        raise InputError(f"{target} is not named as a {kind} file: let it end in {known}.")
    if target.exists():
        raise InputError(f"{target} is there already: move it away or choose another name.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent}: make it, or choose another.")


def _shapes(meta: dict[str, Any]) -> TrainState:
    """The network of a checkpoint as shapes; so no data are needed to restore it."""
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
