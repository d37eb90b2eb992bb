"""Train the phases of a run in their order, from its newest checkpoint."""

import contextlib
import dataclasses
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from charm_jax.config import build
from charm_jax.config.cli import say
from charm_jax.config.recipe import KEYS
from charm_jax.config.settings import PHASES, Settings
from charm_jax.distributed import mesh, processes
from charm_jax.inference import changes, fitted, loaded, refill, refit
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.rows import largest_batch
from charm_jax.inference.steps import eval_step
from charm_jax.models.state import TrainState, averaged, begin_stage
from charm_jax.models.vote import Vote
from charm_jax.runs import banks, folder, refitted
from charm_jax.runs import data as run_data
from charm_jax.runs.banks import TRAINED
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint, tree_sha256
from charm_jax.train import lr_finder, optim, setup
from charm_jax.train.ahead import Ahead, batch_shapes, shapes
from charm_jax.train.estimate import estimate
from charm_jax.train.first_weights import first_weights
from charm_jax.train.log import RunLog
from charm_jax.train.loop import Hooks, Interrupted, NonFiniteLoss, TrainStep, run_phase
from charm_jax.train.memory import check_memory
from charm_jax.train.plan import VALIDATION_SCORES, Plan, Progress
from charm_jax.train.setup import Experiment
from charm_jax.train.trackers import open_trackers
from charm_jax.weights.load import WeightFile
from data_pipelines import stopping
from data_pipelines.errors import InputError
from data_pipelines.stopping import Stopped

_AGREE_EVERY = 10  # steps between which several processes tell each other what they want
_TRACE_AFTER = 10  # steps: the first ones compile and fill queues


class Beginning(NamedTuple):
    """The state that a command starts from.

    Attributes:
        progress: at that state.
        is_new: whether no checkpoint was read.
        weights: the file that a new run starts from; None if random.
    """

    state: TrainState
    progress: Progress
    is_new: bool = False
    weights: WeightFile | None = None


