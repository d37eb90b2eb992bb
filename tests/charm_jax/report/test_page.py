import dataclasses
import functools
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import report_data
from html_check import Page

from charm_jax.metrics import classification
from charm_jax.metrics.result import (
    BankSource,
    CalibrationSource,
    Comparison,
    Difference,
    EvaluationResult,
)
from charm_jax.report import page as report
from charm_jax.report.contents import Contents, number

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FEW = ("Mass", "Hernia")
FIGURES = {}  # by what they show
DASHED = ["\N{EN DASH}", "0.700", "\N{EN DASH}"]
browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


@pytest.fixture(scope="module", autouse=True)
def _equal_curves_are_drawn_once():
    """Most pages here differ in a sentence or a number, and drawing takes most of their time."""
    make, plots = report.finding_figure, functools.cache(report.figure_svg)

    def figure_of(logits, labels, **keys):
        key = logits.tobytes(), labels.tobytes(), *keys.values()
        if key not in FIGURES:
            FIGURES[key] = make(logits, labels, **keys)
        return FIGURES[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "finding_figure", figure_of)
        patch.setattr(report, "figure_svg", plots)
        yield


def write(path, evaluated, result=None, **changes):
    parts = {
        "evaluated": evaluated,
        "read": report_data.read,
        "config": report_data.CONFIG,
        "environments": {"Trained": report_data.ENVIRONMENT, "Evaluated": report_data.ENVIRONMENT},
        "summary": report_data.SUMMARY,
        "log": list(report_data.log()),
        "bank": report_data.bank(evaluated.findings),
    }
    result = result or report_data.result(evaluated)
    report.write(path, result, Contents(**parts | changes))
    return path.read_text(encoding="utf-8")


