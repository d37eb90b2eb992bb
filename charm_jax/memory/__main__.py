"""List, edit or refill the memory bank of a run.

usage: charm-jax memory RUN list|show|forget|refill [IMAGE...] [options] [--config.KEY=VALUE ...]

    charm-jax memory demo list
    charm-jax memory demo forget 00000012_000.png --label without

list      list the cases, and how many images of a split read each
show      show single cases: what the bank holds of them, and which images read them
forget    make a bank without some cases, by IMAGE or --patients
refill    make a bank of a site's own images, --config.data.source and --config.data.dir

The checkpoint does not change: a new bank is in memory/LABEL/ of the run, and charm-jax predict and
eval read it with --memory LABEL. exit codes: 0 done; 1 done, with some images refused; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags

from charm_jax.config import cli, validate
from charm_jax.config.cli import Option, say
from charm_jax.config.settings import Settings
from charm_jax.inference import changes, loaded, refill
from charm_jax.inference.classifier import Memory
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models import memory_bank
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs import banks
from charm_jax.runs import data as run_data
from charm_jax.runs.arguments import CHECKPOINT, SPLITS, find_run, read_settings
from charm_jax.runs.banks import TRAINED
from data_pipelines.errors import InputError, did_you_mean

_READERS = 5  # images that `show` names
_OPTIONS = CHECKPOINT | {
    "memory": Option(TRAINED, "memory bank to begin with"),
    "label": Option("", "name of the new memory bank"),
    "patients": Option("", "patients to forget, separated by commas"),
    "split": Option(
        None, "split to read the bank with (val by default), or to refill it from (train)", SPLITS
    ),
}


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A run with its network and the case ids in its bank.

    Attributes:
        config: its settings, with the user's data.
        cases: ``image``, ``patient`` and ``labels`` by case id.
    """

    run: Path
    config: Settings
    model: LoadedModel
    cases: pd.DataFrame

    def labels(self, case: int) -> str:
        """Return the findings of a stored case as text."""
        labels = self.cases.loc[case, "labels"]
        return "labels unknown" if labels is None else "; ".join(labels) or "no finding"

    def load_data(self) -> run_data.Data:
        """Load the data, with the run's findings by name."""
        data = run_data.load_data(self.config)
        return run_data.for_findings(data, self.model.pathologies, f"The run {self.run}")

    def embed(self, split: str) -> tuple[changes.Embedded, str]:
        """Compute the features of a split, and describe it: ``images of 'val'``."""
        data = self.load_data()
        rows = data.split.rows(self.config.stage_names[-1], split)
        return changes.embed(self.model, data, rows), f"{_kind(data)} of '{split}'"

    def read(self, split: changes.Embedded) -> dict[str, np.ndarray]:
        """Read a split with the opened bank."""
        return changes.read(self.model, self.model.state.memory, split)

    def save(self, label: str, *bank: Any) -> None:
        """Save a bank with ``banks.write`` and say how to use it."""
        folder = banks.write(self.run, label, *bank)
        say(
            f"Written to {folder}. Use it with --memory {label}: charm-jax predict FILE --run "
            f"{self.run} --memory {label}, or charm-jax eval."
        )


def main(argv: list[str]) -> int:
    """Run the command that the second word names and return the exit code.

    Raises:
        InputError: no such run, command, case or memory, or bad data.
    """
    keys = ("data.", "runs_dir")
    arguments = cli.parse(cli.Command(__doc__, _OPTIONS, keys, words=True), argv)
    values = arguments.flags
    if len(arguments.words) < 2:
        raise InputError(
            f"Name a run and one of {', '.join(_COMMANDS)}: for example charm-jax memory RUN list."
        )
    name, command, *words = arguments.words
    if command not in _COMMANDS:
        raise InputError(f"There is no command {command!r}: {did_you_mean(command, _COMMANDS)}")
    if words and command in ("list", "refill"):
        raise InputError(
            f"Unexpected argument {words[0]!r} after {command}: options start with --."
        )
    run = find_run(arguments, name)
    config = read_settings(run, arguments)
    validate.check(config)
    values.split = values.split or ("train" if command == "refill" else "val")
    if not config.model.charm:
        raise InputError(f"The run {run} is a plain network without a memory: name another run.")
    if command in ("forget", "refill"):
        banks.check_label(run, values.label)
    model = loaded.load_run(run, values.checkpoint, values.memory)
    return _COMMANDS[command](_Opened(run, config, model, Memory(model).cases), words, values)


