"""What is said of images, from outputs that are written down."""

import json

import numpy as np
import pandas as pd
import pytest

from charm_jax.inference import records
from charm_jax.inference.fitted import Calibrator
from charm_jax.predict.text import describe
from data_pipelines.images.decode import Check, Sliver

FINDINGS = ("Mass", "Rib fracture")
CALIBRATION = {
    "findings": {
        "Mass": {"temperature": 2.0, "threshold": 0.6},
        "Rib fracture": {"temperature": None, "threshold": None},
    }
}
FAMILIAR = {
    "n_images": 100,
    "percentiles": {"novelty": np.linspace(0, 0.5, 201).tolist()},
}
CASES = pd.DataFrame({"image": ["a.png", "b.png"], "patient": ["P1", "P2"]})
LABELS = {0: np.array([1, -1], np.int8), 1: np.array([0, 1], np.int8)}
BANK = records.StoredCases(CASES, LABELS)
CLEAN = [Check()]


def outputs(similarity=0.8):
    """One image; its second case is stored twice, its last slot is empty."""
    return {
        "logits": np.array([[2.0, -1.0]], np.float32),
        "without_memory": np.array([[0.0, 0.0]], np.float32),
        "similarities": np.array([[similarity, 0.5, 0.5, 0.0]], np.float32),
        "valid": np.array([[True, True, True, False]]),
        "cases": np.array([[0, 1, 1, -1]]),
        "contributions": np.array([[[0.5, 0.0], [-0.25, 1], [-0.25, 1], [0, 0]]], np.float32),
        "thumbnail": np.random.default_rng(0).uniform(0, 255, (1, 32, 32)),
    }


