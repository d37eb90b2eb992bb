"""``python -m charm_jax.eval``: what a run's scores are worth, as table, JSON and predictions."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from charm_jax.config import build, cli, validate
from charm_jax.config.cli import say
from charm_jax.eval import files
from charm_jax.eval import page as evaluation_report
from charm_jax.eval.text import table
from charm_jax.inference import loaded, stored_calibration
from charm_jax.inference.loaded import Subject
from charm_jax.inference.rows import part_outputs
from charm_jax.metrics import calibration, comparison, subgroups, summary
from charm_jax.runs import data as run_data
from charm_jax.runs import folder as runs
from charm_jax.runs.banks import TRAINED
from charm_jax.runs.cases import Known
from data_pipelines.errors import InputError
from data_pipelines.tables import splits


def main(argv: list[str]) -> int:
    """Evaluates a checkpoint of a run; returns the exit code.

    Raises:
        InputError: no such run, checkpoint or part, bad data, or nothing to compare with.
    """
    run, config, own, values = _parse(argv)
    validate.check(config)
    data = run_data.load_data(config)
    for note in data.notes:
        say(note)
    rows = data.split.rows(run_data.stage_names(config)[-1], values.split)
    model = build.build_model(config, data)
    if run is None:
        subject = loaded.of_file(config, model)
    else:
        subject = loaded.of_run(run, values.checkpoint, config, model, data.table, values.memory)
    known = subject.known(data.table)
    loaded.check_unseen(known, rows, data.split.rule, values.split, subject)
    other = _other(config, data, rows, values)
    say(f"Evaluating {subject.said}.")
    evaluate = partial(part_outputs, subject.state, build.eval_step(config, model))
    outputs = evaluate(known, config, data, rows, f"evaluating {values.split}")

    def logits(config: ConfigDict, data: run_data.Data, rows: np.ndarray) -> np.ndarray:
        known = subject.known(data.table)
        return evaluate(known, config, data, rows, "calibrating on val")["logits"]

    fitted = stored_calibration.load_or_fit(subject, own, data, logits)
    scored = summary.Scored(
        outputs["logits"], data.table.labels[rows], data.table.patients[rows], data.table.findings
    )
    metrics = {
        **_described(config, data, rows, known),
        "split": values.split,
        **subject.history,
        "bank": subject.bank_of(known, rows),
        **_scored(scored, data, rows, subject, fitted, values.interval),
    }
    if other is not None:
        metrics["comparison"] = _compared(scored, *other, values)
    out = subject.folder / "eval" / values.split
    out.mkdir(parents=True, exist_ok=True)
    # Last: where it is missing the tables count as none, whatever stopped this.
    (out / "metrics.json").unlink(missing_ok=True)
    _write_tables(out, data, rows, outputs, subject)
    runs.write_json(out / "metrics.json", metrics)
    print(table(metrics))
    say(f"Written to {out}.")
    if data.refused:
        say(f"warning: {data.refused:,} image files are refused and not evaluated.")
    page = out / "report.html"
    evaluation_report.write(page, metrics, config, data, rows, outputs, subject, known)
    say(f"Report: {page}")
    return 1 if data.refused else 0


def _described(
    config: ConfigDict, data: run_data.Data, rows: np.ndarray, known: Known
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
        "leak_of_all": int(known.seen[rows].sum()),
        "leak_seen": int(known.trained_on[rows].sum()),
    }


def _scored(
    scored: summary.Scored,
    data: run_data.Data,
    rows: np.ndarray,
    subject: Subject,
    fitted: dict[str, Any] | None,
    method: str,
) -> dict[str, Any]:
    """What the scores are worth, and with which thresholds and temperatures."""
    cases = data.table
    given = dict(zip(cases.findings, data.prevalence, strict=True))
    trained = subject.trained or {}
    result = summary.score(
        scored,
        fitted=fitted or calibration.nothing(cases.findings),
        # A run's own prevalences: other data may have no training part at all.
        prevalence=trained.get("prevalence", given),
        attributes=subgroups.attributes(cases.views[rows], cases.sexes[rows], cases.ages[rows]),
        method=method,
    )
    described = None
    if fitted is not None:
        described = {
            "checkpoint": fitted["checkpoint"],
            "split_sha256": fitted["split_sha256"],
            "on_these_images": bool(
                stored_calibration.fitted_on(subject, fitted, cases)[rows].any()
            ),
        }
    return result | {"calibration": described}


def _other(
    config: ConfigDict, data: run_data.Data, rows: np.ndarray, values: flags.FlagValues
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Metrics and logits of the run to compare with, read before anything is evaluated."""
    if not values.compare:
        return None
    folder = runs.find_evaluated(Path(config.runs_dir), values.compare)
    sha256 = splits.part_summary(data.table, rows)["sha256"]
    images, findings = data.table.images[rows], data.table.findings
    return files.read_other(folder, values.split, images, findings, sha256)


def _compared(
    scored: summary.Scored, other: dict[str, Any], logits: np.ndarray, values: flags.FlagValues
) -> dict[str, Any]:
    compared = comparison.compare(scored, logits, values.interval)
    method = {"auroc": values.interval, "average_precision": "bootstrap"}
    described = {"run": values.compare, "checkpoint": other["checkpoint"]}
    return {**described, "interval_method": method, **compared}


def _write_tables(
    out: Path,
    data: run_data.Data,
    rows: np.ndarray,
    outputs: dict[str, np.ndarray],
    subject: Subject,
) -> None:
    path = out / "predictions.csv"
    files.write_predictions(path, data.table, rows, outputs["logits"])
    path = out / "retrieval.csv"
    path.unlink(missing_ok=True)  # an earlier network may have had a bank
    if "slots" in outputs:
        files.write_retrieval(
            path,
            data.table.images[rows],
            subject.cases(),
            np.asarray(subject.state.memory.case_ids)[outputs["slots"]],
            outputs["similarities"],
            outputs["valid"],
        )


def _parse(argv: list[str]) -> tuple[Path | None, ConfigDict, ConfigDict, flags.FlagValues]:
    """The run (None for weights without one), the config, that of the run itself, and the flags."""
    path, argv = cli.split_config_flag(argv)
    if path is not None:
        config, values = cli.load_and_parse(Path(path), argv, _define_flags)
        _check_without_run(config, values)
        return None, config, config, values
    allowed, shown = ("config.data.", "config.runs_dir"), "--config.data.* and --config.runs_dir"
    run, own, config, values = loaded.parse_run(argv, _define_flags, allowed, shown)
    return run, config, own, values


def _check_without_run(config: ConfigDict, values: flags.FlagValues) -> None:
    """Refuses what means nothing where weights are evaluated without their run.

    Raises:
        InputError: --run, --checkpoint, or no file that could hold a classifier.
    """
    if (
        values["run"].present
        or values["checkpoint"].present
        or values["memory"].present
        or config.model.init_from == "random"
    ):
        raise InputError(
            "--config evaluates weights without a run: give them with "
            "--config.model.init_from=FILE, and neither --run nor --checkpoint nor --memory."
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
    flags.DEFINE_string(
        "memory", TRAINED, "A bank that charm_jax.memory made of the run.", flag_values=values
    )
    flags.DEFINE_string(
        "compare", "", "Name or folder of a run evaluated on the same images.", flag_values=values
    )
    flags.DEFINE_enum(
        "interval",
        "bootstrap",
        list(summary.INTERVALS),
        "Intervals of AUROC: by patients, or DeLong's, which takes images for independent.",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run(main)