class Training:
    """A run of training. All processes train; the first alone reads and writes the folder."""

    def __init__(self, experiment: Experiment, description: dict[str, Any]):
        """Prepare a run; ``description`` is the content of ``split.json``."""
        self.experiment, self.settings = experiment, experiment.settings
        self.directory = experiment.directory
        self.plans = {phase: setup.make_plan(experiment, phase) for phase in self.settings.phases}
        self.phases = list(self.plans)
        check_memory(experiment, self.plans.values())
        self.checkpoints = Checkpoints(
            self.directory / "checkpoints", self.phases, self.settings.checkpoint.keep
        )
        self.split = run_data.split_identity(experiment.data, description)
        self.finished: dict[str, dict[str, Any]] = {}
        self.range_tests: dict[str, dict[str, Any] | None] = {}
        self.peaks: dict[str, float] = {}
        self.signals: list[int] = []
        self.refitted: dict[str, Any] | None = None
        self.steps: dict[Any, Callable] = {}
        # A GPU would time kernels beside the steps; several devices share a batch by its arrays.
        is_one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
        self.ahead = Ahead(enabled=is_one_cpu)

    def begin(self, source: str = "") -> Beginning:
        """Read the newest readable checkpoint, or create a state with its first weights.

        It writes nothing: whatever is refused leaves the folder of the run as it was.

        Args:
            source: ``RUN`` or ``RUN:CHECKPOINT`` that a new run starts from.

        Raises:
            InputError: the weights do not fit; or there are checkpoints, but none is readable, or
                they are of another architecture, other images or later epochs.
        """
        new = build.new_state(self.experiment.model, self.settings)
        state, found = processes.broadcast_arrays_from_first(
            lambda: self._newest(new),
            lambda found: self._begin_phase(found["progress"]["phase"], new),
        )
        if state is not None:
            self.finished = found["finished"]
            return Beginning(state, Progress(**found["progress"]))
        new, file = first_weights(self.experiment, new, self.split, source)
        first = self.phases[0]
        return Beginning(self._begin_phase(first, new), Progress(first), is_new=True, weights=file)

    def prepare(self, beginning: Beginning) -> None:
        """Do what else may refuse to begin: load resident images and run the first range test."""
        processes.all_succeed(lambda: self.experiment.cases)
        if beginning.is_new:
            self._test_rate(beginning.state, beginning.progress.phase)

    def estimate(self) -> dict[str, Any]:
        """Return what a new run takes; see ``estimate.estimate``. It writes nothing."""

        def begin(phase: str) -> TrainState:
            return self._begin_phase(phase, build.new_state(self.experiment.model, self.settings))

        return estimate(self.experiment, self.plans, begin)

    def run(self, beginning: Beginning) -> int:
        """Train to the end and return the exit code."""
        try:
            with stopping.caught(raising=False) as self.signals:
                state = self._train_phases(beginning.state, beginning.progress)
                self._refit()
                self._refill()
                processes.broadcast_from_first(lambda: self._summarise(state))
        except NonFiniteLoss as error:
            last = self._newest_saved()
            say(f"error: {error}. {self._last_good(last)} {self._remedy(error.phase, last)}")
            return 3
        except Interrupted:
            last = self._last_good(self._newest_saved())
            say(f"Asked to stop: {last} The same command continues from there.")
            return 128 + (*self.signals, signal.SIGTERM)[0]  # another process may have got it
        except Exception as error:
            if self.signals:  # loader processes may have got the signal, too
                raise Stopped(self.signals[0]) from error
            raise
        else:
            return self._calibrate()
        finally:
            self.checkpoints.close()
            self.ahead.close()  # last: it may take as long as a program compiles

    def _train_phases(self, state: TrainState, progress: Progress) -> TrainState:
        """Train the phases that are left and return the last state."""
        self.eval_step = setup.compile_eval_step(self.experiment)
        with contextlib.ExitStack() as stack:
            log = None
            if processes.is_first():
                position = (progress.phase, int(state.step))
                keys, raw = self.settings.log, self.settings.raw
                trackers = open_trackers(keys.tracker_names, self.directory, position, raw)
                plans = list(self.plans.values())
                log = stack.enter_context(
                    RunLog(self.directory, plans, position, keys.every_steps, trackers)
                )
            for phase in self.phases[self.phases.index(progress.phase) :]:
                if phase != progress.phase:
                    state = self._begin_phase(phase, averaged(self._best(progress, state)))
                    progress = Progress(phase)
                if not progress.finished:
                    state, progress = self._train(state, progress, log)
                self.finished[phase] = dataclasses.asdict(progress) | {"steps": int(state.step)}
        return state

    def _train(
        self, state: TrainState, progress: Progress, log: RunLog | None
    ) -> tuple[TrainState, Progress]:
        """Train one phase."""
        plan = self.plans[progress.phase]
        state = mesh.replicated(state, mesh.mesh())
        self._test_rate(state, plan.phase)
        peak = lr_finder.peak_rate(self.experiment, plan, self.range_tests[plan.phase])
        self.peaks[plan.phase] = peak
        step = setup.compile_train_step(self.experiment, plan, peak)
        validate = setup.validator(self.experiment, plan, self.eval_step)

        def validated(network: TrainState) -> dict[str, float | None]:
            self.ahead.wait("evaluation step")
            return validate(network)

        traces = self.settings.log.trace_steps if processes.is_first() else 0
        batches = setup.training_batches(self.experiment, plan, int(state.step))
        with (
            contextlib.closing(batches),
            traced(step, self.directory / "trace" / plan.phase, traces) as train_step,
        ):
            self.ahead.wait(f"step of stage {plan.phase}")
            hooks = Hooks(
                train_step=train_step,
                begun=partial(self._compile_ahead, plan),
                batches=batches,
                validate=validated,
                log=log,
                save=self._save,
                asked_to_stop=lambda: bool(self.signals),
                agree=agree,
            )
            return run_phase(state, progress, plan, hooks)

    def _compile_ahead(
        self, plan: Plan, state: TrainState, batch: Mapping[str, np.ndarray]
    ) -> None:
        """Compile the evaluation step and the next phase's training step while this one trains."""
        now = shapes(state)

        def evaluation() -> jax.stages.Lowered:
            images = batch_shapes(batch, largest_batch(self.settings))
            return self.eval_step.lower(now.replace(opt_state=()), images)

        def training(phase: str) -> jax.stages.Lowered:
            later = self.plans[phase]
            peak = self.settings.stages[later.stage].peak_lr
            step = setup.compile_train_step(self.experiment, later, peak)
            first = jax.eval_shape(lambda last: self._begin_phase(phase, averaged(last)), now)
            return step.lower(first, batch_shapes(batch, later.batch_size))

        self.ahead.compile("evaluation step", evaluation)
        for phase in self.phases[self.phases.index(plan.phase) + 1 :][:1]:
            self.ahead.compile(f"step of stage {phase}", partial(training, phase))

    def _test_rate(self, state: TrainState, phase: str) -> None:
        """Run the range test of a phase once."""
        if phase not in self.range_tests:
            test = lr_finder.range_test(self.experiment, self.plans[phase], state)
            self.range_tests[phase] = test

    def _newest(self, new: TrainState) -> tuple[TrainState | None, dict[str, Any]]:
        """Return the newest readable state, its progress and the phases before it.

        Raises:
            InputError: there are checkpoints but none is readable, or the images differ, or the
                epochs in a way that cannot be trained.
        """
        checkpoints = Checkpoints(self.checkpoints.directory, PHASES)  # to read only
        with contextlib.closing(checkpoints):
            every = list(checkpoints.newest_first())
            for phase, step in every:
                try:
                    meta = checkpoints.meta(phase, step)
                    self._check_whole(meta)
                    extended = self._check_epochs(phase, meta)
                    self._check_split(meta["split"])
                    state = self._restore(checkpoints, phase, step, new)
                except DamagedCheckpoint as error:
                    say(f"warning: {error} The one before it is used.")
                    continue
                say(f"Continuing {self.directory} from step {step} of stage {phase}.")
                progress = meta["progress"]
                best = progress["best_step"]
                if best not in (None, *checkpoints.steps(phase)):
                    say(f"warning: the best checkpoint, {best}, is gone; another is sought.")
                    progress |= {key: None for key in progress if key.startswith("best_")}
                if extended:
                    epochs = self.plans[phase].epochs
                    say(f"Stage {phase} goes on to {epochs} epochs, with the schedule of so many.")
                    progress |= {"finished": False, "stopped_early": False, "waited": 0}
                return state, {"progress": progress, "finished": meta["finished"]}
        if every:
            raise InputError(
                f"No checkpoint of {self.directory} can be read: move the folder away to start "
                "from the beginning, or choose another --config.name."
            )
        return None, {}

    def _restore(
        self, checkpoints: Checkpoints, phase: str, step: int, new: TrainState
    ) -> TrainState:
        """Restore a state; the optimizer restarts where its settings changed its state's tree."""
        like = self._begin_phase(phase, new)
        if checkpoints.holds_optimizer(phase, step, like):
            return checkpoints.restore(phase, step, like)[0]
        state, _ = checkpoints.restore(phase, step, like.replace(opt_state=()))
        say(
            f"warning: the optimizer of stage {phase} has other settings than when the run began: "
            "its moments restart from zero, its schedule goes on."
        )
        done = step // self.settings.stages[self.plans[phase].stage].accumulate
        return state.replace(opt_state=optim.at_update(like.opt_state, done))

    def _check_whole(self, meta: dict[str, Any]) -> None:
        """Refuse to continue without the optimizer's state, whose steps would begin again.

        Raises:
            InputError: ``charm-jax runs slim`` removed it.
        """
        if not any(name.startswith("opt_state/") for name in meta["leaves"]):
            raise InputError(
                f"The run {self.directory} was reduced by charm-jax runs slim and cannot be "
                f"trained further: start another with --config.name and --from {self.directory}."
            )

    def _check_epochs(self, phase: str, meta: dict[str, Any]) -> bool:
        """Whether the newest phase is finished and gets more epochs.

        Raises:
            InputError: epochs, or the batches that fill them, cannot be those of the config.
        """
        stage = phase.removesuffix("_frozen")
        batch_size = meta["config"]["stages"][stage]["batch_size"]
        if batch_size != self.settings.stages[stage].batch_size:
            raise InputError(
                f"config.stages.{stage}.batch_size cannot change in the run {self.directory}, "
                f"which counts its steps in batches of {batch_size}: set it to that, or start a "
                "new run with --from and --config.name."
            )
        began, wanted = (folder.phase_epochs(c) for c in (meta["config"], self.settings.raw))
        progress = meta["progress"]
        least = began[phase] if progress["finished"] else progress["epoch"] + 1
        folder.check_epochs(self.directory, began, wanted, phase, least)
        return progress["finished"] and wanted[phase] > began[phase]

    def _check_split(self, saved: dict[str, Any]) -> None:
        """Refuse to continue with other images, for which steps, order and bank mean nothing.

        Other labels need ``config.resume=force``.

        Raises:
            InputError: with the findings, or the first split, that differ.
        """
        folder.check_findings(self.directory, saved["findings"], self.experiment.data.table)
        now = {"rule": self.split["rule"], **self.split["sha256"]}
        then = {"rule": saved["rule"], **saved["sha256"]}
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            raise InputError(
                f"The images of {changed[0]} are not those that the run {self.directory} began "
                "with: bring them back, or choose another --config.name."
            )
        if self.split["cases"] != saved["cases"]:
            raise InputError(
                f"The table of {self.experiment.data.table.source} numbers its images or patients "
                f"differently than when the run {self.directory} began, so the memory bank would "
                "name the wrong cases: undo the added, removed or renamed rows, or choose another "
                "--config.name."
            )
        now, then = self.split["labels"], saved.get("labels", {})  # none in older checkpoints
        changed = [name for name in then if then[name] != now.get(name)]
        if changed:
            what = (
                f"The labels of {changed[0]} are not those that the run {self.directory} began with"
            )
            if self.settings.resume != "force":
                raise InputError(
                    f"{what}: bring them back, choose another --config.name, or continue it "
                    "nevertheless with --config.resume=force."
                )
            say(f"warning: {what}: the memory bank keeps the old ones until it is refilled.")

    def _best(self, progress: Progress, like: TrainState) -> TrainState:
        """Return the best state of a finished phase, or else its newest readable one.

        Raises:
            InputError: none is readable.
        """

        def read() -> tuple[TrainState, None]:
            steps = self.checkpoints.steps(progress.phase)
            for step in [progress.best_step, *steps] if progress.best_step else steps:
                try:
                    return self.checkpoints.restore(progress.phase, step, like)[0], None
                except DamagedCheckpoint as error:
                    say(f"warning: {error} Another one of the stage is used.")
            raise InputError(
                f"No checkpoint of stage {progress.phase} in {self.directory} can be read: train "
                "it again under another --config.name."
            )

        return processes.broadcast_arrays_from_first(read, lambda _: like)[0]

    def _begin_phase(self, phase: str, state: TrainState) -> TrainState:
        """Return the state at the start of a phase; it does not depend on the peak rate."""
        plan = self.plans[phase]
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 1 + PHASES.index(phase))
        peak = self.settings.stages[plan.stage].peak_lr
        optimizer = setup.make_optimizer(self.experiment, plan, peak)
        return begin_stage(state, optimizer, key, freeze_trunk=plan.freeze_trunk)

    def _save(self, state: TrainState, progress: Progress) -> None:
        meta = {
            "progress": dataclasses.asdict(progress),
            "next_index": int(state.step),
            "config": self.settings.raw,
            "split": self.split,
            "finished": self.finished,
        }
        saving = (progress.phase, state, meta, progress.best_step)
        processes.broadcast_from_first(lambda: self.checkpoints.save(*saving))

    def _newest_saved(self) -> tuple[str, int] | None:
        def newest() -> tuple[str, int] | None:
            self.checkpoints.wait()
            return next(self.checkpoints.newest_first(), None)

        return processes.broadcast_from_first(newest)

    def _last_good(self, last: tuple[str, int] | None) -> str:
        if last is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.directory}/checkpoints/{last[0]}/{last[1]}."

    def _remedy(self, phase: str, last: tuple[str, int] | None) -> str:
        """Return what can be done where a loss is not finite; the same command would repeat it."""
        stage, name = self.plans[phase].stage, self.settings.name
        key, keys = f"--config.stages.{stage}", self.settings.stages[stage]
        limit = f"limit the gradients ({key}.clip_norm={(keys.clip_norm or 10) / 10:.2g}"
        lower = f"{key}.peak_lr={self.peaks[phase] / 3:.2g}"
        if keys.find_lr:
            lower += f" {key}.find_lr=False"
        if last is None:
            return f"To get past it, {limit}) or lower the rate ({lower})."
        return (
            f"To get past it, {limit} --config.resume=force) or start a new run at a lower rate "
            f"(--config.name={name}-2 --from {name}:{last[0]}/{last[1]} {lower})."
        )

    def _summarise(self, state: TrainState) -> None:
        """Finish all saves and write ``summary.json`` and ``curves.png``."""
        self.checkpoints.close()
        same = ("steps", "best_epoch", "best_step", "stopped_early")
        stages = {
            phase: {key: done[key] for key in same}
            | {
                "epochs": done["epoch"],
                "monitor": self.plans[phase].monitor,
                **{
                    f"best_val_{name}": (done["best_scores"] or {}).get(score)
                    for score, name in VALIDATION_SCORES.items()
                },
                "seconds": round(done["seconds"], 3),
            }
            for phase, done in self.finished.items()
        }
        summary = {
            "simulated": self.experiment.data.table.simulated,
            "leak_images": self.experiment.data.split.leak_images,
            "stages": stages,
            "seconds": round(sum(stage["seconds"] for stage in stages.values()), 3),
            "params_sha256": tree_sha256(state.params),
            **({"refit": self.refitted} if self.refitted else {}),
        }
        from charm_jax.report import curves

        curves.draw_curves(self.directory, self.experiment.title, self.phases)
        folder.write_json(self.directory / "summary.json", summary)

    def _calibrate(self) -> int:
        """Fit what predictions need of validation; return the exit code.

        It is done now, so that a copy of the run predicts without its data.
        """
        evaluate = evaluation_command(self.settings)
        try:
            with stopping.caught(raising=True):
                if self.signals:
                    raise Stopped(self.signals[0])
                if jax.process_count() == 1:
                    fitted.load_calibrator(self._load(TRAINED), self.experiment.data)
        except Stopped as stopped:
            say(
                f"Asked to stop: the run {self.directory} is finished, but not calibrated, which "
                f"its evaluation does: {evaluate}"
            )
            return 128 + stopped.number
        seconds = sum(done["seconds"] for done in self.finished.values())
        say(f"Done in {seconds:.0f} s. Evaluate it: {evaluate}")
        return 0

    def _load(self, memory: str | None) -> LoadedModel:
        """Load the best checkpoint with a bank, and with the steps that this command compiled."""
        model = loaded.load_run(self.directory, memory=memory)
        if self.experiment.cases is None:  # the step of resident images takes their ids alone
            self.steps[eval_step, True] = self.eval_step
        return dataclasses.replace(model, steps=self.steps)

    def _refit(self) -> None:
        """Refit the classifier of the best checkpoint, and keep it where validation's loss falls.

        Raises:
            Interrupted: it was asked to stop; the same command refits it.
        """
        (self.directory / refitted.FILE).unlink(missing_ok=True)
        if self.settings.refit == "none":
            return

        def work() -> None:
            model = self._load(memory=None)
            layer, made = refit.refit(model, self.experiment.data)
            if made["replaced"]:
                refitted.write(self.directory, model.checkpoint, model.state, layer)
            self.refitted = made
            kept = "the refitted one" if made["replaced"] else "that of training"
            say(
                f"Classifier refitted ({made['form']}, L2 {made['l2']:g}): validation loss "
                f"{made['val_loss']:.4f}, before {made['val_loss_before']:.4f}; {kept} is used."
            )

        try:
            self._finish(work)
        except InputError as error:  # the run is whole without it
            say(
                f"warning: {error} The classifier of training is kept: mend this and give the same "
                "command again to refit it."
            )

    def _finish(self, work: Callable[[], None]) -> None:
        """Do what follows the last checkpoint, and can be done again from there.

        Raises:
            Interrupted: it was asked to stop.
        """
        self.checkpoints.wait()
        try:
            with stopping.caught(raising=True):
                if self.signals:
                    raise Stopped(self.signals[0])
                work()
        except Stopped as stopped:
            self.signals.append(stopped.number)
            raise Interrupted from stopped

    def _refill(self) -> None:
        """Fill the bank of a network whose cases vote with features as an evaluation has them.

        Raises:
            Interrupted: it was asked to stop; the same command fills the bank.
        """
        if not isinstance(self.experiment.model, Vote):
            return
        again = (
            "the memory bank keeps the keys of training: fill another one with charm-jax memory "
            f"{self.directory} refill --label LABEL, and name it with --memory LABEL."
        )
        if jax.process_count() > 1:
            say(f"With several processes {again}")
            return

        def work() -> None:
            model, data = self._load(memory=None), self.experiment.data
            rows = data.split.rows(self.settings.stage_names[-1], "train")
            memory, made = refill.refill(model, data, rows)
            description = changes.describe(model, "train") | made | {"split": "train"}
            banks.write(self.directory, TRAINED, memory, model.state, description)

        try:
            self._finish(work)
        except InputError as error:  # the run is whole without it
            say(f"warning: {error} Therefore {again}")


