"""The printed tables: what they say, that columns line up and lines fit."""

import dataclasses
import re

import numpy as np
import pytest
from scores import NAMES, drawn

from charm_jax.eval import text as evaluation_text
from charm_jax.metrics import calibration, classification, intervals, summary
from charm_jax.metrics.intervals import EvalSet
from charm_jax.metrics.result import BankSource, CalibrationSource, Comparison, EvaluationResult

FITTED = CalibrationSource(checkpoint="focal/128", split_sha256="feed", on_these_images=False)
COMMON = {
    "source": "phantom",
    "split": "test",
    "rule": "official",
    "simulated": True,
    "trained_on_simulated": True,
    "began_from": None,
    "n_images": 200,
    "n_patients": 60,
    "checkpoint": "focal/128",
    "split_sha256": "0123456789abcdef",
    "cases_sha256": "fedcba9876543210",
    "data": {},
    "reading": {},
    "images_present": 200,
    "images_missing": 0,
    "refused": 0,
    "patients_known": True,
    "leak_images": 0,
    "leak_of": 150,
    "leak_of_all": 0,
    "leak_seen": 0,
    "bank": None,
    "calibration": FITTED,
}


def metrics(labels=None, fitted=None, method="bootstrap", **changes):
    scores, drawn_labels, patients = drawn(0, 200, 60)
    labels = drawn_labels if labels is None else labels
    evaluated = EvalSet(scores, labels, patients, NAMES)
    values = summary.score(
        evaluated,
        fitted=fitted or calibration.fit(*drawn(9, 200)[:2], NAMES),
        prevalence={"Mass": 0.1, "Hernia": 0.001, "Edema": 0.03},
        attributes={"sex": np.where(np.arange(200) % 2, "F", "M"), "view": np.full(200, "PA")},
        method=method,
    )
    worse = (scores + np.random.default_rng(1).normal(0, 2, scores.shape)).astype(np.float32)
    macro, findings = intervals.compare(evaluated, worse, method)
    compared = Comparison(
        run="other",
        checkpoint="focal/64",
        interval_method=values.interval_method,
        macro=macro,
        findings=findings,
    )
    return EvaluationResult(**COMMON | vars(values) | {"comparison": compared} | changes)


@pytest.fixture(scope="module")
def said():
    return metrics(), evaluation_text.table(metrics())


def block(text, beginning):
    """Lines of a block, from the one that begins so."""
    return next(b for b in text.split("\n\n") if b.startswith(beginning)).splitlines()


@pytest.mark.parametrize("method", intervals.METHODS)
def test_lines_fit_the_screen(method):
    for line in evaluation_text.table(metrics(method=method)).splitlines()[1:]:
        assert len(line) <= 100, line


def test_a_line_for_each_finding_with_its_numbers(said):
    values, text = said
    header, *lines = block(text, "finding")
    assert header.split() == [
        *("finding", "AUROC", "interval", "AP", "prevalence", "positives", "unknown")
    ]
    assert {len(line) for line in lines} == {len(header)}
    entry = values.findings["Hernia"]
    low, high = entry.auroc_interval
    assert lines[1].split() == [
        "Hernia",
        f"{entry.auroc:.4f}",
        f"{low:.4f}-{high:.4f}",
        f"{entry.average_precision:.4f}",
        f"{entry.prevalence:.4f}",
        str(entry.positives),
        str(entry.unknown),
    ]


@pytest.mark.parametrize("needs", ["order", "threshold", "probabilities"])
def test_a_metric_is_shown_by_its_entry_in_the_registry(monkeypatch, needs):
    toy = classification.Metric(lambda known: 0.125, "TOY", needs)
    monkeypatch.setitem(classification.METRICS, "toy", toy)
    assert re.search("macro .*TOY 0.1250", evaluation_text.table(metrics()))


def test_means_groups_and_subgroups(said):
    values, text = said
    low, high = values.macro_auroc_interval
    assert (
        f"macro AUROC {values.macro_auroc:.4f} over 3 findings "
        f"(95 % of patient bootstraps: {low:.4f} to {high:.4f})" in text
    )
    assert f", F1 {values.macro['f1'].value:.4f}\n" in text
    assert "fitted on the run's validation split, sha256 feed" in text
    [tail] = [line for line in text.splitlines() if line.startswith("tail, below 2 %")]
    assert tail.split()[4] == f"{values.groups['tail'].auroc:.4f}"
    assert "sex F" in text
    assert "view PA" not in text  # every image is
    assert "SIMULATED" in text
    assert text.endswith(evaluation_text.DISCLAIMER)


def test_the_comparison_has_a_line_a_finding_and_the_macro(said):
    values, text = said
    _, _, header, *lines = block(text, "Differences from other, checkpoint focal/64")
    assert [line.split()[0] for line in lines] == [*NAMES, "macro"]
    assert {len(line) for line in lines} == {len(header)}
    entry = values.comparison.macro["auroc"]
    assert f"{entry.difference:+.4f}" in lines[-1]
    assert f"{entry.interval[0]:+.4f} to {entry.interval[1]:+.4f}" in lines[-1]


