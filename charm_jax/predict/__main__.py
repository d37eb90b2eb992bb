"""Predict the findings of image files with a trained run.

usage: charm-jax predict FILE... [--run RUN ...] [options]

    charm-jax predict chest.png more/ --run demo
    charm-jax predict chest.png --run seed0 --run seed1 --coverage 0.9

FILE is a PNG, JPEG, TIFF or DICOM file, or a folder of them. Several runs are an ensemble: the mean
of their calibrated logits is predicted, with the evidence of each. A terminal gets text, anything
else a JSON object for each image. exit codes: 0 done; 1 done, with some images unread or without
the DICOM results that were asked for; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import dataclasses
import errno
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from tqdm import tqdm

from charm_jax.config import cli, validate
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.inference import ensemble, loaded
from charm_jax.inference.ensemble_predictor import EnsemblePredictor
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.predictor import Heats, Predictor
from charm_jax.inference.records import Record
from charm_jax.metrics import ood
from charm_jax.predict import text
from charm_jax.predict.overlays import Overlays
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs.arguments import (
    CHECKPOINT,
    COVERAGE,
    MEMORY,
    RUNS,
    TTA,
    find_runs,
    read_coverage,
    read_settings,
)
from data_pipelines.atomic_files import check_writable
from data_pipelines.errors import InputError
from data_pipelines.images.dicom import is_dicom_file
from data_pipelines.loading import given as given_images
from data_pipelines.loading.given import GivenImages
from data_pipelines.progress import progress

if TYPE_CHECKING:
    from charm_jax.predict.dicom_results import DicomResults
    from charm_jax.predict.dicomweb import DicomWeb

_OPTIONS = {
    **RUNS,
    **CHECKPOINT,
    **MEMORY,
    "out": Option("predictions", "folder of the pictures"),
    "overlays": Option(True, "draw pictures"),
    "dicom_out": Option(
        None, "folder for a DICOM report and a capture of the maps of each DICOM file"
    ),
    "dicomweb": Option(
        None, "URL of a study or series on a DICOMweb server, which gets DICOM results, too"
    ),
    **TTA,
    **COVERAGE,
    "json": Option(False, "JSON lines on a terminal, too"),
}


def main(argv: list[str]) -> int:
    """Predict every image and return the exit code, 1 if some could not be read.

    Raises:
        InputError: no image, no such run, checkpoint or memory, an output among the images, or a
            server that fails.
    """
    given, runs, configs, values, coverage = _parse(argv)
    if not values.dicomweb:
        return _predict(_Job(given, values.dicom_out), runs, configs, values, coverage)
    if given:
        raise InputError(f"--dicomweb says which images: leave out {given[0]}.")
    _check_packages("dicomweb", "dicomweb_client")
    from charm_jax.predict.dicomweb import DicomWeb

    web = DicomWeb(values.dicomweb)
    with tempfile.TemporaryDirectory(prefix="charm_jax_") as folder:
        images = Path(folder, "images")
        images.mkdir()
        job = _Job([str(images)], values.dicom_out or f"{folder}/results", web, web.fetch(images))
        return _predict(job, runs, configs, values, coverage)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Hold what is predicted, and where its DICOM goes.

    Attributes:
        given: files and folders.
        dicom_out: folder of DICOM results.
        web: server that the results are sent to, too.
        urls: where it has the images.
    """

    given: list[str]
    dicom_out: str | None
    web: "DicomWeb | None" = None
    urls: Mapping[Path, str] = dataclasses.field(default_factory=dict)


def _predict(
    job: _Job,
    runs: list[Path],
    configs: list[Settings],
    values: flags.FlagValues,
    coverage: float | None,
) -> int:
    images = given_images.find(job.given)
    if values.overlays:
        remedy = "name another folder with --out, or draw nothing with --nooverlays"
        _check_out(Path(values.out), job.given, remedy)
    if job.dicom_out is not None:
        _check_dicom_out(job.dicom_out, job.given, images)
    if images.others:
        say(
            f"{images.others:,} files of the folders are left out, which are neither PNG, JPEG, "
            "TIFF nor DICOM."
        )
    pairs = zip(runs, configs, strict=True)
    models = [_load(run, config, values) for run, config in pairs]
    value_range = configs[0].data.value_range
    if len(models) == 1:
        predictor = Predictor(models[0], value_range, coverage=coverage)
    else:
        combined = ensemble.combine(models, Path(configs[0].runs_dir))
        predictor = EnsemblePredictor(combined, value_range, coverage)
    _announce(predictor)
    unread, unwritten = _print_all(predictor, images, job, values)
    if unread:
        say(f"warning: {unread:,} of {len(images.paths):,} images could not be read.")
    if unwritten:
        say(
            f"warning: {unwritten:,} of {len(images.paths):,} images got no DICOM results: their "
            "warnings say why."
        )
    return 1 if unread or unwritten else 0


def _load(run: Path, config: Settings, values: flags.FlagValues) -> LoadedModel:
    """Load a run; its data may have moved, and only given files are read with another range."""
    model = loaded.load_run(run, values.checkpoint, values.memory)
    data = dataclasses.replace(config.data, value_range=model.settings.data.value_range)
    model = dataclasses.replace(model, settings=dataclasses.replace(config, data=data))
    return model.with_tta() if values.tta else model


