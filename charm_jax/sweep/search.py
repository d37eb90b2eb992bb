"""Search ranges of config keys for the values that are best on validation."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from charm_jax.sweep.plan import Point, Range, Search
from charm_jax.sweep.queue import HEARTBEAT, RunFailed, Study, optuna

_RUN = "run"  # attribute of a trial: the name of its run, empty for a trial that has none
_STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
Report = Callable[[int, float], None]


class Trials(Study):
    """The trials of a search; a worker draws the values of the next from what is known then."""

    def __init__(self, search: Search, storage: str = "", *, heartbeat: int = HEARTBEAT):
        """Open the study of a search, or make it, as ``Study`` does.

        A trial that after an epoch is below the median of the others at theirs is pruned, once
        five are done.
        """
        samplers = optuna().samplers
        sampler = samplers.TPESampler() if search.sampler == "tpe" else samplers.RandomSampler()
        pruner = optuna().pruners.MedianPruner(n_startup_trials=5)
        super().__init__(search, storage, heartbeat=heartbeat, sampler=sampler, pruner=pruner)
        self._search = search

    def fill(self, *, again: bool) -> None:
        """Queue trials whose workers died, to go on with the same values.

        Args:
            again: whether those that failed are tried again, too.
        """
        for name, trial in self._lost(again=again).items():
            self._study.enqueue_trial(trial.params, user_attrs={_RUN: name})

    def work(self, run: Callable[[Point, Report], float]) -> None:
        """Take trials until there are as many as the search asks for.

        Args:
            run: trains a point, calls the report with each epoch and its score on validation, and
                returns the final score.
        """
        while True:
            self.fill(again=False)
            states = [trial.state.name for trial in self._latest().values()]
            if "WAITING" in states or len(states) < self._search.total:
                self._take_one(lambda name, trial: run(self._point(name, trial), self._to(trial)))
            elif "RUNNING" in states:
                time.sleep(self._heartbeat)
            else:
                return

    def table(self) -> list[dict[str, Any]]:
        """Return name, state, score on validation and values of each trial, the best first.

        The score of a pruned trial is that of its last epoch.
        """
        rows = []
        for name, trial in self._latest().items():
            last = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
            score = trial.value if trial.value is not None else last[-1] if last else None
            state = _STATES.get(trial.state.name, "not done")
            rows.append({"trial": name, "state": state, "validation": score, **trial.params})
        return sorted(rows, key=lambda row: (row["state"] != "done", -(row["validation"] or 0)))

    def _name(self, trial: Any) -> str:
        return trial.user_attrs.get(_RUN, f"trial-{trial.number:03}")

    def _take(self, trial: Any) -> str:
        name, again = self._name(trial), _RUN in trial.user_attrs
        before = [other for other in self._trials() if other.number < trial.number]
        same = {other.state.name for other in before if self._name(other) == name}
        surplus = len({self._name(other) for other in before}) >= self._search.total
        if (surplus and not again) or same & {"COMPLETE", "RUNNING"}:
            trial.set_user_attr(_RUN, "")
            raise RunFailed("another worker has this trial")
        trial.set_user_attr(_RUN, name)
        return name

    def _point(self, name: str, trial: Any) -> Point:
        values = {key: _draw(trial, key, found) for key, found in self._search.ranges.items()}
        return self._search.point(name, values)

    def _to(self, trial: Any) -> Report:
        def report(epoch: int, score: float) -> None:
            # Another worker may have taken this one for dead.
            with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
                trial.report(score, epoch)
            if trial.should_prune():
                raise self._optuna.TrialPruned

        return report


def _draw(trial: Any, key: str, found: Range) -> Any:
    if found.choices:
        return trial.suggest_categorical(key, found.choices)
    whole = isinstance(found.low, int) and isinstance(found.high, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(key, found.low, found.high, log=found.log)


def best(rows: list[dict[str, Any]]) -> Mapping[str, Any] | None:
    """Return the trial of a table that is best on validation; None if none is done."""
    return next((row for row in rows if row["state"] == "done"), None)
