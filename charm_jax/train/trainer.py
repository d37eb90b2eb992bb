"""A run of training: its stages in their order, and how it is taken up where it stopped."""

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import Any

import jax

from charm_jax.config import build
from charm_jax.config.cli import say
from charm_jax.config.settings import PHASES, Settings
from charm_jax.distributed import mesh, processes
from charm_jax.models.state import TrainState, begin_stage
from charm_jax.runs import data as run_data
from charm_jax.runs import folder
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint, tree_sha256
from charm_jax.train import setup, trace
from charm_jax.train.log import NoLog, RunLog
from charm_jax.train.loop import (
    Hooks,
    Interrupted,
    NonFiniteLoss,
    Progress,
    run_stage,
)
from charm_jax.train.peak_rate import PeakRate
from charm_jax.weights import load
from data_pipelines.errors import InputError

_AGREE_EVERY = 10  # steps between which several processes ask each other whether to end


class Training:
    """The stages of one run, from where its checkpoints stand.

    Of several processes all train, and the first alone reads and writes the folder.
    """

    def __init__(
        self,
        config: Settings,
        data: run_data.Data,
        directory: Path,
        description: dict[str, Any],
    ):
        self.config, self.data, self.directory = config, data, directory
        self.names = list(config.phases)
        simulated = " (SIMULATED images)" if data.table.simulated else ""
        self.title = f"{config.name}: {config.model.backbone} on {data.table.source}{simulated}"
        self.model = build.build_network(config, len(data.table.findings), data.prevalence)
        self.cases = run_data.resident_cases(config, data)
        self.peak_rate = PeakRate(config, data, self.model, self.cases, directory, self.title)
        self.eval_step = setup.eval_step(config, self.model, self.cases)
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
        self.asked = 0

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
            return 128 + (self.ending or signal.SIGTERM)
        else:
            processes.broadcast_from_first(lambda: self._finish(state))
            return 0
        finally:
            self.checkpoints.close()

    def _stages(self) -> TrainState:
        """Goes through the stages that are left; returns the last state."""
        state, progress = self._where_it_stands()
        position = (progress.stage, int(state.step))
        with self._log(position) as log:
            for name in self.names[self.names.index(progress.stage) :]:
                if name != progress.stage:
                    state, progress = self._begin(name, self._best(progress, state)), Progress(name)
                state, progress = self._stage(name, state, progress, log)
                self.finished[name] = dataclasses.asdict(progress) | {"steps": int(state.step)}
        return state

    def _log(self, position: tuple[str, int]) -> RunLog | NoLog:
        if not processes.is_first():
            return NoLog()
        return RunLog(self.directory, self.names, position, self.config.log.every_steps)

    def _end(self, number: int, frame: object) -> None:
        self.ending = number

    def _asked_to_end(self) -> bool:
        """Whether this process was, or of several processes any when they last agreed on it."""
        if jax.process_count() == 1:
            return self.ending is not None
        self.asked += 1
        return self.asked % _AGREE_EVERY == 0 and processes.any_of(self.ending is not None)

    def _where_it_stands(self) -> tuple[TrainState, Progress]:
        """The newest state that can be read, or a new one."""
        new = build.new_state(self.model, self.config)
        state, found = processes.broadcast_arrays_from_first(
            lambda: self._newest(new), lambda found: self._begin(found["progress"]["stage"], new)
        )
        if state is None:
            return self._begin(self.names[0], self._filled(new)), Progress(self.names[0])
        self.finished = found["finished"]
        return state, Progress(**found["progress"])

    def _newest(self, new: TrainState) -> tuple[TrainState | None, dict[str, Any]]:
        """The newest state that can be read, with the progress of it and of the stages before.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        every = list(self.checkpoints.newest_first())
        for stage, step in every:
            try:
                state, meta = self.checkpoints.restore(stage, step, self._begin(stage, new))
            except DamagedCheckpoint as error:
                say(f"warning: {error} The one before it is used.")
                continue
            self._check_split(meta["split"])
            say(f"Continuing {self.directory} from step {step} of stage {stage}.")
            progress = self._with_best(Progress(**meta["progress"]))
            return state, {"progress": dataclasses.asdict(progress), "finished": meta["finished"]}
        if every:
            raise InputError(
                f"No checkpoint of {self.directory} can be read: move the folder away to begin "
                "anew, or choose another --config.name."
            )
        return None, {}

    def _filled(self, new: TrainState) -> TrainState:
        """The state with its first weights; ``weights.json`` says which file they are of."""
        keys = self.config.model
        filled, file = load.initial_weights(new, keys.init_from, keys.backbone)
        say(load.describe(file))
        if processes.is_first():
            path = self.directory / "weights.json"
            path.unlink(missing_ok=True)
            if file is not None:
                folder.write_json(path, dataclasses.asdict(file))
        return filled

    def _check_split(self, saved: dict[str, Any]) -> None:
        """Refuses to go on with other images: steps, order and bank would lose their meaning.

        Raises:
            InputError: the findings, or the first part, that differ.
        """
        folder.check_findings(self.directory, saved["findings"], self.data.table)
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

        def read() -> tuple[TrainState, None]:
            steps = self.checkpoints.steps(progress.stage)
            for step in [progress.best_step, *steps] if progress.best_step else steps:
                try:
                    return self.checkpoints.restore(progress.stage, step, like)[0], None
                except DamagedCheckpoint as error:
                    say(f"warning: {error} Another one of the stage is used.")
            raise InputError(
                f"No checkpoint of stage {progress.stage} in {self.directory} can be read: train "
                "it again under another --config.name."
            )

        return processes.broadcast_arrays_from_first(read, lambda _: like)[0]

    def _begin(self, stage: str, state: TrainState) -> TrainState:
        """The state at the start of a stage. Its optimizer's state has no trace of the peak."""
        plan = setup.plan(self.config, self.data, stage)
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1 + PHASES.index(stage))
        peak = self.config.stages[plan.part].peak_lr
        optimizer = setup.optimizer(self.config, plan, peak)
        return begin_stage(state, optimizer, key, freeze_trunk=plan.freeze_trunk)

    def _stage(
        self, name: str, state: TrainState, progress: Progress, log: RunLog
    ) -> tuple[TrainState, Progress]:
        plan = setup.plan(self.config, self.data, name)
        if progress.finished:
            return state, progress
        state = mesh.replicated(state, mesh.mesh())
        optimizer = setup.optimizer(self.config, plan, self.peak_rate.of(plan, state))
        batches = setup.training_batches(self.config, self.data, plan, int(state.step))
        step = setup.train_step(self.config, self.model, plan, optimizer, self.cases)
        traces = self.config.log.trace_steps if processes.is_first() else 0
        with (
            contextlib.closing(batches),
            trace.traced(step, self.directory / "trace" / name, traces) as train_step,
        ):
            hooks = Hooks(
                train_step=train_step,
                batches=batches,
                validate=setup.validator(self.config, self.data, plan, self.eval_step),
                log=log,
                save=self._save,
                asked_to_end=self._asked_to_end,
            )
            return run_stage(state, progress, plan, hooks)

    def _save(self, state: TrainState, progress: Progress) -> None:
        meta = {
            "progress": dataclasses.asdict(progress),
            "next_index": int(state.step),
            "config": self.config.raw,
            "split": self.split,
            "finished": self.finished,
        }
        saving = (progress.stage, state, meta, progress.best_step)
        processes.broadcast_from_first(lambda: self.checkpoints.save(*saving))

    def _last_good(self) -> str:
        last = processes.broadcast_from_first(self._newest_on_disk)
        if last is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.directory}/checkpoints/{last[0]}/{last[1]}."

    def _newest_on_disk(self) -> tuple[str, int] | None:
        self.checkpoints.wait()
        return next(self.checkpoints.newest_first(), None)

    def _finish(self, state: TrainState) -> None:
        self.checkpoints.close()
        self._summarise(state)

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
        from charm_jax.report import curves

        curves.draw_curves(self.directory, self.title, self.names)
        folder.write_json(self.directory / "summary.json", summary)
        say(
            f"Done in {summary['seconds']:.0f} s. Evaluate it: "
            f"python -m charm_jax.eval --run {self.config.name}"
        )
