"""Report a run: run.log, progress, metrics.jsonl and trackers."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from charm_jax.config.cli import Notice, say
from charm_jax.train.plan import Plan
from charm_jax.train.trackers import Tracker
from data_pipelines.atomic_files import whole_file
from data_pipelines.progress import progress


@contextlib.contextmanager
def run_log(command: str) -> Iterator[Callable[[Path], None]]:
    """Collect all notices, then append them to ``run.log`` from when its folder is known.

    Args:
        command: first line of the log.

    Yields:
        A function that takes the folder of the run.
    """
    logger, form = logging.getLogger("charm_jax"), Notice("%(asctime)s %(message)s")
    early = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    early.handle(_notice(command))
    logger.addHandler(early)
    files: list[logging.Handler] = []

    def begin(directory: Path) -> None:
        file = _LogFile(directory / "run.log", encoding="utf-8")
        file.setFormatter(form)
        files.append(file)
        early.setTarget(file)
        early.flush()
        logger.removeHandler(early)
        logger.addHandler(file)

    try:
        yield begin
    except Exception as error:  # printed by the caller, after this log is closed
        for file in files:
            file.handle(_notice(f"error: {error}"))
        raise
    finally:
        for handler in (early, *files):
            logger.removeHandler(handler)
            handler.close()


class _LogFile(logging.FileHandler):
    """Leave a full disk to what a restart needs, which raises."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback."""

    def close(self) -> None:
        """Close the file, whole or not."""
        with contextlib.suppress(OSError):
            super().close()


def _notice(text: str) -> logging.LogRecord:
    return logging.LogRecord("charm_jax", logging.INFO, "", 0, text, None, None)


class RunLog:
    """Progress of each epoch, and lines of metrics for each interval and epoch."""

    def __init__(
        self,
        directory: Path,
        plans: Sequence[Plan],
        position: tuple[str, int],
        every_steps: int,
        trackers: Sequence[Tracker] = (),
    ):
        """Open the log and drop lines beyond ``position``, which a killed run wrote.

        Args:
            directory: of the run.
            plans: of all phases, in the order of training.
            position: phase and step from which the run continues.
            every_steps: steps of an interval.
            trackers: get the same values as ``metrics.jsonl``; closed with this log.
        """
        self._plans, self._every_steps = list(plans), every_steps
        path = directory / "metrics.jsonl"
        _truncate(path, position, [plan.phase for plan in plans])
        self._file = path.open("a", encoding="utf-8")
        self._directory, self._trackers = directory, trackers
        self._bar: tqdm | None = None
        self._steps = 0
        self._began = self._since = self._last_step = time.perf_counter()

    def begin_epoch(self, plan: Plan, epoch: int, done: int) -> None:
        """Start an epoch, counted from 0, after ``done`` steps that were taken earlier."""
        self._bar = progress(
            total=plan.steps_per_epoch * plan.batch_size,
            desc=f"stage {plan.phase}, epoch {epoch + 1}/{plan.epochs}",
            unit="images",
        )
        self._bar.n = self._bar.initial = done * plan.batch_size
        self._steps = 0
        self._began = self._since = time.perf_counter()

    def step(self, plan: Plan, step: int, metrics: dict[str, float]) -> None:
        """Advance the bar, and write a line at the end of an interval."""
        self._steps += 1
        self._last_step = time.perf_counter()
        self._bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
        self._bar.update(plan.batch_size)
        if self._bar.n >= self._bar.total:
            self._bar.close()
        if step % self._every_steps == 0:
            rate = self._steps * plan.batch_size / (self._last_step - self._since)
            self._steps, self._since = 0, self._last_step
            costs = {"images_per_second": rate, "memory_gib": peak_memory()}
            self._write("interval", plan, step, metrics | costs)

    def epoch(self, plan: Plan, step: int, values: dict[str, Any]) -> None:
        """Report an epoch after its validation, with the time that the run still takes."""
        images = self._bar.n - self._bar.initial
        rate = images / (self._last_step - self._began)
        later = self._plans[self._plans.index(plan) + 1 :]
        left = (plan.steps - step) * plan.batch_size
        left += sum(other.steps * other.batch_size for other in later)
        seconds = left * (time.perf_counter() - self._began) / images  # validation included
        macro = {"AUROC": values["val_macro_auroc"]}
        if plan.monitor == "ap":
            macro["AP"] = values["val_macro_ap"]
        shown = ", ".join(
            f"macro {name} {'undefined' if value is None else format(value, '.4f')}"
            for name, value in macro.items()
        )
        say(
            f"stage {plan.phase}, epoch {values['epoch']}/{plan.epochs}: training loss "
            f"{values['train_loss']:.4f}, validation loss {values['val_loss']:.4f}, {shown}, "
            f"{rate:.1f} images/s, "
            f"{tqdm.format_interval(seconds)} left"
        )
        self._write("epoch", plan, step, values)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        for file in (self._file, *self._trackers):
            try:
                file.close()
            except OSError as failure:
                if kind is None:
                    failure.filename = failure.filename or str(self._directory)
                    raise

    def _write(self, kind: str, plan: Plan, step: int, values: dict[str, Any]) -> None:
        finite = {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
        line = {"kind": kind, "stage": plan.phase, "step": step} | finite
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.write(plan.phase, kind, step, finite)
        except OSError as error:
            error.filename = error.filename or str(self._directory)  # `write` names none
            raise


def peak_memory() -> float | None:
    """Return the peak memory of the first device, or else of the process, in GiB if known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)  # macOS counts bytes, Linux KiB


def _truncate(path: Path, position: tuple[str, int], phases: list[str]) -> None:
    """Drop lines beyond ``position``, and those that a killed run left incomplete."""
    if not path.exists():
        return
    last, kept = (phases.index(position[0]), position[1]), []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            place = phases.index(entry["stage"]), entry["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if place <= last:
            kept.append(line + "\n")
    with whole_file(path) as file:
        file.writelines(kept)
