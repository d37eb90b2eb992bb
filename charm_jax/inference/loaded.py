"""What is evaluated: a run's checkpoint or a weight file, and what is known of its training."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from ml_collections import ConfigDict

from charm_jax.config import build, cli, recipe
from charm_jax.config.cli import say
from charm_jax.models.baseline import Plain
from charm_jax.models.charm import Charm
from charm_jax.models.state import TrainState
from charm_jax.runs import banks
from charm_jax.runs import cases as run_cases
from charm_jax.runs import folder as runs
from charm_jax.runs.banks import TRAINED, StoredBank
from charm_jax.weights import initial
from data_pipelines.errors import InputError
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable

_OF_BANK = ("source", "split", "images_sha256", "patients_known", "images_here")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        state: the network.
        said: what it is called on screen.
        checkpoint: what ``metrics.json`` and ``calibration.json`` call it.
        folder: that holds ``calibration.json`` and ``eval``.
        run: folder of the run; None for weights without one.
        trained: the run's ``split.json``; None likewise.
        history: what ``metrics.json`` says of where the network comes from.
        bank: the bank in place of the checkpoint's own; None for that.
    """

    state: TrainState
    said: str
    checkpoint: str
    folder: Path
    run: Path | None
    trained: dict[str, Any] | None
    history: dict[str, Any]
    bank: StoredBank | None = None

    def known(self, table: CaseTable, *, copies: bool = False) -> run_cases.Known:
        """The cases of a table: ids as in the bank, what was seen as the run says.

        With ``copies``, images whose files are named alike may be one, as in ``known_cases``.
        """
        if self.run is None:
            return run_cases.unknown_cases(table)
        known = run_cases.known_cases(self.run, table, self.trained, copies=copies)
        if self.bank is None or not self.bank.has_cases:
            return known
        stored = run_cases.known_cases(
            self.bank.folder, table, self.bank.description, copies=copies
        )
        return dataclasses.replace(known, case_ids=stored.case_ids, patient_ids=stored.patient_ids)

    def cases(self) -> pd.DataFrame:
        """``image`` and ``patient`` of each case id that the bank may hold."""
        if self.run is None:
            return pd.DataFrame({"image": [], "patient": []})
        own = self.bank is not None and self.bank.has_cases
        return run_cases.read_cases(self.bank.folder if own else self.run)

    def bank_of(self, known: run_cases.Known, rows: np.ndarray) -> dict[str, Any] | None:
        """What ``metrics.json`` says of the bank that was read; None for a plain network.

        Args:
            known: the cases of the table, with ids as in the bank.
            rows: of the part that is evaluated.

        Returns:
            ``source``, ``split`` and ``images_sha256`` of what filled it and ``patients_known``
            there, each None where not known, and ``images_here``: how many images of the part are
            in it or are of its patients.
        """
        memory = self.state.memory
        if memory is None:
            return None
        if self.run is None:
            return dict.fromkeys(_OF_BANK)
        # A bank that only forgot is the one of training.
        made = self.trained | {"split": "train"} | (self.bank.description if self.bank else {})
        here = _held(known.case_ids[rows], memory.case_ids)
        here |= _held(known.patient_ids[rows], memory.patient_ids)
        return {key: made.get(key) for key in _OF_BANK} | {"images_here": int(here.sum())}


def _held(ids: np.ndarray, stored: Any) -> np.ndarray:
    return np.isin(ids, np.asarray(stored)) & (ids >= 0)


def parse_run(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    keys: tuple[str, ...],
    shown: str,
    name: str | None = None,
) -> tuple[Path, ConfigDict, ConfigDict, flags.FlagValues]:
    """A run that arguments name, and what they change.

    Args:
        argv: arguments, flags alone.
        define: the command's flags, as ``command_line.parse`` takes it.
        keys: beginnings of the overrides that are allowed.
        shown: what the sentence says of them.
        name: name or folder of the run; None for that in ``--run``.

    Returns:
        Its folder, its config, the config with the overrides, and the flags.

    Raises:
        InputError: no such run, or an unknown or forbidden flag.
    """
    defaults = recipe.defaults()
    first = cli.parse(argv, defaults, define)
    run = runs.find(Path(defaults.runs_dir), first.run if name is None else name)
    own, config = recipe.defaults(), recipe.defaults()
    for copy in (own, config):
        cli.merge(copy, runs.read_json(run / "config.json"), str(run / "config.json"))
    values = cli.parse(argv, config, define)
    cli.allow_only(argv, keys, shown)
    return run, own, config, values


