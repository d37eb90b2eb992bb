"""``python -m charm_jax.eval``: a run's AUROC for each finding as table, JSON and predictions."""

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array
from ml_collections import ConfigDict

from charm_jax import (
    command_line,
    config_check,
    experiment,
    initial_weights,
    recipe,
    run_data,
    runs,
)
from charm_jax.command_line import say
from charm_jax.metrics import macro_auroc_interval, summarise
from charm_jax.model import Charm
from charm_jax.plain import Plain
from charm_jax.state import TrainState
from data_pipelines import splits
from data_pipelines.errors import InputError
from data_pipelines.whole_file import whole_file

DISCLAIMER = "Research software, not a medical device."


def main(argv: list[str]) -> int:
    """Evaluates a checkpoint of a run; returns the exit code.

    Raises:
        InputError: no such run, checkpoint or part, or bad data.
    """
    run, config, values = _parse(argv)
    config_check.check(config)
    data = run_data.load_data(config)
    for note in data.notes:
        say(note)
    stages = run_data.stage_names(config)
    rows = data.split.rows(stages[-1], values.split)
    model = experiment.build_model(config, data)
    if run is None:
        subject = _weights(config, data, model, values.split)
    else:
        subject = _checkpoint(run, config, data, model, values)
    say(f"Evaluating {subject.said}.")
    step = _as_known(experiment.eval_step(config, model), subject.known)
    batch = max(config.stages[stage].batch_size for stage in stages)
    batch += -batch % jax.device_count()
    batches = run_data.evaluation_batches(config, data, rows, batch)
    title = f"evaluating {values.split}"
    z = experiment.evaluated(batches, rows, step, subject.state, title)["logits"]
    out = subject.out
    out.mkdir(parents=True, exist_ok=True)
    _write_predictions(out / "predictions.csv", data, rows, np.asarray(jax.nn.sigmoid(z)))
    metrics = {
        **_described(config, data, rows, subject.known),
        "split": values.split,
        **subject.history,
        **_scored(z, data, rows),
    }
    runs.write_json(out / "metrics.json", metrics)
    print(table(metrics))
    say(f"Written to {out}.")
    if data.refused:
        say(f"warning: {data.refused:,} image files are refused and not evaluated.")
    return 1 if data.refused else 0


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is evaluated.

    Attributes:
        state: the network.
        said: what it is called on screen.
        known: the cases of the table, as the run that filled the bank knows them.
        history: what ``metrics.json`` says of where the network comes from.
        out: folder of the results.
    """

    state: TrainState
    said: str
    known: runs.Known
    history: dict[str, Any]
    out: Path


def _checkpoint(
    run: Path,
    config: ConfigDict,
    data: run_data.Data,
    model: Charm | Plain,
    values: flags.FlagValues,
) -> _Subject:
    trained = runs.read_json(run / "split.json")
    runs.check_findings(run, trained["findings"], data.table)
    known = runs.known_cases(run, data.table)
    rows = data.split.rows(run_data.stage_names(config)[-1], values.split)
    _check_unseen(known, rows, data.split.rule, values.split, run)
    shapes = experiment.state_shapes(model, config)
    state, name = runs.restore(run, values.checkpoint, lambda _: shapes)
    history = {
        "checkpoint": name,
        "trained_on_simulated": trained["simulated"],
        "began_from": _began_from(run),
    }
    out = run / "eval" / values.split
    return _Subject(state, f"checkpoint {name} of {run}", known, history, out)


def _began_from(run: Path) -> str | None:
    """The file of the user's that a run began from, if it did."""
    path = run / "weights.json"
    init_from = runs.read_json(path)["init_from"] if path.exists() else "random"
    return None if init_from in initial_weights.OWN else init_from


