"""An evaluation's result survives the JSON file, and a damaged file is refused by key."""

import json

import pytest
import report_data

from charm_jax.metrics.result import BankSource, Comparison, Difference, EvaluationResult


def written(**changes):
    result = report_data.result(report_data.evaluated(n=30), **changes)
    return result, json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_it_comes_back_from_its_file_as_it_was():
    pair = {"auroc": Difference(value=0.8, other=0.7, difference=0.1, interval=(0.0, 0.2))}
    compared = Comparison(
        run="r", checkpoint="c", interval_method={}, macro=pair, findings={"Mass": pair}
    )
    for changes in (
        {},
        {"comparison": compared, "memory": "site", "bank": BankSource()},
        {"groups": None, "trained_on_simulated": None, "leak_images": None, "bank": None},
    ):
        result, content = written(**changes)
        assert EvaluationResult.from_json(content) == result


def test_users_find_the_numbers_under_their_keys():
    _, content = written()
    assert content["findings"]["Mass"]["auroc_interval"] == [0.72, 0.88]
    assert content["macro"]["average_precision"]["value"] == 0.45
    assert content["findings"]["Mass"]["threshold"] == 0.21
    assert content["groups"]["head"]["findings"] == ["Atelectasis"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("split_sha256",), None, "it lacks split_sha256"),
        (("findings", "Mass", "positives"), None, "it lacks findings.Mass.positives"),
        (("n_images",), "many", "its n_images is 'many'"),
        (("macro", "auroc", "interval"), 3, "its macro.auroc.interval is 3"),
        (("simulated",), 0, "its simulated is 0"),
        (("findings", "Mass", "auroc"), True, "its findings.Mass.auroc is True"),
        (("findings",), [], r"its findings is \[\]"),
        (("findings", "Mass", "auroc"), float("inf"), "auroc is inf, not a finite number"),
        (("macro_auroc",), 10**400, r"its macro_auroc is 1000.*, not a finite number"),
    ],
)
def test_a_damaged_file_is_refused_with_the_key(path, value, said):
    _, content = written()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValueError, match=said):
        EvaluationResult.from_json(content)