def cells(page, label):
    """The text of the cells of each row of a table."""
    table = page.split(f'aria-label="{label}"')[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [
        [html.unescape(re.sub(r"\s+", " ", re.sub("<.*?>", "", cell))).strip() for cell in cells_]
        for cells_ in (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows)
    ]


RANKED = "AUROC and average precision of each finding"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a report with every section, and what is written in it."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    evaluated = report_data.evaluated()
    return path, write(path, evaluated, localisation=report_data.localisation(evaluated))


def headings(page):
    return re.findall(r"<h2>([^<]*)", page)


def test_the_page_stands_alone_and_is_well_formed(whole):
    page = Page(whole[1])
    assert page.faults == []
    assert page.tags["img"] > 14
    assert page.tags["svg"] > 14


def test_localisation_has_a_row_for_each_boxed_finding(whole):
    found = report_data.localisation(report_data.evaluated())
    rows = cells(whole[1], "Pointing game")
    assert [row[0] for row in rows[1:]] == [*found.result.findings, "Mean"]
    for row, entry in zip(rows[1:], found.result.findings.values(), strict=False):
        shares = [method.pointing for method in entry.methods.values()]
        assert row[1:3] == [str(entry.images), str(entry.boxes)]
        assert [cell.split()[0] for cell in row[3:]] == [number(s.value) for s in shares]
    iou = cells(whole[1], "Mean share above each IoU")
    mean = found.result.mean["mean_box"].iou
    assert iou[-1] == ["Mean box", *(number(share.value) for share in mean.values())]
    assert "0 everywhere, a miss, for 1 of 20 pairs" in Page(whole[1]).text
    assert whole[1].count("with the boxes of") == 3


def test_the_checker_finds_faults():
    page = (
        '<p><b></p><img src="http://a/b"><i id="x"></i><i id="x"></i><script></script><a href="#y">'
    )
    faults = " ".join(Page(page).faults)
    for fault in (
        "</p>",
        "outside: http",
        "without alt",
        "twice: id x",
        "<script>",
        "no target: y",
    ):
        assert fault in faults


def test_it_has_every_section_and_what_identifies_the_evaluation(whole):
    assert headings(whole[1]) == [
        "Findings",
        "Decisions",
        "Subgroups",
        "Published numbers",
        "Each finding",
        "Most confident errors",
        "Localisation",
        "Memory bank",
        "Training",
        "How to read this",
        "What was evaluated",
        "Config",
    ]
    text = Page(whole[1]).text
    assert "Research software, not a medical device." in text
    for known in ("focal/123", "ab" * 32, "cd" * 32, "c0ffee", "0.8123", "0.7911 to 0.8312"):
        assert known in text
    assert "Scores are not probabilities until they are calibrated" in text
    assert "SIMULATED" not in text


def test_a_plain_network_lacks_what_it_has_not(tmp_path):
    config = report_data.CONFIG | {"model": report_data.CONFIG["model"] | {"charm": False}}
    evaluated = report_data.evaluated(findings=FEW, charm=False)
    page = write(tmp_path / "report.html", evaluated, bank=None, config=config)
    assert Page(page).faults == []
    assert "Memory bank" not in headings(page)
    assert "attention" not in page
    assert "without CHARM" in page


def test_a_network_without_attention_momentum_branch_and_reading(tmp_path):
    model = {"fusion": False, "momentum_branch": False, "retrieval_k": 0}
    config = report_data.CONFIG | {"model": report_data.CONFIG["model"] | model}
    evaluated = report_data.evaluated(findings=FEW, k=0)
    evaluated = dataclasses.replace(evaluated, attention=None, disagreement=None)
    page = write(tmp_path / "report.html", evaluated, config=config)
    text = Page(page).text
    assert Page(page).faults == []
    assert "without attention, momentum branch, reading of the memory bank" in text
    assert "No image of this split read any." in text
    assert "Most read cases" not in text
    assert "attention over it" not in page


def test_weights_without_a_run_say_that_nothing_is_known_of_it(tmp_path):
    evaluated = report_data.evaluated(findings=FEW)
    result = report_data.result(
        evaluated,
        trained_on_simulated=None,
        leak_images=None,
        leak_of_all=None,
        leak_seen=None,
        calibration=None,
        groups=None,
    )
    for name, entry in result.findings.items():
        result.findings[name] = dataclasses.replace(entry, threshold=None, temperature=None)
    bank = report_data.bank(FEW)
    nameless = dataclasses.replace(
        bank,
        labels=np.full_like(bank.labels, -1),
        patients=np.full_like(bank.patients, ""),
        rows=np.full_like(bank.rows, -1),
    )
    parts = {"summary": None, "log": (), "bank": nameless, "environments": {}}
    page = write(tmp_path / "report.html", evaluated, result=result, **parts)
    text = Page(page).text
    assert Page(page).faults == []
    assert "Training" not in headings(page)
    assert "It is not known what these weights were trained on." in text
    assert "Scores are not calibrated" in text
    assert "cases of unknown patients" in text
    assert "prevalence of the findings in training is not known" in text
    assert "labels unknown (30)" in text


def test_simulated_images_are_called_so_in_every_heading(tmp_path):
    evaluated = report_data.evaluated(findings=FEW)
    result = report_data.result(evaluated, simulated=True, trained_on_simulated=True)
    page = write(tmp_path / "report.html", evaluated, result=result)
    assert len(re.findall(r"<h2>[^<]*<small> SIMULATED images</small></h2>", page)) == 10
    assert re.search(r'class="notice">SIMULATED images', page)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leak_images": 3, "leak_of_all": 5}, "LEAK: 3 of the 90 abnormal images"),
        ({"images_missing": 24}, "24 of the 1,024 images of the table are missing"),
        ({"refused": 2}, "2 image files were refused"),
        ({"began_from": "<mine>.pth"}, "The run began from &lt;mine&gt;.pth"),
        ({"patients_known": False}, "does not tell patients apart"),
        ({"trained_on_simulated": True}, "The network was trained on SIMULATED images."),
        (
            {
                "calibration": CalibrationSource(
                    checkpoint="a", split_sha256="00", on_these_images=True
                )
            },
            "fitted on these images",
        ),
    ],
)
def test_what_weakens_the_numbers_stands_above_them(tmp_path, changes, said):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    result = report_data.result(evaluated, **changes)
    page = write(tmp_path / "report.html", evaluated, result=result)
    notices = re.findall(r'<p class="notice">(.*?)</p>', page)
    assert any(said in notice for notice in notices)
    assert page.index(notices[0]) < page.index(">Macro AUROC<")


