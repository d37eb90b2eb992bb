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
from charm_jax.config.cli import say
from charm_jax.config.settings import Settings
from charm_jax.inference import loaded
from charm_jax.inference.classifier import Memory
from charm_jax.inference.loaded import LoadedModel
from charm_jax.memory import changes, refill
from charm_jax.models import memory_bank
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs import banks
from charm_jax.runs import data as run_data
from charm_jax.runs import folder as runs
from charm_jax.runs.arguments import SPLITS, define_checkpoint_flag, find_run, read_settings
from charm_jax.runs.banks import TRAINED
from data_pipelines.errors import InputError, did_you_mean

_READERS = 5  # images that `show` names


def main(argv: list[str]) -> int:
    """Run the command that the second word names and return the exit code.

    Raises:
        InputError: no such run, command, case or memory, or bad data.
    """
    command, words, opened, values = _parse(argv)
    return _COMMANDS[command](opened, words, values)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A run with its network.

    Attributes:
        run: its folder.
        config: its settings, with overrides of the data.
        model: its network, weights and bank.
        cases: ``image``, ``patient`` and ``labels`` of the case ids in the bank.
    """

    run: Path
    config: Settings
    model: LoadedModel
    cases: pd.DataFrame

    def labels(self, case: int) -> str:
        """Return the findings of a stored case as text."""
        return "; ".join(self.cases.loc[case, "labels"]) or "no finding"


def _list(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Print a line for each case, the most read first."""
    _no_words(words, "list")
    part, data = _part(opened, values.split)
    outputs = changes.read(opened.model, opened.model.state.memory, part)
    times = changes.times_read(outputs["cases"])
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
        f"{len(opened.cases):,} cases in {int((ids >= 0).sum()):,} of {len(ids):,} slots; "
        f"{never:,} are read by none of the {len(part.images):,} {_kind(data)} of "
        f"'{values.split}'."
    )
    return 0


