"""``charm-jax phantom``: draw simulated chest X-rays."""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import argparse
import sys
from pathlib import Path

from data_pipelines.command_line import CommandParser
from data_pipelines.phantom.draw import contact_sheet, write_phantoms

_SIZES = (
    ("train_images", 2400, "number of images of train_val"),
    ("test_images", 800, "number of images of test"),
    ("image_size", 64, "height and width in pixels, at least 16"),
    ("seed", 0, "seed of patients, findings and pixels, not negative"),
    ("min_test_positives", 20, "minimum number of test images with each finding"),
    ("min_train_positives", 24, "minimum number of train_val images with each finding"),
)


def _parser() -> CommandParser:
    parser = CommandParser(
        "phantom",
        "Draw simulated chest X-rays in the layout of ChestX-ray14, for use without patient data.",
        "--out data/phantom --train_images 2400 --test_images 800 --image_size 64",
        "The same options give the same images. A folder that holds exactly this set is kept.\n\n"
        "exit codes: 0 done; 2 bad input",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the simulated set: new or empty"
    )
    target.add_argument(
        "--contact_sheet",
        type=Path,
        metavar="FILE",
        help="PNG file to draw instead: eight normal chests and four examples of each finding",
    )
    for name, default, explanation in _SIZES:
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{explanation} (default: {default})",
        )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return _parser().run(_draw, argv)


def _draw(options: argparse.Namespace) -> int:
    if options.contact_sheet:
        contact_sheet(options.contact_sheet)
    else:
        sizes = {name: getattr(options, name) for name, _, _ in _SIZES}
        write_phantoms(options.out, **sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
