"""Train a network from a config, in two stages.

usage: charm-jax train [--config CONFIG] [options] [--config.KEY=VALUE ...]

    charm-jax train                             a few minutes, on simulated images
    charm-jax train --config effv2s --dry_run   check everything, train nothing

The same command continues a run that was cut off. exit codes: 0 done; 1 done, with some images
refused; 2 bad input; 3 a loss that is not finite; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from charm_jax.config import build, cli, validate
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.distributed import processes
from charm_jax.models.vote import Vote
from charm_jax.runs import cases, folder
from charm_jax.runs import data as run_data
from charm_jax.runs.arguments import read_settings
from charm_jax.train import setup, trackers
from charm_jax.train.log import run_log
from charm_jax.train.setup import Experiment
from charm_jax.train.trainer import Beginning, Training, evaluation_command
from charm_jax.weights import imagenet, load
from data_pipelines.atomic_files import whole_files
from data_pipelines.errors import InputError
from data_pipelines.tables import quarantine

_SHOWN = 20  # refused images that a dry run lists
# Of a run under the same name that never began.
_LEFTOVERS = ("environment.json", "patients.csv", "weights.json", "range_test_*")
_OPTIONS = {
    "dry_run": Option(False, "check everything, print one JSON object, train nothing"),
    "estimate": Option(
        False, "let --dry_run time a few steps: hours, memory and disk of the whole training"
    ),
    "from": Option(
        "",
        "start a new run from weights, bank and momentum branch of a checkpoint: RUN, RUN:best, "
        "RUN:last or RUN:STAGE/STEP",
    ),
    "process": Option(
        "",
        "number of this process and count of all that train together, i/n from 0; auto under "
        "Slurm or Open MPI",
    ),
    "coordinator": Option("", "HOST:PORT of the first of several processes"),
}


def main(argv: list[str]) -> int:
    """Train, or with ``--dry_run`` check everything; return the exit code.

    Raises:
        InputError: config, data or run are unusable.
    """
    arguments = cli.parse(cli.Command(__doc__, _OPTIONS, config=True), argv)
    values = arguments.flags
    if values.estimate and not values.dry_run:
        raise InputError("--estimate trains nothing: give --dry_run with it.")
    settings = cli.load_settings(arguments, "demo" if values.config is None else values.config)
    if values.config is None and settings.data.source == "phantom":
        _check_demo_folder(arguments.overrides)
    if settings.deterministic:  # before the first use of a device
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    processes.join(values.process, values.coordinator)
    processes.all_succeed(lambda: validate.check(settings))
    processes.all_succeed(lambda: _check_refit(settings))
    processes.all_succeed(lambda: trackers.check(settings.log.tracker_names))
    source = values["from"].value
    processes.check_alike(
        {
            "--dry_run": values.dry_run,
            "--estimate": values.estimate,
            "--from": source,
            "config.data.resident": settings.data.resident,
            "config.checkpoint.every_steps": settings.checkpoint.every_steps,
        }
    )
    settings = settings.replace(
        model_input_range=processes.broadcast_from_first(lambda: _input_range(settings, source))
    )
    directory = settings.directory
    if processes.broadcast_from_first(lambda: _is_finished(settings)) and not values.dry_run:
        say(
            f"The run {directory} is finished: evaluate it ({evaluation_command(settings)}), "
            "choose another --config.name, or give its last stage more epochs, or another "
            "--config.refit, with --config.resume=force."
        )
        return 0
    with (
        contextlib.ExitStack() as stack,
        run_log(" ".join(["Started: charm-jax train", *argv])) as begin_log,
    ):
        # A dry run draws no images where they would stay.
        scratch = stack.enter_context(tempfile.TemporaryDirectory()) if values.dry_run else None
        experiment, description = processes.all_succeed(
            lambda: _prepare(settings, scratch and Path(scratch))
        )
        data = experiment.data
        processes.check_alike(
            {
                **{f"config.{k}": value for k, value in folder.binding_keys(settings).items()},
                **description,
                "the number of devices": jax.local_device_count(),
            }
        )
        for note in (
            *data.notes,
            *run_data.training_notes(data),
            *_random_and_frozen(settings, source),
            *_long_average(experiment),
        ):
            say(note)
        if values.dry_run:
            return _report_dry_run(experiment, description, source, values.estimate)
        _announce(experiment, description)

        def lock() -> bool:
            stack.enter_context(folder.locked(directory))
            return _is_finished(settings)  # another process may have come first

        if processes.broadcast_from_first(lock):
            say(f"Another process has finished the run {directory}: evaluate it.")
            return 0
        training = Training(experiment, description)
        beginning = training.begin(source)
        training.prepare(beginning)

        def write() -> None:
            begin_log(directory)
            _write_inputs(experiment, description, beginning)

        # Everything that can refuse the command has been asked.
        processes.broadcast_from_first(write)
        code = training.run(beginning)
        return 1 if code == 0 and data.refused else code


def _check_demo_folder(overrides: dict[str, Any]) -> None:
    """Refuse a folder for the demo's images: more likely ``--config`` was forgotten.

    Raises:
        InputError: ``--config.data.dir`` is given.
    """
    if "data.dir" in overrides:
        raise InputError(
            f"--config.data.dir={overrides['data.dir']} needs --config: give --config effv2s to "
            "train on the data there, or --config demo to draw simulated images there."
        )


def _check_refit(settings: Settings) -> None:
    """Refuse to refit with several processes: only the first one reads the run.

    Raises:
        InputError: they would have to.
    """
    if settings.refit != "none" and jax.process_count() > 1:
        raise InputError(
            f"config.refit is {settings.refit} and {jax.process_count()} processes train: set it "
            "to none, or train in one process."
        )


def _input_range(settings: Settings, source: str) -> str:
    """Return the input range of a run: by default that of the weights that it begins with.

    Args:
        settings: config of the run.
        source: ``RUN`` or ``RUN:CHECKPOINT`` that a new run starts from.
    """
    keys, directory = settings.model, settings.directory
    if keys.input_range != load.AUTO:
        return keys.input_range
    if folder.has_begun(directory):
        return read_settings(directory).model.input_range
    if source:
        run = folder.find(directory.parent, source.partition(":")[0])
        return read_settings(run).model.input_range
    return load.input_range(keys.init_from, keys.backbone)


def _is_finished(settings: Settings) -> bool:
    directory = settings.directory
    if not folder.has_begun(directory):
        return False
    began = read_settings(directory)
    if settings.resume != "force":
        folder.check_config(directory, began, settings)
    return folder.is_finished(directory, began, settings)


def _prepare(settings: Settings, scratch: Path | None) -> tuple[Experiment, dict[str, Any]]:
    """Load the data; return them and the content of ``split.json``."""
    experiment = Experiment(settings, run_data.load_or_draw(settings, scratch))
    run_data.check_batches(settings, experiment.data)
    parameters = build.parameter_count(experiment.model, settings)
    return experiment, run_data.describe_split(settings, experiment.data, parameters)


def _report_dry_run(
    experiment: Experiment, description: dict[str, Any], source: str, estimate: bool
) -> int:
    """Check the weights, print the description and return the exit code."""
    keys, directory = experiment.settings.model, experiment.directory
    begun = source or processes.broadcast_from_first(lambda: folder.has_begun(directory))
    kept = begun or keys.init_from != "imagenet"
    path = processes.all_succeed(lambda: None if kept else imagenet.path_of(keys.backbone))
    if processes.any_of(path is not None and not path.exists()):
        say(f"Weights: training will download them to {path}.")
    elif begun or keys.init_from != "random":
        Training(experiment, description).begin(source)
    if estimate:
        found = Training(experiment, description).estimate()
        description = description | {"estimate": found}
        say(
            "Estimate of a new run: {hours:.2g} hours, {memory_gib:.2g} GiB of memory, "
            "{checkpoints_gib:.2g} GiB of checkpoints.".format_map(found)
        )
    if processes.is_first():
        print(json.dumps(description, indent=2))
    for name, reason in experiment.data.refusals[:_SHOWN]:
        say(f"warning: {name} is refused: {reason}")
    return 1 if experiment.data.refused else 0


def _write_inputs(
    experiment: Experiment, description: dict[str, Any], beginning: Beginning
) -> None:
    """Write the files of a run that are known before training, all at once."""
    directory, data = experiment.directory, experiment.data
    if beginning.is_new:
        for pattern in _LEFTOVERS:
            for path in directory.glob(pattern):
                path.unlink()
    with whole_files(directory) as draft:
        folder.write_json(draft / "config.json", experiment.settings.raw)
        folder.write_json(draft / "environment.json", folder.environment_record(directory))
        folder.write_json(draft / "split.json", description)
        cases.write_cases(draft, data.table, data.seen)
        if data.quarantined:
            quarantine.write_quarantine(draft / "quarantine.csv", data.quarantined)
        if beginning.weights is not None:
            folder.write_json(draft / "weights.json", dataclasses.asdict(beginning.weights))
    if not data.quarantined:
        (directory / "quarantine.csv").unlink(missing_ok=True)
    (directory / "summary.json").unlink(missing_ok=True)  # of a run that is extended
    if data.refused:
        path = directory / "quarantine.csv"
        say(f"warning: {data.refused:,} image files are refused; {path} says which and why.")


def _random_and_frozen(settings: Settings, source: str) -> list[str]:
    """Return a warning where random weights would be frozen."""
    stages = settings.stages.items()
    frozen = [name for name, stage in stages if stage.frozen_epochs and stage.freeze_trunk]
    if settings.model.init_from != "random" or source or not frozen:
        return []
    return [
        f"warning: stage {frozen[0]} starts with a frozen trunk of random weights: give "
        "--config.model.init_from=imagenet or a weight file, or set "
        f"--config.stages.{frozen[0]}.frozen_epochs=0."
    ]


def _long_average(experiment: Experiment) -> list[str]:
    """Return a warning where weights would be averaged over more steps than the run has."""
    decay, phases = experiment.settings.model.average, experiment.settings.phases
    steps = sum(setup.make_plan(experiment, phase).steps for phase in phases)
    if steps * (1 - decay) >= 1:
        return []
    return [
        f"warning: config.model.average {decay} averages over {1 / (1 - decay):,.0f} steps, more "
        f"than the {steps:,} of this run: set it to {max(1 - 10 / steps, 0):.2g}, a tenth of them."
    ]


def _announce(experiment: Experiment, description: dict[str, Any]) -> None:
    """Say what will be trained, on which devices and images."""
    settings, data = experiment.settings, experiment.data
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    devices = kind if count == 1 else f"{count} devices ({kind})"
    if jax.process_count() > 1:
        devices += f" in {jax.process_count()} processes"
    say(
        f"{settings.model.backbone} {'with' if settings.model.charm else 'without'} CHARM"
        f"{' (vote)' if isinstance(experiment.model, Vote) else ''}, "
        f"{description['parameters']:,} parameters, on {devices}; "
        f"{description['images_present']:,} images of {data.table.source}"
        + (" (SIMULATED)" if data.table.simulated else "")
        + (f", {description['images_missing']:,} missing" if description["images_missing"] else "")
    )
    say(f"Split rule '{data.split.rule}'. {run_data.describe_leak(data)}")
    for stage, splits in description["stages"].items():
        sizes = ", ".join(f"{name} {splits[name]['images']:,}" for name in data.split.stages[stage])
        say(f"  stage {stage}: {sizes} images; train sha256 {splits['train']['sha256'][:12]}")
        if not splits["test"]["images"]:
            say(f"warning: the test split of stage {stage} is empty: it cannot be evaluated.")


if __name__ == "__main__":
    cli.run(main)