def test_unknown_patients_are_counted_nowhere(tmp_path):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    result = report_data.result(evaluated, patients_known=False)
    page = write(tmp_path / "report.html", evaluated, result=result)
    text = Page(page).text
    assert "<small>patients unknown</small>" in page
    assert "30; patients unknown" in text
    assert "10 patients" not in text
    assert "intervals from resampled images" in text
    assert "resamples of images with replacement" in text


def test_what_an_interval_is_depends_on_the_method(tmp_path, whole):
    assert "per cent of resamples of patients with replacement" in Page(whole[1]).text
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    method = {"auroc": "delong", "average_precision": "bootstrap"}
    result = report_data.result(evaluated, interval_method=method)
    text = Page(write(tmp_path / "report.html", evaluated, result=result)).text
    assert "For AUROC 95 % by DeLong" in text


FILE = {"trained_on_simulated": None, "bank": BankSource()}
SITE = BankSource(
    **report_data.BANK | {"source": "csv_folder", "split": "val", "images_sha256": "12"}
)
NO_PATIENTS = dataclasses.replace(SITE, patients_known=False)


@pytest.mark.parametrize(
    ("changes", "origin", "excluded"),
    [
        ({}, "of split 'train' of nih_chest_xray14, chosen by", "similar ones of other patients."),
        (FILE, "their images are not known", "also of its own patient"),
        ({"bank": SITE}, "of split 'val' of csv_folder, chosen by", "as far as names tell."),
        ({"began_from": "a.pth"}, "those that a.pth brought along", "of other patients."),
        ({"bank": SITE, "began_from": "a.pth"}, "30 patients of split 'val'", "as names tell."),
        ({"patients_known": False}, "of split 'train'", "of other images, perhaps"),
        ({"bank": NO_PATIENTS}, "of split 'val'", "of other images, perhaps"),
    ],
)
def test_the_bank_says_whose_cases_it_holds_and_who_is_not_read(
    tmp_path, changes, origin, excluded
):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    result = report_data.result(evaluated, **changes)
    text = Page(write(tmp_path / "report.html", evaluated, result=result)).text
    assert origin in text
    assert excluded in text


def test_thresholds_of_weights_without_a_run_are_of_no_run(tmp_path, whole):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    result = report_data.result(evaluated, **FILE)
    text = Page(write(tmp_path / "report.html", evaluated, result=result, log=())).text
    assert "fitted on the data's validation split" in text
    assert "fitted on the run's validation split" in Page(whole[1]).text


def test_findings_whose_errors_are_left_out_are_counted(tmp_path, whole):
    assert "most frequent of" not in Page(whole[1]).text
    evaluated = report_data.evaluated(n=30, findings=[f"F{i}" for i in range(21)])
    text = Page(write(tmp_path / "report.html", evaluated)).text
    assert "the errors of the 20 most frequent of 21 findings" in text


def test_a_split_without_faults_has_no_notice(whole):
    assert 'class="notice"' not in whole[1]