def _weights(config: ConfigDict, data: run_data.Data, model: Charm | Plain, part: str) -> _Subject:
    keys = config.model
    new = experiment.new_state(model, config)
    state, file = initial_weights.fill(new, keys.init_from, keys.backbone, whole=True)
    say(initial_weights.sentence(file))
    history = {
        "checkpoint": file.file,
        "trained_on_simulated": None,
        "began_from": None,
        "leak_images": None,
    }
    # Files of other runs may have the same name.
    folder = f"{Path(file.file).stem}-{file.sha256[:8]}"
    out = Path(config.runs_dir) / "weights" / folder / "eval" / part
    state = state.replace(average=None)  # a file has one set of weights
    return _Subject(
        state, f"{file.file} without its run", runs.unknown_cases(data.table), history, out
    )


def _as_known(step: Callable, known: runs.Known) -> Callable:
    """The step on batches whose ids are those of the run that filled the bank."""

    def renumbered(state: TrainState, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        rows = batch["case_id"]
        ids = {"case_id": known.case_ids[rows], "patient_id": known.patient_ids[rows]}
        return step(state, batch | ids)

    return renumbered


def _check_unseen(known: runs.Known, rows: np.ndarray, rule: str, part: str, run: Path) -> None:
    """Refuses a test part that is not one.

    Raises:
        InputError: training or validation saw patients of it, and the rule does not say so itself.
    """
    seen = int(known.seen[rows].sum())
    if seen and part == "test" and rule in splits.DISJOINT:
        raise InputError(
            f"{seen:,} of the {len(rows):,} test images under config.data.split={rule} are of "
            f"patients that the run {run} trained or validated on: evaluate it with the split that "
            "it was trained with."
        )


def _parse(argv: list[str]) -> tuple[Path | None, ConfigDict, flags.FlagValues]:
    """The run (None for weights without one), the config and the flags."""
    defaults = recipe.defaults()
    path, argv = command_line.split_config_flag(argv)
    if path is not None:
        config, values = command_line.load_and_parse(Path(path), argv, _define_flags)
        _check_without_run(config, values)
        return None, config, values
    first = command_line.parse(argv, defaults, _define_flags)
    run = runs.find(Path(defaults.runs_dir), first.run)
    config = recipe.defaults()
    command_line.merge(config, runs.read_json(run / "config.json"), str(run / "config.json"))
    values = command_line.parse(argv, config, _define_flags)
    allowed = ("config.data.", "config.runs_dir")
    command_line.allow_only(argv, allowed, "--config.data.* and --config.runs_dir")
    return run, config, values


def _check_without_run(config: ConfigDict, values: flags.FlagValues) -> None:
    """Refuses what means nothing where weights are evaluated without their run.

    Raises:
        InputError: --run, --checkpoint, or no file that could hold a classifier.
    """
    if values["run"].present or values["checkpoint"].present or config.model.init_from == "random":
        raise InputError(
            "--config evaluates weights without a run: give them with "
            "--config.model.init_from=FILE, and neither --run nor --checkpoint."
        )
    if config.model.init_from == "imagenet":
        raise InputError(
            "--config.model.init_from=imagenet holds no classifier for these findings: train from "
            "it with charm_jax.train."
        )


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "run", "", "Name or folder of a run; the newest by default.", flag_values=values
    )
    flags.DEFINE_enum(
        "split",
        "test",
        ["train", "val", "test", "test_published"],
        "The part to evaluate.",
        flag_values=values,
    )
    flags.DEFINE_string("checkpoint", "best", "best, last or <stage>/<step>.", flag_values=values)


def _described(
    config: ConfigDict, data: run_data.Data, rows: np.ndarray, known: runs.Known
) -> dict[str, Any]:
    """What was evaluated, and how much of it the run had seen."""
    part = splits.part_summary(data.table, rows)
    abnormal = data.table.abnormal[rows]
    present = int(data.table.present.sum())
    return {
        "source": data.table.source,
        "simulated": data.table.simulated,
        "data": config.data.to_dict(),
        "rule": data.split.rule,
        "split_sha256": part["sha256"],
        "n_images": part["images"],
        "n_patients": part["patients"],
        "patients_known": data.table.patients_known,
        "images_present": present,
        "images_missing": len(data.table.images) - present,
        "refused": data.refused,
        "leak_images": int((known.seen[rows] & abnormal).sum()),
        "leak_of": int(abnormal.sum()),
    }


