import dataclasses

import pytest
import report_data

from charm_jax.metrics.result import BankSource, CalibrationSource
from charm_jax.report import provenance

ON_THESE = CalibrationSource(checkpoint="focal/1", split_sha256="00", on_these_images=True)
BANK = BankSource(**report_data.BANK)


def said(**changes):
    return provenance.notices(report_data.result(report_data.evaluated(n=9), **changes))


def test_nothing_weakens_a_clean_evaluation():
    assert said() == []


def test_several_things_are_each_said():
    sentences = said(simulated=True, images_missing=3, refused=1, leak_images=2, leak_of_all=2)
    assert [sentence.split()[0] for sentence in sentences] == ["SIMULATED", "LEAK:", "3", "1"]


def test_a_network_of_simulated_images_on_acquired_ones():
    [sentence] = said(trained_on_simulated=True)
    assert sentence == "The network was trained on SIMULATED images."


@pytest.mark.parametrize(
    ("fitted", "begins"),
    [
        (None, "Scores are not calibrated"),
        (ON_THESE, "Thresholds and temperatures were fitted on these images"),
    ],
)
def test_scores_without_a_calibration_of_other_images(fitted, begins):
    [sentence] = said(calibration=fitted)
    assert sentence.startswith(begins)


def test_weights_of_unknown_origin():
    [sentence] = said(trained_on_simulated=None, leak_images=None, leak_of_all=None)
    assert sentence == "It is not known what these weights were trained on."


def test_unknown_patients_weaken_the_intervals_whatever_is_known_of_training():
    for changes in ({}, {"leak_of_all": 3}, {"trained_on_simulated": None}):
        sentences = said(patients_known=False, **changes)
        assert any("intervals assume independent images" in text for text in sentences)


def test_a_bank_that_holds_the_split_weakens_its_numbers():
    [sentence] = said(bank=dataclasses.replace(BANK, split="test", images_here=4))
    assert sentence.startswith("BANK: 4 of the 9 images here")
    assert "split 'test'" in sentence
    assert said(bank=None) == []
    assert said(bank=BankSource()) == []  # a weight file: nothing is known


def test_unseen_patients_are_said_and_which_stage_saw_no_normal_image():
    def leak(**changes):
        return provenance.leak(report_data.result(report_data.evaluated(n=9), **changes))

    assert leak() == ["Training and validation saw no image of these patients."]
    _, stage = leak(abnormal_only=("bce",))
    assert stage.startswith("Stage bce trained on abnormal images alone")
    assert "Stage bce and focal" in leak(abnormal_only=("bce", "focal"))[1]
    assert len(leak(trained_on_simulated=None)) == 1
