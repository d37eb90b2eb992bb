import numpy as np
import pytest
import report_data

from charm_jax.report import published
from data_pipelines.tables.findings import NIH_FINDINGS

RESULTS = published.read()
SPLITS = {
    "official test list",
    "random patients",
    "random patients, leaks between stages",
}


def test_every_number_has_model_split_and_source():
    assert len(RESULTS) == 18
    for result in RESULTS:
        assert 0.5 < float(result.macro) < 1
        assert result.split in SPLITS
        assert result.model
        assert result.source


@pytest.mark.parametrize("model", ["DNetLoc", "CheXNet", "CHARM-Xray"])
def test_the_findings_of_a_paper_have_its_macro_as_their_mean(model):
    [result] = [result for result in RESULTS if result.model == model]
    assert tuple(result.findings) == NIH_FINDINGS
    mean = np.mean([float(value) for value in result.findings.values()])
    assert mean == pytest.approx(float(result.macro), abs=4e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "those on the official test list alone"),
        ({"rule": "notebook", "split": "test_published"}, "those on the split that leaks alone"),
        ({"rule": "patient"}, "None of these numbers was taken on the split"),
        ({"rule": "notebook"}, "those on the split that leaks alone"),
        ({"rule": "notebook", "split": "val"}, "None of these numbers"),
        ({"rule": "notebook", "split": "train"}, "None of these numbers"),
        ({"split": "val"}, "None of these numbers was taken on the split"),
        ({"images_missing": 1}, "Images are missing"),
        ({"refused": 1}, "Images are missing"),
        ({"simulated": True, "images_missing": 1}, "SIMULATED"),
        ({"source": "csv_folder"}, "not those of ChestX-ray14"),
    ],
)
def test_only_numbers_of_the_same_split_are_called_comparable(changes, said):
    text = published.comparable(report_data.result(report_data.evaluated(n=30), **changes))
    assert text.startswith("Numbers on different splits are of different patients")
    assert said in text
