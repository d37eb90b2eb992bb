"""Split a table into train, validation and test, and count the leakage."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.tables.case_table import CaseTable, rows_of

IMAGES = ("abnormal", "all")
# The published notebook fixes its own seed, so config.data.split_seed does not apply.
NOTEBOOK_SEED = 85
NOTEBOOK_SHARE = 0.125

Parts = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
    """Hold the train, validation and test cases of every stage.

    Attributes:
        rule: name of the split rule, a key of ``RULES``, or ``kfold:i/n``.
        split_seed: seed of the permutation of the patients.
        stages: for each stage, in the order of training, its splits by name (``train``, ``val``,
            ``test``; ``notebook`` also ``test_published``): int64 case ids, sorted.
        leak_images: number of abnormal test images of the last stage from patients that some stage
            trains or validates on.
        leak_of: number of abnormal test images of the last stage.
    """

    rule: str
    split_seed: int
    stages: dict[str, Parts]
    leak_images: int
    leak_of: int

    def rows(self, stage: str, part: str) -> np.ndarray:
        """Return the case ids of one split of a stage.

        Raises:
            InputError: the rule has no such split, or it is empty.
        """
        parts = self.stages[stage]
        if part not in parts:
            raise InputError(
                f"The split rule {self.rule!r} has no split {part!r}: choose one of "
                f"{', '.join(parts)}."
            )
        if not parts[part].size:
            raise InputError(
                f"The split {part!r} of stage {stage!r} holds no images under "
                f"--config.data.split={self.rule}: add images of it, or choose another rule of "
                f"{', '.join(FORMS)}."
            )
        return parts[part]

    @property
    def used_rows(self) -> np.ndarray:
        """Sorted case ids that any stage uses, ``[m]`` int64."""
        parts = [rows for parts in self.stages.values() for rows in parts.values()]
        return np.unique(np.concatenate(parts))


def make_split(table: CaseTable, rule: str, images: Mapping[str, str], split_seed: int) -> Split:
    """Split the full table, including images without a file.

    A source without official splits is split by ``patient`` under the rule ``official``. Each set
    of a merged table is split as if it were alone.

    Args:
        table: the source's full table.
        rule: a key of ``RULES``, or ``kfold:i/n``.
        images: for each stage, in the order of training, ``abnormal`` or ``all``.
        split_seed: seed of the permutation of the patients, not negative.

    Raises:
        InputError: unknown rule or kind of images, a table without what the rule needs, or a
            patient in two splits.
    """
    if not is_rule(rule):
        folds_wrong = rule.startswith("kfold:")
        raise InputError(
            f"config.data.split is {rule!r}, which is not a known split rule: "
            + (f"give {FOLD_FORM}." if folds_wrong else did_you_mean(rule, FORMS))
        )
    for stage, kind in images.items():
        if kind not in IMAGES:
            raise InputError(
                f"config.stages.{stage}.images is {kind!r}: set it to 'abnormal' or 'all'."
            )
    if rule == "official" and not table.official_known:
        rule = "patient"
    if table.sets:
        stages = _merged(table, rule, images, split_seed)
    else:
        stages = (RULES.get(rule) or _fold(rule))(table, images, split_seed)
    return _with_leak(table, rule, split_seed, stages)


def _merged(
    table: CaseTable, rule: str, images: Mapping[str, str], split_seed: int
) -> dict[str, Parts]:
    """Split each set of a merged table as if it were alone."""
    stages: dict[str, dict[str, list]] = {stage: {} for stage in images}
    for name, own in table.sets.items():
        rows = rows_of(table, name)
        try:
            alone = make_split(own, rule, images, split_seed)
        except InputError as error:
            raise InputError(f"The set {name}: {error}") from error
        for stage, parts in alone.stages.items():
            for part, chosen in parts.items():
                stages[stage].setdefault(part, []).append(rows[chosen])
    return {
        stage: {part: np.sort(np.concatenate(rows)) for part, rows in parts.items()}
        for stage, parts in stages.items()
    }


def keep_rows(table: CaseTable, split: Split, keep: np.ndarray) -> Split:
    """Keep the cases where ``keep``, ``[n]`` bool, is True, and recount leakage."""
    stages = {
        stage: {part: rows[keep[rows]] for part, rows in parts.items()}
        for stage, parts in split.stages.items()
    }
    return _with_leak(table, split.rule, split.split_seed, stages)


def part_summary(table: CaseTable, rows: np.ndarray) -> dict[str, int | str]:
    """Count the cases of a split and compute their digests.

    Returns:
        ``images``, ``patients``, the ``sha256`` of the sorted image names, and ``cases_sha256`` of
        these with patients (where they are known), findings and labels.
    """
    rows = rows[np.argsort(table.images[rows], kind="stable")]
    names, known = table.images[rows].tolist(), table.patients_known
    patients = [table.patient_name(number) for number in table.patients[rows]] if known else []
    cases = hashlib.sha256(json.dumps([names, patients, table.findings]).encode())
    cases.update(table.labels[rows].astype(np.int8).tobytes())
    return {
        "images": len(rows),
        "patients": len(np.unique(table.patients[rows])),
        "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "cases_sha256": cases.hexdigest(),
    }


def shuffled_patients(table: CaseTable, split_seed: int) -> np.ndarray:
    """Return all patients in random order, ``[p]`` int32."""
    generator = np.random.Generator(np.random.PCG64(split_seed))
    return generator.permutation(np.unique(table.patients))


def torch_randperm(n: int, seed: int) -> np.ndarray:
    """Reproduce ``torch.manual_seed(seed); torch.randperm(n)`` on a CPU.

    Both draw from a Mersenne Twister; torch swaps forward, with a modulo.

    Returns:
        ``[n]`` int64.
    """
    raw = np.random.RandomState(seed).randint(0, 2**32, size=max(n - 1, 0), dtype=np.uint32)
    order = list(range(n))
    for i, draw in enumerate(raw.tolist()):
        j = i + draw % (n - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)


def _official(table: CaseTable, images: Mapping[str, str], split_seed: int) -> dict[str, Parts]:
    """Apply the source's own splits.

    Where it has no validation split, an eighth of the training patients becomes one.
    """
    part = _official_parts(table)
    train_val = (part == "train_val") | ((part == "train") & draws_validation(table))
    if train_val.any():
        patients = shuffled_patients(table, split_seed)
        patients = patients[np.isin(patients, table.patients[train_val])]
        chosen = patients[: max(round(0.125 * len(patients)), 1)]
        val = train_val & np.isin(table.patients, chosen)
        part = np.where(val, "val", np.where(train_val, "train", part))
    return _shared(table, images, part)


def draws_validation(table: CaseTable) -> bool:
    """Whether the table has training but no validation images, so that these are drawn."""
    return "train" in table.official_part and "val" not in table.official_part


def _official_parts(table: CaseTable) -> np.ndarray:
    part = table.official_part
    if not (part != "").all():
        name = table.images[part == ""][0]
        files = " and ".join(table.official_files)
        raise InputError(
            f"The split rule 'official' needs a part for every image, and {name} has none: "
            + (f"add {files} to the data folder" if files else "fill the split column of its table")
            + ", or set --config.data.split=patient."
        )
    known = {"train_val", "test"} if (part == "train_val").any() else {"train", "val", "test"}
    wrong = ~np.isin(part, list(known))
    if wrong.any():
        raise InputError(
            f"The image {table.images[wrong][0]} is in the split '{part[wrong][0]}': the split "
            "column takes train, val and test (or train_val and test)."
        )
    return part


def _patient(table: CaseTable, images: Mapping[str, str], split_seed: int) -> dict[str, Parts]:
    """Assign a fifth of the patients to test, a tenth to validation.

    Of NIH's 30,805 patients these are 6,161 and 3,080.
    """
    patients = shuffled_patients(table, split_seed)
    n_test, n_val = max(len(patients) // 5, 1), max(len(patients) // 10, 1)
    test, val = patients[:n_test], patients[n_test : n_test + n_val]
    part = np.full(len(table.images), "train")
    part[np.isin(table.patients, test)] = "test"
    part[np.isin(table.patients, val)] = "val"
    return _shared(table, images, part)


def _fold(rule: str) -> "Rule":
    """Return the rule ``kfold:i/n``: fold i tests; an eighth of the other patients validates."""
    fold, count = map(int, re.fullmatch(_KFOLD, rule).groups())

    def split(table: CaseTable, images: Mapping[str, str], split_seed: int) -> dict[str, Parts]:
        patients = shuffled_patients(table, split_seed)
        if len(patients) < count:
            raise InputError(
                f"config.data.split is {rule} and {table.source} has {len(patients)} patients: "
                f"give at most {len(patients)} folds."
            )
        tested = folds(table, count, split_seed) == fold
        others = patients[~np.isin(patients, table.patients[tested])]
        val = np.isin(table.patients, others[: max(round(0.125 * len(others)), 1)])
        return _shared(table, images, np.where(tested, "test", np.where(val, "val", "train")))

    return split


def folds(table: CaseTable, count: int, split_seed: int) -> Int[np.ndarray, " n"]:
    """Return the fold that tests each image, 0 ... count - 1.

    The images of a patient are in one fold. Patients are dealt out by their rarest finding, and
    among those that share it by their number of images, the order drawn by ``split_seed``: so the
    folds have as many patients of each, to one, and nearly as many images.
    """
    patients = shuffled_patients(table, split_seed)
    positive = table.labels == 1
    by_rarity = np.argsort(positive.sum(axis=0), kind="stable")
    rank = np.where(positive.any(axis=1), positive[:, by_rarity].argmax(axis=1), len(by_rarity))
    names, own, images = np.unique(table.patients, return_inverse=True, return_counts=True)
    own = own.reshape(-1)
    rarest = np.full(len(names), len(by_rarity))
    np.minimum.at(rarest, own, rank)
    place = np.empty(len(names), np.int64)  # of each patient in the drawn order
    place[np.searchsorted(names, patients)] = np.arange(len(names))
    fold = np.empty(len(names), np.int64)
    fold[np.lexsort((place, -images, rarest))] = np.arange(len(names)) % count
    return fold[own]


def _shared(table: CaseTable, images: Mapping[str, str], part: np.ndarray) -> dict[str, Parts]:
    """Use one split for all stages.

    A stage of abnormal images has only those in train and val.
    """
    _assert_disjoint(table, part)
    everything = np.ones(len(part), bool)
    return {
        stage: {
            "train": np.flatnonzero((part == "train") & population),
            "val": np.flatnonzero((part == "val") & population),
            "test": np.flatnonzero(part == "test"),
        }
        for stage, kind in images.items()
        for population in [table.abnormal if kind == "abnormal" else everything]
    }


def _assert_disjoint(table: CaseTable, part: np.ndarray) -> None:
    order = np.argsort(table.patients, kind="stable")
    patients, parts = table.patients[order], part[order]
    clash = np.flatnonzero((patients[1:] == patients[:-1]) & (parts[1:] != parts[:-1]))
    if clash.size:
        first, second = order[clash[0]], order[clash[0] + 1]
        raise InputError(
            f"The patient {table.patient_name(patients[clash[0]])} is in two splits, "
            f"'{part[first]}' ({table.images[first]}) and '{part[second]}' "
            f"({table.images[second]}): put all the images of a patient into one split, or set "
            "--config.data.split=patient."
        )


def _notebook(table: CaseTable, images: Mapping[str, str], split_seed: int) -> dict[str, Parts]:
    """Reproduce the published notebook, which splits each stage separately.

    One stage's test patients are therefore in the other's training split.
    """
    del split_seed
    return {stage: _notebook_stage(table, kind) for stage, kind in images.items()}


def _notebook_stage(table: CaseTable, kind: str) -> Parts:
    from sklearn.model_selection import train_test_split

    rows = np.flatnonzero(table.abnormal) if kind == "abnormal" else np.arange(len(table.images))
    patients = np.unique(table.patients[rows])
    if len(patients) < 2:
        raise InputError(
            f"The split rule 'notebook' needs at least 2 patients with {kind} images and the table "
            f"has {len(patients)}: set --config.data.split=official."
        )
    train_patients, _ = train_test_split(patients, test_size=0.2, random_state=NOTEBOOK_SEED)
    in_train = np.isin(table.patients[rows], train_patients)
    val, train = _cut(rows[in_train])
    published, _ = _cut(rows[~in_train])
    return {"train": train, "val": val, "test": rows[~in_train], "test_published": published}


def _cut(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a random eighth of the rows, and the rest."""
    order = torch_randperm(len(rows), NOTEBOOK_SEED)
    n = int(NOTEBOOK_SHARE * len(rows))
    return np.sort(rows[order[:n]]), np.sort(rows[order[n:]])


