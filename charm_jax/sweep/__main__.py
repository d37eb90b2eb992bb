"""Train and evaluate the rows of a table, over seeds and folds, or search for the best values.

usage: charm-jax sweep SWEEP [options] [--config.KEY=VALUE ...]
       charm-jax sweep report SWEEP [options] [--config.KEY=VALUE ...]

    charm-jax sweep published_table --workers 2   the published 26 rows, at the demo's size
    charm-jax sweep my_sweep.py                   rows, seeds and folds of a file of one's own
    charm-jax sweep report published_table        a table, a plot and a page

The same command goes on with a sweep that was cut off, and tries failed runs again. It can run on
many machines at once that share --storage and the folder of the runs. A report takes the options of
the sweep. exit codes: 0 done; 1 some runs failed; 2 bad input; 130 or 143 stopped by
Ctrl-C or SIGTERM.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

from charm_jax.config import cli
from charm_jax.config.cli import Option, say
from charm_jax.sweep import plan as plans
from charm_jax.sweep import worker
from charm_jax.sweep.plan import Plan, Search
from charm_jax.sweep.queue import Queue
from charm_jax.sweep.search import Trials, best
from data_pipelines.errors import InputError
from data_pipelines.progress import progress

_OPTIONS = {
    "workers": Option("1", "runs at a time; with several GPUs each worker has one of them"),
    "storage": Option(
        "",
        "database of the queue, such as postgresql+psycopg://user@host/name for several machines; "
        "by default the file sweep.db beside the runs",
    ),
}


def main(argv: list[str]) -> int:
    """Run a sweep, or write its report; return the exit code.

    Raises:
        InputError: the sweep, an option or the storage is unusable.
    """
    arguments = cli.parse(cli.Command(__doc__, _OPTIONS, keys=("",), words=True), argv)
    *before, name = arguments.words or [""]
    if before not in ([], ["report"]) or not name or arguments.words == ["report"]:
        raise InputError(
            "charm-jax sweep takes the name or file of one sweep, after `report` if that is asked "
            "for: see charm-jax sweep --help."
        )
    plan = plans.read(name, arguments.overrides)
    study = worker.open_study(plan, arguments.flags.storage)
    if before:
        from charm_jax.sweep import report, search_report  # import what draws

        write = search_report.write if isinstance(plan, Search) else report.write
        print(write(plan, study))
        return 0
    return _run(plan, study, arguments.flags.storage, _workers(arguments.flags.workers))


def _workers(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise InputError(f"--workers is {text!r}: give it a whole number above 0.")
    return int(text)


def _run(plan: Plan | Search, study: Queue | Trials, storage: str, workers: int) -> int:
    study.fill(again=True)
    before = study.ended()
    say(f"Sweep {plan.name}: {plan.total} runs in {plan.folder}, {before} are done.")
    if before < plan.total:
        with progress(total=plan.total, desc=f"sweep {plan.name}", unit="runs") as bar:
            worker.work_together(plan, storage, workers, lambda: bar.update(study.ended() - bar.n))
    failures = study.failures()
    for name, why in failures.items():
        say(f"warning: {name} failed: {why}")
    if isinstance(study, Trials) and (chosen := best(study.table())):
        worker.evaluate(plan, chosen["trial"])
        say(f"Best on validation: {chosen['trial']}, {chosen['validation']:.4f}; it is evaluated.")
    done = study.ended()
    say(f"{done} of {plan.total} runs are done: charm-jax sweep report {plan.name}")
    return 0 if done >= plan.total else 1


if __name__ == "__main__":
    cli.run(main)
