import pytest

from data_pipelines.tables.findings import (
    NEAR_MISSES,
    NIH_FINDINGS,
    SYNONYMS,
    canonical,
    columns_of,
    near_misses,
    plain,
)

CHEXPERT = ("Enlarged Cardiomediastinum", "Lung Opacity", "Pleural Effusion", "Atelectasis")


def test_findings_are_matched_by_their_synonyms():
    assert columns_of(("Effusion", "Atelectasis", "Mass"), CHEXPERT).tolist() == [2, 3, -1]
    assert columns_of(("pleural_effusion",), NIH_FINDINGS).tolist() == [
        NIH_FINDINGS.index("Effusion")
    ]
    assert columns_of(("pulmonary fibrosis",), ("PULMONARY-FIBROSIS",)).tolist() == [0]


def test_a_name_itself_counts_before_its_synonym():
    for known in (("Pleural Effusion", "Effusion"), ("Effusion", "Pleural Effusion")):
        assert columns_of(known, known).tolist() == [0, 1]


def test_a_synonym_in_any_spelling_has_one_name():
    assert canonical("PLEURAL_effusion") == "Effusion"
    assert canonical("pleural thickening") == "Pleural_Thickening"
    assert canonical("Scoliosis") == "Scoliosis"


def test_no_synonym_stands_for_another_synonym():
    assert not {plain(name) for name in SYNONYMS.values()} & {plain(name) for name in SYNONYMS}


@pytest.mark.parametrize(("first", "second", "reason"), NEAR_MISSES)
def test_findings_that_only_look_alike_are_not_matched(first, second, reason):
    assert columns_of((first,), (second,)).tolist() == [-1]
    assert near_misses((first,), (second,)) == [f"{first} is not {second}: {reason}"]
    assert near_misses((second, "Hernia"), (first,)) == [f"{first} is not {second}: {reason}"]
    assert near_misses((first, second), (first, second)) == []
