"""Predict the findings of image files with a trained run.

usage: charm-jax predict FILE... [--run RUN] [options]

    charm-jax predict chest.png more/ --run demo

FILE is a PNG, JPEG, TIFF or DICOM file, or a folder of them. A terminal gets text, anything else a
JSON object for each image. exit codes: 0 done; 1 done, with some images unread; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import dataclasses
import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from charm_jax.config import cli, validate
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.inference import loaded
from charm_jax.inference.predictor import Predictor
from charm_jax.inference.records import Record
from charm_jax.predict import text
from charm_jax.predict.overlays import Overlays
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs.arguments import CHECKPOINT, MEMORY, RUN, find_run, read_settings
from charm_jax.runs.banks import TRAINED
from data_pipelines.atomic_files import check_writable
from data_pipelines.errors import InputError
from data_pipelines.loading import given as given_images
from data_pipelines.loading.given import GivenImages
from data_pipelines.progress import progress

_OPTIONS = {
    **RUN,
    **CHECKPOINT,
    **MEMORY,
    "out": Option("predictions", "folder of the pictures"),
    "overlays": Option(True, "draw pictures"),
    "json": Option(False, "JSON lines on a terminal, too"),
}


def main(argv: list[str]) -> int:
    """Predict every image and return the exit code, 1 if some could not be read.

    Raises:
        InputError: no image, no such run, checkpoint or memory, or an output among the images.
    """
    given, run, config, values = _parse(argv)
    images = given_images.find(given)
    if values.overlays:
        _check_out(Path(values.out), given)
    if images.others:
        say(
            f"{images.others:,} files of the folders are left out, which are neither PNG, JPEG, "
            "TIFF nor DICOM."
        )
    # The data may have moved since training; the given files alone are read with another range.
    model = loaded.load_run(run, values.checkpoint, values.memory)
    trained = model.settings.data.value_range
    settings = dataclasses.replace(
        config, data=dataclasses.replace(config.data, value_range=trained)
    )
    model = dataclasses.replace(model, settings=settings)
    predictor = Predictor(model, config.data.value_range)
    _announce(predictor)
    bad = _print_all(predictor, images, values)
    if bad:
        say(f"warning: {bad:,} of {len(images.paths):,} images could not be read.")
    return 1 if bad else 0


def _origin(predictor: Predictor) -> Record:
    """Describe the model; every record repeats it, so that each line is complete."""
    model = predictor.model
    own = None if model.state.memory is None else TRAINED
    return {
        "run": model.run.as_posix(),
        "checkpoint": model.checkpoint,
        "memory": model.provenance.get("memory", own),
        "trained_on_simulated": model.provenance["trained_on_simulated"],
        "uncalibrated": predictor.calibrator.uncalibrated(),
        "undecided": predictor.calibrator.undecided(),
        "note": DISCLAIMER,
    }


def _print_all(predictor: Predictor, images: GivenImages, values: flags.FlagValues) -> int:
    """Print a record for each image; return how many could not be read."""
    scale, bad = predictor.calibrator, 0
    overlays = (
        Overlays(Path(values.out), predictor.size, predictor.value_range)
        if values.overlays
        else None
    )
    origin = _origin(predictor)
    limits = [None if np.isnan(limit) else float(limit) for limit in scale.thresholds()]
    thresholds = dict(zip(scale.findings, limits, strict=True))
    as_text = sys.stdout.isatty() and not values.json
    with progress(total=len(images.paths), desc="predicting", unit="images") as bar:
        found = predictor.predict_files(images, heat_maps=values.overlays)
        for row, (record, heats) in enumerate(found):
            if overlays is not None and "error" not in record:
                name, path = images.names[row], images.paths[row]
                try:
                    record["overlays"] = overlays.write(name, path, heats)
                except InputError as error:  # the file has changed since
                    record = {"file": record["file"], "error": str(error)}
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    record = {"file": record["file"], "error": "its pictures' paths are too long"}
            bad += "error" in record
            if "error" in record:
                tqdm.write(f"warning: {record['file']} is left out: {record['error']}", sys.stderr)
            else:
                record |= origin
            line = text.describe(record, thresholds) if as_text else json.dumps(record)
            # A file's name may have bytes that are no text.
            encoding = sys.stdout.encoding or "utf-8"
            tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), sys.stdout)
            bar.update()
    if as_text:
        print(DISCLAIMER)
    return bad


def _announce(predictor: Predictor) -> None:
    model, undecided = predictor.model, predictor.calibrator.undecided()
    simulated = ", trained on SIMULATED images" if model.trained["simulated"] else ""
    say(f"Predicting with {model.description}{simulated}. {DISCLAIMER}")
    if undecided:
        say(f"Without a threshold, and never reported: {', '.join(undecided)}.")


def _check_out(out: Path, given: list[str]) -> None:
    """Check the folder of the pictures, which may not be one that images are read from.

    Raises:
        InputError: the output lies in one of them, or is read-only.
    """
    check_writable(out, "name another folder with --out, or draw nothing with --nooverlays")
    for folder in given:
        if os.path.isdir(folder) and out.resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(
                f"The pictures would be written to {out}, inside the image folder {folder}: choose "
                "another folder with --out."
            )


def _parse(argv: list[str]) -> tuple[list[str], Path, Settings, flags.FlagValues]:
    """Return the files, the run, its settings and the flags."""
    keys = ("data.dir", "data.csv", "data.value_range", "runs_dir")
    arguments = cli.parse(cli.Command(__doc__, _OPTIONS, keys, words=True), argv)
    run = find_run(arguments)
    config = read_settings(run, arguments)
    validate.check(config)
    return arguments.words, run, config, arguments.flags


if __name__ == "__main__":
    cli.run(main)
