"""``python -m charm_jax.predict FILE... --run RUN``: scores, findings, pictures and the evidence.

FILE is a PNG, JPEG, TIFF or DICOM file or a folder of such, and may be given many times, before the
flags.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from charm_jax.config import build, cli
from charm_jax.config.cli import say
from charm_jax.inference import explain as evidence
from charm_jax.inference import loaded, stored_ood
from charm_jax.inference.loaded import Subject
from charm_jax.predict import records as prediction
from charm_jax.predict import text as prediction_text
from charm_jax.predict.overlays import ATTENTION, Overlays
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs import folder
from charm_jax.runs.banks import TRAINED
from charm_jax.train.step import CompiledStep
from data_pipelines.errors import InputError
from data_pipelines.images import given as given_images
from data_pipelines.images.given import GivenImages
from data_pipelines.loading import augment

_BATCH = 16
_ON_DEVICE = ("main", "anchor", "fused")  # large, and of no use to a reader


def main(argv: list[str]) -> int:
    """Predicts every image; returns the exit code, 1 where some could not be read.

    Raises:
        InputError: no image, no such run, checkpoint or memory, or an output among the images.
    """
    given, run, config, values = _parse(argv)
    images = given_images.find(given)
    _check_out(Path(values.out), given)
    if images.others:
        say(f"{images.others:,} files of the folders do not end as images do and are left out.")
    trained = folder.read_json(run / "split.json")
    findings = tuple(trained["findings"])
    model = build.build_network(config, len(findings), folder.prevalence(run, trained))
    subject = loaded.of_run(run, values.checkpoint, config, model, None, values.memory)
    scale = prediction.Scale(findings, *stored_ood.load_or_fit(subject, config, model))
    _announce(subject, scale)
    overlays = Overlays(Path(values.out), config.data.image_size) if values.overlays else None
    predictor = _Predictor(config, model, subject, scale, overlays)
    bad = _print_all(predictor, images, values)
    if bad:
        say(f"warning: {bad:,} of {len(images.paths):,} images could not be read.")
    return 1 if bad else 0


class _Predictor:
    """A network with all that it takes to say something of a batch of images."""

    def __init__(
        self,
        config: ConfigDict,
        model: Any,
        subject: Subject,
        scale: prediction.Scale,
        overlays: Overlays | None,
    ):
        prepare = partial(augment.evaluation_images, channels=config.model.channels)
        self.size, self.subject, self.scale, self.overlays = (
            config.data.image_size,
            subject,
            scale,
            overlays,
        )
        explain = partial(evidence.explain_step, model=model, prepare=prepare)
        self.explain = CompiledStep(explain, None, None)
        self.grad_cams = jax.jit(partial(evidence.grad_cams, model=model))
        self.bank = None
        if subject.state.memory is not None:
            self.bank = prediction.remembered(subject.state.memory, subject.cases())

    def records(self, images: GivenImages) -> Iterator[prediction.Record]:
        """A record for each image, in order; one that cannot be read has ``error``."""
        known = _known(self.subject, images)
        start = 0
        for pixels, faults in given_images.batches(
            images.paths, image_size=self.size, batch_size=_BATCH
        ):
            rows = range(start, start + len(faults))
            batch = {"image": pixels, **_of_rows(known, rows, len(self.scale.findings))}
            yield from self._of_batch(batch, faults, images, rows, known)
            start += len(faults)

    def _of_batch(
        self,
        batch: dict[str, np.ndarray],
        faults: list[str],
        images: GivenImages,
        rows: range,
        known: dict[str, np.ndarray],
    ) -> list[prediction.Record]:
        explained = self.explain(self.subject.state, batch)
        light = {name: value for name, value in explained.items() if name not in _ON_DEVICE}
        outputs = {name: value[: len(faults)] for name, value in jax.device_get(light).items()}
        said = prediction.records(outputs, self.scale, self.bank)
        heats = self._heats(batch, explained, outputs, said, faults)
        made = []
        for place, row in enumerate(rows):
            record = {"file": images.paths[row].as_posix()}
            if faults[place]:
                made.append(record | {"error": faults[place]})
                continue
            record |= {
                "known_as": str(known["name"][row]) or None,
                "seen_in_training": bool(known["seen"][row]),
            }
            record |= said[place]
            if "attention" in outputs:
                heat = outputs["attention"][place]
                record["attention_range"] = [
                    round(float(heat.min()), 4),
                    round(float(heat.max()), 4),
                ]
            if self.overlays is not None:
                record["overlays"] = self.overlays.write(
                    images.names[row], images.paths[row], heats[place]
                )
            made.append(record | self._origin())
        return made

    def _heats(
        self,
        batch: dict[str, np.ndarray],
        explained: dict[str, jax.Array],
        outputs: dict[str, np.ndarray],
        said: list[prediction.Record],
        faults: list[str],
    ) -> list[dict[str, np.ndarray]]:
        """For each image its maps: attention, and each reported finding's Grad-CAM."""
        heats: list[dict[str, np.ndarray]] = [{} for _ in said]
        if self.overlays is None:
            return heats
        if "attention" in outputs:
            heats = [{ATTENTION: heat} for heat in outputs["attention"]]
        pairs = [
            (row, self.scale.findings.index(name))
            for row, record in enumerate(said)
            if not faults[row]
            for name in record["findings"]
        ]
        for start in range(0, len(pairs), _BATCH):
            some = pairs[start : start + _BATCH]
            rows, findings = np.array([*some, *[(0, 0)] * (_BATCH - len(some))], np.int32).T
            maps = self.grad_cams(self.subject.state, batch, explained, rows, findings)
            for (row, finding), heat in zip(some, np.asarray(maps), strict=False):
                heats[row][self.scale.findings[finding]] = heat
        return heats

    def _origin(self) -> prediction.Record:
        """What made the prediction, so that each line stands for itself."""
        history = self.subject.history
        return {
            "run": self.subject.run.as_posix(),
            "checkpoint": self.subject.checkpoint,
            "memory": history.get("memory", TRAINED if self.bank is not None else None),
            "trained_on_simulated": history["trained_on_simulated"],
            "uncalibrated": self.scale.uncalibrated(),
            "note": DISCLAIMER,
        }


