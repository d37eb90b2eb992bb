"""Train the phases of a run in their order, from its newest checkpoint."""

import contextlib
import dataclasses
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from charm_jax.config import build
from charm_jax.config.cli import say
from charm_jax.config.recipe import KEYS
from charm_jax.config.settings import PHASES, Settings
from charm_jax.distributed import mesh, processes
from charm_jax.inference import fitted, loaded
from charm_jax.models.state import TrainState, averaged, begin_stage
from charm_jax.runs import folder
from charm_jax.runs.cases import cases_sha256
from charm_jax.runs.checkpoints import Checkpoints, DamagedCheckpoint, network_sha256, tree_sha256
from charm_jax.train import lr_finder, optim, setup
from charm_jax.train.log import RunLog
from charm_jax.train.loop import Hooks, Interrupted, NonFiniteLoss, TrainStep, run_phase
from charm_jax.train.plan import VALIDATION_SCORES, Progress
from charm_jax.train.setup import Experiment
from charm_jax.weights import load
from charm_jax.weights.load import WeightFile
from data_pipelines.errors import InputError

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
        self.eval_step = setup.compile_eval_step(experiment)
        self.checkpoints = Checkpoints(
            self.directory / "checkpoints", self.phases, self.settings.checkpoint.keep
        )
        data = experiment.data
        hashes = {
            f"{stage}/{split}": splits[split]["sha256"]
            for stage, splits in description["stages"].items()
            for split in data.split.stages[stage]
        }
        self.split = {
            "rule": data.split.rule,
            "findings": list(data.table.findings),
            "sha256": hashes,
            "cases": cases_sha256(data.table, data.seen),
        }
        self.finished: dict[str, dict[str, Any]] = {}
        self.signal: int | None = None

    def begin(self, source: str = "") -> Beginning:
        """Read the newest readable checkpoint, or create a state with its first weights.

        It writes nothing: whatever is refused leaves the folder of the run as it was.

        Args:
            source: ``RUN`` or ``RUN:CHECKPOINT`` that a new run starts from.

        Raises:
            InputError: the weights do not fit; or there are checkpoints, but none is readable, or
                they are of another architecture or other images.
        """
        new = build.new_state(self.experiment.model, self.settings)
        state, found = processes.broadcast_arrays_from_first(
            lambda: self._newest(new),
            lambda found: self._begin_phase(found["progress"]["phase"], new),
        )
        if state is not None:
            self.finished = found["finished"]
            return Beginning(state, Progress(**found["progress"]))
        if source:
            new, found = processes.broadcast_arrays_from_first(
                lambda: self._from_run(source, new), lambda _: new
            )
            file = WeightFile(**found)
            say(load.describe(file))
        else:
            new, file = setup.first_weights(self.experiment, new)
        first = self.phases[0]
        return Beginning(self._begin_phase(first, new), Progress(first), is_new=True, weights=file)

    def run(self, beginning: Beginning) -> int:
        """Train to the end and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: setattr(self, "signal", number))
        try:
            state = self._train_phases(beginning.state, beginning.progress)
        except NonFiniteLoss as error:
            last = self._newest_saved()
            say(f"error: {error}. {self._last_good(last)} {self._remedy(error.phase, last)}")
            return 3
        except Interrupted:
            last = self._last_good(self._newest_saved())
            say(f"Asked to stop: {last} The same command continues from there.")
            return 128 + (self.signal or signal.SIGTERM)
        else:
            processes.broadcast_from_first(lambda: self._summarise(state))
            return 0
        finally:
            self.checkpoints.close()

    def _train_phases(self, state: TrainState, progress: Progress) -> TrainState:
        """Train the phases that are left and return the last state."""
        with contextlib.ExitStack() as stack:
            log = None
            if processes.is_first():
                position = (progress.phase, int(state.step))
                every_steps = self.settings.log.every_steps
                plans = list(self.plans.values())
                log = stack.enter_context(RunLog(self.directory, plans, position, every_steps))
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
        peak = lr_finder.peak_rate(self.experiment, plan, state)
        optimizer = setup.make_optimizer(self.experiment, plan, peak)
        step = setup.compile_train_step(self.experiment, plan, optimizer)
        traces = self.settings.log.trace_steps if processes.is_first() else 0
        batches = setup.training_batches(self.experiment, plan, int(state.step))
        with (
            contextlib.closing(batches),
            traced(step, self.directory / "trace" / plan.phase, traces) as train_step,
        ):
            hooks = Hooks(
                train_step=train_step,
                batches=batches,
                validate=setup.validator(self.experiment, plan, self.eval_step),
                log=log,
                save=self._save,
                asked_to_stop=lambda: self.signal is not None,
                agree=agree,
            )
            return run_phase(state, progress, plan, hooks)

    def _newest(self, new: TrainState) -> tuple[TrainState | None, dict[str, Any]]:
        """Return the newest readable state, its progress and the phases before it.

        Raises:
            InputError: there are checkpoints but none is readable, or the images differ.
        """
        checkpoints = Checkpoints(self.checkpoints.directory, self.phases)  # to read only
        with contextlib.closing(checkpoints):
            every = list(checkpoints.newest_first())
            for phase, step in every:
                try:
                    state, meta = self._restore(checkpoints, phase, step, new)
                except DamagedCheckpoint as error:
                    say(f"warning: {error} The one before it is used.")
                    continue
                self._check_split(meta["split"])
                say(f"Continuing {self.directory} from step {step} of stage {phase}.")
                progress = meta["progress"]
                best = progress["best_step"]
                if best not in (None, *checkpoints.steps(phase)):
                    say(f"warning: the best checkpoint, {best}, is gone; another is sought.")
                    progress |= {key: None for key in progress if key.startswith("best_")}
                progress |= self._extension(phase, meta["config"], progress)
                return state, {"progress": progress, "finished": meta["finished"]}
        if every:
            raise InputError(
                f"No checkpoint of {self.directory} can be read: move the folder away to start "
                "from the beginning, or choose another --config.name."
            )
        return None, {}

    def _restore(
        self, checkpoints: Checkpoints, phase: str, step: int, new: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restore a state; the optimizer restarts where its settings changed its state's tree."""
        like = self._begin_phase(phase, new)
        if checkpoints.holds_optimizer(phase, step, like):
            return checkpoints.restore(phase, step, like)
        state, meta = checkpoints.restore(phase, step, like.replace(opt_state=()))
        say(
            f"warning: the optimizer of stage {phase} has other settings than when the run began: "
            "its moments restart from zero, its schedule goes on."
        )
        done = step // self.settings.stages[self.plans[phase].stage].accumulate
        return state.replace(opt_state=optim.at_update(like.opt_state, done)), meta

    def _extension(
        self, phase: str, config: dict[str, Any], progress: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what changes in the progress of a finished phase that got more epochs."""
        plan = self.plans[phase]
        _, frozen = self.settings.phases[phase]
        before = config["stages"][plan.stage]["frozen_epochs" if frozen else "epochs"]
        if not progress["finished"] or plan.epochs <= before:
            return {}
        say(f"Stage {phase} goes on to {plan.epochs} epochs, with the schedule of so many.")
        return {"finished": False, "stopped_early": False, "waited": 0}

    def _from_run(self, source: str, new: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Fill a new state with the network and bank of another run's checkpoint.

        Raises:
            InputError: there is no such run or checkpoint, or it is of another architecture.
        """
        name, _, checkpoint = source.partition(":")
        run = folder.find(self.directory.parent, name)
        trained_on: dict[str, Any] = {}

        def like(meta: dict[str, Any]) -> TrainState:
            trained_on.update(meta["split"])
            weights = {"params": new.params, "batch_stats": new.batch_stats}
            return new.replace(average=weights if meta["config"]["model"]["average"] else None)

        state, checkpoint = folder.restore(run, checkpoint or "best", like)
        state = averaged(state).replace(average=new.average, rng=new.rng)
        if trained_on["findings"] != self.split["findings"]:
            folder.check_findings(run, trained_on["findings"], self.experiment.data.table)
        if trained_on["sha256"] != self.split["sha256"]:
            say(f"warning: {run} saw other images, whose patients no evaluation will recognise.")
        if state.memory is not None and trained_on["cases"] != self.split["cases"]:
            say(f"warning: {run} numbers its cases differently: the memory bank starts empty.")
            state = state.replace(memory=new.memory)
        where = str(run / "checkpoints" / checkpoint)
        tensors = len(jax.tree.leaves(state.params))
        file = WeightFile(source, where, network_sha256(state), tensors, left_out=[], notes=[])
        return state, dataclasses.asdict(file)

    def _check_split(self, saved: dict[str, Any]) -> None:
        """Refuse to continue with other images, for which steps, order and bank mean nothing.

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
        key = f"--config.stages.{stage}"
        limit = f"limit the gradients ({key}.clip_norm=1"
        lower = f"{key}.peak_lr={self.settings.stages[stage].peak_lr / 3:.2g}"
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
        }
        from charm_jax.report import curves

        curves.draw_curves(self.directory, self.experiment.title, self.phases)
        folder.write_json(self.directory / "summary.json", summary)
        if jax.process_count() == 1:
            # Now, so that a copy of the run predicts without its data.
            fitted.load_calibrator(loaded.load_run(self.directory), self.experiment.data)
        say(f"Done in {summary['seconds']:.0f} s. Evaluate it: {evaluation_command(self.settings)}")


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