def _list(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Print a line for each case, the most read first."""
    split, title = opened.embed(values.split)
    times = changes.times_read(opened.read(split)["cases"])
    ids = np.asarray(opened.model.state.memory.case_ids)
    slots = pd.Series(ids[ids >= 0]).value_counts()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "patient", "findings", "slots", f"read_by_{values.split}_images"])
    for case in sorted(opened.cases.index, key=lambda case: (-times.get(case, 0), case)):
        known = opened.cases.loc[case]
        row = [known["image"], known["patient"], opened.labels(case)]
        writer.writerow([*row, slots[case], times.get(case, 0)])
    never = len(opened.cases) - len(times)
    say(
        f"{len(opened.cases):,} cases fill {int((ids >= 0).sum()):,} of {len(ids):,} slots; "
        f"{never:,} are read by none of the {len(split.images):,} {title}."
    )
    return 0


def _show(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Print the bank's entries of some cases, and the images that read them."""
    chosen = Memory(opened.model).find(words)
    split, title = opened.embed(values.split)
    outputs = opened.read(split)
    ids = np.asarray(opened.model.state.memory.case_ids)
    for case in chosen:
        known = opened.cases.loc[case]
        slots = ", ".join(map(str, np.flatnonzero(ids == case)))
        cosines = np.where(outputs["cases"] == case, outputs["similarities"], -np.inf).max(axis=1)
        readers = np.argsort(-cosines)[: np.isfinite(cosines).sum()]
        print(f"{known['image']}: patient {known['patient']}, {opened.labels(case)}, slot {slots}")
        print(f"  read by {len(readers):,} {title}")
        for row in readers[:_READERS]:
            print(f"  {split.images[row]}, cosine {cosines[row]:.3f}")
    return 0


def _forget(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Make a bank without some cases and print the effect on predictions."""
    model, old = opened.model, opened.model.state.memory
    chosen = Memory(model).find(words, values.patients.split(",") if values.patients else [])
    memory = memory_bank.forget(old, jnp.asarray(chosen, jnp.int32))
    split, title = opened.embed(values.split)
    compared = changes.compare(opened.read(split), changes.read(model, memory, split), split, title)
    description = model.bank.description if model.bank else changes.describe(model, "forget")
    forgotten = [*description.get("forgotten", []), *opened.cases.loc[chosen, "image"]]
    description |= {"forgotten": forgotten, "cases": len(opened.cases) - len(chosen)}
    print(
        f"Removed {_count(len(chosen), 'case')} from "
        f"{_count(int(old.count - memory.count), 'slot')}; {int(memory.count):,} slots remain "
        "filled. The weights are unchanged: what they learned from these images stays in them."
    )
    print(compared)
    print(DISCLAIMER)
    cases = model.bank.folder if model.bank and model.bank.has_cases else None
    opened.save(values.label, memory, model.state, description, cases)
    return 0


def _refill(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Make a bank of a site's images."""
    data = opened.load_data()
    for note in data.notes:
        say(note)
    rows = data.split.rows(opened.config.stage_names[-1], values.split)
    memory, made = refill.refill(opened.model, data, rows)
    if not int(memory.count):
        raise InputError(
            f"The rule {opened.config.model.rarity!r} of the run selects none of the {len(rows):,} "
            f"images of '{values.split}': give more images, or another split with --split."
        )
    print(
        f"{made['selected']:,} of {len(rows):,} {_kind(data)} were selected; "
        f"{int(memory.count):,} of {len(memory.case_ids):,} slots are filled, with "
        f"{_count(made['cases'], 'case')} of {_count(made['patients'], 'patient')}. The weights "
        "are unchanged."
    )
    description = changes.describe(opened.model, "refill") | made | {"split": values.split}
    opened.save(values.label, memory, opened.model.state, description, data.table)
    return 1 if data.refused else 0


_COMMANDS: dict[str, Callable[[_Opened, list[str], flags.FlagValues], int]] = {
    "list": _list,
    "show": _show,
    "forget": _forget,
    "refill": _refill,
}


def _kind(data: run_data.Data) -> str:
    return "SIMULATED images" if data.table.simulated else "images"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


if __name__ == "__main__":
    cli.run(main)