def said(scale=None, **changes):
    scale = scale or Calibrator(FINDINGS, CALIBRATION, FAMILIAR)
    (record,) = records.records(outputs(**changes), scale, BANK, CLEAN)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def test_scores_are_calibrated_where_they_can_be():
    record = said()
    assert record["scores"]["Mass"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert record["scores"]["Rib fracture"] == pytest.approx(1 / (1 + np.exp(1)), abs=1e-6)
    assert record["findings"] == ["Mass"]
    assert record["without_memory"]["Mass"] == 0.5
    assert Calibrator(FINDINGS, CALIBRATION, None).uncalibrated() == ["Rib fracture"]


def test_without_a_threshold_nothing_is_decided():
    record = said(Calibrator(FINDINGS, None, FAMILIAR))
    assert record["scores"]["Mass"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert record["findings"] is None
    shown = describe({"file": "x.png", **record}, dict.fromkeys(FINDINGS))
    assert "no threshold is known, so no finding is decided; highest scores Mass" in shown
    assert "reaches" not in shown
    unfamiliar = said(Calibrator(FINDINGS, None, FAMILIAR), similarity=0.4)
    assert (unfamiliar["unfamiliar"], unfamiliar["findings"]) == (True, None)


def test_findings_without_a_threshold_are_named_beside_an_empty_verdict():
    shown = describe({"file": "x.png", **said(), "findings": []}, {"Mass": 0.6, FINDINGS[1]: None})
    assert "no finding reaches its threshold (not decided: Rib fracture)" in shown


NO_MEASURE = {"n_images": 5, "percentiles": {}}  # a small validation split, and no memory


@pytest.mark.parametrize("reference", [None, NO_MEASURE])
def test_without_a_reference_no_image_is_judged(reference):
    record = said(Calibrator(FINDINGS, CALIBRATION, reference))
    assert record["unfamiliar"] is None
    assert record["unfamiliar_in"] == []
    assert record["findings"] == ["Mass"]
    shown = describe({"file": "x.png", **record}, {"Mass": 0.6, FINDINGS[1]: None})
    assert "not judged whether it is unlike the images that it was trained on" in shown


def test_a_blank_image_is_unfamiliar_without_a_reference():
    blank = outputs() | {"thumbnail": np.full((1, 32, 32), 7.0)}
    (record,) = records.records(blank, Calibrator(FINDINGS, CALIBRATION, None), BANK, CLEAN)
    assert record["unfamiliar"] is True


def test_a_stored_case_with_unknown_labels_is_not_one_without_findings():
    unknown = records.StoredCases(CASES, LABELS | {0: np.array([-1, -1], np.int8)})
    scale = Calibrator(FINDINGS, CALIBRATION, FAMILIAR)
    (record,) = records.records(outputs(), scale, unknown, CLEAN)
    assert record["evidence"][0]["labels"] is None
    shown = describe({"file": "x.png", **record}, {"Mass": 0.6, FINDINGS[1]: None})
    assert "leaned on a.png (labels unknown)" in shown


def test_evidence_has_an_entry_a_case():
    first, second = said()["evidence"]
    assert (first["case"], first["patient"], first["labels"]) == ("a.png", "P1", ["Mass"])
    assert first["contributions"] == {"Mass": 0.5, "Rib fracture": 0.0}
    assert (second["case"], second["times"]) == ("b.png", 2)
    assert second["labels"] == ["Rib fracture"]


def test_an_unfamiliar_image_keeps_its_scores_and_has_no_finding():
    record = said(similarity=0.4)  # a novelty of 0.6 is beyond all of validation
    assert record["unfamiliar"] is True
    assert record["unfamiliar_in"] == ["novelty"]
    assert record["novelty_percentile"] == 100
    assert record["findings"] == []
    assert record["scores"] == said()["scores"]
    assert said()["unfamiliar"] is False


@pytest.mark.parametrize("white", [4095, None])
def test_an_image_that_uses_little_of_its_range_is_flagged(white):
    check = Check(remarks=("WindowWidth 0 is ignored",), sliver=Sliver(1 / 16, white))
    for reference in (FAMILIAR, None):
        scale = Calibrator(FINDINGS, CALIBRATION, reference)
        (record,) = records.records(outputs(), scale, BANK, [check])
        assert (record["unfamiliar"], record["unfamiliar_in"]) == (True, ["range"])
        assert record["findings"] == []
        assert "its values use 6.2% of the range" in record["warnings"][0]
        assert (
            f"value_range={'image' if white is None else '4095 or image'}" in record["warnings"][0]
        )
        assert record["warnings"][1:] == ["WindowWidth 0 is ignored"]
        shown = describe({"file": "x.png", **record}, {"Mass": 0.6, FINDINGS[1]: None})
        assert "(range): no finding is reported" in shown
        assert "warning: its values use" in shown


def test_a_network_without_memory_has_no_evidence():
    plain = {"logits": outputs()["logits"], "thumbnail": outputs()["thumbnail"]}
    scale = Calibrator(FINDINGS, CALIBRATION, FAMILIAR)
    (record,) = records.records(plain, scale, None, CLEAN)
    assert not {"evidence", "without_memory", "novelty", "disagreement"} & set(record)
    assert record["findings"] == ["Mass"]


def test_text_names_what_the_record_does():
    thresholds = {"Mass": 0.6, "Rib fracture": None}
    shown = describe({"file": "x.png", **said()}, thresholds)
    assert "Mass 0.731 (from 0.600)" in shown
    assert "leaned on a.png (Mass), cosine 0.800: Mass +0.50" in shown
    assert "without memory: " in shown
    assert "novelty higher than 40.0 % of validation" in shown
    unfamiliar = describe({"file": "x.png", **said(similarity=0.4)}, thresholds)
    assert "unlike the images that it was trained on (novelty)" in unfamiliar
    assert describe({"file": "x.png", "error": "empty"}, thresholds) == "x.png\n  not read: empty"


def test_of_a_vote_the_ten_most_similar_cases_are_listed():
    n = 15
    cases = pd.DataFrame({"image": [f"{i}.png" for i in range(n)], "patient": "P"})
    bank = records.StoredCases(cases, {i: np.array([i % 2, 0], np.int8) for i in range(n)})
    shares = np.zeros((1, n, 2), np.float32)
    shares[0, 1::2, 0] = 0.1
    made = outputs() | {
        "similarities": np.linspace(0.9, 0.1, n)[None],
        "valid": np.ones((1, n), bool),
        "cases": np.arange(n)[None],
        "contributions": shares,
        "vote": np.array([[0.7, np.nan]], np.float32),
    }
    (record,) = records.records(made, Calibrator(FINDINGS, None, None), bank, CLEAN)
    assert [entry["case"] for entry in record["evidence"]] == [f"{i}.png" for i in range(10)]
    assert record["vote"] == {"Mass": 0.7, "Rib fracture": None}
    text = describe(record | {"file": "x.png"}, dict.fromkeys(FINDINGS))
    assert "vote of similar cases: Mass 0.700\n" in text
    assert "leaned on 1.png (Mass), cosine 0.843: Mass +0.10\n" in text
    assert "leaned on 0.png (no finding), cosine 0.900\n" in text
    assert "leaned on 5.png" not in text
