"""What an evaluation says of the bank that was read."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from charm_jax.inference.loaded import Subject
from charm_jax.models import memory_bank
from charm_jax.models.state import TrainState
from charm_jax.runs.banks import StoredBank
from charm_jax.runs.cases import CaseMatch

TRAINED = {"source": "nih", "patients_known": True, "stages": {}}
ROWS = np.array([1, 2, 3])
REFILLED = {
    "source": "csv_folder",
    "split": "test",
    "images_sha256": "ab",
    "patients_known": False,
    "label": "x",
}


def subject(run=Path("run"), description=None, plain=False):
    """A bank with case 7 of patient 3, and one of a file."""
    memory = memory_bank.empty(3, 2, 1).replace(
        case_ids=np.array([7, 2**30, -1], np.int32), patient_ids=np.array([3, -1, -1], np.int32)
    )
    state = Mock(spec=TrainState, memory=None if plain else memory)
    bank = None if description is None else StoredBank("x", Path(), memory, description)
    trained = None if run is None else TRAINED
    return Subject(state, "", "", Path(), run, trained, {}, bank)


def known(case_ids, patient_ids):
    nothing = np.zeros(4, bool)
    return CaseMatch(
        np.array(case_ids, np.int32), np.array(patient_ids, np.int32), nothing, nothing
    )


@pytest.mark.parametrize(
    ("case_ids", "patient_ids", "count"),
    [
        ([-1, -1, -1, -1], [-1, -1, -1, -1], 0),  # unknown is not in an empty slot
        ([7, 1, 2, 3], [3, 4, 5, 6], 0),  # the first image is not of the part
        ([0, 7, 2, 3], [0, -1, 5, 6], 1),
        ([0, 7, 8, 9], [0, 3, 3, 4], 2),
    ],
)
def test_images_of_the_bank_or_of_its_patients_are_counted(case_ids, patient_ids, count):
    assert subject().bank_of(known(case_ids, patient_ids), ROWS)["images_here"] == count


NOBODY = known([-1] * 4, [-1] * 4)


@pytest.mark.parametrize("description", [None, {"made_by": "forget", "forgotten": ["a"]}])
def test_a_trained_bank_is_of_the_run_s_training_part(description):
    held = subject(description=description).bank_of(NOBODY, ROWS)
    assert (held["source"], held["split"], held["images_sha256"]) == ("nih", "train", None)
    assert held["patients_known"] is True


def test_a_refilled_bank_is_what_its_description_says():
    held = subject(description=REFILLED).bank_of(NOBODY, ROWS)
    assert held.pop("images_here") == 0
    assert held == {key: value for key, value in REFILLED.items() if key != "label"}


def test_of_a_file_s_bank_nothing_is_known_and_a_plain_network_has_none():
    assert set(subject(run=None).bank_of(NOBODY, ROWS).values()) == {None}
    assert subject(plain=True).bank_of(NOBODY, ROWS) is None