def _print_all(
    predictor: Predictor | EnsemblePredictor,
    images: GivenImages,
    job: _Job,
    values: flags.FlagValues,
) -> tuple[int, int]:
    """Print a record for each image; return how many are unread, and without DICOM results."""
    scale, unread, unwritten = predictor.calibrator, 0, 0
    overlays = (
        Overlays(Path(values.out), predictor.size, predictor.value_range)
        if values.overlays
        else None
    )
    # Every record repeats it, so that each line is complete.
    origin = predictor.origin() | {"note": DISCLAIMER}
    limits = [None if np.isnan(limit) else float(limit) for limit in scale.thresholds()]
    thresholds = dict(zip(scale.findings, limits, strict=True))
    results = _dicom_results(predictor, thresholds, job.dicom_out) if job.dicom_out else None
    as_text = sys.stdout.isatty() and not values.json
    with progress(total=len(images.paths), desc="predicting", unit="images") as bar:
        heat_maps = values.overlays or results is not None
        found = predictor.predict_files(images, heat_maps=heat_maps)
        for row, (record, heats) in enumerate(found):
            path = images.paths[row]
            record["file"] = job.urls.get(path, record["file"])
            if overlays is not None and "error" not in record:
                record = _drawn(record, overlays, images.names[row], path, heats)
            if "error" in record:
                unread += 1
                tqdm.write(f"warning: {record['file']} is left out: {record['error']}", sys.stderr)
            else:
                record |= origin
            if results is not None and "error" not in record and is_dicom_file(path):
                try:
                    files = results.write(path, record, heats)
                    if values.dicom_out:
                        record["dicom"] = files
                    if job.web is not None:
                        record["stored"] = job.web.store(files)
                except InputError as error:
                    unwritten += 1
                    record["warnings"].append(str(error))
            line = text.describe(record, thresholds) if as_text else json.dumps(record)
            # A file's name may have bytes that are no text.
            encoding = sys.stdout.encoding or "utf-8"
            tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), sys.stdout)
            bar.update()
    if as_text:
        print(DISCLAIMER)
    return unread, unwritten


def _drawn(record: Record, overlays: Overlays, name: str, path: Path, heats: Heats) -> Record:
    """Return the record with its pictures, or one with the error of drawing them."""
    try:
        return record | {"overlays": overlays.write(name, path, heats)}
    except InputError as error:  # the file has changed since
        return {"file": record["file"], "error": str(error)}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return {"file": record["file"], "error": "its pictures' paths are too long"}


def _dicom_results(
    predictor: Predictor | EnsemblePredictor, thresholds: Mapping[str, float | None], out: str
) -> "DicomResults":
    from charm_jax.predict.dicom_results import DicomResults

    network = predictor.model.network_sha256
    return DicomResults(Path(out), thresholds, network, predictor.value_range)


def _announce(predictor: Predictor | EnsemblePredictor) -> None:
    model, undecided = predictor.model, predictor.calibrator.undecided()
    simulated = ", trained on SIMULATED images" if model.trained["simulated"] else ""
    say(f"Predicting with {model.description}{simulated}. {DISCLAIMER}")
    if undecided:
        say(f"Without a threshold, and never reported: {', '.join(undecided)}.")
    reference = predictor.calibrator.reference
    if reference is not None and reference["n_images"] < ood.ENOUGH:
        say(
            f"warning: Only {reference['n_images']} validation images tell which images are "
            f"unfamiliar, so ordinary ones may be flagged: {ood.ENOUGH} are enough."
        )


def _check_out(out: Path, given: list[str], remedy: str) -> None:
    """Check an output folder, which may not be one that images are read from.

    Raises:
        InputError: the output lies in one of them, or is read-only.
    """
    check_writable(out, remedy)
    for folder in given:
        if os.path.isdir(folder) and out.resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(
                f"The output {out} would lie inside the image folder {folder}: {remedy}."
            )


def _check_dicom_out(out: str, given: list[str], images: GivenImages) -> None:
    """Check that DICOM results can be written; say how many images get none.

    Raises:
        InputError: there is no DICOM image, a package is missing, or the folder is unsuitable.
    """
    _check_out(Path(out), given, "name another folder with --dicom_out")
    _check_packages("dicom_out", "highdicom")
    others = sum(not is_dicom_file(path) for path in images.paths)
    if others == len(images.paths):
        raise InputError(
            "None of the images is a DICOM file, and --dicom_out writes results of those alone: "
            "name one, or leave --dicom_out out."
        )
    if others:
        say(f"{others:,} of {len(images.paths):,} images are no DICOM files: no DICOM for these.")


def _check_packages(option: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f'--{option} needs more packages: pip install "charm-jax[dicom]".')


def _parse(
    argv: list[str],
) -> tuple[list[str], list[Path], list[Settings], flags.FlagValues, float | None]:
    """Return the files, the runs, the settings of each, the flags and the coverage."""
    keys = ("data.dir", "data.csv", "data.value_range", "runs_dir")
    arguments = cli.parse(cli.Command(__doc__, _OPTIONS, keys, words=True), argv)
    coverage, runs = read_coverage(arguments), find_runs(arguments)
    configs = [read_settings(run, arguments) for run in runs]
    for config in configs:
        validate.check(config)
    return arguments.words, runs, configs, arguments.flags, coverage


if __name__ == "__main__":
    cli.run(main)
