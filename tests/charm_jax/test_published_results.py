import numpy as np
import pytest

from charm_jax import published_results
from data_pipelines.findings import NIH_FINDINGS


def test_every_number_has_model_split_and_source():
    for result in published_results.RESULTS:
        assert 0.5 < float(result.macro) < 1
        assert result.split in published_results.SPLITS
        assert result.model
        assert result.source


@pytest.mark.parametrize("paper", published_results.BY_FINDING, ids=str)
def test_the_findings_of_a_paper_have_its_macro_as_their_mean(paper):
    model, split = paper
    by_finding = published_results.BY_FINDING[paper]
    assert tuple(by_finding) == NIH_FINDINGS
    [macro] = [r.macro for r in published_results.RESULTS if (r.model, r.split) == (model, split)]
    mean = np.mean([float(value) for value in by_finding.values()])
    assert mean == pytest.approx(float(macro), abs=4e-4)
