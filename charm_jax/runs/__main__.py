"""``charm-jax runs``: list, compare, reduce and delete runs."""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from charm_jax.runs import overview
from data_pipelines.command_line import CommandParser
from data_pipelines.errors import InputError, did_you_mean


def _parser() -> CommandParser:
    parser = CommandParser(
        "runs",
        "List, compare, reduce and delete runs.",
        "diff demo plain",
        "list         state, score on the own test images, differing keys, size and age\n"
        "show RUN     its keys that are not the defaults, its stages and its evaluations\n"
        "diff A B     keys that differ, and both scores\n"
        "slim RUN...  keep the best checkpoint alone, without the optimizer's state: the run\n"
        "             predicts as before and cannot be trained further\n"
        "delete RUN... --yes\n\n"
        "exit codes: 0 done; 2 bad input",
    )
    parser.add_argument("command", metavar="COMMAND", help=f"{', '.join(_COMMANDS)}")
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", default=[], help="name or folder of a run"
    )
    parser.add_argument(
        "--runs_dir",
        "--config.runs_dir",
        type=Path,
        metavar="DIR",
        default=Path("runs"),
        help="folder of the runs (default: runs)",
    )
    parser.add_argument("--yes", action="store_true", help="delete without asking again")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return _parser().run(_run, argv)


def _run(options: argparse.Namespace) -> int:
    if options.command not in _COMMANDS:
        raise InputError(
            f"There is no command {options.command!r}: {did_you_mean(options.command, _COMMANDS)}"
        )
    least, most, work = _COMMANDS[options.command]
    if not least <= len(options.runs) <= (len(options.runs) if most is None else most):
        wanted = {(0, 0): "no run", (1, 1): "one run", (2, 2): "two runs"}.get((least, most))
        raise InputError(
            f"charm-jax runs {options.command} takes {wanted or 'one run or more'}, not "
            f"{len(options.runs)}: see charm-jax runs --help."
        )
    # All are found before the first is touched.
    found = [overview.find(options.runs_dir, name) for name in options.runs]
    work(list({folder.resolve(): folder for folder in found}.values()), options)
    return 0


def _list(folders: list[Path], options: argparse.Namespace) -> None:
    found = sorted(options.runs_dir.glob("*/config.json"))
    if not found:
        raise InputError(
            f"There is no run in {options.runs_dir}: train one with charm-jax train, or name "
            "another folder with --runs_dir."
        )
    runs = sorted((overview.read(path.parent) for path in found), key=lambda run: run.age)
    print(overview.table(runs))


def _read(folder: Path) -> overview.Run:
    run = overview.read(folder)
    if not run.config:
        raise InputError(f"{folder} has no readable config.json: name the folder of a run.")
    return run


def _show(folders: list[Path], options: argparse.Namespace) -> None:
    from charm_jax.config import recipe  # imports the networks, which `list` does without

    run = _read(folders[0])
    defaults = {name: key.default for name, key in recipe.KEYS.items()}
    own = {key: value for key, value in run.config.items() if defaults.get(key) != value}
    print(f"{run.folder}: {run.state}")
    print("\nkeys other than the defaults:")
    print("\n".join(f"  {key} = {value}" for key, value in own.items()))
    print()
    for stage, parts in run.split.get("stages", {}).items():
        sizes = {name: part["images"] for name, part in parts.items() if isinstance(part, dict)}
        print(f"stage {stage}: {', '.join(f'{n} {size:,}' for n, size in sizes.items())} images")
    for name, metrics in run.evaluations.items():
        print(f"evaluated on {name}: macro AUROC {overview.score(metrics) or 'undefined'}")


def _diff(folders: list[Path], options: argparse.Namespace) -> None:
    if len(folders) == 1:
        raise InputError(f"Both names are of {folders[0]}: name two runs.")
    one, other = map(_read, folders)
    titles = ["key", str(one.folder), str(other.folder)]
    rows = [
        ("macro AUROC, test", one.score or "-", other.score or "-"),
        *overview.difference(one, other),
    ]
    print(pd.DataFrame(rows, columns=titles).to_string(index=False))


def _slim(folders: list[Path], options: argparse.Namespace) -> None:
    from charm_jax.runs import slim

    for folder in folders:
        name, free = slim.slim(folder)
        print(f"{folder}: only {name} is left, {free / 1e6:,.0f} MB are free.")


def _delete(folders: list[Path], options: argparse.Namespace) -> None:
    from charm_jax.runs import slim

    if not options.yes:
        names = ", ".join(map(str, folders))
        raise InputError(f"This deletes {names} for ever: give --yes.")
    for folder in folders:
        print(f"{folder}: deleted, {slim.delete(folder) / 1e6:,.0f} MB are free.")


# Least and greatest number of runs (None for any), and what does it.
_COMMANDS: dict[str, tuple[int, int | None, Callable[[list[Path], argparse.Namespace], None]]] = {
    "list": (0, 0, _list),
    "show": (1, 1, _show),
    "diff": (2, 2, _diff),
    "slim": (1, None, _slim),
    "delete": (1, None, _delete),
}


if __name__ == "__main__":
    sys.exit(main())