def _with_leak(table: CaseTable, rule: str, seed: int, stages: dict[str, Parts]) -> Split:
    """Count the leakage; validation images count as seen: they select weights."""
    seen = [parts[part] for parts in stages.values() for part in ("train", "val")]
    test = list(stages.values())[-1]["test"]
    test = test[table.abnormal[test]]
    leaks = np.isin(table.patients[test], table.patients[np.concatenate(seen)])
    return Split(rule, seed, stages, leak_images=int(leaks.sum()), leak_of=len(test))


Rule = Callable[[CaseTable, Mapping[str, str], int], dict[str, Parts]]
RULES: dict[str, Rule] = {"official": _official, "patient": _patient, "notebook": _notebook}
FORMS = (*RULES, "kfold:0/5")  # the last is an example
FOLD_FORM = "kfold:i/n with a fold i from 0 to n - 1, such as kfold:0/5"
_KFOLD = re.compile(r"kfold:(\d+)/(\d+)")


def is_rule(rule: str) -> bool:
    """Whether a name is that of a rule, or ``kfold:i/n`` with i from 0 to n - 1 and n from 2."""
    match = _KFOLD.fullmatch(rule)
    return rule in RULES or bool(match and int(match[1]) < int(match[2]) >= 2)


def is_disjoint(rule: str) -> bool:
    """Whether a rule puts each patient into one split only; asserted when it is applied."""
    return rule != "notebook"
