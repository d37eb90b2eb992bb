"""What a run says while it goes on: progress bar, metrics.jsonl and TensorBoard events."""

import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from charm_jax.train.loop import Plan
from data_pipelines.atomic_files import whole_file


class RunLog:
    """One line an interval and an epoch, and a bar an epoch.

    Attributes:
        every_steps: steps of an interval.
    """

    def __init__(
        self, directory: Path, stages: Sequence[str], position: tuple[str, int], every_steps: int
    ):
        """Opens the log; lines beyond ``position`` are of a run that was cut off, and are dropped.

        Args:
            directory: of the run.
            stages: names in the order of training.
            position: stage and step from which the run goes on.
            every_steps: steps of an interval.
        """
        self.every_steps = every_steps
        path = directory / "metrics.jsonl"
        _truncate(path, position, list(stages))
        self._file = path.open("a", encoding="utf-8")
        self._directory, self._position = directory, position
        self._events: dict[str, Any] = {}
        self._bar: tqdm | None = None
        self._steps, self._since = 0, time.perf_counter()

    def begin_epoch(self, plan: Plan, epoch: int, done: int) -> None:
        """Starts the bar of an epoch of which ``done`` steps are done."""
        self._bar = tqdm(
            total=plan.steps_per_epoch * plan.batch_size,
            initial=done * plan.batch_size,
            desc=f"stage {plan.stage}, epoch {epoch + 1}/{plan.epochs}",
            unit=" images",
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._steps, self._since = 0, time.perf_counter()

    def step(self, plan: Plan, step: int, metrics: dict[str, float]) -> None:
        """Moves the bar; every so many steps it writes a line."""
        self._steps += 1
        self._bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
        self._bar.update(plan.batch_size)
        if self._bar.n >= self._bar.total:
            self._bar.close()
        if step % self.every_steps == 0:
            now = time.perf_counter()
            rate = self._steps * plan.batch_size / (now - self._since)
            self._steps, self._since = 0, now
            costs = {"images_per_second": rate, "memory_gib": _peak_memory() / 2**30}
            self._write("interval", plan, step, metrics | costs)

    def epoch(self, plan: Plan, step: int, values: dict[str, Any]) -> None:
        """Writes the epoch's line and says it."""
        auroc = values["val_macro_auroc"]
        shown = "undefined" if auroc is None else f"{auroc:.4f}"
        tqdm.write(
            f"  training loss {values['train_loss']:.4f}, "
            f"validation loss {values['val_loss']:.4f}, macro AUROC {shown}",
            file=sys.stderr,
        )
        self._write("epoch", plan, step, values)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        for events in self._events.values():
            events.close()

    def _write(self, kind: str, plan: Plan, step: int, values: dict[str, Any]) -> None:
        finite = {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
        line = {"kind": kind, "stage": plan.stage, "step": step} | finite
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if value is not None:
                self._writer(plan.stage).add_scalar(f"{kind}/{name}", value, step)

    def _writer(self, stage: str) -> Any:
        """TensorBoard's, a folder a stage: what is purged after a restart goes by step alone."""
        if stage not in self._events:
            # It imports PyTorch where there is one: seconds, which a first step need not wait.
            from tensorboardX import SummaryWriter

            began, step = self._position
            self._events[stage] = SummaryWriter(
                str(self._directory / "tensorboard" / stage),
                purge_step=step + 1 if stage == began else None,
            )
        return self._events[stage]


class NoLog:
    """The log of a process that does not write."""

    def begin_epoch(self, plan: Plan, epoch: int, done: int) -> None:
        """Says nothing."""

    def step(self, plan: Plan, step: int, metrics: dict[str, float]) -> None:
        """Says nothing."""

    def epoch(self, plan: Plan, step: int, values: dict[str, Any]) -> None:
        """Says nothing."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None:
        return


def _peak_memory() -> int:
    """Most bytes in use so far: of the first device, where it tells, or of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == "darwin" else kib * 1024  # which counts in bytes


def _truncate(path: Path, position: tuple[str, int], stages: list[str]) -> None:
    if not path.exists():
        return
    stage, last = position
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            place = stages.index(entry["stage"]), entry["step"]
        except (ValueError, TypeError, KeyError):  # what a killed run did not finish, or not ours
            continue
        if place <= (stages.index(stage), last):
            kept.append(line + "\n")
    with whole_file(path) as file:
        file.writelines(kept)