def _scored(z: np.ndarray, data: run_data.Data, rows: np.ndarray) -> dict[str, Any]:
    """AUROC of the logits (their float32 sigmoids would tie near 0 and 1), with an interval."""
    labels, patients = data.table.labels[rows], data.table.patients[rows]
    interval = macro_auroc_interval(z, labels, patients)
    return {"macro_auroc_interval": interval} | summarise(z, labels, data.table.findings)


def table(metrics: dict[str, Any]) -> str:
    """The metrics as text, a line a finding."""
    simulated = "SIMULATED images" if metrics["simulated"] else "images"
    lines = [
        f"{metrics['source']}, part '{metrics['split']}' of rule '{metrics['rule']}': "
        f"{metrics['n_images']:,} {simulated}, {metrics['n_patients']:,} patients, checkpoint "
        f"{metrics['checkpoint']}, sha256 {metrics['split_sha256'][:12]}",
        _leak(metrics),
    ]
    if metrics["trained_on_simulated"] and not metrics["simulated"]:
        lines.append("The network was trained on SIMULATED images.")
    if metrics["images_missing"]:
        lines.append(f"{metrics['images_missing']:,} images of the table are missing.")
    lines += ["", *_findings(metrics["findings"])]
    macro = "undefined" if metrics["macro_auroc"] is None else f"{metrics['macro_auroc']:.4f}"
    defined = len(metrics["findings"]) - len(metrics["undefined"])
    noun = "finding" if defined == 1 else "findings"
    low, high = metrics["macro_auroc_interval"]
    interval = "" if low is None else f" (95 % of patient bootstraps: {low:.4f} to {high:.4f})"
    lines += ["", f"macro AUROC {macro} over {defined} {noun}{interval}"]
    if metrics["undefined"]:
        lines.append(f"without both classes, left out: {', '.join(metrics['undefined'])}")
    return "\n".join([*lines, DISCLAIMER])


def _findings(findings: dict[str, dict[str, Any]]) -> list[str]:
    """A header and a line a finding; unknown labels have a column where there are any."""
    width = max(20, *map(len, findings))
    some_unknown = any(values["unknown"] for values in findings.values())
    unknown = f" {'unknown':>10}" if some_unknown else ""
    lines = [f"{'finding':<{width}} {'AUROC':>7} {'positives':>10}{unknown}"]
    for name, values in findings.items():
        auroc = "-" if values["auroc"] is None else f"{values['auroc']:.4f}"
        unknown = f" {values['unknown']:>10,}" if some_unknown else ""
        lines.append(f"{name:<{width}} {auroc:>7} {values['positives']:>10,}{unknown}")
    return lines


def _leak(metrics: dict[str, Any]) -> str:
    if metrics["trained_on_simulated"] is None:
        return "What these weights were trained on is not known here."
    sentences = []
    if metrics["leak_images"]:
        sentences.append(
            f"LEAK: {metrics['leak_images']:,} of the {metrics['leak_of']:,} abnormal images here "
            "are of patients that the run trained or validated on."
        )
    elif not metrics["patients_known"]:
        sentences.append(
            "The source does not tell patients apart: what training saw of them is not known."
        )
    elif metrics["began_from"] is None:
        sentences.append("Training and validation saw no abnormal image of these patients.")
    if metrics["began_from"] is not None:
        sentences.append(
            f"The run began from {metrics['began_from']}; what that was trained on is not known "
            "here."
        )
    return " ".join(sentences)


def _write_predictions(
    path: Path, data: run_data.Data, rows: np.ndarray, scores: np.ndarray
) -> None:
    findings = data.table.findings
    header = ["image", "patient", *findings, *(f"{name}_label" for name in findings)]
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row, score in zip(rows, scores, strict=True):
            labels = ["" if label < 0 else int(label) for label in data.table.labels[row]]
            patient = data.table.patient_name(data.table.patients[row])
            known = [data.table.images[row], patient]
            writer.writerow([*known, *(f"{s:.9g}" for s in score), *labels])


if __name__ == "__main__":
    command_line.run(main)