def test_a_finding_of_one_class_is_a_dash_and_explained(tmp_path):
    evaluated = report_data.evaluated(n=40, findings=("Mass", "Hernia", "Rib"))
    evaluated.labels[:, 1] = 0
    evaluated.labels[:, 2] = -1
    page = write(tmp_path / "report.html", evaluated)
    text = Page(page).text
    assert Page(page).faults == []
    assert "\N{EN DASH} is undefined: Hernia lack images" in text
    assert "No image has a label of Rib: these are not scored." in text
    assert "Undefined: 0 of 40 images have it." in text
    assert [row[0] for row in cells(page, RANKED)[1:]] == ["Mass", "Hernia", "Mean of 1"]
    assert not re.search(r"\b(None|nan|null)\b", text)


def test_names_of_the_user_are_text(tmp_path):
    bad = ('<script>alert("1")</script>', "a $b$ & c_{2", "肺 </svg>")
    evaluated = report_data.evaluated(n=40, findings=bad)
    evaluated.images[:] = [f'"><img src=http://x/{i}>' for i in range(40)]
    bank = report_data.bank(bad)
    bank.images[:] = "<script>"
    bank.patients[:] = "</figure>"
    config = report_data.CONFIG | {"name": "</title><script>", "csv": "'><b>"}
    page = write(tmp_path / "report.html", evaluated, bank=bank, config=config)
    assert Page(page).faults == []
    assert "<script" not in page
    text = Page(page).text
    for name in bad:
        assert name.replace("_", " ") in text


def test_the_same_data_give_the_same_bytes(tmp_path):
    pages = set()
    for i in range(2):
        FIGURES.clear()
        pages.add(write(tmp_path / f"{i}.html", report_data.evaluated(findings=FEW)))
    assert len(pages) == 1


def test_many_images_do_not_make_it_long(tmp_path):
    pages = [
        write(tmp_path / "report.html", report_data.evaluated(n, findings=FEW))
        for n in (200, 20_000)
    ]
    assert len(pages[1]) < 1.5 * len(pages[0])


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")

    def unreadable(rows):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write(path, report_data.evaluated(n=40, findings=FEW), read=unreadable)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("method", ["bootstrap", "delong"])
def test_a_comparison_has_a_section_and_says_its_intervals(tmp_path, method):
    evaluated = report_data.evaluated(n=40, findings=("Mass",))
    entry = Difference(value=0.8, other=0.7, difference=0.1, interval=(-0.05, 0.2))
    undefined = Difference(value=None, other=0.7)
    compared = Comparison(
        run="<other>",
        checkpoint="focal/1",
        interval_method={"auroc": method, "average_precision": "bootstrap"},
        macro={"auroc": entry, "average_precision": entry},
        findings={"Mass": {"auroc": entry, "average_precision": undefined}},
    )
    result = report_data.result(evaluated, comparison=compared)
    page = write(tmp_path / "report.html", evaluated, result=result)
    assert "Compared" in headings(page)
    delong = "same resamples of both, those of AUROC by DeLong" in Page(page).text
    assert delong == (method == "delong")
    mass, mean = cells(page, "Differences from another run")[1:]
    assert mass == ["Mass", "0.800", "0.700", "+0.100 -0.050 to +0.200", *DASHED]
    assert mean[0] == "Mean"
    assert "&lt;other&gt;" in page
    assert Page(page).faults == []


def test_our_number_stands_first_with_its_split(whole):
    first, ours, other = cells(whole[1], "Published macro AUROC")[:3]
    assert first == ["Model", "Macro AUROC", "Split", "Selected on", "Source"]
    said = ["This report: efficientnet_v2_nano", "0.8123", "rule official, split test, 120 images"]
    assert ours == [*said, "", ""]
    assert other[1:3] == ["0.835", "official test list"]


def test_published_numbers_keep_their_digits_and_are_folded_for_simulated_images(whole, tmp_path):
    rows = cells(whole[1], "Published AUROC of each finding")
    [effusion] = [row for row in rows if row[0] == "Effusion"]
    assert effusion[2:] == ["0.828", "0.9170", "0.8638"]
    assert "<details open>" in whole[1]
    evaluated = report_data.evaluated(n=30)
    evaluated.labels[:] = 0  # no curve to draw
    result = report_data.result(evaluated, simulated=True)
    assert "<details open>" not in write(tmp_path / "report.html", evaluated, result=result)


