"""Scores are put together from their parts; subgroups are evaluated among themselves."""

import numpy as np
import pytest
from scores import NAMES, drawn

from charm_jax.metrics import bootstrap, calibration, classification, delong, summary
from charm_jax.metrics.intervals import EvalSet
from charm_jax.metrics.result import Mean

PREVALENCE = {"Mass": 0.1, "Hernia": 0.001, "Edema": 0.03}


def scored(seed=0, images=200, patients=60):
    scores, labels, who = drawn(seed, images, patients)
    return EvalSet(scores, labels, who, NAMES)


def score(evaluated, **options):
    fitted = options.pop("fitted", None) or calibration.fit(*drawn(9, 200)[:2], NAMES)
    options = {"prevalence": PREVALENCE, "attributes": {}} | options
    return summary.score(evaluated, fitted=fitted, **options)


def test_values_lie_within_their_intervals():
    result = score(scored(), attributes={"sex": np.where(np.arange(200) % 2, "F", "M")})
    for entry in result.findings.values():
        low, high = entry.auroc_interval
        assert low < entry.auroc < high
        low, high = entry.average_precision_interval
        assert low < entry.average_precision < high
    assert result.macro_auroc == result.macro["auroc"].value
    assert result.macro_auroc_interval == result.macro["auroc"].interval
    assert set(result.subgroups["sex"]) == {"F", "M"}


def test_thresholds_and_temperatures_are_those_of_validation_alone():
    evaluated, fitted = scored(), calibration.fit(*drawn(9, 200)[:2], NAMES)
    result = score(evaluated, fitted=fitted)
    p = 1 / (1 + np.exp(-evaluated.logits[:, 0] / fitted["findings"]["Mass"]["temperature"]))
    threshold, truth = fitted["findings"]["Mass"]["threshold"], evaluated.labels[:, 0]
    entry = result.findings["Mass"]
    assert entry.threshold == threshold
    assert entry.temperature == fitted["findings"]["Mass"]["temperature"]
    assert entry.sensitivity == pytest.approx(np.mean(p[truth == 1] >= threshold))
    assert entry.specificity == pytest.approx(np.mean(p[truth == 0] < threshold))
    known = truth >= 0
    assert entry.brier == pytest.approx(np.mean((p[known] - truth[known]) ** 2))


def test_without_validation_only_the_order_is_judged():
    result = score(scored(), fitted=calibration.nothing(NAMES))
    assert result.macro["auroc"].findings == 3
    for metric in ("f1", "brier", "ece_equal_width"):
        assert result.macro[metric] == Mean(value=None, findings=0, undefined=NAMES)


def test_groups_have_intervals_of_their_own_findings():
    evaluated = scored()
    groups = score(evaluated).groups
    drawn_values = bootstrap.resampled(evaluated.logits, evaluated.labels, evaluated.patients)
    assert groups["tail"].findings == ("Hernia",)
    expected = bootstrap.interval(drawn_values.auroc[:, 1])
    assert groups["tail"].auroc_interval == pytest.approx(expected)
    empty = score(evaluated, prevalence=dict.fromkeys(NAMES, 0.5)).groups["medium"]
    assert empty.findings == ()
    assert empty.auroc is None
    assert empty.auroc_interval == (None, None)


def test_delong_is_for_auroc_alone():
    evaluated = scored()
    result, default = score(evaluated, method="delong"), score(evaluated)
    shares = delong.influence(evaluated.logits, evaluated.labels)
    for column, (name, entry) in enumerate(result.findings.items()):
        expected = delong.interval(entry.auroc, shares[:, column])
        assert entry.auroc_interval == expected
        kept = default.findings[name].average_precision_interval
        assert entry.average_precision_interval == kept
    expected = delong.interval(result.macro_auroc, delong.macro(shares))
    assert result.macro_auroc_interval == expected
    assert result.interval_method == {"auroc": "delong", "average_precision": "bootstrap"}
    assert default.interval_method["auroc"] == "bootstrap"


