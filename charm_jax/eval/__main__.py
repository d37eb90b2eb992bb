"""Score a run, or a weight file without one, and write a report.

usage: charm-jax eval [--run RUN] [options] [--config.KEY=VALUE ...]
       charm-jax eval --config CONFIG --config.model.init_from=FILE [options]

    charm-jax eval --run demo --split test

With --config all keys of a config are accepted. exit codes: 0 done; 1 done, with some images
refused; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from charm_jax.config import cli, validate
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.eval import external, files, localisation
from charm_jax.eval.files import OtherRun
from charm_jax.eval.text import localisation_table, table
from charm_jax.inference import fitted, loaded, overlap
from charm_jax.inference.input_check import check_inputs
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import calibration, intervals, summary
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
from charm_jax.runs.arguments import CHECKPOINT, MEMORY, RUN, SPLITS, find_run, read_settings
from charm_jax.runs.banks import TRAINED
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.checkpoints import network_sha256
from charm_jax.runs.data import Data
from charm_jax.weights import load
from charm_jax.weights.load import Contents
from data_pipelines.atomic_files import check_writable
from data_pipelines.errors import InputError, listed
from data_pipelines.tables import splits

_OPTIONS = {
    **RUN,
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
}


def main(argv: list[str]) -> int:
    """Evaluate a checkpoint of a run or a weight file; return the exit code.

    Raises:
        InputError: no such run, checkpoint or split, bad data, or nothing to compare with.
    """
    run, config, values, file = _parse(argv)
    data = run_data.load_data(config)
    for note in data.notes:
        say(note)
    rows = data.split.rows(config.stage_names[-1], values.split)
    if run is None:
        model = _load_file(config, file, data, rows)
    else:
        model = loaded.load_run(run, values.checkpoint, values.memory)
    given, data = data, run_data.for_findings(data, model.pathologies, model.description)
    if data is not given:
        say(run_data.describe_findings(given, data))
    pairs = localisation.read_pairs(given, data, rows, values.split) if values.boxes else None
    match = overlap.by_pixels(model, data, rows, model.match_cases(data.table))
    loaded.check_unseen(match, rows, data.split.rule, values.split, model)
    own = files.find_folder(model, data, rows, values.split)
    out = Path(values.out) if values.out else own
    check_writable(out, "name another folder with --out")
    other = None
    if values.compare:  # read before anything is evaluated
        compared = folder.find_evaluated(Path(config.runs_dir), values.compare)
        other = files.read_other(compared, own.name, values.split, data.table, rows)
    say(f"Evaluating {model.description}.")
    is_external = run is not None and own.name != values.split
    if is_external:
        say(
            f"These are not the run's own {values.split} images, labels and settings: writing to "
            f"{out}."
        )
    large = ("thumbnail",) if is_external else ()
    outputs = model.predict_rows(data, rows, f"evaluating {values.split}", large=large)
    cases = data.table
    evaluated = EvalSet(outputs["logits"], cases.labels[rows], cases.patients[rows], cases.findings)
    reference = fitted.load_calibrator(model, data).reference if is_external else None
    calibrated = fitted.load_calibration(model, data)
    scores = summary.score(
        evaluated,
        fitted=calibrated or calibration.nothing(cases.findings),
        prevalence=None if model.trained is None else model.trained["prevalence"],
        attributes=summary.attributes(cases.views[rows], cases.sexes[rows], cases.ages[rows]),
        method=values.interval,
    )
    comparison = None
    if other is not None:
        comparison = _compare(evaluated, other, values.compare, scores.interval_method)
    source = None
    if calibrated is not None:
        source = CalibrationSource(
            checkpoint=calibrated["checkpoint"],
            split_sha256=calibrated["split_sha256"],
            on_these_images=bool(fitted.fitted_on(model, calibrated, cases)[rows].any()),
        )
    result = _result(config, data, rows, values.split, model, match, scores, source, comparison)
    if is_external:
        around = external.describe(model, given.table.findings, outputs, reference)
        result = dataclasses.replace(result, external=around)
    replaced = files.describe_replaced(out, result)
    files.write(out, result, cases, rows, outputs, model)
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
    shown = contents.collect(model, config, data, rows, outputs, match, found)
    page.write(report, result, shown)
    say(f"Report: {report}")
    return 1 if data.refused else 0


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
    model: LoadedModel,
    match: CaseMatch,
    scores: Scores,
    source: CalibrationSource | None,
    comparison: Comparison | None,
) -> EvaluationResult:
    """Put the result together: scores, evaluated images, and what the model saw of them."""
    table = data.table
    described = splits.part_summary(table, rows)
    abnormal = table.abnormal[rows]
    present = int(table.present.sum())
    is_run = model.run is not None
    held = model.describe_bank(match, rows)
    # With one finding the abnormal images are of one class, so training used all.
    stages = model.settings.stage_names if is_run and len(table.findings) > 1 else ()
    return EvaluationResult(
        **vars(scores),
        source=table.source,
        simulated=table.simulated,
        data=config.raw["data"],
        reading=model.reading(data.settings),
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
        network_sha256=network_sha256(model.state),
        trained_on_simulated=model.provenance["trained_on_simulated"],
        began_from=model.provenance["began_from"],
        abnormal_only=tuple(s for s in stages if model.settings.stages[s].images == "abnormal"),
        memory=None if held is None else model.provenance.get("memory", TRAINED),
        calibration=source,
        bank=None if held is None else BankSource(**held),
        comparison=comparison,
    )


def _parse(argv: list[str]) -> tuple[Path | None, Settings, flags.FlagValues, Contents | None]:
    """Return the run or else the content of a weight file, the checked settings and the flags."""
    command = cli.Command(__doc__, _OPTIONS, ("data.", "runs_dir"), config=True)
    arguments = cli.parse(command, argv)
    values = arguments.flags
    if values.config is not None:
        config = cli.load_settings(arguments, values.config)
        validate.check(config)
        _check_without_run(config, values)
        file = load.read(config.model.init_from, config.model.backbone)
        return None, loaded.file_settings(config, file, arguments.overrides), values, file
    run = find_run(arguments)
    config = read_settings(run, arguments)
    validate.check(config)
    return run, config, values, None


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
