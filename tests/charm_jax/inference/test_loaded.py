"""The bank that an evaluation read is described truly."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from flax import linen as nn

from charm_jax.config import recipe, settings
from charm_jax.inference.loaded import LoadedModel
from charm_jax.models import memory_bank
from charm_jax.models.baseline import Baseline
from charm_jax.models.state import TrainState
from charm_jax.runs.banks import StoredBank
from charm_jax.runs.cases import CaseMatch

SETTINGS = settings.from_dict(recipe.defaults().to_dict())
TRAINED = {"source": "nih", "patients_known": True, "stages": {}}
ROWS = np.array([1, 2, 3])
REFILLED = {
    "source": "csv_folder",
    "split": "test",
    "images_sha256": "ab",
    "patients_known": False,
    "label": "x",
}


def model(run=Path("run"), description=None, plain=False):
    """A bank with case 7 of patient 3, and one of a file."""
    memory = memory_bank.empty(3, 2, 1).replace(
        case_ids=np.array([7, 2**30, -1], np.int32), patient_ids=np.array([3, -1, -1], np.int32)
    )
    state = Mock(spec=TrainState, memory=None if plain else memory)
    bank = None if description is None else StoredBank(Path(), memory, description)
    trained = None if run is None else TRAINED
    return LoadedModel(
        settings=SETTINGS,
        network=Baseline(nn.Dense(1), nn.Dense(1), nn.relu, 1),
        state=state,
        pathologies=("Mass",),
        description="",
        checkpoint="",
        folder=Path(),
        run=run,
        trained=trained,
        provenance={},
        bank=bank,
    )


def match(case_ids, patient_ids):
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
    assert model().describe_bank(match(case_ids, patient_ids), ROWS)["images_here"] == count


NOBODY = match([-1] * 4, [-1] * 4)


@pytest.mark.parametrize("description", [None, {"made_by": "forget", "forgotten": ["a"]}])
def test_a_trained_bank_is_of_the_run_s_training_part(description):
    held = model(description=description).describe_bank(NOBODY, ROWS)
    assert (held["source"], held["split"], held["images_sha256"]) == ("nih", "train", None)
    assert held["patients_known"] is True


def test_a_refilled_bank_is_what_its_description_says():
    held = model(description=REFILLED).describe_bank(NOBODY, ROWS)
    assert held.pop("images_here") == 0
    assert held == {key: value for key, value in REFILLED.items() if key != "label"}


def test_of_a_file_s_bank_nothing_is_known_and_a_plain_network_has_none():
    assert set(model(run=None).describe_bank(NOBODY, ROWS).values()) == {None}
    assert model(plain=True).describe_bank(NOBODY, ROWS) is None
