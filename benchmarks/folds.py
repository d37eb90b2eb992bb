"""Patient-grouped folds of a set of real images, and AUROC within them."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from charm_jax.metrics import bootstrap
from data_pipelines.tables.case_table import CaseTable

VALIDATION = 1 / 8  # share of the images outside a fold's test part
_DRAWS = 10_000


def make(patients: np.ndarray, labels: np.ndarray, count: int, batch: int) -> np.ndarray:
    """Divide images into train, val and test for each fold, ``[count, n]`` strings.

    Each image is in the test part of one fold, and a patient's images are in one part of a fold.
    Test parts are stratified by the rarest finding of an image. Validation patients are drawn so
    that all folds have as many steps an epoch, in all images and in the abnormal ones: the rate
    then has one schedule, and one compiled program serves all folds.

    Args:
        patients: patient of each image, ``[n]``.
        labels: 0 or 1, ``[n, findings]``.
        count: number of folds.
        batch: images of a training step.
    """
    by_rarity = np.argsort(labels.sum(0), kind="stable")
    present = np.concatenate([labels[:, by_rarity], np.ones((len(labels), 1), int)], axis=1)
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    abnormal = labels.any(1)
    share = (1 - 1 / count) * (1 - VALIDATION)
    steps = [int(n * share) // batch for n in (len(labels), sum(abnormal))]
    parts = np.full((count, len(labels)), "train", "<U5")
    for fold, (_, test) in enumerate(folds.split(labels, present.argmax(1), patients)):
        parts[fold, test] = "test"
        chosen = _validation(patients, abnormal, parts[fold] == "test", steps, batch, fold)
        parts[fold, chosen] = "val"
    check(patients, parts)
    return parts


def _validation(
    patients: np.ndarray,
    abnormal: np.ndarray,
    test: np.ndarray,
    steps: list[int],
    batch: int,
    seed: int,
) -> np.ndarray:
    """Draw validation patients that leave so many steps an epoch; return their images, bool."""
    generator = np.random.default_rng(seed)
    rest = np.unique(patients[~test])
    for _ in range(_DRAWS):
        order = generator.permutation(rest)
        # Images of each patient and all later ones: what is left before that patient is taken.
        left = np.array([np.sum(patients == patient) for patient in order])[::-1].cumsum()[::-1]
        chosen = np.isin(patients, order[left >= (steps[0] + 1) * batch])
        train = ~test & ~chosen
        if [sum(train) // batch, sum(train & abnormal) // batch] == steps:
            return chosen
    raise SystemExit(f"No {VALIDATION:.0%} of the patients leave {steps} steps: change --folds.")


def check(patients: np.ndarray, parts: np.ndarray) -> None:
    """Refuse folds that test an image never or twice, or have a patient in two parts.

    Raises:
        ValueError: with the image or the patient.
    """
    tested = (parts == "test").sum(0)
    if (tested != 1).any():
        raise ValueError(f"image {np.argmax(tested != 1)} is tested {tested[tested != 1][0]} times")
    for fold, part in enumerate(parts):
        pairs = {(patient, name) for patient, name in zip(patients.tolist(), part, strict=True)}
        if len(pairs) != len(np.unique(patients)):
            raise ValueError(f"a patient is in two parts of fold {fold}")


def write(table: CaseTable, rows: np.ndarray, parts: np.ndarray, folder: Path) -> list[Path]:
    """Write a table of the source ``csv_folder`` for each fold."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = pd.DataFrame(table.labels[rows], columns=list(table.findings))
    paths = [folder / f"fold{fold}.csv" for fold in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        ids = {"image": table.images[rows], "patient": table.patients[rows], "split": part}
        pd.concat([pd.DataFrame(ids), labels], axis=1).to_csv(path, index=False)
    return paths


def auroc_within(
    logits: np.ndarray, labels: np.ndarray, patients: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """Return each finding's AUROC within folds, ``[1 + resamples, findings]``.

    Scores of different folds come from different networks and are never compared: of all pairs of a
    positive and a negative image of the same fold, this is the share in the right order, ties ½. It
    is the mean of the folds' AUROCs, weighted by their pairs.

    The first line is of the images as they are, the others are of draws of patients, which are the
    same for all runs on the same images. NaN where no fold has a pair.

    Args:
        logits: of each image from the network that it tests, ``[n, findings]``.
        labels: 0 or 1.
        patients: of each image.
        parts: of ``make``.
    """
    names, patient = np.unique(patients, return_inverse=True)
    chances = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(0).multinomial(len(names), chances, bootstrap.RESAMPLES)
    times = np.concatenate([np.ones((1, len(names))), drawn]).T[patient]
    right, pairs = np.zeros((2, labels.shape[1], times.shape[1]))
    for part, column in itertools.product(parts, range(labels.shape[1])):
        of_class = ((part == "test") & (labels[:, column] == value) for value in (1, 0))
        positive, negative = map(np.flatnonzero, of_class)
        gap = logits[positive, column][:, None] - logits[negative, column]
        wins = (gap > 0) + 0.5 * (gap == 0)
        right[column] += ((wins.T @ times[positive]) * times[negative]).sum(0)
        pairs[column] += times[positive].sum(0) * times[negative].sum(0)
    return np.divide(right, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0).T
