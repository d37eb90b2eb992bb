"""Draw the label sets of simulated patients by ChestX-ray14's frequencies."""

import collections
import functools
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.tables.findings import NIH_FINDINGS

IMAGES_PER_PATIENT = 3.6  # mean; ChestX-ray14 has 112,120 images of 30,805 patients
# Share of follow-ups that repeat the last labels. Including chance repeats it is 41 %, the share in
# ChestX-ray14.
CARRY_OVER = 0.15


@functools.cache
def label_sets() -> tuple[tuple[str, ...], np.ndarray]:
    """Return the 836 sets of findings of ChestX-ray14 and their shares."""
    table = json.loads(Path(__file__).with_name("nih_counts.json").read_text(encoding="utf-8"))
    counts = np.array(list(table["counts"].values()), np.float64)
    return tuple(table["counts"]), counts / table["total"]


@functools.cache
def _label_sets_with(finding: str) -> tuple[tuple[str, ...], np.ndarray]:
    sets, shares = label_sets()
    chosen = [i for i, labels in enumerate(sets) if finding in labels.split("|")]
    return tuple(sets[i] for i in chosen), shares[chosen] / shares[chosen].sum()


def derived_seed(*numbers: int) -> int:
    """Derive a seed from numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def generator(*numbers: int) -> np.random.Generator:
    """Make a random generator seeded by numbers."""
    return np.random.Generator(np.random.PCG64(derived_seed(*numbers)))


def _patients(rng: np.random.Generator) -> Iterator[list[str]]:
    """Yield the label sets of one patient after another, endlessly."""
    sets, shares = label_sets()
    while True:
        images = [sets[rng.choice(len(sets), p=shares)]]
        for _ in range(rng.geometric(1 / IMAGES_PER_PATIENT) - 1):
            fresh = sets[rng.choice(len(sets), p=shares)]
            images.append(images[-1] if rng.uniform() < CARRY_OVER else fresh)
        yield images


def _first(patients: Iterable[list[str]], images: int) -> list[list[str]]:
    """Take patients up to ``images`` images, cutting the last one short."""
    kept = []
    for patient in patients:
        if images == 0:
            break
        kept.append(patient[:images])
        images -= len(kept[-1])
    return kept


def _missing_sets(images: Collection[str], floor: int, rng: np.random.Generator) -> list[str]:
    """Draw label sets to add until each finding has ``floor`` positives."""
    have = collections.Counter(name for labels in images for name in labels.split("|"))
    added = []
    for finding in sorted(NIH_FINDINGS, key=lambda name: have[name]):
        sets, shares = _label_sets_with(finding)
        while have[finding] < floor:
            labels = sets[rng.choice(len(sets), p=shares)]
            added.append(labels)
            have.update(labels.split("|"))
    return added


def sample_patients(images: int, min_positives: int, seed: int) -> list[list[str]]:
    """Draw label sets of patients by the joint frequencies of ChestX-ray14.

    Where a finding falls short of ``min_positives``, added patients with one image each replace
    the last ordinary images; their sets are drawn from those that contain the finding.

    Args:
        images: number of images, over all patients.
        min_positives: minimum number of images with each finding; 0 keeps the frequencies.
        seed: not negative.

    Returns:
        The label set of each image of each patient, in the notation of ``Finding Labels``.

    Raises:
        InputError: too few images for that many positives.
    """
    drawn = _first(_patients(generator(seed, 0)), images)
    flat = [labels for patient in drawn for labels in patient]
    added: list[str] = []
    # Fewer ordinary images leave more to add, so the number grows until both fit.
    while True:
        kept = flat[: images - len(added)]
        more = _missing_sets(kept, min_positives, generator(seed, 1))
        if len(more) <= len(added):
            break
        if len(more) > images:
            raise InputError(
                f"{images} simulated images are too few for {min_positives} positives of each "
                "finding: ask for more images or for fewer positives."
            )
        added = more
    room = images - len(more)
    return _first(drawn, room) + [[labels] for labels in more]
