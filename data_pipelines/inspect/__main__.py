"""``charm-jax inspect``: describe a data set before training on it."""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import argparse
import sys
from pathlib import Path
from typing import Any

from data_pipelines import sources
from data_pipelines.atomic_files import whole_file
from data_pipelines.command_line import CommandParser
from data_pipelines.images.decode import CONTAINER, VALUE_RANGES
from data_pipelines.inspect.inspection import inspect
from data_pipelines.inspect.text import summary_text
from data_pipelines.prepared.dataset import is_prepared, read_identity
from data_pipelines.tables.splits import FORMS


def _parser() -> CommandParser:
    parser = CommandParser(
        "inspect",
        "Count, measure and picture a data set before training, and report leakage and duplicates.",
        "data/nih --split official --sample 5000 --out inspection/nih",
        "A prepared folder is read as the source, at the size and with the range of values that it "
        "was prepared with.\n\n"
        "exit codes: 0 done; 1 done, with some images refused (quarantine.csv); 2 bad input",
    )
    add = parser.add_argument
    # The sources' messages name the keys of a config, so those work here, too.
    add("dir", type=Path, metavar="DIR", help="folder of the data")
    add(
        "--source",
        "--config.data.source",
        metavar="NAME",
        help=f"kind of data set: {', '.join(sources.SOURCES)} (default: nih_chest_xray14)",
    )
    add(
        "--csv",
        "--config.data.csv",
        metavar="FILE",
        default="",
        help="table to read in place of the source's own (default: the source's own)",
    )
    add(
        "--split",
        "--config.data.split",
        metavar="RULE",
        default="official",
        help=f"split rule: {', '.join(FORMS)} (default: official)",
    )
    add(
        "--size",
        "--config.data.image_size",
        type=int,
        metavar="S",
        help="height and width at which images are read, in pixels, at least 16 (default: 64)",
    )
    add(
        "--value-range",
        "--config.data.value_range",
        metavar="RANGE",
        help=f"values that are black and white: {VALUE_RANGES} (default: {CONTAINER})",
    )
    add(
        "--uncertain",
        "--config.data.uncertain",
        metavar="POLICY",
        default="ignore",
        help="labels that a report calls possible: "
        f"{', '.join(sources.UNCERTAIN_POLICIES)} (default: ignore)",
    )
    add(
        "--views",
        "--config.data.views",
        metavar="VIEWS",
        help=f"images to read: {', '.join(sources.VIEWS)} (default: frontal)",
    )
    add(
        "--sample",
        type=int,
        metavar="N",
        default=5000,
        help="maximum number of images to measure, chosen at random; 0 for all (default: 5000)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write (default: inspection/<name of the data folder>)",
    )
    return parser


def _defaults(directory: Path) -> dict[str, Any]:
    """Return the source, image size, value range and views to read a folder with."""
    if is_prepared(directory):
        return read_identity(directory)
    return {"source": "nih_chest_xray14", "size": 64, "value_range": CONTAINER, "views": "frontal"}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return _parser().run(_inspect, argv)


def _inspect(options: argparse.Namespace) -> int:
    defaults = _defaults(options.dir)
    source, size = options.source or defaults["source"], options.size or defaults["size"]
    out = options.out or Path("inspection", options.dir.resolve().name)
    value_range = options.value_range or defaults["value_range"]
    table = sources.load(
        source,
        options.dir,
        options.csv,
        value_range,
        options.uncertain,
        options.views or defaults["views"],
    )
    table.store.check_size(size)
    for warning in table.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    summary = inspect(table, options.split, size=size, sample=options.sample, out=out)
    text = summary_text({"directory": str(options.dir), **summary})
    with whole_file(out / "summary.txt") as file:
        file.write(text)
    print(f"{text}\nSummary, lists and pictures: {out}")
    return int(summary["images"]["refused"] > 0)


if __name__ == "__main__":
    sys.exit(main())