def test_a_single_patient_has_values_and_no_intervals():
    evaluated = scored(patients=1)
    result = score(evaluated)
    assert result.macro_auroc is not None
    assert result.macro_auroc_interval == (None, None)
    assert result.findings["Mass"].average_precision_interval == (None, None)


def test_an_undefined_finding_is_null_named_and_left_out():
    evaluated = scored()
    evaluated.labels[:, 1] = np.minimum(evaluated.labels[:, 1], 0)
    result = score(evaluated)
    entry = result.findings["Hernia"]
    assert entry.auroc is entry.average_precision is entry.sensitivity is None
    assert entry.auroc_interval == (None, None)
    assert result.undefined == result.groups["tail"].undefined == ("Hernia",)
    assert result.macro["auroc"].findings == 2
    expected = np.mean([result.findings[name].auroc for name in ("Mass", "Edema")])
    assert result.macro_auroc == pytest.approx(expected)


def test_bands_of_age():
    ages = np.array([-1, 0, 17, 18, 39, 40, 59, 60, 79, 80, 120, 121, 414], np.int16)
    expected = ["unknown", "0-17", "0-17", "18-39", "18-39", "40-59", "40-59", "60-79", "60-79"]
    assert summary.age_bands(ages).tolist() == [*expected, "80+", "80+", "unknown", "unknown"]


def test_what_is_known_of_no_image_is_left_out():
    found = summary.attributes(
        np.array(["PA", "", "AP"]), np.array(["", "", ""]), np.array([-1, 50, 60], np.int16)
    )
    assert {name: values.tolist() for name, values in found.items()} == {
        "view": ["PA", "unknown", "AP"],
        "age": ["unknown", "40-59", "60-79"],
    }


def test_a_subgroup_is_what_its_images_alone_would_be():
    scores, labels, patients = drawn()
    views = np.where(np.arange(len(scores)) % 3 == 0, "AP", "PA")
    labels[views == "AP", 1] = 0
    evaluated = EvalSet(scores, labels, patients, NAMES)
    result = summary.subgroups(evaluated, {"view": views}, resamples=20, seed=3)
    assert list(result["view"]) == ["AP", "PA"]
    for value, entry in result["view"].items():
        rows = views == value
        alone = classification.summarise(scores[rows], labels[rows], NAMES)
        assert entry.macro_auroc == alone["macro_auroc"]
        assert entry.findings == {n: alone["findings"][n]["auroc"] for n in NAMES}
        assert entry.n_images == rows.sum()
        assert entry.n_patients == len(set(patients[rows]))
        values = bootstrap.resampled(
            scores[rows], labels[rows], patients[rows], resamples=20, seed=3
        )
        expected = bootstrap.interval(bootstrap.macro(values.auroc))
        assert entry.macro_auroc_interval == pytest.approx(expected)
    assert result["view"]["AP"].undefined == ("Hernia",)
    assert result["view"]["PA"].undefined == ()


def test_a_subgroup_of_one_image_is_undefined():
    scores, labels, patients = drawn()
    sexes = np.where(np.arange(len(scores)) == 0, "F", "M")
    evaluated = EvalSet(scores, labels, patients, NAMES)
    entry = summary.subgroups(evaluated, {"sex": sexes}, resamples=2)
    alone = entry["sex"]["F"]
    assert alone.macro_auroc is None
    assert alone.macro_auroc_interval == (None, None)
    assert alone.undefined == NAMES


def test_the_prevalence_is_told_by_the_images_that_are_labelled():
    evaluated = scored()
    evaluated.labels[:100, 0] = -1
    evaluated.labels[:, 1] = -1
    shifts = [entry.prior_shift for entry in score(evaluated).findings.values()]
    half = EvalSet(
        *(x[100:] for x in (evaluated.logits, evaluated.labels, evaluated.patients)), NAMES
    )
    assert shifts[0] == score(half).findings["Mass"].prior_shift
    assert 0 <= shifts[1].estimated <= 1
    assert shifts[1].brier is None
