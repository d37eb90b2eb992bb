"""Do the runs of a sweep, each in processes of its own."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from charm_jax.runs import overview
from charm_jax.sweep.plan import Plan, Point, Search
from charm_jax.sweep.queue import Queue, RunFailed
from charm_jax.sweep.search import Report, Trials
from data_pipelines import stopping
from data_pipelines.stopping import Stopped

_LINES = 3  # of a failed command that are looked at for its error


def commands(plan: Plan | Search, point: Point) -> list[list[str]]:
    """Return the commands of a run: training and evaluation."""
    flags = [f"--config.{key}={value}" for key, value in point.keys.items()]
    run = ["--run", point.name, f"--config.runs_dir={point.keys['runs_dir']}"]
    python = [sys.executable, "-m"]
    return [
        [*python, "charm_jax.train", "--config", plan.config, *flags],
        [*python, "charm_jax.eval", *run],
    ]


def run_commands(
    steps: Sequence[Sequence[str]],
    log: Path,
    environment: Mapping[str, str],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run commands one after the other; all that they print goes to the end of a file.

    A signal that stops this process stops the command, too, which gets the time that it needs to
    save its state.

    Args:
        look: is called some times a second; what it raises stops the command in the same way.

    Raises:
        RunFailed: one ended with an error; the message is its last line.
        Stopped: this process got a signal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    for step in steps:
        with log.open("a", encoding="utf-8") as file:
            at = file.tell()
            child = subprocess.Popen(
                step, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
            try:
                with stopping.caught(raising=False) as signals:
                    while child.poll() is None and not signals:
                        _wait(child)
                        look()
                if signals:
                    raise Stopped(signals[0])
            finally:
                if child.poll() is None:
                    child.terminate()
                    child.wait()
        if child.returncode in (0, 1):  # 1 for a run that left some images out
            continue
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(at)
            lines = file.read().strip().splitlines()[-_LINES:]
        said = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        reason = said[-1].removeprefix("error: ") if said else f"exit code {child.returncode}"
        raise RunFailed(f"{reason} (see {log})")


def _wait(child: subprocess.Popen) -> None:
    try:
        child.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return


def do_run(plan: Plan, name: str, environment: Mapping[str, str]) -> float:
    """Train and evaluate a run; return its score on validation, macro AUROC.

    A run that was cut off goes on, and a finished one is only evaluated.

    Raises:
        RunFailed: a command failed, or no finding has both classes in validation.
    """
    point = next(point for point in plan.points if point.name == name)
    _wait_for_another(plan.folder / name)
    run_commands(commands(plan, point), plan.folder / f"{name}.log", environment)
    return _score(plan.folder / name)


def do_trial(search: Search, point: Point, environment: Mapping[str, str], report: Report) -> float:
    """Train a trial, whose epochs are reported; return its score on validation, macro AUROC.

    Raises:
        RunFailed: training failed, or no finding has both classes in validation.
    """
    run, reported = search.folder / point.name, 0

    def look() -> None:
        nonlocal reported
        scores = [epoch["val_macro_auroc"] for epoch in overview.epochs(run)]
        for score in scores[reported:]:
            reported += 1
            if score is not None:
                report(reported, score)

    _wait_for_another(run)
    train, _ = commands(search, point)
    run_commands([train], search.folder / f"{point.name}.log", environment, look)
    return _score(run)


def evaluate(search: Search, name: str) -> None:
    """Evaluate a trial on the test images, unless that is done.

    Raises:
        RunFailed: the evaluation failed.
    """
    if not (search.folder / name / "eval" / "test" / "metrics.json").exists():
        _, command = commands(search, search.point(name, {}))
        run_commands([command], search.folder / f"{name}.log", {})


def _wait_for_another(run: Path) -> None:
    while overview.is_busy(run):  # a killed worker leaves its training at work
        time.sleep(1)


def _score(run: Path) -> float:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    score = [*summary["stages"].values()][-1]["best_val_macro_auroc"]
    if score is None:
        raise RunFailed("no finding has both classes in its validation images")
    return score


def gpus() -> list[str]:
    """Return the GPUs that JAX would see, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.split()


def open_study(plan: Plan | Search, storage: str) -> Queue | Trials:
    """Open the study of a sweep or search, or make it, in a database or a file beside the runs.

    Raises:
        InputError: the database cannot be used, or its study of this name has other rows.
    """
    return Trials(plan, storage) if isinstance(plan, Search) else Queue(plan, storage)


def work(plan: Plan | Search, storage: str, number: int) -> None:
    """Work as worker ``number`` until no run is left; the process ends with its parent.

    With several GPUs a worker has one of them, the next worker the next.
    """
    stopping.end_with_parent()
    found = gpus()
    environment = {"CUDA_VISIBLE_DEVICES": found[number % len(found)]} if found[1:] else {}
    study = open_study(plan, storage)
    try:
        if isinstance(study, Trials):
            study.work(lambda point, report: do_trial(plan, point, environment, report))
        else:
            study.work(lambda name: do_run(plan, name, environment))
    except Stopped as stopped:
        sys.exit(128 + stopped.number)


def work_together(
    plan: Plan | Search, storage: str, workers: int, look: Callable[[], None]
) -> None:
    """Work in so many processes of this machine.

    Args:
        look: is called twice a second.

    Raises:
        Stopped: this process got a signal; the others have been stopped.
    """
    context = multiprocessing.get_context("spawn")
    pool = [context.Process(target=work, args=(plan, storage, number)) for number in range(workers)]
    with stopping.caught(raising=False) as signals:
        for process in pool:
            process.start()
        while any(process.is_alive() for process in pool) and not signals:
            time.sleep(0.5)
            look()
        for process in pool if signals else []:
            process.terminate()
        for process in pool:
            process.join()
    if signals:
        raise Stopped(signals[0])
