"""Score a run, or a weight file without one, and write a report.

usage: charm-jax eval [--run RUN ...] [options] [--config.KEY=VALUE ...]
       charm-jax eval --config CONFIG --config.model.init_from=FILE [options]

    charm-jax eval --run demo --split test
    charm-jax eval --run seed0 --run seed1 --run seed2

Several runs are an ensemble: the mean of their calibrated logits is scored, and compared with each.
With --config all keys of a config are accepted. exit codes: 0 done; 1 done, with some images
refused; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from charm_jax.config import cli, validate
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.eval import external, files, localisation, members
from charm_jax.eval.files import OtherRun
from charm_jax.eval.localisation import Pairs
from charm_jax.eval.text import localisation_table, table
from charm_jax.inference import ensemble, fitted, loaded
from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.input_check import check_inputs
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import calibration, conformal, intervals, summary
from charm_jax.metrics.conformal import Limits
from charm_jax.metrics.intervals import EvalSet
from charm_jax.metrics.result import (
    BankSource,
    CalibrationSource,
    Comparison,
    EvaluationResult,
    Scores,
)
from charm_jax.report import contents, page
from charm_jax.runs import data as run_data
from charm_jax.runs import folder
from charm_jax.runs.arguments import (
    CHECKPOINT,
    COVERAGE,
    MEMORY,
    RUNS,
    SPLITS,
    TTA,
    find_runs,
    read_coverage,
    read_settings,
)
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data
from charm_jax.weights import load
from charm_jax.weights.load import Contents
from data_pipelines.atomic_files import check_writable
from data_pipelines.errors import InputError, listed
from data_pipelines.sources.csv_folder import TABLE
from data_pipelines.tables import splits

_OPTIONS = {
    **RUNS,
    **CHECKPOINT,
    **MEMORY,
    "split": Option("test", "split to evaluate", SPLITS),
    "out": Option("", "folder to write, by default in that of the run"),
    "compare": Option("", "name or folder of a run evaluated on the same images, to compare with"),
    "interval": Option(
        "bootstrap",
        "confidence intervals of AUROC: by patients, or DeLong's, which assumes independent images",
        list(intervals.METHODS),
    ),
    "boxes": Option(False, "compare heat maps with the source's boxes around findings"),
    **TTA,
    **COVERAGE,
}


def main(argv: list[str]) -> int:
    """Evaluate a checkpoint of a run or a weight file; return the exit code.

    Raises:
        InputError: no such run, checkpoint or split, bad data, or nothing to compare with.
    """
    runs, configs, values, file, coverage = _parse(argv)
    config = configs[0]
    data = run_data.load_data(config)
    for note in data.notes:
        say(note)
    rows = data.split.rows(config.stage_names[-1], values.split)
    given = data
    model, data = _load(runs, configs, values, file, data, rows)
    pairs = localisation.read_pairs(given, data, rows, values.split) if values.boxes else None
    matches = members.match_unseen(model, data, rows, values.split)
    match = members.any_seen(matches)
    own = files.find_folder(model, data, rows, values.split)
    out = Path(values.out) if values.out else own
    check_writable(out, "name another folder with --out")
    other = None
    if values.compare:  # read before anything is evaluated
        compared = folder.find_evaluated(Path(config.runs_dir), values.compare)
        other = files.read_other(compared, own.name, values.split, data.table, rows)
    is_external = model.trained is not None and own.name != values.split
    fit = _fit(model, data, coverage, judge=is_external)
    say(f"Evaluating {model.description}.")
    if is_external:
        _tell_external(data, rows, match, values.split, out)
    large = ("thumbnail",) if is_external else ()
    outputs, each = members.predict(model, data, rows, f"evaluating {values.split}", large)
    cases = data.table
    evaluated = EvalSet(outputs["logits"], cases.labels[rows], cases.patients[rows], cases.findings)
    scores = summary.score(
        evaluated,
        fitted=fit.calibration or calibration.nothing(cases.findings),
        prevalence=None if model.trained is None else model.trained["prevalence"],
        attributes=summary.attributes(cases.views[rows], cases.sexes[rows], cases.ages[rows]),
        method=values.interval,
    )
    result = _result(config, data, rows, values.split, model, match, scores, fit)
    method = scores.interval_method
    found = members.compare(model, evaluated, each, matches, rows, method)
    if other is not None:
        found["comparison"] = _compare(evaluated, other, values.compare, method)
    if "single_view" in outputs:
        found["single_view"] = members.compare_views(evaluated, outputs, model.checkpoint, method)
    if fit.limits is not None:
        found["conformal"] = conformal.evaluate(evaluated, fit.limits)
    if is_external:
        names = given.table.findings
        found["external"] = external.describe(model, names, outputs, fit.reference)
    result = dataclasses.replace(result, **found)
    _write(out, result, model, config, data, rows, outputs, each, match, pairs)
    return 1 if data.refused else 0


def _load(
    runs: list[Path],
    configs: list[Settings],
    values: flags.FlagValues,
    file: Contents | None,
    data: Data,
    rows: np.ndarray,
) -> tuple[LoadedModel | Ensemble, Data]:
    """Load the model, and return the data with the labels of its findings."""
    if file is not None:
        models = [_load_file(configs[0], file, data, rows)]
    else:
        models = [loaded.load_run(run, values.checkpoint, values.memory) for run in runs]
    models = [model.with_tta() for model in models] if values.tta else models
    named = run_data.for_findings(data, models[0].pathologies, models[0].description)
    if named is not data:
        say(run_data.describe_findings(data, named))
    if len(models) == 1:
        return models[0], named
    sizes = [config.data.image_size for config in configs]
    return ensemble.combine(models, Path(configs[0].runs_dir), sizes, named), named


class _Fit(NamedTuple):
    """Hold what was fitted on validation; None where nothing is, or is not asked for.

    Attributes:
        calibration: as ``calibration.json`` holds it.
        on: whether each image of the table was used for it.
        reference: of ``ood``.
        limits: of the conformal sets.
    """

    calibration: dict[str, Any] | None
    on: np.ndarray | None
    reference: dict[str, Any] | None
    limits: Limits | None


def _fit(model: LoadedModel | Ensemble, data: Data, coverage: float | None, *, judge: bool) -> _Fit:
    """Load what was fitted on validation, or fit it.

    Args:
        coverage: of conformal sets, if any.
        judge: whether out-of-distribution images will be counted.

    Raises:
        InputError: there are no images to fit conformal sets on.
    """
    if isinstance(model, Ensemble):
        limits = conformal.fit(*model.validation(data), coverage) if coverage else None
        return _Fit(model.calibration(data), model.fitted_on(data.table), None, limits)
    reference = fitted.load_calibrator(model, data).reference if judge else None
    calibrated = fitted.load_calibration(model, data)
    on = None if calibrated is None else fitted.fitted_on(model, calibrated, data.table)
    limits = conformal.fit(*fitted.load_validation(model, data), coverage) if coverage else None
    return _Fit(calibrated, on, reference, limits)


def _write(
    out: Path,
    result: EvaluationResult,
    model: LoadedModel | Ensemble,
    config: Settings,
    data: Data,
    rows: np.ndarray,
    outputs: dict[str, np.ndarray],
    each: list[dict[str, np.ndarray]],
    match: CaseMatch,
    pairs: Pairs | None,
) -> None:
    """Write and print the result, and compare heat maps with boxes where there are any."""
    replaced = files.describe_replaced(out, result)
    files.write(out, result, data.table, rows, outputs, model, each)
    print(table(result))
    found = None
    if pairs is not None:
        found = localisation.localise(model, data, pairs, match)
        localisation.write(out, found, result)
        print("\n" + localisation_table(result, found))
    if replaced:
        say(replaced)
    say(f"Written to {out}.")
    if data.refused:
        say(f"warning: {data.refused:,} image files are refused and not evaluated.")
    report = out / "report.html"
    page.write(report, result, contents.collect(model, config, data, rows, outputs, match, found))
    say(f"Report: {report}")


def _tell_external(data: Data, rows: np.ndarray, match: CaseMatch, split: str, out: Path) -> None:
    """Tell that other images are evaluated, and whether a user's own folder is in part."""
    say(f"These are not the run's own {split} images, labels and settings: writing to {out}.")
    table, left = data.table, int(data.table.present.sum()) - len(rows)
    if table.source == "csv_folder" and not table.official_known and not match.patient_seen.any():
        say(
            f"warning: {left:,} of {len(rows) + left:,} images are not evaluated, because {TABLE} "
            "has no column 'split': add one that says test in each row to evaluate all of them."
        )


