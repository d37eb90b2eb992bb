"""Keep the runs of a sweep in an Optuna study, from which any number of workers take them."""

import time
import warnings
from collections.abc import Callable
from typing import Any

from charm_jax.sweep.plan import Plan, Search
from data_pipelines.errors import InputError

HEARTBEAT = 30  # seconds
_SILENCE = 10  # heartbeats without a sign of life, after which a worker is taken for dead
_WHY = "why"  # attribute of a trial: why its run failed
_DIGEST = "digest"  # attribute of the study: of its plan


class RunFailed(Exception):
    """A run ended with an error; the message says which."""


def optuna() -> Any:
    """Import Optuna, which then logs errors alone.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError('A sweep needs Optuna: pip install "charm-jax[sweep]".') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
    return optuna


def default_storage(plan: Plan | Search) -> str:
    """Return the URL of the SQLite file in the folder of a sweep."""
    return f"sqlite:///{(plan.folder / 'sweep.db').absolute()}"


class Study:
    """The runs of a sweep and their states, shared by all workers of a storage."""

    def __init__(
        self, plan: Plan | Search, storage: str = "", *, heartbeat: int = HEARTBEAT, **how: Any
    ):
        """Open the study of a sweep, or make it.

        Args:
            storage: URL of a database as SQLAlchemy takes it; empty for a file beside the runs.
            heartbeat: seconds between signs of life of a worker.
            how: sampler and pruner of Optuna.

        Raises:
            InputError: the database cannot be reached, or its study of this name has other rows.
        """
        self._optuna, self._heartbeat = optuna(), heartbeat
        self._mute: dict[int, float] = {}  # trials at work without a sign of life: since when
        url = storage or default_storage(plan)
        if not storage:
            plan.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._storage = self._optuna.storages.RDBStorage(
                url, heartbeat_interval=heartbeat, grace_period=_SILENCE * heartbeat
            )
            self._study = self._optuna.create_study(
                storage=self._storage,
                study_name=plan.name,
                direction="maximize",
                load_if_exists=True,
                **how,
            )
        except Exception as error:  # each driver has its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
            raise InputError(
                f"The storage {_shown(url)} cannot be used ({reason}): check --storage, and that "
                "the database runs."
            ) from error
        known = self._study.user_attrs.get(_DIGEST)
        if known is None:
            self._study.set_user_attr(_DIGEST, plan.digest)
        elif known != plan.digest:
            raise InputError(
                f"The sweep {plan.name} in {_shown(url)} was begun with other rows or keys: give "
                "the file another name, or delete that sweep's folder."
            )

    def ended(self) -> int:
        """Return how many runs are done; one that was pruned is, and one that failed is not."""
        latest = self._latest().values()
        return len([trial for trial in latest if trial.state.name in ("COMPLETE", "PRUNED")])

    def scores(self) -> dict[str, float]:
        """Return the score on validation of each run that is done, by its name."""
        latest = self._latest().items()
        return {name: trial.value for name, trial in latest if trial.state.name == "COMPLETE"}

    def failures(self) -> dict[str, str]:
        """Return why runs failed, by their names."""
        latest = self._latest().items()
        return {name: trial.user_attrs[_WHY] for name, trial in latest if _WHY in trial.user_attrs}

    def _lost(self, *, again: bool) -> dict[str, Any]:
        """Return the trials of workers that died, and with ``again`` those that failed."""
        self._optuna.storages.fail_stale_trials(self._study)
        self._fail_mute_trials()
        latest = self._latest().items()
        failed = {name: trial for name, trial in latest if trial.state.name == "FAIL"}
        return {n: trial for n, trial in failed.items() if again or _WHY not in trial.user_attrs}

    def _fail_mute_trials(self) -> None:
        """Fail trials of workers that died before their first sign of life, which Optuna keeps."""
        with self._storage.engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT trial_id FROM trial_heartbeats")
            alive = {trial_id for (trial_id,) in rows}
        now = time.monotonic()
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING" and trial._trial_id not in alive:
                since = self._mute.setdefault(trial._trial_id, now)
                if now - since > _SILENCE * self._heartbeat:
                    state = self._optuna.trial.TrialState.FAIL
                    self._study.tell(trial.number, state=state, skip_if_finished=True)

    def _name(self, trial: Any) -> str:
        """Return the run of a trial; empty for one that took none."""
        raise NotImplementedError

    def _take(self, trial: Any) -> str:
        """Return the run that a trial is for; raise where another worker has or had it."""
        raise NotImplementedError

    def _trials(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if self._name(trial)]

    def _latest(self) -> dict[str, Any]:
        """Return the last trial of each run, by its name; one that is done stays."""
        latest: dict[str, Any] = {}
        for trial in self._trials():
            before = latest.get(self._name(trial))
            if before is None or before.state.name != "COMPLETE":
                latest[self._name(trial)] = trial
        return latest

    def _take_one(self, run: Callable[[str, Any], float]) -> None:
        reached: list[tuple[str, Any, float]] = []
        others: list[int] = []  # trials that another worker has

        def objective(trial: Any) -> float:
            others.append(trial.number)
            name = self._take(trial)
            others.clear()
            try:
                reached.append((name, trial, run(name, trial)))
            except RunFailed as error:
                trial.set_user_attr(_WHY, str(error))
                raise
            return reached[0][-1]

        try:
            self._study.optimize(objective, n_trials=1, catch=(RunFailed,))
        except (ValueError, AssertionError, self._optuna.exceptions.OptunaError):
            # After a pause of the machine another worker may have taken this one for dead; and
            # what another has may end before it is given back here.
            if not (reached or others):
                raise
        for name, trial, value in reached:
            if name not in self.scores():
                done = self._optuna.create_trial(
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=trial.user_attrs,
                    value=value,
                )
                self._study.add_trial(done)


class Queue(Study):
    """The runs of the rows of a sweep; each is done once."""

    def __init__(self, plan: Plan, storage: str = "", *, heartbeat: int = HEARTBEAT):
        """Open the study of a sweep, or make it, as ``Study`` does."""
        super().__init__(plan, storage, heartbeat=heartbeat)
        self._names = [point.name for point in plan.points]

    def fill(self, *, again: bool) -> None:
        """Queue each run that is neither done, nor waiting, nor in work.

        Args:
            again: whether those that failed are tried again.
        """
        lost = self._lost(again=again)
        names = {*self._latest()} - {*lost}
        for name in self._names:
            if name not in names:
                self._study.enqueue_trial({"point": name})

    def work(self, run: Callable[[str], float]) -> None:
        """Take runs until none is left; a run of a worker that has died is done again.

        Args:
            run: does the run of a name, and returns its score on validation.
        """
        while not {*self._names} <= {*self.scores(), *self.failures()}:
            if any(trial.state.name == "WAITING" for trial in self._trials()):
                self._take_one(lambda name, _: run(name))
            else:  # others are at work on what is left
                time.sleep(self._heartbeat)
            self.fill(again=False)

    def _name(self, trial: Any) -> str:
        if trial.state.name == "PRUNED":  # it took none
            return ""
        given = trial.system_attrs.get("fixed_params", {})
        return trial.params.get("point") or given.get("point", "")

    def _take(self, trial: Any) -> str:
        taken = self._study.get_trials(deepcopy=False)[trial.number]
        if "fixed_params" not in taken.system_attrs:  # another worker took the last one
            raise self._optuna.TrialPruned
        name = trial.suggest_categorical("point", self._names)
        same = (t for t in self._trials() if self._name(t) == name and t.number < trial.number)
        if name in self.scores() or any(t.state.name == "RUNNING" for t in same):
            raise self._optuna.TrialPruned
        return name


def _shown(url: str) -> str:
    """Return a URL without its password."""
    before, at, after = url.rpartition("@")
    return f"{before.rpartition(':')[0]}:***@{after}" if at and before.count(":") > 1 else url
