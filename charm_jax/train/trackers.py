"""Send the metrics of a run to experiment trackers; each is one line of ``TRACKERS``."""

import importlib.util
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from charm_jax.runs.overview import flat
from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError

_LOG = logging.getLogger(__name__)
_PROJECT = "charm-jax"
_FILE = "trackers.json"  # of a run: the names that trackers gave it
Metrics = Mapping[str, int | float | None]


@runtime_checkable
class Tracker(Protocol):
    """Where metrics go, beside ``metrics.jsonl``."""

    def write(self, phase: str, kind: str, step: int, values: Metrics) -> None:
        """Write the values of an interval or epoch (``kind``) that ends with a step of a phase."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Events in the folder ``tensorboard`` of the run, one folder for each phase.

    Purging after a restart goes by step alone. A ``SummaryWriter`` writes from a thread, which
    leaves training waiting when it meets a full disk, and through a queue that needs /dev/shm.
    """

    def __init__(self, directory: Path, position: tuple[str, int], config: Mapping[str, Any]):
        self._directory, self._position = directory / "tensorboard", position
        self._events: dict[str, Any] = {}

    def write(self, phase: str, kind: str, step: int, values: Metrics) -> None:
        """Write one event.

        Raises:
            OSError: the disk is full or read-only.
        """
        from tensorboardX.proto import event_pb2, summary_pb2

        if phase not in self._events:
            self._events[phase] = self._opened(phase)
        shown = [
            summary_pb2.Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        summary = summary_pb2.Summary(value=shown)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        self._events[phase].write_event(event)

    def close(self) -> None:
        """Close all files.

        Raises:
            OSError: the disk is full.
        """
        for events in self._events.values():
            events.close()

    def _opened(self, phase: str) -> Any:
        """Open the events of a phase, which hide earlier ones from where the run continues."""
        # It imports PyTorch where there is one, for seconds that the first step need not wait.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        (self._directory / phase).mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(self._directory / phase / "events"))
        last, step = self._position
        if phase == last:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            events.write_event(event_pb2.Event(step=step + 1, session_log=start))
        return events


class WeightsAndBiases:
    """A run of Weights & Biases, which a restart continues; WANDB_MODE=offline sends nothing."""

    def __init__(self, directory: Path, position: tuple[str, int], config: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=_PROJECT,
            name=directory.name,
            id=_identity(directory, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=directory,
            config=dict(flat(config)),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._phases: set[str] = set()

    def write(self, phase: str, kind: str, step: int, values: Metrics) -> None:
        """Log values against the step of their phase."""
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._run.log({f"{phase}/step": step, **_named(phase, kind, values)})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, which a restart continues."""

    def __init__(self, directory: Path, position: tuple[str, int], config: Mapping[str, Any]):
        import mlflow

        self._client = mlflow.MlflowClient()

        def begin() -> str:
            found = self._client.get_experiment_by_name(_PROJECT)
            where = found.experiment_id if found else self._client.create_experiment(_PROJECT)
            run = self._client.create_run(where, run_name=directory.name).info.run_id
            for key, value in flat(config).items():
                self._client.log_param(run, key, value)
            return run

        self._run = _identity(directory, "mlflow", begin)
        self._client.update_run(self._run, status="RUNNING")

    def write(self, phase: str, kind: str, step: int, values: Metrics) -> None:
        """Log values with the step of their phase."""
        import mlflow

        now = int(1000 * time.time())
        metrics = [
            mlflow.entities.Metric(name, value, now, step)
            for name, value in _named(phase, kind, values).items()
        ]
        self._client.log_batch(self._run, metrics)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[Path, tuple[str, int], Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class _Optional:
    """Write to a tracker until its first failure; report that and train on without it."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self._name, self._tracker = name, None
        self._tracker = self._tried(make)

    def write(self, phase: str, kind: str, step: int, values: Metrics) -> None:
        """Write, unless it has failed."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.write(phase, kind, step, values))

    def close(self) -> None:
        """Close, unless it has failed."""
        if (tracker := self._tracker) is not None:
            self._tried(tracker.close)

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # a network, a server or an account
            self._tracker = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            _LOG.warning(f"{self._name} gets no more metrics ({reason}); metrics.jsonl has all.")


def check(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise InputError(
                f"config.log.trackers names {name}, which is not installed: "
                f'pip install "charm-jax[{name}]".'
            )


def open_trackers(
    names: Sequence[str], directory: Path, position: tuple[str, int], config: Mapping[str, Any]
) -> list[Tracker]:
    """Open trackers of a run.

    TensorBoard's files are the run's: a full disk ends training. Other trackers may fail.

    Args:
        names: keys of ``TRACKERS``.
        directory: of the run.
        position: phase and step from which the run continues.
        config: of the run, nested.
    """

    def opened(name: str) -> Tracker:
        if name == "tensorboard":
            return TensorBoard(directory, position, config)
        return _Optional(name, lambda: TRACKERS[name](directory, position, config))

    return [opened(name) for name in names]


def _identity(directory: Path, tracker: str, make: Callable[[], str]) -> str:
    """Return the name that a tracker gave a run; a new one is made and kept."""
    path = directory / _FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if tracker not in known:
        known[tracker] = make()
        with whole_file(path) as file:
            json.dump(known, file)
    return known[tracker]


def _named(phase: str, kind: str, values: Metrics) -> dict[str, int | float]:
    return {f"{phase}/{kind}/{name}": v for name, v in values.items() if v is not None}
