"""Score a run, or a weight file without one, and write a report.

usage: charm-jax eval [--run RUN] [options] [--config.KEY=VALUE ...]
       charm-jax eval --config CONFIG --config.model.init_from=FILE [options]

    charm-jax eval --run demo --split test

With --config all keys of a config are accepted. exit codes: 0 done; 1 done, with some images
refused; 2 bad input.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from charm_jax.config import cli, validate
from charm_jax.config.cli import say
from charm_jax.config.settings import Settings
from charm_jax.eval import files, page
from charm_jax.eval.text import table
from charm_jax.inference import fitted, loaded
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import calibration, comparison, subgroups, summary
from charm_jax.runs import data as run_data
from charm_jax.runs import folder as runs
from charm_jax.runs.arguments import SPLITS, define_run_flags, find_run, read_settings
from charm_jax.runs.cases import CaseMatch
from data_pipelines.errors import InputError
from data_pipelines.tables import splits


def main(argv: list[str]) -> int:
    """Evaluate a checkpoint of a run and return the exit code.

    Raises:
        InputError: no such run, checkpoint or part, bad data, or nothing to compare with.
    """
    run, config, values = _parse(argv)
    validate.check(config)
    data = run_data.load_data(config)
    for note in data.notes:
        say(note)
    rows = data.split.rows(config.stage_names[-1], values.split)
    if run is None:
        model = loaded.load_file(config, data.table.findings)
    else:
        runs.check_findings(run, runs.read_json(run / "split.json")["findings"], data.table)
        model = loaded.load_run(run, values.checkpoint, values.memory)
    match = model.match_cases(data.table)
    loaded.check_unseen(match, rows, data.split.rule, values.split, model)
    other = _other(config, data, rows, values)
    say(f"Evaluating {model.description}.")
    outputs = model.predict_rows(data, rows, f"evaluating {values.split}")
    fitted_values = fitted.load_calibration(model, data)
    scored = summary.Scored(
        outputs["logits"], data.table.labels[rows], data.table.patients[rows], data.table.findings
    )
    metrics = {
        **_described(config, data, rows, match),
        "split": values.split,
        **model.provenance,
        "bank": model.describe_bank(match, rows),
        **_scored(scored, data, rows, model, fitted_values, values.interval),
    }
    if other is not None:
        metrics["comparison"] = _compared(scored, *other, values)
    out = model.folder / "eval" / values.split
    out.mkdir(parents=True, exist_ok=True)
    # Last: where it is missing the tables count as none, whatever stopped this.
    (out / "metrics.json").unlink(missing_ok=True)
    _write_tables(out, data, rows, outputs, model)
    runs.write_json(out / "metrics.json", metrics)
    print(table(metrics))
    say(f"Written to {out}.")
    if data.refused:
        say(f"warning: {data.refused:,} image files are refused and not evaluated.")
    report = out / "report.html"
    page.write(report, metrics, config, data, rows, outputs, model, match)
    say(f"Report: {report}")
    return 1 if data.refused else 0


def _described(
    config: Settings, data: run_data.Data, rows: np.ndarray, match: CaseMatch
) -> dict[str, Any]:
    """Describe the evaluated images, and how many the run had seen."""
    part = splits.part_summary(data.table, rows)
    abnormal = data.table.abnormal[rows]
    present = int(data.table.present.sum())
    return {
        "source": data.table.source,
        "simulated": data.table.simulated,
        "data": config.raw["data"],
        "rule": data.split.rule,
        "split_sha256": part["sha256"],
        "n_images": part["images"],
        "n_patients": part["patients"],
        "patients_known": data.table.patients_known,
        "images_present": present,
        "images_missing": len(data.table.images) - present,
        "refused": data.refused,
        "leak_images": int((match.patient_seen[rows] & abnormal).sum()),
        "leak_of": int(abnormal.sum()),
        "leak_of_all": int(match.patient_seen[rows].sum()),
        "leak_seen": int(match.image_seen[rows].sum()),
    }


def _scored(
    scored: summary.Scored,
    data: run_data.Data,
    rows: np.ndarray,
    model: LoadedModel,
    fitted_values: dict[str, Any] | None,
    method: str,
) -> dict[str, Any]:
    """Score the predictions, with their thresholds and temperatures."""
    cases = data.table
    given = dict(zip(cases.findings, data.prevalence, strict=True))
    trained = model.trained or {}
    result = summary.score(
        scored,
        fitted=fitted_values or calibration.nothing(cases.findings),
        # A run's own prevalences: other data may have no training part at all.
        prevalence=trained.get("prevalence", given),
        attributes=subgroups.attributes(cases.views[rows], cases.sexes[rows], cases.ages[rows]),
        method=method,
    )
    described = None
    if fitted_values is not None:
        described = {
            "checkpoint": fitted_values["checkpoint"],
            "split_sha256": fitted_values["split_sha256"],
            "on_these_images": bool(fitted.fitted_on(model, fitted_values, cases)[rows].any()),
        }
    return result | {"calibration": described}


def _other(
    config: Settings, data: run_data.Data, rows: np.ndarray, values: flags.FlagValues
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
    model: LoadedModel,
) -> None:
    path = out / "predictions.csv"
    files.write_predictions(path, data.table, rows, outputs["logits"])
    path = out / "retrieval.csv"
    path.unlink(missing_ok=True)  # an earlier network may have had a bank
    if "slots" in outputs:
        files.write_retrieval(
            path,
            data.table.images[rows],
            model.bank_cases(),
            np.asarray(model.state.memory.case_ids)[outputs["slots"]],
            outputs["similarities"],
            outputs["valid"],
        )


def _parse(argv: list[str]) -> tuple[Path | None, Settings, flags.FlagValues]:
    """Return the run (None for weights without one), the settings and the flags."""
    command = cli.Command(__doc__, _define_flags, ("data.", "runs_dir"), config=True)
    arguments = cli.parse(command, argv)
    values = arguments.flags
    if values.config is not None:
        config = cli.load_settings(arguments, values.config)
        _check_without_run(config, values)
        return None, config, values
    run = find_run(arguments)
    return run, read_settings(run, arguments), values


def _check_without_run(config: Settings, values: flags.FlagValues) -> None:
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
            "it with charm-jax train."
        )


def _define_flags(values: flags.FlagValues) -> None:
    define_run_flags(values)
    flags.DEFINE_enum(
        "split",
        "test",
        SPLITS,
        "split to evaluate",
        flag_values=values,
    )
    flags.DEFINE_string(
        "compare",
        "",
        "name or folder of a run evaluated on the same images, to compare with",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "interval",
        "bootstrap",
        list(summary.INTERVALS),
        "confidence intervals of AUROC: by patients, or DeLong's, which assumes independent images",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run(main)
