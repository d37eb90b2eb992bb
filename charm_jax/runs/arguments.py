"""Parse the arguments of commands that work on a run."""

from pathlib import Path

from absl import flags

from charm_jax.config import cli
from charm_jax.config.cli import Arguments
from charm_jax.config.settings import Settings
from charm_jax.runs import folder
from charm_jax.runs.banks import TRAINED

SPLITS = ("train", "val", "test", "test_published")


def define_run_flags(values: flags.FlagValues, *, memory: bool = True) -> None:
    """Define ``--run``, ``--checkpoint`` and, for commands that read a bank, ``--memory``."""
    flags.DEFINE_string(
        "run", "", "name or folder of a run, by default the newest", flag_values=values
    )
    define_checkpoint_flag(values)
    if memory:
        flags.DEFINE_string(
            "memory",
            TRAINED,
            "memory bank: the trained one, or one that charm-jax memory made",
            flag_values=values,
        )


def define_checkpoint_flag(values: flags.FlagValues) -> None:
    """Define ``--checkpoint``."""
    flags.DEFINE_string(
        "checkpoint",
        "best",
        "checkpoint of the run: best, last or STAGE/STEP",
        flag_values=values,
    )


def find_run(arguments: Arguments, name: str | None = None) -> Path:
    """Return the folder of a run, by default that in ``--run``.

    Raises:
        InputError: there is no such run.
    """
    root = arguments.overrides.get("runs_dir", "runs")
    return folder.find(Path(root), arguments.flags.run if name is None else name)


def read_settings(run: Path, arguments: Arguments | None = None) -> Settings:
    """Read the settings that a run was trained with, and apply overrides.

    Raises:
        InputError: ``config.json`` is missing or damaged.
    """
    path = run / "config.json"
    overrides = arguments.overrides if arguments else None
    return cli.settings_from(folder.read_json(path), str(path), overrides)