def test_other_findings_have_no_published_numbers(tmp_path):
    page = write(tmp_path / "report.html", report_data.evaluated(n=30, findings=("Rib fracture",)))
    assert "Published numbers" not in headings(page)


def test_unknown_labels_have_a_column_where_there_are_any(tmp_path, whole):
    assert "Unknown" not in cells(whole[1], RANKED)[0]
    evaluated = report_data.evaluated(n=30, findings=FEW)
    evaluated.labels[:7, 1] = -1
    page = write(tmp_path / "report.html", evaluated)
    header, mass, hernia, mean = cells(page, RANKED)
    assert header[3] == "Unknown"
    assert (mass[3], hernia[3], mean[3]) == ("0", "7", "")
    assert len(header) == len(mass) == len(mean)


def test_the_mean_says_over_how_many_findings_it_is(tmp_path):
    evaluated = report_data.evaluated(n=30, findings=FEW)
    evaluated.labels[:, 1] = 0
    *_, hernia, mean = cells(write(tmp_path / "report.html", evaluated), RANKED)
    assert hernia[3] == "\N{EN DASH}"
    assert mean[0] == "Mean of 1"


def test_the_scale_reaches_down_to_the_lowest_interval(tmp_path, whole):
    assert cells(whole[1], RANKED)[0][4] == "0.51"
    evaluated = report_data.evaluated(n=30, findings=FEW)
    result = report_data.result(evaluated)
    low = dataclasses.replace(result.findings["Hernia"], auroc_interval=(0.13, 0.9))
    result.findings["Hernia"] = low
    page = write(tmp_path / "report.html", evaluated, result=result)
    assert cells(page, RANKED)[0][4] == "0.11"
    # From 0.1 to 1 on the 112 units of the axis.
    assert re.search(r'class="span" x1="7.7" x2="103.6"', page)
    assert 'aria-label="0.810, interval 0.130 to 0.900"' in page


def test_a_subgroup_counts_its_findings(whole):
    _, women, men = cells(whole[1], "Macro AUROC of each subgroup")
    assert (women[0], women[2], women[5]) == ("sex F", "20", "14")
    assert (men[0], men[3], men[5]) == ("sex M", "\N{EN DASH}", "0")


def test_subgroups_are_left_out_where_there_are_none_and_count_no_unknown_patients(tmp_path):
    evaluated = report_data.evaluated(n=30, findings=FEW)
    result = report_data.result(evaluated, subgroups={"view": {}})
    assert "Subgroups" not in headings(write(tmp_path / "a.html", evaluated, result=result))
    result = report_data.result(evaluated, patients_known=False)
    page = write(tmp_path / "b.html", evaluated, result=result)
    assert cells(page, "Macro AUROC of each subgroup")[1][2] == "unknown"


def test_decisions_are_counted_at_three_thresholds(tmp_path):
    evaluated = report_data.evaluated(n=30, findings=FEW)
    page = write(tmp_path / "report.html", evaluated)
    header, mass, _ = cells(page, "Decisions: Highest sensitivity + specificity")
    assert header[1:5] == ["Threshold", "TP", "FP", "FN"]
    assert mass[1:] == ["0.210", "14", "25", "6", "0.700", "0.750", "0.360", "0.930", "0.400"]
    _, mass, _ = cells(page, "Decisions: Sensitivity of at least 0.95")
    assert mass[1:4] == ["< 0.001", "19", "80"]
    _, mass, _ = cells(page, "Decisions: Specificity of at least 0.95")
    assert set(mass[1:]) == {"\N{EN DASH}"}  # validation gives none


