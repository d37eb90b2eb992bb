"""``python -m charm_jax.train``: both stages, from a config to checkpoints and a summary."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from charm_jax import command_line, config_check, experiment, initial_weights, runs
from charm_jax.checkpoints import Checkpoints, DamagedCheckpoint, tree_sha256
from charm_jax.command_line import say
from charm_jax.run_log import RunLog
from charm_jax.stages import (
    STAGES,
    Hooks,
    Interrupted,
    NonFiniteLoss,
    Plan,
    Progress,
    run_stage,
)
from charm_jax.state import TrainState, begin_stage
from data_pipelines import quarantine
from data_pipelines.errors import InputError


def main(argv: list[str]) -> int:
    """Trains, or with ``--dry_run`` checks everything; returns the exit code.

    Raises:
        InputError: whatever is wrong with config, data or run.
    """
    path, rest = command_line.split_config_flag(argv)
    config = command_line.load_config(Path(path) if path is not None else command_line.DEMO)
    values = command_line.parse(rest, config, _define_flags)
    config_check.check(config)
    if config.deterministic:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    directory = Path(config.runs_dir) / config.name
    runs.check_config(directory, config, force=config.resume == "force")
    if (directory / "summary.json").exists() and not values.dry_run:
        say(f"The run {directory} is finished: evaluate it, or choose another --config.name.")
        return 0
    data = experiment.load_data(config)
    experiment.check_batches(config, data)
    description = experiment.describe_split(config, data)
    for note in data.notes:
        say(note)
    if values.dry_run:
        _check_weights(config, data)
        print(json.dumps(description, indent=2))
        return 0
    _announce(config, data, description)
    with runs.locked(directory):
        runs.check_config(directory, config, force=config.resume == "force")
        _write_inputs(directory, config, data, description)
        code = _Training(config, data, directory, description).run()
    return 1 if code == 0 and data.refused else code


def _write_inputs(
    directory: Path, config: ConfigDict, data: experiment.Data, description: dict[str, Any]
) -> None:
    runs.write_json(directory / "config.json", config.to_dict())
    runs.write_environment(directory / "environment.json")
    runs.write_json(directory / "split.json", description)
    runs.write_cases(directory, data.table, data.seen)
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


def _check_weights(config: ConfigDict, data: experiment.Data) -> None:
    """Loads the weights that a run would begin with, if they come from a file."""
    if config.model.init_from != "random":
        new = experiment.new_state(experiment.build_model(config, data), config)
        keys = config.model
        _, file = initial_weights.fill(new, keys.init_from, keys.backbone, whole=False)
        say(initial_weights.sentence(file))


def _announce(config: ConfigDict, data: experiment.Data, description: dict[str, Any]) -> None:
    say(
        f"{config.model.backbone} {'with' if config.model.charm else 'without'} CHARM, "
        f"{description['parameters']:,} parameters, on "
        f"{jax.devices()[0].device_kind}; {description['images_present']:,} images of "
        f"{data.table.source}"
        + (" (SIMULATED)" if data.table.simulated else "")
        + (f", {description['images_missing']:,} missing" if description["images_missing"] else "")
    )
    say(f"Split rule '{data.split.rule}'. {experiment.describe_leak(data)}")
    for stage, parts in description["stages"].items():
        sizes = ", ".join(f"{part} {parts[part]['images']:,}" for part in data.split.stages[stage])
        say(f"  stage {stage}: {sizes} images; train sha256 {parts['train']['sha256'][:12]}")
        if not parts["test"]["images"]:
            say(f"warning: the test part of stage {stage} holds no images: it cannot be evaluated.")


class _Training:
    """The two stages of one run, from where its checkpoints stand."""

    def __init__(
        self,
        config: ConfigDict,
        data: experiment.Data,
        directory: Path,
        description: dict[str, Any],
    ):
        self.config, self.data, self.directory = config, data, directory
        self.names = experiment.stage_names(config)
        self.model = experiment.build_model(config, data)
        self.cases = experiment.resident_cases(config, data)
        self.eval_step = experiment.eval_step(config, self.model, self.cases)
        self.checkpoints = Checkpoints(
            directory / "checkpoints", self.names, config.checkpoint.keep
        )
        hashes = {
            f"{stage}/{part}": parts[part]["sha256"]
            for stage, parts in description["stages"].items()
            for part in data.split.stages[stage]
        }
        findings = list(data.table.findings)
        self.split = {"rule": data.split.rule, "findings": findings, "sha256": hashes}
        self.finished: dict[str, dict[str, Any]] = {}
        self.ending: int | None = None

    def run(self) -> int:
        """Trains to the end; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        try:
            state = self._stages()
        except NonFiniteLoss as error:
            say(f"error: {error}. {self._last_good()}")
            return 3
        except Interrupted:
            say(f"Asked to end: {self._last_good()} The same command continues from there.")
            return 128 + self.ending
        finally:
            self.checkpoints.close()
        self._summarise(state)
        return 0

    def _stages(self) -> TrainState:
        """Goes through the stages that are left; returns the last state."""
        state, progress = self._where_it_stands()
        position = (progress.stage, int(state.step))
        with RunLog(self.directory, self.names, position, self.config.log.every_steps) as log:
            for name in self.names[self.names.index(progress.stage) :]:
                if name != progress.stage:
                    state, progress = self._begin(name, self._best(progress, state)), Progress(name)
                state, progress = self._stage(name, state, progress, log)
                self.finished[name] = dataclasses.asdict(progress) | {"steps": int(state.step)}
        return state

    def _end(self, number: int, frame: object) -> None:
        self.ending = number

    def _where_it_stands(self) -> tuple[TrainState, Progress]:
        """The newest state that can be read, or a new one."""
        new = experiment.new_state(self.model, self.config)
        for stage, step in self.checkpoints.newest_first():
            try:
                state, meta = self.checkpoints.restore(stage, step, self._begin(stage, new))
            except DamagedCheckpoint as error:
                say(f"warning: {error} The one before it is used.")
                continue
            self._check_split(meta["split"])
            self.finished = meta["finished"]
            say(f"Continuing {self.directory} from step {step} of stage {stage}.")
            return state, self._with_best(Progress(**meta["progress"]))
        return self._begin(self.names[0], self._filled(new)), Progress(self.names[0])

    def _filled(self, new: TrainState) -> TrainState:
        """The state with its first weights; ``weights.json`` says which file they are of."""
        keys = self.config.model
        filled, file = initial_weights.fill(new, keys.init_from, keys.backbone, whole=False)
        say(initial_weights.sentence(file))
        path = self.directory / "weights.json"
        path.unlink(missing_ok=True)
        if file is not None:
            runs.write_json(path, dataclasses.asdict(file))
        return filled

    def _check_split(self, saved: dict[str, Any]) -> None:
        """Refuses to go on with other images: steps, order and bank would lose their meaning.

        Raises:
            InputError: the findings, or the first part, that differ.
        """
        runs.check_findings(self.directory, saved["findings"], self.data.table)
        now = {"rule": self.split["rule"], **self.split["sha256"]}
        then = {"rule": saved["rule"], **saved["sha256"]}
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            raise InputError(
                f"The images of {changed[0]} are not those that the run {self.directory} began "
                "with: bring them back, or choose another --config.name."
            )

    def _with_best(self, progress: Progress) -> Progress:
        """The progress, without a best checkpoint that is no longer there."""
        if progress.best_step in (None, *self.checkpoints.steps(progress.stage)):
            return progress
        say(f"warning: the best checkpoint, {progress.best_step}, is gone; another is sought.")
        return dataclasses.replace(
            progress, best_step=None, best_epoch=None, best_loss=None, best_macro_auroc=None
        )

    def _best(self, progress: Progress, like: TrainState) -> TrainState:
        """The best state of a stage that is over, or the newest that can be read.

        Raises:
            InputError: none can.
        """
        steps = self.checkpoints.steps(progress.stage)
        for step in [progress.best_step, *steps] if progress.best_step else steps:
            try:
                return self.checkpoints.restore(progress.stage, step, like)[0]
            except DamagedCheckpoint as error:
                say(f"warning: {error} Another one of the stage is used.")
        raise InputError(
            f"No checkpoint of stage {progress.stage} in {self.directory} can be read: train it "
            "again under another --config.name."
        )

    def _begin(self, stage: str, state: TrainState) -> TrainState:
        plan = experiment.plan(self.config, self.data, stage)
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1 + STAGES.index(stage))
        return begin_stage(state, experiment.optimizer(self.config, plan), key)

    def _stage(
        self, name: str, state: TrainState, progress: Progress, log: RunLog
    ) -> tuple[TrainState, Progress]:
        plan: Plan = experiment.plan(self.config, self.data, name)
        if progress.finished:
            return state, progress
        batches = experiment.training_batches(self.config, self.data, plan, int(state.step))
        hooks = Hooks(
            train_step=experiment.train_step(self.config, self.model, plan, self.cases),
            batches=batches,
            validate=experiment.validator(self.config, self.data, plan, self.eval_step),
            log=log,
            save=self._save,
            asked_to_end=lambda: self.ending is not None,
        )
        try:
            return run_stage(state, progress, plan, hooks)
        finally:
            batches.close()

    def _save(self, state: TrainState, progress: Progress) -> None:
        meta = {
            "progress": dataclasses.asdict(progress),
            "next_index": int(state.step),
            "config": self.config.to_dict(),
            "split": self.split,
            "finished": self.finished,
        }
        self.checkpoints.save(progress.stage, state, meta, progress.best_step)

    def _last_good(self) -> str:
        self.checkpoints.wait()
        last = next(self.checkpoints.newest_first(), None)
        if last is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.directory}/checkpoints/{last[0]}/{last[1]}."

    def _summarise(self, state: TrainState) -> None:
        stages = {
            name: {
                "epochs": done["epoch"],
                "steps": done["steps"],
                "best_epoch": done["best_epoch"],
                "best_step": done["best_step"],
                "best_val_loss": done["best_loss"],
                "best_val_macro_auroc": done["best_macro_auroc"],
                "stopped_early": done["stopped_early"],
                "seconds": round(done["seconds"], 3),
            }
            for name, done in self.finished.items()
        }
        summary = {
            "simulated": self.data.table.simulated,
            "leak_images": self.data.split.leak_images,
            "stages": stages,
            "seconds": round(sum(stage["seconds"] for stage in stages.values()), 3),
            "params_sha256": tree_sha256(state.params),
        }
        runs.write_json(self.directory / "summary.json", summary)
        say(
            f"Done in {summary['seconds']:.0f} s. Evaluate it: "
            f"python -m charm_jax.eval --run {self.config.name}"
        )


if __name__ == "__main__":
    command_line.run(main)