def evaluation_command(settings: Settings) -> str:
    """Return the command that evaluates a run, with every flag that it needs."""
    command = ["charm-jax", "eval", "--run", settings.name]
    if settings.runs_dir != KEYS["runs_dir"].default:
        command.append(f"--config.runs_dir={settings.runs_dir}")
    return shlex.join(command)


def agree(step: int, wishes: Sequence[bool]) -> Sequence[bool]:
    """Return what any process wishes; several ask each other every 10 steps and wait until then."""
    if jax.process_count() == 1:
        return wishes
    if step % _AGREE_EVERY:
        return [False] * len(wishes)
    return processes.all_gather(np.array([wishes])).any(axis=0).tolist()


@contextlib.contextmanager
def traced(step: TrainStep, directory: Path, count: int) -> Iterator[TrainStep]:
    """Wrap ``step`` so that ``count`` calls after the first ten are profiled.

    TensorBoard's profile plug-in and Perfetto read the trace. One that is still open at the end
    covers fewer calls.
    """
    calls, open_, result = 0, False, None

    def stop() -> None:
        nonlocal open_
        jax.block_until_ready(result)
        jax.profiler.stop_trace()
        open_ = False

    def call(*arguments: Any) -> Any:
        nonlocal calls, open_, result
        if calls == _TRACE_AFTER and count:
            jax.profiler.start_trace(directory)
            open_ = True
        result = step(*arguments)
        calls += 1
        if open_ and calls == _TRACE_AFTER + count:
            stop()
        return result

    try:
        yield call
    finally:
        if open_:
            stop()