@pytest.mark.parametrize(
    ("needs", "label"),
    [
        ("order", RANKED),
        ("threshold", "Decisions: Highest sensitivity + specificity"),
        ("threshold", "Decisions: Sensitivity of at least 0.95"),
        ("probabilities", "Calibration of each finding"),
    ],
)
def test_a_metric_is_shown_by_its_entry_in_the_registry(tmp_path, monkeypatch, needs, label):
    toy = classification.Metric(lambda known: 0.125, "toy", needs)
    monkeypatch.setitem(classification.METRICS, "toy", toy)
    evaluated = report_data.evaluated(n=30, findings=FEW)
    logits, labels = evaluated.logits, evaluated.labels
    half = np.full(2, 0.5)
    points = dict.fromkeys(("sensitivity_95", "specificity_95"), half)
    findings = classification.per_finding(
        logits, labels, FEW, 1 / (1 + np.exp(-logits)), half, points
    )
    result = report_data.result(evaluated)
    result = dataclasses.replace(result, findings=findings, macro=classification.macro(findings))
    assert EvaluationResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    header, mass, *_ = cells(write(tmp_path / "report.html", evaluated, result=result), label)
    assert (header[-1], mass[-1]) == ("Toy", "0.125")


def test_a_coarse_attention_map_says_so(whole, tmp_path):
    assert "It has only 2 \N{MULTIPLICATION SIGN} 2 places" in Page(whole[1]).text
    evaluated = report_data.evaluated(n=30, findings=FEW)
    fine = dataclasses.replace(evaluated, attention=np.zeros((30, 7, 7), np.float32))
    assert "It has only" not in write(tmp_path / "report.html", fine)


def test_a_finding_that_no_training_image_has_is_in_no_group(tmp_path, whole):
    assert "not in a group" not in whole[1]
    evaluated = report_data.evaluated(n=30, findings=FEW)
    groups = report_data.result(evaluated).groups
    groups["tail"] = dataclasses.replace(groups["tail"], findings=())
    page = write(
        tmp_path / "report.html", evaluated, result=report_data.result(evaluated, groups=groups)
    )
    assert "No training image is known to have Hernia: not in a group." in page


def test_the_predictions_beside_the_page_are_linked(whole):
    assert '<a href="predictions.csv">' in whole[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "\N{EN DASH}"),
        (0.12345, "0.123"),
        (1.0, "1.000"),
        (0.0004, "< 0.001"),
        (0.0, "0.000"),
    ],
)
def test_numbers(value, said):
    assert number(value) == said


def test_intervals_and_shares():
    assert report.span((0.1, 0.25), 2) == "0.10 to 0.25"
    assert report.span((0.0001, 0.25)) == "< 0.001 to 0.250"
    assert report.span((None, None)) == ""
    assert report.percent(0.1234) == "12.3 %"
    assert report.percent(0.0002) == "< 0.1 %"
    assert report.percent(None) == "\N{EN DASH}"


def test_a_nested_config_becomes_keys():
    config = {"a": 1, "b": {"c": True, "d": {"e": "x"}}}
    assert report.flat(config) == [("a", "1"), ("b.c", "True"), ("b.d.e", "x")]


def _console(path, folder):
    """What Chromium's console says of a page; its policy makes every outside request an error."""
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", f"--user-data-dir={folder}", "--dump-dom"),
    ]
    done = subprocess.run(
        [CHROMIUM, *options, path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "</html>" in done.stdout
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@browser
def test_a_browser_finds_no_error_and_asks_for_nothing(whole, tmp_path):
    assert _console(whole[0], tmp_path / "profile") == []


@browser
def test_a_browser_would_find_an_outside_request(whole, tmp_path):
    path = tmp_path / "outside.html"
    path.write_text(whole[1].replace("<footer>", '<img src="http://localhost:9/a.png"><footer>'))
    [line] = _console(path, tmp_path / "profile")
    assert "localhost:9" in line