def _load_file(config: Settings, file: Contents, data: Data, rows: np.ndarray) -> LoadedModel:
    """Load a weight file, and warn where the images look unlike what it was trained on."""
    model = loaded.load_file(config, file, data.table.findings)
    for warning in check_inputs(model.network, model.state, data, rows, config.model):
        say(warning)
    return model


def _compare(evaluated: EvalSet, other: OtherRun, run: str, method: dict[str, str]) -> Comparison:
    """Compare with another run on the findings that it knows, and name the others.

    Args:
        evaluated: predictions of this model, and the labels.
        other: the other run's evaluation of the same images.
        run: its name or folder.
        method: of the intervals, by metric.
    """
    findings = evaluated.findings
    shared = tuple(findings[column] for column in other.columns)
    ours = EvalSet(
        evaluated.logits[:, other.columns],
        evaluated.labels[:, other.columns],
        evaluated.patients,
        shared,
    )
    macro, each = intervals.compare(ours, other.logits, method["auroc"])
    if lacking := [name for name in findings if name not in shared]:
        say(f"warning: {run} does not know {listed(lacking)}: not compared.")
    return Comparison(
        run=run,
        checkpoint=other.result.checkpoint,
        interval_method=method,
        macro=macro,
        findings=each,
    )


def _result(
    config: Settings,
    data: Data,
    rows: np.ndarray,
    split: str,
    model: LoadedModel | Ensemble,
    match: CaseMatch,
    scores: Scores,
    fit: _Fit,
) -> EvaluationResult:
    """Put the result together: scores, evaluated images, and what the model saw of them."""
    table = data.table
    described = splits.part_summary(table, rows)
    abnormal = table.abnormal[rows]
    present = int(table.present.sum())
    is_run = model.trained is not None
    held = None if model.memory is None else BankSource(**model.describe_bank(match, rows))
    source = None
    if fit.calibration is not None:
        source = CalibrationSource(
            checkpoint=fit.calibration["checkpoint"],
            split_sha256=fit.calibration["split_sha256"],
            on_these_images=bool(fit.on[rows].any()),
            averaged=fit.calibration.get("averaged", False),
        )
    # With one finding the abnormal images are of one class, so training used all.
    stages = model.settings.stage_names if is_run and len(table.findings) > 1 else ()
    return EvaluationResult(
        **vars(scores),
        source=table.source,
        simulated=table.simulated,
        data=config.raw["data"],
        reading=model.reading(data if isinstance(model, Ensemble) else data.settings),
        rule=data.split.rule,
        split=split,
        split_sha256=described["sha256"],
        cases_sha256=described["cases_sha256"],
        n_images=described["images"],
        n_patients=described["patients"],
        patients_known=table.patients_known,
        images_present=present,
        images_missing=len(table.images) - present,
        refused=data.refused,
        leak_images=int((match.patient_seen[rows] & abnormal).sum()) if is_run else None,
        leak_of=int(abnormal.sum()),
        leak_of_all=int(match.patient_seen[rows].sum()) if is_run else None,
        leak_seen=int(match.image_seen[rows].sum()) if is_run else None,
        checkpoint=model.checkpoint,
        refit=model.provenance["refit"],
        network_sha256=model.network_sha256,
        trained_on_simulated=model.provenance["trained_on_simulated"],
        began_from=model.provenance["began_from"],
        abnormal_only=tuple(s for s in stages if model.settings.stages[s].images == "abnormal"),
        memory=model.memory,
        calibration=source,
        bank=held,
    )


