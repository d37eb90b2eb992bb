"""``charm-jax prepare``: resize the images of a data set once."""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import argparse
import os
import re
import sys
from pathlib import Path

from data_pipelines import sources
from data_pipelines.command_line import CommandParser
from data_pipelines.errors import InputError
from data_pipelines.images.decode import CONTAINER, VALUE_RANGES
from data_pipelines.prepare.preparation import prepare
from data_pipelines.tables.quarantine import MAX_UNREADABLE

_NOTES = """\
config.data.dir of a training run takes the prepared folder in place of the source's own.
The same command continues a run that was cut off. Several machines share the work with
--part 0/4 to --part 3/4, and a last call without --part completes the folder.

exit codes: 0 done; 1 done, with some images refused (quarantine.csv); 2 bad input
"""


def _parser() -> CommandParser:
    parser = CommandParser(
        "prepare",
        "Resize the images of a data set once, so that training reads them quickly.",
        "nih_chest_xray14 --source data/nih --out data/nih_224 --size 224",
        _NOTES,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"kind of data set: {', '.join(sources.SOURCES)}")
    add(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the original images and their table",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write: new, empty, or begun by the same command",
    )
    add(
        "--size",
        type=int,
        default=224,
        metavar="S",
        help="height and width of the prepared images in pixels (default: 224)",
    )
    add(
        "--csv",
        default="",
        metavar="FILE",
        help="table to read in place of the source's own (default: the source's own)",
    )
    add(
        "--part",
        metavar="I/N",
        help="write only the I-th of N shares, I from 0 to N-1 (default: everything)",
    )
    add(
        "--processes",
        type=int,
        default=_cores(),
        metavar="P",
        help="worker processes, at least 1 (default: one a core)",
    )
    add(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help="absent images: 'error' stops if they are more than --max-unreadable, 'skip' leaves "
        "them out (default: error)",
    )
    add(
        "--max-unreadable",
        "--config.data.max_unreadable",
        type=float,
        default=MAX_UNREADABLE,
        metavar="SHARE",
        help=f"share of the images that may be refused (default: {MAX_UNREADABLE})",
    )
    add(
        "--value-range",
        "--config.data.value_range",
        default=CONTAINER,
        metavar="RANGE",
        help=f"values that are black and white: {VALUE_RANGES} (default: {CONTAINER})",
    )
    add(
        "--views",
        "--config.data.views",
        choices=sources.VIEWS,
        default="frontal",
        help="images to prepare: frontal ones, or all (default: frontal)",
    )
    return parser


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--part is {text!r}: give i/n with i from 0 to n-1, such as 0/4.")
    return int(match[1]), int(match[2])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return _parser().run(_prepare, argv)


def _prepare(options: argparse.Namespace) -> int:
    refused = prepare(
        options.name,
        options.source,
        options.out,
        size=options.size,
        csv=options.csv,
        part=_part(options.part) if options.part else None,
        processes=options.processes,
        missing=options.missing,
        max_unreadable=options.max_unreadable,
        value_range=options.value_range,
        views=options.views,
    )
    done = f"part {options.part}" if options.part else str(options.out)
    print(f"{done}: prepared, {len(refused)} images refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