def _show(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Print the bank's entries of some cases, and who reads them."""
    chosen = Memory(opened.model).find(words)
    part, data = _part(opened, values.split)
    outputs = changes.read(opened.model, opened.model.state.memory, part)
    ids = np.asarray(opened.model.state.memory.case_ids)
    for case in chosen:
        known = opened.cases.loc[case]
        slots = ", ".join(map(str, np.flatnonzero(ids == case)))
        cosines = np.where(outputs["cases"] == case, outputs["similarities"], -np.inf).max(axis=1)
        readers = np.flatnonzero(np.isfinite(cosines))
        readers = readers[np.argsort(-cosines[readers])]
        print(f"{known['image']}: patient {known['patient']}, {opened.labels(case)}, slot {slots}")
        print(f"  read by {len(readers):,} {_kind(data)} of '{values.split}'")
        for row in readers[:_READERS]:
            print(f"  {part.images[row]}, cosine {cosines[row]:.3f}")
    return 0


def _forget(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Make a bank without some cases and print what that changes."""
    banks.check_label(opened.run, values.label)
    chosen = Memory(opened.model).find(words, values.patients.split(",") if values.patients else [])
    model = opened.model
    memory = memory_bank.forget(model.state.memory, jnp.asarray(chosen, jnp.int32))
    part, data = _part(opened, values.split)
    readings = [changes.read(model, bank, part) for bank in (model.state.memory, memory)]
    changed = changes.changes(*readings, part)
    history = model.bank.description.get("forgotten", []) if model.bank else []
    forgotten = [*history, *opened.cases.loc[chosen, "image"].tolist()]
    description = model.bank.description if model.bank else _made(opened, "forget")
    folder = banks.write(
        opened.run,
        values.label,
        memory,
        model.state,
        description | {"forgotten": forgotten, "cases": len(opened.cases) - len(chosen)},
        model.bank.folder if model.bank and model.bank.has_cases else None,
    )
    gone = int(model.state.memory.count) - int(memory.count)
    print(
        f"Forgotten: {len(chosen):,} {_plural(len(chosen), 'case')} in {gone:,} "
        f"{_plural(gone, 'slot')} of the memory; {int(memory.count):,} slots remain filled. The "
        "weights are as they were: what training learned from these images stays in them."
    )
    print(changes.text(changed, values.split, data.table.simulated))
    print(DISCLAIMER)
    _said(opened, folder, values.label)
    return 0


def _refill(opened: _Opened, words: list[str], values: flags.FlagValues) -> int:
    """Make a bank of a site's images."""
    _no_words(words, "refill")
    banks.check_label(opened.run, values.label)
    validate.check(opened.config)
    data = run_data.load_data(opened.config)
    for note in data.notes:
        say(note)
    runs.check_findings(opened.run, opened.model.pathologies, data.table)
    rows = data.split.rows(opened.config.stage_names[-1], values.split)
    memory, description = refill.refill(opened.model, data, rows)
    if not int(memory.count):
        raise InputError(
            f"The rule {opened.config.model.rarity!r} of the run selects none of the {len(rows):,} "
            f"images of '{values.split}': give more images, or another part with --split."
        )
    folder = banks.write(
        opened.run,
        values.label,
        memory,
        opened.model.state,
        _made(opened, "refill") | description | {"split": values.split},
        data.table,
    )
    print(
        f"{description['selected']:,} of {len(rows):,} {_kind(data)} were selected; "
        f"{int(memory.count):,} of {len(memory.case_ids):,} slots are filled, with "
        f"{description['cases']:,} {_plural(description['cases'], 'case')} of "
        f"{description['patients']:,} {_plural(description['patients'], 'patient')}. No weight "
        "changed."
    )
    _said(opened, folder, values.label)
    return 1 if data.refused else 0


_COMMANDS: dict[str, Callable[[_Opened, list[str], flags.FlagValues], int]] = {
    "list": _list,
    "show": _show,
    "forget": _forget,
    "refill": _refill,
}


def _made(opened: _Opened, command: str) -> dict[str, Any]:
    return {
        "made_by": command,
        "checkpoint": opened.model.checkpoint,
        "findings": list(opened.model.pathologies),
    }


def _said(opened: _Opened, folder: Path, label: str) -> None:
    say(
        f"Written to {folder}. Use it: charm-jax predict FILE --run {opened.run} "
        f"--memory {label}, or charm-jax eval."
    )


def _part(opened: _Opened, name: str) -> tuple[changes.Embedded, run_data.Data]:
    """Load a split with its features."""
    data = run_data.load_data(opened.config)
    runs.check_findings(opened.run, opened.model.pathologies, data.table)
    rows = data.split.rows(opened.config.stage_names[-1], name)
    return changes.embed(opened.model, data, rows), data


def _kind(data: run_data.Data) -> str:
    return "SIMULATED images" if data.table.simulated else "images"


def _plural(n: int, noun: str) -> str:
    return noun if n == 1 else f"{noun}s"


def _no_words(words: list[str], command: str) -> None:
    if words:
        raise InputError(
            f"Unexpected argument {words[0]!r} after {command}: options start with --."
        )


def _parse(argv: list[str]) -> tuple[str, list[str], _Opened, flags.FlagValues]:
    """Return the command, its words, the opened run and the flags."""
    keys = ("data.", "runs_dir")
    arguments = cli.parse(cli.Command(__doc__, _define_flags, keys, words=True), argv)
    values = arguments.flags
    if len(arguments.words) < 2:
        raise InputError(
            f"Name a run and one of {', '.join(_COMMANDS)}: for example charm-jax memory RUN list."
        )
    name, command, *words = arguments.words
    if command not in _COMMANDS:
        raise InputError(f"There is no command {command!r}: {did_you_mean(command, _COMMANDS)}")
    run = find_run(arguments, name)
    config = read_settings(run, arguments)
    values.split = values.split or ("train" if command == "refill" else "val")
    return command, words, _open(run, config, values), values


def _open(run: Path, config: Settings, values: flags.FlagValues) -> _Opened:
    if not config.model.charm:
        raise InputError(f"The run {run} is a plain network, without memory: name another.")
    model = loaded.load_run(run, values.checkpoint, values.memory)
    return _Opened(run, config, model, Memory(model).cases)


def _define_flags(values: flags.FlagValues) -> None:
    define_checkpoint_flag(values)
    flags.DEFINE_string("memory", TRAINED, "memory bank to begin with", flag_values=values)
    flags.DEFINE_string("label", "", "name of the new memory bank", flag_values=values)
    flags.DEFINE_string(
        "patients", "", "patients to forget, separated by commas", flag_values=values
    )
    flags.DEFINE_enum(
        "split",
        None,
        SPLITS,
        "split to read the bank with (val by default), or to refill it from (train)",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run(main)