def _known(subject: Subject, images: GivenImages) -> dict[str, np.ndarray]:
    """For each image its ids in the bank, its name there, and whether training saw its patient."""
    n = len(images.names)
    known = {
        "case_id": np.full(n, -1, np.int32),
        "patient_id": np.full(n, -1, np.int32),
        "seen": np.zeros(n, bool),
        "name": np.full(n, "", object),
    }
    trained = subject.trained
    # Drawn images and acquired ones are named alike and have nothing in common.
    alike = [given_images.is_simulated(path) == trained["simulated"] for path in images.paths]
    rows = np.flatnonzero(alike)
    rows = rows[np.argsort(np.array(images.names)[rows])]
    some = GivenImages(tuple(images.names[row] for row in rows), (), 0)
    table = given_images.table_of(some, trained["findings"], simulated=trained["simulated"])
    found = subject.known(table, copies=True)
    known["case_id"][rows] = found.case_ids
    known["patient_id"][rows] = found.patient_ids
    known["seen"][rows] = found.seen
    known["name"][rows] = subject.cases()["image"].reindex(found.case_ids).fillna("").to_numpy()
    return known


def _of_rows(known: dict[str, np.ndarray], rows: range, findings: int) -> dict[str, np.ndarray]:
    """The part of a batch that is not pixels, padded."""
    padding = _BATCH - len(rows)
    ids = {
        name: np.pad(known[name][rows.start : rows.stop], (0, padding), constant_values=-1)
        for name in ("case_id", "patient_id")
    }
    return ids | {"labels": np.full((_BATCH, findings), -1, np.int8)}


def _print_all(predictor: _Predictor, images: GivenImages, values: flags.FlagValues) -> int:
    """Prints a record an image; returns how many could not be read."""
    scale, bad = predictor.scale, 0
    limits = [None if np.isnan(limit) else float(limit) for limit in scale.thresholds()]
    thresholds = dict(zip(scale.findings, limits, strict=True))
    as_text = sys.stdout.isatty() and not values.json
    progress = tqdm(total=len(images.paths), desc="predicting", unit=" images", leave=False)
    with progress:
        for record in predictor.records(images):
            bad += "error" in record
            if "error" in record:
                tqdm.write(f"warning: {record['file']} is left out: {record['error']}", sys.stderr)
            line = prediction_text.text(record, thresholds) if as_text else json.dumps(record)
            tqdm.write(line, sys.stdout)
            progress.update()
    if as_text:
        print(DISCLAIMER)
    return bad


def _announce(subject: Subject, scale: prediction.Scale) -> None:
    simulated = ", trained on SIMULATED images" if subject.trained["simulated"] else ""
    say(f"Predicting with {subject.said}{simulated}. {DISCLAIMER}")
    if scale.uncalibrated():
        say(f"Not calibrated, and never reported: {', '.join(scale.uncalibrated())}.")


def _check_out(out: Path, given: list[str]) -> None:
    """Keeps pictures out of the folders that the images are read from.

    Raises:
        InputError: the output lies in one of them.
    """
    for text in given:
        if Path(text).is_dir() and out.resolve().is_relative_to(Path(text).resolve()):
            raise InputError(
                f"The pictures would be written to {out}, inside the image folder {text}: choose "
                "another folder with --out."
            )


def _parse(argv: list[str]) -> tuple[list[str], Path, ConfigDict, flags.FlagValues]:
    """The files, the run, its config and the flags."""
    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    given, rest = argv[:first], argv[first:]
    keys = ("config.data.dir", "config.data.csv", "config.runs_dir")
    shown = "--config.data.dir, --config.data.csv and --config.runs_dir"
    run, _, config, values = loaded.parse_run(rest, _define_flags, keys, shown)
    return given, run, config, values


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "run", "", "Name or folder of a run; the newest by default.", flag_values=values
    )
    flags.DEFINE_string("checkpoint", "best", "best, last or <stage>/<step>.", flag_values=values)
    flags.DEFINE_string(
        "memory", TRAINED, "A bank that charm_jax.memory made of the run.", flag_values=values
    )
    flags.DEFINE_string("out", "predictions", "Folder of the pictures.", flag_values=values)
    flags.DEFINE_bool("overlays", True, "Draw pictures.", flag_values=values)
    flags.DEFINE_bool("json", False, "JSON lines on a terminal, too.", flag_values=values)


if __name__ == "__main__":
    cli.run(main)
