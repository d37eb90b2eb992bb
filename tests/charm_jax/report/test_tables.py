import re

import pytest
import report_data

from charm_jax.report import tables


def metrics(**changes):
    return report_data.metrics(report_data.evaluated(n=30), **changes)


def cells(markup):
    """The text of each row's cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)]
        for row in rows
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "those on the official test list alone"),
        ({"rule": "notebook", "split": "test_published"}, "those on the split that leaks alone"),
        ({"rule": "patient"}, "of parts that no other of these numbers was taken on"),
        ({"rule": "notebook"}, "those on the split that leaks alone"),
        ({"rule": "notebook", "split": "val"}, "of parts that no other of these numbers"),
        ({"rule": "notebook", "split": "train"}, "of parts that no other of these numbers"),
        ({"split": "val"}, "of parts that no other of these numbers was taken on"),
        ({"images_missing": 1}, "images are missing"),
        ({"refused": 1}, "images are missing"),
        ({"simulated": True, "images_missing": 1}, "SIMULATED"),
        ({"source": "csv_folder"}, "not those of ChestX-ray14"),
    ],
)
def test_only_numbers_of_the_same_split_are_called_comparable(changes, said):
    text = tables.comparable(metrics(**changes))
    assert text.startswith("Numbers on different splits are not comparable")
    assert said in text


def test_our_number_stands_first_with_its_split():
    first, ours, other = cells(tables.published(metrics(), "a net"))[:3]
    assert first == ["Model", "Macro AUROC", "Split", "Selected on", "Source"]
    assert ours == ["This report: a net", "0.8123", "rule official, part test, 30 images", "", ""]
    assert other[1:3] == ["0.835", "official test list"]


def test_published_numbers_keep_their_digits():
    rows = cells(tables.published(metrics(), "a net"))
    [effusion] = [row for row in rows if row[0] == "Effusion"]
    assert effusion[2:] == ["0.828", "0.8638", "0.9170"]


def test_other_findings_have_no_published_numbers():
    evaluated = report_data.evaluated(n=30, findings=("Rib fracture",))
    assert tables.published(report_data.metrics(evaluated), "a net") is None


def test_unknown_labels_have_a_column_where_there_are_any():
    evaluated = report_data.evaluated(n=30, findings=("Mass", "Hernia"))
    header, mass, hernia, mean = cells(tables.ranking(report_data.metrics(evaluated)))
    assert "Unknown" not in header
    evaluated.labels[:7, 1] = -1
    header, mass, hernia, mean = cells(tables.ranking(report_data.metrics(evaluated)))
    assert header[3] == "Unknown"
    assert (mass[3], hernia[3], mean[3]) == ("0", "7", "")
    assert len(header) == len(mass) == len(mean)


def test_the_mean_says_over_how_many_findings_it_is():
    evaluated = report_data.evaluated(n=30, findings=("Mass", "Hernia"))
    evaluated.labels[:, 1] = 0
    *_, hernia, mean = cells(tables.ranking(report_data.metrics(evaluated)))
    assert hernia[3].strip() == "\N{EN DASH}"
    assert mean[0] == "Mean of 1"


def test_the_scale_reaches_down_to_the_lowest_interval():
    low = metrics()
    low["findings"]["Hernia"]["auroc_interval"] = [0.13, 0.9]
    assert cells(tables.ranking(low))[0][4] == "0.11"
    assert cells(tables.ranking(metrics()))[0][4] == "0.51"


def test_a_subgroup_counts_its_findings():
    rows = cells(tables.subgroups(metrics()))
    assert rows[1][0] == "sex F"
    assert rows[1][5] == "14"
    assert (rows[2][0], rows[2][3].strip(), rows[2][5]) == ("sex M", "\N{EN DASH}", "0")
    assert tables.subgroups(metrics(subgroups={"view": {}})) is None


def test_a_nested_config_becomes_keys():
    config = {"a": 1, "b": {"c": True, "d": {"e": "x"}}}
    assert tables.flat(config) == [("a", "1"), ("b.c", "True"), ("b.d.e", "x")]


def test_subgroups_of_unknown_patients_count_none():
    rows = cells(tables.subgroups(metrics(patients_known=False)))
    assert rows[1][2] == "unknown"
