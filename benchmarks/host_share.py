"""Measure the time that the host adds to a short step: loader, logs, checkpoints, progress bar.

    python benchmarks/host_share.py --work DIR --out FILE.json [--short]

The training loop, loader, logs, checkpoints and progress bar (drawn on a pseudo-terminal) are the
real ones, over SIMULATED images. Only the step is replaced: it takes the real state and batch and
starts a compiled program that does nothing. Its metrics are ready when a device that runs one step
after the other, ``--step_ms`` each and without the CPU, would have them. So the host works on while
the device is busy, as with a GPU. Validation takes no time. The second epoch counts, with its
checkpoints.

A part's seconds are those of its calls, divided by the steps. The loader's are what the loop waits
for it; "CPU of all threads" also counts its threads and those that write checkpoints. "Woken late"
is the time from the end of a step until the loop, which waits for it, runs again: another thread
has the interpreter or the core.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import pty
import shutil
import sys
import termios
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from charm_jax.config import build, cli, settings
from charm_jax.distributed import mesh
from charm_jax.distributed.compiler import CompiledStep
from charm_jax.runs import data as run_data
from charm_jax.runs.checkpoints import Checkpoints
from charm_jax.train import log, setup
from charm_jax.train.setup import Experiment
from charm_jax.train.trainer import Training
from data_pipelines.phantom.draw import write_phantoms
from data_pipelines.prepare.preparation import prepare

DEVICE, LATE, GARBAGE = "waiting for the device", "woken late", "garbage collection"
PARTS = ("loader", "start of the step", "logs", "progress bar", "checkpoints", GARBAGE, LATE)
EPOCHS = 2


def clocks() -> np.ndarray:
    """Return seconds, CPU seconds of this thread, and those of the process."""
    return np.array([time.perf_counter(), time.thread_time(), time.process_time()])


class Clock:
    """Count the seconds of each part, without those of the parts that it calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seconds: defaultdict = defaultdict(lambda: np.zeros(3))
        self.inner, self.starts = [np.zeros(3)], []
        self.began = self.last = clocks()

    def begin(self) -> None:
        self.inner.append(np.zeros(3))
        self.starts.append(clocks())

    def end(self, part: str) -> None:
        self.last = clocks()
        taken = self.last - self.starts.pop()
        self.seconds[part] += taken - self.inner.pop()
        self.inner[-1] += taken

    def timed(self, part: str, function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            self.begin()
            try:
                return function(*arguments, **named)
            finally:
                self.end(part)

        return call

    def collection(self, phase: str, _: dict[str, int]) -> None:
        """Count a garbage collection of the main thread, as ``gc.callbacks`` reports it."""
        if threading.current_thread() is threading.main_thread():
            self.begin() if phase == "start" else self.end(GARBAGE)


class OnDevice:
    """A metric that is ready when the device is done with its step."""

    def __init__(self, value: jax.Array, ready: float, clock: Clock):
        self.value, self.ready = value, ready
        self.sleep = clock.timed(DEVICE, time.sleep)
        self.clock = clock

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        left = self.ready - time.perf_counter()
        if left > 0:
            self.sleep(left)
            late = time.perf_counter() - self.ready  # another thread had the interpreter or the CPU
            self.clock.seconds[LATE][0] += late
            self.clock.seconds[DEVICE][0] -= late
        return np.asarray(self.value)


def stub(experiment: Experiment, seconds: float, clock: Clock) -> Callable:
    """Return a train step that keeps no CPU busy and is done after some seconds."""

    def nothing(state: Any, batch: Any) -> Any:
        names = ("loss", "grad_norm", "rate", "b1", "selected", "bank_count", "similarity")
        return state.replace(step=state.step + 1), {name: jnp.float32(1) for name in names}

    compiled = CompiledStep(
        nothing, experiment.cases, mesh.mesh(), donate_argnums=0, keep_unused=True
    )
    start, free = clock.timed("start of the step", compiled), 0.0

    def step(state: Any, batch: Any) -> Any:
        nonlocal free
        state, metrics = start(state, batch)
        free = max(free, time.perf_counter()) + seconds
        return state, {name: OnDevice(value, free, clock) for name, value in metrics.items()}

    return step


class Timed:
    """Time each batch of a stream that can be closed."""

    def __init__(self, batches: Iterator, clock: Clock):
        self.close = batches.close
        self.next = clock.timed("loader", batches.__next__)

    def __iter__(self) -> "Timed":
        return self

    def __next__(self) -> Any:
        return self.next()


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Send stderr to a pseudo-terminal that somebody reads, so that bars are drawn."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(reader, 65536):
                pass

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        with open(writer, "w") as stream, contextlib.redirect_stderr(stream):
            yield
    finally:
        thread.join()
        os.close(reader)


def measure(experiment: Experiment, seconds: float) -> dict[str, Any]:
    """Train two epochs with the stub; return milliseconds a step in the second."""
    clock, validated = Clock(), Counter()
    batches_of, bar_of, begin_epoch = setup.training_batches, log.progress, log.RunLog.begin_epoch

    def validate(_: Any) -> dict[str, float]:
        validated["epochs"] += 1
        return {"loss": 1.0 / validated["epochs"], "auroc": 0.5, "ap": 0.1}

    def drawn(**named: Any) -> Any:
        bar = bar_of(**named)
        for name in ("update", "set_postfix"):
            setattr(bar, name, clock.timed("progress bar", getattr(bar, name)))
        return bar

    def begin(run_log: log.RunLog, plan: Any, epoch: int, done: int) -> None:
        if epoch == EPOCHS - 1:
            clock.reset()
        begin_epoch(run_log, plan, epoch, done)

    keys = experiment.settings
    count = build.parameter_count(experiment.model, keys)
    training = Training(experiment, run_data.describe_split(keys, experiment.data, count))
    with contextlib.ExitStack() as stack:
        for target, name, other in (
            (setup, "compile_train_step", lambda e, *_: stub(e, seconds, clock)),
            (setup, "compile_eval_step", lambda *_: None),
            (setup, "validator", lambda *_: validate),
            (setup, "training_batches", lambda *a: Timed(batches_of(*a), clock)),
            (log, "progress", drawn),
            (log.RunLog, "begin_epoch", begin),
            (log.RunLog, "step", clock.timed("logs", log.RunLog.step)),
            (log.RunLog, "epoch", clock.timed("logs", log.RunLog.epoch)),
            (Checkpoints, "save", clock.timed("checkpoints", Checkpoints.save)),
        ):
            stack.enter_context(mock.patch.object(target, name, other))
        stack.enter_context(terminal())
        gc.callbacks.append(clock.collection)
        stack.callback(gc.callbacks.remove, clock.collection)
        beginning = training.begin()
        training.prepare(beginning)
        training._train_phases(beginning.state, beginning.progress)
        training.checkpoints.close()
    steps = training.plans["bce"].steps_per_epoch
    whole = 1e3 * (clock.last - clock.began) / steps
    parts = {part: 1e3 * clock.seconds[part] / steps for part in PARTS}
    wait = 1e3 * clock.seconds[DEVICE][0] / steps
    parts["rest of the loop"] = whole - sum(parts.values()) - [wait, 0, 0]
    return {
        "steps": steps,
        "above_ms": whole[0] - 1e3 * seconds,
        "host_ms": whole[0] - wait,
        "host_cpu_ms": whole[1],
        "process_cpu_ms": whole[2],
        "parts_ms": {part: each[0] for part, each in parts.items()},
        "parts_cpu_ms": {part: each[1] for part, each in parts.items()},
        "load": os.getloadavg()[0],
    }


def experiment_of(
    config: Any, folder: Path, work: Path, side: int, steps: int, resident: bool
) -> Experiment:
    """Return an experiment whose epoch repeats the images until it has so many steps."""
    config.name = "host_share"
    config.runs_dir = str(work / "runs")
    config.data.source, config.data.dir = "phantom", str(folder)
    config.data.image_size, config.data.resident = side, resident
    config.model.input_range = "imagenet"
    bce = config.stages.bce
    bce.images, bce.frozen_epochs, bce.epochs, config.stages.focal.epochs = "all", 0, EPOCHS, 0
    keys = settings.from_dict(config.to_dict())
    any_set = dataclasses.replace(keys.data, options={})  # whatever was drawn
    data = run_data.load_data(dataclasses.replace(keys, data=any_set))
    rows = data.split.stages["bce"]
    rows = rows | {"train": np.resize(rows["train"], steps * bce.batch_size)}
    split = dataclasses.replace(data.split, stages={"bce": rows})
    shutil.rmtree(keys.directory, ignore_errors=True)
    keys.directory.mkdir(parents=True)
    return Experiment(keys, dataclasses.replace(data, split=split))


def draw(work: Path, images: int, side: int) -> tuple[Path, Path]:
    """Draw SIMULATED images and prepare them; return both folders."""
    files, records = work / f"files{side}", work / f"records{side}"
    write_phantoms(files, train_images=images, test_images=310, image_size=side, seed=0)
    if not (records / "summary.json").exists():
        prepare("phantom", files, records, size=side)
    return files, records


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and a run")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--step_ms", type=float, default=10.0)
    parser.add_argument("--short", action="store_true", help="a few steps of the small network")
    args = parser.parse_args(argv)
    if args.short:
        files, records = draw(args.work, 420, 32)
        plan = [("demo", files, 32, 6, False), ("demo", records, 32, 6, True)]
    else:
        files, records = draw(args.work, 2400, 64)[0], draw(args.work, 1600, 224)[1]
        plan = [("demo", files, 64, 67), ("effv2s", records, 224, 493)]
        plan = [(*one, resident) for one in plan for resident in (False, True)]
    cases = {}
    for config, folder, side, steps, resident in plan:
        experiment = experiment_of(
            cli.load_config(config), folder, args.work, side, steps, resident
        )
        kind = "PNG files" if folder == files else "records"
        cases[f"{config}, {kind}, {'resident' if resident else 'loaded'}"] = {
            "side": side,
            "batch": experiment.settings.stages["bce"].batch_size,
            **measure(experiment, args.step_ms / 1e3),
        }
        args.out.write_text(json.dumps(cases, indent=1) + "\n")
    names = tuple(cases)
    print(f"Milliseconds a step of {args.step_ms:g} ms; CPU of the main thread in brackets")
    print(f"| SIMULATED images | {' | '.join(names)} |\n{'| --- ' * (len(names) + 1)}|")
    rows = {"above the step": [f"{case['above_ms']:.2f}" for case in cases.values()]}
    for part in (*PARTS, "rest of the loop"):
        pairs = [(case["parts_ms"][part], case["parts_cpu_ms"][part]) for case in cases.values()]
        rows[part] = [f"{wall:.2f} ({cpu:.2f})" for wall, cpu in pairs]
    rows["together"] = [f"{c['host_ms']:.2f} ({c['host_cpu_ms']:.2f})" for c in cases.values()]
    rows["CPU of all threads"] = [f"{case['process_cpu_ms']:.2f}" for case in cases.values()]
    rows["load"] = [f"{case['load']:.1f}" for case in cases.values()]
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
