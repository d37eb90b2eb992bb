import numpy as np
import pytest

from charm_jax.report import published
from data_pipelines.tables.findings import NIH_FINDINGS


def test_every_number_has_model_split_and_source():
    for result in published.RESULTS:
        assert 0.5 < float(result.macro) < 1
        assert result.split in published.SPLITS
        assert result.model
        assert result.source


@pytest.mark.parametrize("paper", published.BY_FINDING, ids=str)
def test_the_findings_of_a_paper_have_its_macro_as_their_mean(paper):
    model, split = paper
    by_finding = published.BY_FINDING[paper]
    assert tuple(by_finding) == NIH_FINDINGS
    [macro] = [r.macro for r in published.RESULTS if (r.model, r.split) == (model, split)]
    mean = np.mean([float(value) for value in by_finding.values()])
    assert mean == pytest.approx(float(macro), abs=4e-4)