def _parse(
    argv: list[str],
) -> tuple[list[Path], list[Settings], flags.FlagValues, Contents | None, float | None]:
    """Return runs, checked settings of each, flags, content of a weight file, and coverage."""
    command = cli.Command(__doc__, _OPTIONS, ("data.", "runs_dir"), config=True)
    arguments = cli.parse(command, argv)
    values, coverage = arguments.flags, read_coverage(arguments)
    if values.config is not None:
        config = cli.load_settings(arguments, values.config)
        validate.check(config)
        _check_without_run(config, values)
        file = load.read(config.model.init_from, config.model.backbone)
        settings = loaded.file_settings(config, file, arguments.overrides)
        return [], [settings], values, file, coverage
    runs = find_runs(arguments)
    if values.boxes and len(runs) > 1:
        raise InputError("--boxes compares the heat maps of one network: give one --run.")
    configs = [read_settings(run, arguments) for run in runs]
    for config in configs:
        validate.check(config)
    return runs, configs, values, None, coverage


def _check_without_run(config: Settings, values: flags.FlagValues) -> None:
    """Refuse options that do not apply to weights without their run.

    Raises:
        InputError: --run, --checkpoint or --memory is given, or no file with a classifier.
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


if __name__ == "__main__":
    cli.run(main)
