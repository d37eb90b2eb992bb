"""Read a sweep from its file: the rows of the table, and a run for each row, seed and fold."""

import dataclasses
import hashlib
import itertools
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charm_jax.config import cli, validate
from charm_jax.config.settings import Settings
from data_pipelines.errors import InputError, did_you_mean

_EXAMPLE = "see configs/sweeps/published_table.py for an example"
_PARTS = {
    "config": str,
    "keys": Mapping,
    "rows": Sequence,
    "axes": Mapping,
    "seeds": Sequence,
    "folds": int,
    "baseline": str,
    "search": Mapping,
    "trials": int,
    "sampler": str,
}
_OF_ROWS = ("rows", "axes", "seeds", "folds", "baseline")  # parts that a search has not
_OF_SEARCH = ("search", "trials", "sampler")
_SAMPLERS = ("tpe", "random")
_ROW_PARTS = {"title": str, "keys": Mapping, "published": float}
_OURS = ("name", "seed", "data.split")  # the keys that rows cannot set
Keys = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        keys: values of config keys, ``a.b.c``.
        published: its published macro AUROC, if there is one.
    """

    title: str
    keys: Keys
    published: float | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """A run of a row.

    Attributes:
        name: of its folder.
        fold: fold that it tests, from 0; None for the split of the config.
        keys: all that the command line of its training sets.
    """

    name: str
    row: str
    seed: int
    fold: int | None
    keys: Keys


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        name: of the file; the runs lie in a folder of this name.
        config: name or path of the config of all rows.
        baseline: title of the row with which the others are compared.
        folder: of the runs.
        points: the runs, all rows of a seed and fold before the next.
    """

    name: str
    config: str
    rows: tuple[Row, ...]
    baseline: str
    folder: Path
    points: tuple[Point, ...]

    @property
    def total(self) -> int:
        """How many runs there are."""
        return len(self.points)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the runs depend on."""
        runs = [(point.name, dict(point.keys)) for point in self.points]
        return hashlib.sha256(json.dumps([self.config, runs], default=str).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a search tries for a key: those from ``low`` to ``high``, or ``choices``.

    Whole numbers are drawn where both ends are; ``log`` draws evenly on a logarithmic scale.
    """

    low: int | float = 0
    high: int | float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values between which all others lie."""
        return self.choices or (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Search:
    """A search for the values of keys that are best on validation.

    Attributes:
        keys: values of config keys for all trials.
        ranges: what is searched, by key.
        total: how many trials there are.
        sampler: ``tpe`` (the tree-structured Parzen estimator) or ``random``.
    """

    name: str
    config: str
    folder: Path
    keys: Keys
    ranges: Mapping[str, Range]
    total: int
    sampler: str

    @property
    def digest(self) -> str:
        """SHA-256 of everything that a trial depends on; a search can get more trials."""
        ranges = {key: dataclasses.astuple(found) for key, found in self.ranges.items()}
        parts = [self.config, dict(self.keys), ranges]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def point(self, name: str, values: Keys) -> Point:
        """Return the run of a trial with its values."""
        keys = {**self.keys, **values, "runs_dir": str(self.folder), "name": name}
        return Point(name, name, 0, None, keys)


def read(name: str, overrides: Keys) -> Plan | Search:
    """Read a sweep and check the config of each run.

    Args:
        name: of a packaged sweep, or path of a file with ``get_sweep()``, which returns a dict:
            ``config``, ``rows`` (dicts of ``title``, ``keys``, ``published``) or ``axes`` (lists of
            values by key, whose product is the rows) or both, ``keys`` of all rows, ``seeds``
            ([0]), ``folds`` (0 for the config's split), ``baseline`` (the first row); or in place
            of rows ``search`` (choices, or low, high and perhaps log, by key), ``trials``,
            ``sampler`` ("tpe").
        overrides: values of config keys that rank above the file's ``keys``.

    Raises:
        InputError: there is no such file, or it has an unknown part or key, a value of another
            type, two rows of one title, or no row.
    """
    path = _find(name)
    parts = _parts(path)
    common = {**parts.get("keys", {}), **overrides}
    if "search" in parts:
        return _search(parts, common, path)
    rows = _rows(parts, path)
    clash = next((key for row in rows for key in row.keys if key in overrides), None)
    if clash:
        raise InputError(f"--config.{clash} is what the rows of {path} differ in: leave it out.")
    titles = [row.title for row in rows]
    baseline = parts.get("baseline", titles[0])
    if baseline not in titles:
        raise InputError(f"{path}: baseline {baseline!r}: {did_you_mean(baseline, titles)}")
    base = _settings(parts["config"], common, str(path))
    folder = Path(base.directory.parent) / path.stem
    folds, seeds = parts.get("folds", 0), parts.get("seeds", [0])
    points = tuple(
        _point(row, seed, fold, folds, {**common, **row.keys, "runs_dir": str(folder)})
        for seed, fold in itertools.product(seeds, range(folds) if folds else [None])
        for row in rows
    )
    _check_names(points, path)
    for point in points:
        _check(point, parts["config"], path)
    return Plan(path.stem, parts["config"], rows, baseline, folder, points)


def _check(point: Point, config: str, path: Path) -> None:
    settings = _settings(config, point.keys, f"{path}, {point.row}")
    try:
        validate.check(settings)
    except InputError as error:
        raise InputError(f"{path}, {point.row}: {error}") from None


def _find(name: str) -> Path:
    packaged = {path.stem: path for path in (cli.CONFIGS / "sweeps").glob("[!_]*.py")}
    if name in packaged:
        return packaged[name]
    if Path(name).is_file():
        return Path(name)
    if "/" in name or name.endswith(".py"):
        raise InputError(f"There is no sweep file {name!r}: {_EXAMPLE}.")
    raise InputError(f"There is no sweep {name!r}: {did_you_mean(name, sorted(packaged))}")


def _parts(path: Path) -> dict[str, Any]:
    try:
        parts = runpy.run_path(str(path))["get_sweep"]()
    except Exception as error:  # a user's file may raise anything
        raise InputError(
            f"{path} is no sweep ({type(error).__name__}: {error}): {_EXAMPLE}."
        ) from error
    _check_parts(parts, _PARTS, str(path))
    if "config" not in parts:
        raise InputError(f"{path} names no config: add it, such as 'config': 'demo'.")
    if "search" not in parts and (alone := [part for part in _OF_SEARCH if part in parts]):
        raise InputError(
            f"{path}: {alone[0]!r} belongs to a search: add 'search', or leave it out."
        )
    return parts


def _check_parts(parts: object, known: Mapping[str, type], where: str) -> None:
    if not isinstance(parts, Mapping):
        raise InputError(f"{where}: {type(parts).__name__} in place of a dict: {_EXAMPLE}.")
    for key, value in parts.items():
        if key not in known:
            raise InputError(f"{where}: there is no part {key!r}: {did_you_mean(key, known)}")
        if not isinstance(value, known[key]) or (known[key] is Sequence and not value):
            kind = known[key].__name__.lower()
            raise InputError(f"{where}: {key!r} is {value!r}: give it a {kind}.")


def _rows(parts: Mapping[str, Any], path: Path) -> tuple[Row, ...]:
    for number, row in enumerate(parts.get("rows", [])):
        _check_parts(row, _ROW_PARTS, f"{path}, row {number}")
        if "title" not in row:
            raise InputError(f"{path}, row {number} has no title: give it one.")
    rows = [
        Row(row["title"], row.get("keys", {}), row.get("published"))
        for row in parts.get("rows", [])
    ]
    axes = parts.get("axes", {})
    for values in itertools.product(*axes.values()) if axes else []:
        keys = dict(zip(axes, values, strict=True))
        title = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in keys.items())
        rows.append(Row(title, keys))
    if not rows:
        raise InputError(f"{path} has no rows: give it rows or axes.")
    ours = next((key for row in rows for key in row.keys if key in _OURS), None)
    if ours:
        raise InputError(f"{path}: rows cannot set {ours}: use seeds and folds of the sweep.")
    titles = [row.title for row in rows]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice:
        raise InputError(f"{path}: two rows are called {twice!r}: give one another title.")
    return tuple(rows)


def _search(parts: Mapping[str, Any], keys: Keys, path: Path) -> Search:
    if clash := [part for part in _OF_ROWS if part in parts]:
        raise InputError(f"{path}: a search has no {' and no '.join(clash)}: leave that out.")
    if "trials" not in parts or parts["trials"] < 1:
        raise InputError(f"{path}: a search needs the number of its 'trials': give it one above 0.")
    sampler = parts.get("sampler", _SAMPLERS[0])
    if sampler not in _SAMPLERS:
        raise InputError(f"{path}: sampler {sampler!r}: {did_you_mean(sampler, _SAMPLERS)}")
    ranges = {key: _range(key, found, path) for key, found in parts["search"].items()}
    if not ranges or (fixed := [key for key in ranges if key in keys or key == "name"]):
        what = f"{fixed[0]} is set for all trials" if ranges else "the search has no keys"
        raise InputError(f"{path}: {what}: name in 'search' what the trials differ in.")
    base = _settings(parts["config"], keys, str(path))
    folder = Path(base.directory.parent) / path.stem
    search = Search(path.stem, parts["config"], folder, keys, ranges, parts["trials"], sampler)
    first = {key: found.ends[0] for key, found in ranges.items()}
    for key, found in ranges.items():
        for value in found.ends:
            _check(search.point("trial", {**first, key: value}), parts["config"], path)
    return search


def _range(key: str, found: object, path: Path) -> Range:
    if isinstance(found, list) and found:
        if all(isinstance(value, str | int | float | None) for value in found):
            return Range(choices=tuple(found))
    elif isinstance(found, Mapping) and {"low", "high"} <= {*found} <= {"low", "high", "log"}:
        low, high, log = found["low"], found["high"], bool(found.get("log"))
        numbers = isinstance(low, int | float) and isinstance(high, int | float)
        if numbers and low < high and (low > 0 or not log):
            return Range(low, high, log)
    raise InputError(
        f"{path}: the search over {key} is {found!r}: give a list of plain values, or a dict of "
        "low and high (low < high), and 'log': True for a logarithmic scale above 0."
    )


def _point(row: Row, seed: int, fold: int | None, folds: int, keys: Keys) -> Point:
    name = re.sub(r"[^\w.+-]+", "_", row.title) + f"-seed{seed}"
    own = {"seed": seed}
    if fold is not None:
        name += f"-fold{fold}"
        own["data.split"] = f"kfold:{fold}/{folds}"
    return Point(name, row.title, seed, fold, {**keys, **own, "name": name})


def _check_names(points: Sequence[Point], path: Path) -> None:
    rows: dict[str, str] = {}
    for point in points:
        other = rows.setdefault(point.name, point.row)
        if other != point.row:
            raise InputError(
                f"{path}: the rows {other!r} and {point.row!r} would share the folder "
                f"{point.name}: give one another title."
            )


def _settings(config: str, keys: Keys, where: str) -> Settings:
    return cli.settings_with(config, keys, where)
