import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tables import small_table

from charm_jax.config import recipe, settings
from charm_jax.config.build import build_network
from charm_jax.metrics.classification import by_prevalence
from charm_jax.metrics.result import FindingResult
from charm_jax.runs.data import (
    Data,
    _prevalence,
    check_batches,
    describe_findings,
    for_findings,
    training_notes,
)
from data_pipelines.errors import InputError
from data_pipelines.tables.splits import make_split

# Mass varies everywhere, Hernia nowhere, Edema is in every training image.
LABELS = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, -1], [1, 0, 0], [0, 0, 1]], np.int8)
PARTS = ["train", "train", "train", "train", "val", "test"]


def data_of(labels=LABELS, parts=PARTS, images="all", rule="official"):
    table = small_table(
        len(labels),
        findings=("Mass", "Hernia", "Edema")[: labels.shape[1]],
        labels=labels,
        official_part=np.array(parts),
    )
    split = make_split(table, rule, {"bce": images, "focal": "all"}, split_seed=0)
    config = settings.from_dict(recipe.defaults().to_dict())
    return Data(table, split, [], [], (0.0,) * len(table.findings), (), config.data)


def test_a_finding_of_one_class_in_training_draws_a_warning():
    assert training_notes(data_of()) == [
        "warning: there is no positive training image of Hernia in stage bce and focal: nothing "
        "can be learned of it; choose another split, or leave its column out.",
        "warning: there is no negative training image of Edema in stage bce and focal: nothing "
        "can be learned of it; choose another split, or leave its column out.",
    ]


def test_a_finding_of_one_class_among_the_abnormal_is_said_of_that_stage():
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [1, 1], [0, 1]], np.int8)
    (note,) = training_notes(data_of(labels, images="abnormal"))
    assert "no negative training image of Mass in stage bce:" in note


def test_a_finding_that_is_unknown_in_training_has_neither_class():
    labels = np.array([[1, -1], [0, -1], [1, -1], [0, -1], [1, 1], [0, 0]], np.int8)
    notes = training_notes(data_of(labels))
    assert ["positive" in note and "of Hernia" in note for note in notes] == [True, False]
    assert "no negative training image of Hernia" in notes[1]


def test_a_validation_split_that_is_drawn_is_said():
    labels = LABELS[:, :1]
    assert training_notes(data_of(labels)) == []
    drawn = data_of(labels, ["train"] * 5 + ["test"])
    assert training_notes(drawn) == [
        "The table has no val split: an eighth of its training patients validate."
    ]
    assert len(drawn.split.rows("focal", "val")) == 1
    assert training_notes(data_of(labels, ["train_val"] * 5 + ["test"])) == []


@pytest.mark.parametrize("monitor", ["auroc", "ap"])
def test_a_monitored_rank_needs_a_finding_with_both_classes_in_validation(monitor):
    config = recipe.defaults()
    for stage in config.stages.values():
        stage.batch_size = 2
    one_class, both = data_of(), data_of(parts=["train", "train", "val", "val", "train", "test"])
    check_batches(settings.from_dict(config.to_dict()), one_class)
    config.stages.focal.monitor = monitor
    monitored = settings.from_dict(config.to_dict())
    check_batches(monitored, both)
    with pytest.raises(InputError, match=f"config.stages.focal.monitor is '{monitor}', but no"):
        check_batches(monitored, one_class)


def test_shared_findings_are_described_with_those_that_only_look_alike():
    data = data_of()
    named = for_findings(data, ("Mass", "Nodule/Mass"), "the model")
    text = describe_findings(data, named)
    assert "1 findings are shared" in text
    assert "unknown there: Nodule/Mass; unknown to the model: Hernia, Edema" in text


def test_a_finding_that_only_looks_alike_is_named_with_the_reason():
    data = data_of()
    named = for_findings(data, ("Hernia", "Lung Lesion"), "the model")
    assert "; Lung Lesion is not Mass: a lesion may also be" in describe_findings(data, named)


def test_findings_are_matched_by_their_synonyms():
    data = data_of()
    named = for_findings(data, ("Pulmonary Edema",), "the model")
    assert named.table.labels[:, 0].tolist() == LABELS[:, 2].tolist()


def test_a_prevalence_is_unknown_where_no_training_label_is_known():
    labels = np.array([[1, -1, 0], [0, -1, -1], [1, -1, 0], [-1, -1, 0], [1, 1, 1], [0, 0, 1]])
    data = data_of(labels.astype(np.int8))
    shares = _prevalence(data.table, data.settings, [])
    assert shares == (2 / 3, None, 0.0)
    data = dataclasses.replace(data, prevalence=shares)
    wider = for_findings(data, ("Edema", "Nodule", "Mass"), "the run")
    assert wider.prevalence == (0.0, None, 2 / 3)


def test_a_finding_of_unknown_prevalence_is_neither_rare_nor_in_a_group():
    config = recipe.defaults()
    config.model.rarity = "rare_finding"
    network = build_network(settings.from_dict(config.to_dict()), 2, (None, 0.01))
    rare = network.select(jnp.ones((2, 4)), jnp.eye(2, dtype=jnp.int8))
    assert rare.tolist() == [False, True]
    entries = {name: FindingResult(positives=1, negatives=1, unknown=0) for name in "ab"}
    groups = by_prevalence(entries, {"a": None, "b": 0.01})
    assert groups["tail"].findings == ("b",)
    assert by_prevalence(entries, {"a": None, "b": None}) is None