def of_run(
    run: Path,
    checkpoint: str,
    config: ConfigDict,
    model: Charm | Plain,
    table: CaseTable | None,
    memory: str = TRAINED,
) -> Subject:
    """A run's checkpoint.

    Args:
        run: its folder.
        checkpoint: best, last or <stage>/<step>.
        config: of the run.
        model: the network.
        table: that it will be evaluated on, if any.
        memory: label of a bank of the run, in place of the checkpoint's own.

    Raises:
        InputError: the run knows other findings than the table, or there is no such checkpoint or
            bank, or it is damaged or of another architecture.
    """
    trained = runs.read_json(run / "split.json")
    if table is not None:
        runs.check_findings(run, trained["findings"], table)
    shapes = build.state_shapes(model, config)
    state, name = runs.restore(run, checkpoint, lambda _: shapes)
    history = {
        "checkpoint": name,
        "trained_on_simulated": trained["simulated"],
        "began_from": _began_from(run),
    }
    subject = Subject(state, f"checkpoint {name} of {run}", name, run, run, trained, history)
    return subject if memory == TRAINED else _with_bank(subject, memory)


def _with_bank(subject: Subject, label: str) -> Subject:
    """The same network with another bank; its results lie beside the bank."""
    if subject.state.memory is None:
        raise InputError(
            f"The run {subject.run} is a plain network, without memory: leave out --memory."
        )
    bank = banks.read(subject.run, label, subject.state, subject.trained["findings"])
    return dataclasses.replace(
        subject,
        state=subject.state.replace(memory=bank.memory),
        said=f"{subject.said} with memory {label}",
        folder=bank.folder,
        history=subject.history | {"memory": label},
        bank=bank,
    )


def of_file(config: ConfigDict, model: Charm | Plain) -> Subject:
    """The weight file ``config.model.init_from``.

    Raises:
        InputError: there is no such file, or it does not hold the whole network.
    """
    keys = config.model
    new = build.new_state(model, config)
    state, file = initial.fill(new, keys.init_from, keys.backbone, whole=True)
    say(initial.sentence(file))
    history = {
        "checkpoint": file.file,
        "trained_on_simulated": None,
        "began_from": None,
        "leak_images": None,
        "leak_of_all": None,
        "leak_seen": None,
    }
    # Files of other runs may have the same name.
    folder = Path(config.runs_dir) / "weights" / f"{Path(file.file).stem}-{file.sha256[:8]}"
    state = state.replace(average=None)  # a file has one set of weights
    said = f"{file.file} without its run"
    return Subject(state, said, file.file, folder, None, None, history)


def check_unseen(
    known: run_cases.Known, rows: np.ndarray, rule: str, part: str, subject: Subject
) -> None:
    """Refuses a test part that is not one.

    Raises:
        InputError: training or validation saw patients or images of it, and the rule does not say
            so itself.
    """
    seen, itself = int(known.seen[rows].sum()), int(known.trained_on[rows].sum())
    if seen and part == "test" and rule in splits.DISJOINT:
        raise InputError(
            f"{seen:,} of the {len(rows):,} test images under config.data.split={rule} are of "
            f"patients that the run {subject.run} trained or validated on, and it saw {itself:,} "
            "of these images themselves: evaluate it with the data and split that it was trained "
            "with, or, where other patients or images only have the same names, rename them."
        )


def _began_from(run: Path) -> str | None:
    """The file of the user's that a run began from, if it did."""
    path = run / "weights.json"
    init_from = runs.read_json(path)["init_from"] if path.exists() else "random"
    return None if init_from in initial.OWN else init_from