def test_no_comparison_is_no_block():
    assert "Differences from" not in evaluation_text.table(metrics(comparison=None))


def test_what_is_undefined_is_a_dash_and_named():
    _, labels, _ = drawn(0, 200, 60)
    labels[:, 1] = 0
    text = evaluation_text.table(metrics(labels))
    assert block(text, "finding")[2].split() == ["Hernia", "-", "-", "-", "0.0000", "0", "0"]
    assert "over 2 findings" in text
    assert "without both classes, left out: Hernia" in text
    [tail] = [line for line in text.splitlines() if line.startswith("tail, below 2 %")]
    assert tail.split()[4:] == ["-", "-", "-", "1", "1"]
    labels[:, 1] = -1
    text = evaluation_text.table(metrics(labels))
    assert [line.split()[0] for line in block(text, "finding")] == ["finding", "Mass", "Edema"]
    assert "without a label here, left out: Hernia" in text
    assert "without both classes" not in text
    labels[:] = -1
    text = evaluation_text.table(metrics(labels))
    assert "macro AUROC undefined over 0 findings\n" in text


def test_without_calibration_nothing_is_said_of_probabilities():
    text = evaluation_text.table(metrics(fitted=calibration.nothing(NAMES), calibration=None))
    assert "no thresholds and temperatures" in text
    assert "probabilit" not in text


def test_findings_without_temperature_are_named():
    fitted = calibration.fit(*drawn(9, 200)[:2], NAMES)
    fitted["findings"]["Mass"] |= {"temperature": None, "threshold": None}
    text = evaluation_text.table(metrics(fitted=fitted))
    assert "validation gives no temperature for Mass" in text
    assert "validation gives no threshold for Mass" in text
    assert "(over 2)" in text


def test_thresholds_fitted_on_these_images():
    on_these = dataclasses.replace(FITTED, on_these_images=True)
    assert "THESE IMAGES: threshold metrics are optimistic" in evaluation_text.table(
        metrics(calibration=on_these)
    )


def test_a_leak_is_counted_in_abnormal_and_all_images():
    text = evaluation_text.table(metrics(leak_images=3, leak_of_all=5, leak_seen=2))
    assert "LEAK: 3 of the 150 abnormal images" in text
    assert "Of all 200 images 5 are of such patients, and 2 were themselves seen." in text
    assert "LEAK" in evaluation_text.table(metrics(leak_of_all=5))  # of normal images alone
    unknown = dict.fromkeys(("trained_on_simulated", "leak_images", "leak_of_all", "leak_seen"))
    text = evaluation_text.table(metrics(**unknown))
    assert "It is not known what these weights were trained on." in text


@pytest.mark.parametrize("method", intervals.METHODS)
def test_without_patients_none_is_counted_and_intervals_are_of_images(method):
    text = evaluation_text.table(metrics(method=method, patients_known=False))
    first, *lines = text.splitlines()
    assert "200 SIMULATED images, patients unknown, checkpoint" in first
    assert "Patients unknown: intervals assume independent images" in text
    assert "image bootstraps" in text
    assert "patient bootstraps" not in text
    [women] = [line for line in lines if line.startswith("sex F")]
    assert women.split()[-5] == "unknown"  # before undefined findings and three gaps
    assert all(len(line) <= 100 for line in lines)


def test_thresholds_of_weights_without_a_run_are_of_no_run():
    unknown = dict.fromkeys(("trained_on_simulated", "leak_images", "leak_of_all", "leak_seen"))
    text = evaluation_text.table(metrics(**unknown))
    assert "fitted on the data's validation split" in text
    assert "the run's" not in text


def test_a_bank_of_the_split_itself_is_said():
    held = BankSource(source="phantom", split="test", images_here=7)
    text = evaluation_text.table(metrics(bank=held))
    assert "BANK: 7 of the 200 images here" in text


def test_groups_need_a_known_prevalence():
    text = evaluation_text.table(metrics(groups=None))
    assert "prevalence in training unknown: no means over frequent and rare findings" in text
    assert "tail" not in text
    groups = metrics().groups
    groups["tail"] = dataclasses.replace(groups["tail"], findings=())
    text = evaluation_text.table(metrics(groups=groups))
    assert "in no group, since no training image is known: Hernia" in text


def test_the_bank_of_the_checkpoint_goes_without_saying():
    assert "with memory" not in evaluation_text.table(metrics(memory="trained"))
    assert "with memory ward" in evaluation_text.table(metrics(memory="ward"))


def test_a_number_that_rounds_to_nothing_is_below_the_last_digit():
    values = metrics()
    tiny = dataclasses.replace(values.findings["Hernia"], average_precision=1e-6)
    values.findings["Hernia"] = tiny
    assert "<0.0001" in block(evaluation_text.table(values), "finding")[2]
