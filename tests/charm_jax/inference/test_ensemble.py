"""How the members of an ensemble agree, and what they are calibrated with."""

from unittest import mock

import numpy as np
import pytest
from scipy.special import logit

from charm_jax.inference import fitted, records
from charm_jax.inference.ensemble import Ensemble, combine
from charm_jax.inference.fitted import Calibrator, Validation
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics import calibration
from data_pipelines.errors import InputError

NAMES = ("Mass", "Hernia")


def entry(temperature, threshold):
    found = calibration.nothing(NAMES)["findings"]["Mass"]
    points = dict.fromkeys(("threshold", *calibration.OPERATING_POINTS), threshold)
    return found | {"temperature": temperature} | points


@pytest.fixture
def ensemble(tmp_path):
    members = tuple(
        mock.Mock(spec=LoadedModel, pathologies=NAMES, checkpoint="focal/9", run=name, cases=name)
        for name in ("one", "other")
    )
    calibrations = (
        {"findings": {"Mass": entry(2.0, 0.2), "Hernia": entry(None, None)}},
        {"findings": {"Mass": entry(0.5, 0.6), "Hernia": entry(1.0, 0.3)}},
    )
    return Ensemble(members, ("a", "b"), (64, 48), calibrations, tmp_path)


def validated(monkeypatch, *, shared):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 2)).astype(np.int8)
    logits = (3 * labels + rng.standard_normal((200, 2))).astype(np.float32)

    def identity(member):
        return {"split_sha256": "feed", "cases_sha256": "beef" if shared else member.cases}

    kept = Validation(logits, labels, np.arange(200))
    monkeypatch.setattr(fitted, "identity", identity)
    monkeypatch.setattr(fitted, "load_validation", lambda *_: kept)
    return logits, labels


def test_a_weight_file_is_no_member(ensemble, tmp_path):
    ensemble.members[1].run = None
    ensemble.members[1].description = "weights.pth without its run"
    with pytest.raises(InputError, match=r"weights.pth .* is not calibrated"):
        combine(ensemble.members, tmp_path)


def test_logits_are_averaged_after_their_temperatures(ensemble):
    logits = [np.array([[2.0, 3.0]]), np.array([[1.0, -1.0]])]
    # A finding without a temperature enters as it is.
    np.testing.assert_allclose(ensemble.average(logits), [[(1 + 2) / 2, (3 - 1) / 2]])


def test_members_of_one_split_are_calibrated_together(ensemble, monkeypatch):
    logits, labels = validated(monkeypatch, shared=True)
    found = ensemble.calibration()
    expected = calibration.fit(ensemble.average([logits, logits]), labels, NAMES)
    assert found["findings"] == expected["findings"]
    assert found["averaged"] is False


def test_members_of_other_splits_keep_the_means_of_their_thresholds(ensemble, monkeypatch):
    validated(monkeypatch, shared=False)
    found = ensemble.calibration()
    mass = found["findings"]["Mass"]
    assert mass["temperature"] == 1.0
    assert logit(mass["threshold"]) == pytest.approx((logit(0.2) + logit(0.6)) / 2)
    assert mass["slope"] is None
    assert found["findings"]["Hernia"]["threshold"] is None
    assert found["averaged"] is True
    with pytest.raises(InputError, match=r"a, b were validated on different images"):
        ensemble.calibrator(0.9)


def judged(*reasons, known=True):
    return {
        "unfamiliar": bool(reasons) if known else None,
        "unfamiliar_in": list(reasons),
        "warnings": ["repaired"],
        "evidence": [],
    }


def test_half_of_the_members_decide_whether_an_image_is_unfamiliar():
    fit = {"findings": {"Mass": entry(1.0, 0.5), "Hernia": entry(None, None)}}
    calibrator = Calibrator(NAMES, fit, None)
    members = {
        "a": [judged("novelty"), judged("novelty"), judged(), judged(known=False)],
        "b": [judged("appearance"), judged(), judged(), judged(known=False)],
        "c": [judged(), judged(), judged(), judged(known=False)],
    }
    logits = np.full((4, 2), 2.0)
    made = records.combined(members, logits, calibrator)
    assert [record["unfamiliar_in"] for record in made] == [["novelty", "appearance"], [], [], []]
    assert [record["unfamiliar"] for record in made] == [True, False, False, None]
    assert [record["findings"] for record in made] == [[], ["Mass"], ["Mass"], ["Mass"]]
    assert made[0]["warnings"] == ["repaired"]
    assert "warnings" not in made[0]["members"]["a"]
