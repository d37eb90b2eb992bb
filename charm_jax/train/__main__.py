"""``python -m charm_jax.train``: both stages, from a config to checkpoints and a summary."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import jax
from absl import flags

from charm_jax.config import build, cli, validate
from charm_jax.config.cli import say
from charm_jax.config.settings import Settings
from charm_jax.distributed import processes
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm
from charm_jax.runs import cases, folder
from charm_jax.runs import data as run_data
from charm_jax.train.trainer import Training
from charm_jax.weights import load
from data_pipelines.tables import quarantine

_SHOWN = 20  # refused images that a dry run lists


def main(argv: list[str]) -> int:
    """Trains, or with ``--dry_run`` checks everything; returns the exit code.

    Raises:
        InputError: whatever is wrong with config, data or run.
    """
    path, rest = cli.split_config_flag(argv)
    path = Path(path) if path is not None else cli.DEMO
    config, values = cli.load_and_parse(path, rest, _define_flags)
    processes.join(values.process, values.coordinator)
    validate.check(config)
    if config.deterministic:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    directory = Path(config.runs_dir) / config.name
    if (
        processes.broadcast_from_first(lambda: _is_finished(directory, config))
        and not values.dry_run
    ):
        say(f"The run {directory} is finished: evaluate it, or choose another --config.name.")
        return 0
    data, description = processes.all_succeed(lambda: _described_data(config))
    processes.check_alike(
        {
            **{f"config.{key}": value for key, value in folder.binding_keys(config).items()},
            **description,
            "the number of devices": jax.local_device_count(),
        }
    )
    for note in (*data.notes, *_random_and_frozen(config)):
        say(note)
    if values.dry_run:
        _check_weights(config, data)
        if processes.is_first():
            print(json.dumps(description, indent=2))
        for name, reason in data.refusals[:_SHOWN]:
            say(f"warning: {name} is refused: {reason}")
        return 1 if data.refused else 0
    _announce(config, data, description)
    with contextlib.ExitStack() as stack:
        processes.broadcast_from_first(lambda: _begin(stack, directory, config, data, description))
        code = Training(config, data, directory, description).run()
    return 1 if code == 0 and data.refused else code


def _described_data(config: Settings) -> tuple[run_data.Data, dict[str, Any]]:
    data = run_data.load_data(config)
    run_data.check_batches(config, data)
    return data, run_data.describe_split(config, data, _parameters(config, data))


def _is_finished(directory: Path, config: Settings) -> bool:
    folder.check_config(directory, config, force=config.resume == "force")
    return (directory / "summary.json").exists()


def _begin(
    stack: contextlib.ExitStack,
    directory: Path,
    config: Settings,
    data: run_data.Data,
    description: dict[str, Any],
) -> None:
    """Holds the folder of the run until ``stack`` closes, and writes what it begins with."""
    stack.enter_context(folder.locked(directory))
    _is_finished(directory, config)  # another process may have come first
    _write_inputs(directory, config, data, description)


def _write_inputs(
    directory: Path, config: Settings, data: run_data.Data, description: dict[str, Any]
) -> None:
    folder.write_json(directory / "config.json", config.raw)
    folder.write_environment(directory / "environment.json")
    folder.write_json(directory / "split.json", description)
    cases.write_cases(directory, data.table, data.seen)
    path = directory / "quarantine.csv"
    path.unlink(missing_ok=True)
    if data.quarantined:
        quarantine.write_quarantine(path, data.quarantined)
    if data.refused:
        say(f"warning: {data.refused:,} image files are refused; {path} says which and why.")


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Check everything, print one JSON object, train nothing.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "process",
        "",
        "Of several processes that train together, i/n: this one's number from 0 and how many they "
        "are; auto under Slurm or Open MPI.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of the first of several processes.", flag_values=values
    )


def _network(config: Settings, data: run_data.Data) -> Charm | Baseline:
    return build.build_network(config, len(data.table.findings), data.prevalence)


def _parameters(config: Settings, data: run_data.Data) -> int:
    return build.parameter_count(_network(config, data), config)


def _check_weights(config: Settings, data: run_data.Data) -> None:
    """Loads the weights that a run would begin with, if they come from a file."""
    if config.model.init_from != "random":
        new = build.new_state(_network(config, data), config)
        keys = config.model
        _, file = load.initial_weights(new, keys.init_from, keys.backbone)
        say(load.describe(file))


def _random_and_frozen(config: Settings) -> list[str]:
    frozen = [name for name, stage in config.stages.items() if stage.frozen_epochs]
    if config.model.init_from != "random" or not frozen:
        return []
    return [
        f"warning: stage {frozen[0]} begins with a trunk that is frozen although its weights are "
        "random: give --config.model.init_from=imagenet or a weight file, or set "
        f"--config.stages.{frozen[0]}.frozen_epochs=0."
    ]


def _devices() -> str:
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    among = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return kind if count == 1 else f"{count} devices ({kind}){among}"


def _announce(config: Settings, data: run_data.Data, description: dict[str, Any]) -> None:
    say(
        f"{config.model.backbone} {'with' if config.model.charm else 'without'} CHARM, "
        f"{description['parameters']:,} parameters, on "
        f"{_devices()}; {description['images_present']:,} images of "
        f"{data.table.source}"
        + (" (SIMULATED)" if data.table.simulated else "")
        + (f", {description['images_missing']:,} missing" if description["images_missing"] else "")
    )
    say(f"Split rule '{data.split.rule}'. {run_data.describe_leak(data)}")
    for stage, parts in description["stages"].items():
        sizes = ", ".join(f"{part} {parts[part]['images']:,}" for part in data.split.stages[stage])
        say(f"  stage {stage}: {sizes} images; train sha256 {parts['train']['sha256'][:12]}")
        if not parts["test"]["images"]:
            say(f"warning: the test part of stage {stage} holds no images: it cannot be evaluated.")


if __name__ == "__main__":
    cli.run(main)
