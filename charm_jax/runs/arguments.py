"""Parse the arguments of commands that work on a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from charm_jax.config import cli, settings
from charm_jax.config.settings import Settings
from charm_jax.runs import folder
from charm_jax.runs.banks import TRAINED

SPLITS = ("train", "val", "test", "test_published")


def define_run_flags(values: flags.FlagValues, *, memory: bool = True) -> None:
    """Define ``--run``, ``--checkpoint`` and, for commands that read a bank, ``--memory``."""
    flags.DEFINE_string(
        "run", "", "Name or folder of a run; the newest by default.", flag_values=values
    )
    flags.DEFINE_string("checkpoint", "best", "best, last or <stage>/<step>.", flag_values=values)
    if memory:
        flags.DEFINE_string(
            "memory", TRAINED, "A bank that charm_jax.memory made of the run.", flag_values=values
        )


def parse_run(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    keys: tuple[str, ...],
    shown: str,
    name: str | None = None,
) -> tuple[Path, Settings, flags.FlagValues]:
    """Find the run that arguments name and apply the overrides that they may give.

    Args:
        argv: flags alone.
        define: defines the command's flags.
        keys: beginnings of the overrides that are allowed.
        shown: the same for the error message.
        name: name or folder of the run; None for that in ``--run``.

    Returns:
        Its folder, its settings with the overrides, and the flags.

    Raises:
        InputError: no such run, or an unknown or forbidden flag.
    """
    config, first = cli.parse_defaults(argv, define)
    run = folder.find(Path(config.runs_dir), first.run if name is None else name)
    path = run / "config.json"
    config, values = cli.parse_over(folder.read_json(path), str(path), argv, define)
    cli.allow_only(argv, keys, shown)
    return run, config, values


def read_settings(run: Path) -> Settings:
    """Read the settings that a run was trained with.

    Raises:
        InputError: ``config.json`` is missing or damaged.
    """
    path = run / "config.json"
    return settings.from_dict(cli.complete(folder.read_json(path), str(path)))
