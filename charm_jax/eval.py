"""``python -m charm_jax.eval``: a run's AUROC for each finding as table, JSON and predictions."""

import csv
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from charm_jax import command_line, config_check, experiment, recipe, runs
from charm_jax.checkpoints import Checkpoints, DamagedCheckpoint
from charm_jax.command_line import say
from charm_jax.metrics import summarise
from charm_jax.state import TrainState
from data_pipelines.errors import InputError
from data_pipelines.splits import part_summary

DISCLAIMER = "Research software, not a medical device."


def main(argv: list[str]) -> int:
    """Evaluates a checkpoint of a run; returns the exit code.

    Raises:
        InputError: no such run, checkpoint or part, or bad data.
    """
    run, config, values = _parse(argv)
    config_check.check(config)
    data = experiment.load_data(config)
    rows = data.split.rows(experiment.stage_names(config)[-1], values.split)
    state, name, model = _restore(run, config, data, values.checkpoint)
    batch = max(config.stages[stage].batch_size for stage in experiment.stage_names(config))
    step = experiment.eval_step(model)
    z = experiment.logits(config, data, rows, batch, step, state, f"evaluating {values.split}")
    scores = np.asarray(jax.nn.sigmoid(z))
    # Ranks of logits, not of scores: float32 sigmoids tie near 0 and 1.
    metrics = _metrics(
        data, rows, values.split, name, summarise(z, data.table.labels[rows], data.table.findings)
    )
    out = run / "eval" / values.split
    out.mkdir(parents=True, exist_ok=True)
    _write_predictions(out / "predictions.csv", data, rows, scores)
    runs.write_json(out / "metrics.json", metrics)
    print(table(metrics))
    say(f"Written to {out}.")
    return 0


def _parse(argv: list[str]) -> tuple[Path, ConfigDict, flags.FlagValues]:
    """The run, its config with the data keys of the command line, and the flags."""
    defaults = recipe.defaults()
    first = command_line.parse(argv, defaults, _define_flags)
    run = runs.find(Path(defaults.runs_dir), first.run)
    config = recipe.defaults()
    command_line.merge(config, runs.read_json(run / "config.json"), str(run / "config.json"))
    values = command_line.parse(argv, config, _define_flags)
    for argument in argv:
        key = argument.split("=", 1)[0]
        if key.startswith("--config.") and not key.startswith(
            ("--config.data.", "--config.runs_dir")
        ):
            raise InputError(
                f"{key} cannot change what a run was trained with: only --config.data.* can."
            )
    return run, config, values


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


def _restore(
    run: Path, config: ConfigDict, data: experiment.Data, checkpoint: str
) -> tuple[TrainState, str, Any]:
    checkpoints = Checkpoints(run / "checkpoints", runs.STAGES)
    stage, step = runs.resolve_checkpoint(checkpoints, checkpoint)
    model = experiment.build_model(config, data)
    try:
        state, _ = checkpoints.restore(stage, step, experiment.state_shapes(model, config))
    except DamagedCheckpoint as error:
        raise InputError(f"{error} Choose another with --checkpoint.") from error
    finally:
        checkpoints.close()
    say(f"Evaluating checkpoint {stage}/{step} of {run}.")
    return state, f"{stage}/{step}", model


def _metrics(
    data: experiment.Data, rows: np.ndarray, part: str, checkpoint: str, summary: dict[str, Any]
) -> dict[str, Any]:
    described = part_summary(data.table, rows)
    return {
        "source": data.table.source,
        "simulated": data.table.simulated,
        "rule": data.split.rule,
        "split": part,
        "split_sha256": described["sha256"],
        "leak_images": data.split.leak_images,
        "leak_of": data.split.leak_of,
        "leak": experiment.describe_leak(data),
        "checkpoint": checkpoint,
        "n_images": described["images"],
        "n_patients": described["patients"],
        "images_missing": len(data.table.images) - int(data.table.present.sum()),
        **summary,
    }


def table(metrics: dict[str, Any]) -> str:
    """The metrics as text, a line a finding."""
    simulated = "SIMULATED images" if metrics["simulated"] else "images"
    lines = [
        f"{metrics['source']}, part '{metrics['split']}' of rule '{metrics['rule']}': "
        f"{metrics['n_images']:,} {simulated}, {metrics['n_patients']:,} patients, checkpoint "
        f"{metrics['checkpoint']}, sha256 {metrics['split_sha256'][:12]}",
        metrics["leak"],
    ]
    if metrics["images_missing"]:
        lines.append(f"{metrics['images_missing']:,} images of the table are missing.")
    lines += ["", f"{'finding':<20} {'AUROC':>7} {'positives':>10}"]
    for name, values in metrics["findings"].items():
        auroc = "-" if values["auroc"] is None else f"{values['auroc']:.4f}"
        lines.append(f"{name:<20} {auroc:>7} {values['positives']:>10,}")
    macro = "undefined" if metrics["macro_auroc"] is None else f"{metrics['macro_auroc']:.4f}"
    defined = len(metrics["findings"]) - len(metrics["undefined"])
    lines += ["", f"macro AUROC {macro} over {defined} findings"]
    if metrics["undefined"]:
        lines.append(f"without both classes, left out: {', '.join(metrics['undefined'])}")
    return "\n".join([*lines, DISCLAIMER])


def _write_predictions(
    path: Path, data: experiment.Data, rows: np.ndarray, scores: np.ndarray
) -> None:
    findings = data.table.findings
    header = ["image", "patient", *findings, *(f"{name}_label" for name in findings)]
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row, score in zip(rows, scores, strict=True):
            labels = ["" if label < 0 else int(label) for label in data.table.labels[row]]
            known = [data.table.images[row], data.table.patients[row]]
            writer.writerow([*known, *(f"{s:.9g}" for s in score), *labels])
    os.replace(draft, path)


if __name__ == "__main__":
    command_line.run(main)
