"""``python -m data_pipelines.phantom``: draw simulated chest X-rays."""

import argparse
import sys
from pathlib import Path

from data_pipelines.errors import InputError
from data_pipelines.phantom.draw import contact_sheet, ensure_phantoms


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.phantom", description=__doc__)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--contact_sheet", type=Path, help="PNG file for an overview of all signs")
    target.add_argument("--out", type=Path, help="folder for a simulated set")
    parser.add_argument("--train_images", type=int, default=2400)
    parser.add_argument("--test_images", type=int, default=800)
    parser.add_argument("--image_size", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min_test_positives", type=int, default=20)
    parser.add_argument("--min_train_positives", type=int, default=24)
    options = vars(parser.parse_args(arguments))
    sheet, directory = options.pop("contact_sheet"), options.pop("out")
    try:
        if sheet:
            contact_sheet(sheet)
        else:
            ensure_phantoms(directory, **options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
