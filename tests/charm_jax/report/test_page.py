import dataclasses
import re
import shutil
import subprocess

import numpy as np
import pytest
import report_data
from html_check import Page

from charm_jax.report import page as report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FEW = ("Mass", "Hernia")
browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


def write(path, evaluated, **changes):
    parts = {
        "metrics": report_data.metrics(evaluated),
        "evaluated": evaluated,
        "read": report_data.read,
        "config": report_data.CONFIG,
        "environments": {"Trained": report_data.ENVIRONMENT, "Evaluated": report_data.ENVIRONMENT},
        "summary": report_data.SUMMARY,
        "log": list(report_data.log()),
        "bank": report_data.bank(evaluated.findings),
    }
    report.write(path, **parts | changes)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a report with every section, and what is written in it."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    return path, write(path, report_data.evaluated())


def headings(page):
    return re.findall(r"<h2>([^<]*)", page)


def test_the_page_stands_alone_and_is_well_formed(whole):
    page = Page(whole[1])
    assert page.faults == []
    assert page.tags["img"] > 14
    assert page.tags["svg"] > 14


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
        "What was evaluated",
        "Findings",
        "Subgroups",
        "Published numbers",
        "Each finding",
        "Most confident errors",
        "Memory bank",
        "Training",
        "How to read this",
        "Config",
    ]
    text = Page(whole[1]).text
    assert "Research software, not a medical device." in text
    for known in ("focal/123", "ab" * 32, "cd" * 32, "c0ffee", "0.8123", "0.7911 to 0.8312"):
        assert known in text
    assert "Scores are no probabilities until they are calibrated" in text
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
    assert "No image of this part read any." in text
    assert "Most read cases" not in text
    assert "attention over it" not in page


def test_weights_without_a_run_say_that_nothing_is_known_of_it(tmp_path):
    evaluated = report_data.evaluated(findings=FEW)
    metrics = report_data.metrics(
        evaluated,
        trained_on_simulated=None,
        leak_images=None,
        leak_of_all=None,
        leak_seen=None,
        calibration=None,
    )
    for entry in metrics["findings"].values():
        entry["threshold"] = entry["temperature"] = None
    bank = report_data.bank(FEW)
    nameless = dataclasses.replace(
        bank,
        labels=np.full_like(bank.labels, -1),
        patients=np.full_like(bank.patients, ""),
        rows=np.full_like(bank.rows, -1),
    )
    parts = {"summary": None, "log": (), "bank": nameless, "environments": {}}
    page = write(tmp_path / "report.html", evaluated, metrics=metrics, **parts)
    text = Page(page).text
    assert Page(page).faults == []
    assert "Training" not in headings(page)
    assert "What these weights were trained on is not known here." in text
    assert "Scores are not calibrated" in text
    assert "cases of unknown patients" in text
    assert "labels unknown (30)" in text


def test_simulated_images_are_called_so_in_every_heading(tmp_path):
    evaluated = report_data.evaluated(findings=FEW)
    metrics = report_data.metrics(evaluated, simulated=True, trained_on_simulated=True)
    page = write(tmp_path / "report.html", evaluated, metrics=metrics)
    assert len(re.findall(r"<h2>[^<]*<small> SIMULATED images</small></h2>", page)) == 9
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
            {"calibration": {"split_sha256": "00", "on_these_images": True}},
            "fitted on these very images",
        ),
    ],
)
def test_what_weakens_the_numbers_stands_above_them(tmp_path, changes, said):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    metrics = report_data.metrics(evaluated, **changes)
    page = write(tmp_path / "report.html", evaluated, metrics=metrics)
    notices = re.findall(r'<p class="notice">(.*?)</p>', page)
    assert any(said in notice for notice in notices)
    assert page.index(notices[0]) < page.index(">Macro AUROC<")


def test_unknown_patients_are_counted_nowhere(tmp_path):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    metrics = report_data.metrics(evaluated, patients_known=False)
    page = write(tmp_path / "report.html", evaluated, metrics=metrics)
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
    metrics = report_data.metrics(evaluated, interval_method=method)
    text = Page(write(tmp_path / "report.html", evaluated, metrics=metrics)).text
    assert "Of AUROC, 95 % by DeLong" in text


FILE = {"trained_on_simulated": None, "bank": dict.fromkeys(report_data.BANK)}
SITE = report_data.BANK | {"source": "csv_folder", "split": "val", "images_sha256": "12"}


@pytest.mark.parametrize(
    ("changes", "origin", "excluded"),
    [
        ({}, "of part 'train' of nih_chest_xray14, chosen by", "similar ones of other patients."),
        (FILE, "of what images is not known", "also of its own patient"),
        ({"bank": SITE}, "of part 'val' of csv_folder, chosen by", "as far as names tell."),
        ({"began_from": "a.pth"}, "those that a.pth brought along", "of other patients."),
        ({"bank": SITE, "began_from": "a.pth"}, "30 patients of part 'val'", "as names tell."),
        ({"patients_known": False}, "of part 'train'", "of other images, perhaps"),
        ({"bank": SITE | {"patients_known": False}}, "of part 'val'", "of other images, perhaps"),
    ],
)
def test_the_bank_says_whose_cases_it_holds_and_who_is_not_read(
    tmp_path, changes, origin, excluded
):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    metrics = report_data.metrics(evaluated, **changes)
    text = Page(write(tmp_path / "report.html", evaluated, metrics=metrics)).text
    assert origin in text
    assert excluded in text
    assert "training part," not in text


def test_thresholds_of_weights_without_a_run_are_of_no_run(tmp_path, whole):
    evaluated = report_data.evaluated(n=30, findings=("Mass",))
    metrics = report_data.metrics(evaluated, **FILE)
    text = Page(write(tmp_path / "report.html", evaluated, metrics=metrics, log=())).text
    assert "fitted on the data's validation part" in text
    assert "fitted on the run's validation part" in Page(whole[1]).text


def test_findings_whose_errors_are_left_out_are_counted(tmp_path, whole):
    assert "most frequent of" not in Page(whole[1]).text
    evaluated = report_data.evaluated(n=30, findings=[f"F{i}" for i in range(21)])
    text = Page(write(tmp_path / "report.html", evaluated)).text
    assert "those of the 20 most frequent of 21 findings" in text


def test_a_part_without_faults_has_no_notice(whole):
    assert 'class="notice"' not in whole[1]


def test_a_finding_of_one_class_is_a_dash_and_explained(tmp_path):
    evaluated = report_data.evaluated(n=40, findings=("Mass", "Hernia", "Rib"))
    evaluated.labels[:, 1] = 0
    evaluated.labels[:, 2] = -1
    page = write(tmp_path / "report.html", evaluated)
    text = Page(page).text
    assert Page(page).faults == []
    assert "\N{EN DASH} is undefined: Hernia, Rib lack images" in text
    assert "Undefined: 0 of 40 images have it." in text
    assert "Undefined: 0 of 0 images have it." in text
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
    pages = {write(tmp_path / f"{i}.html", report_data.evaluated(findings=FEW)) for i in range(2)}
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
    entry = {"value": 0.8, "other": 0.7, "difference": 0.1, "interval": [-0.05, 0.2]}
    undefined = {"value": None, "other": 0.7, "difference": None, "interval": [None, None]}
    compared = {
        "run": "<other>",
        "interval_method": {"auroc": method, "average_precision": "bootstrap"},
        "checkpoint": "focal/1",
        "macro": {"auroc": entry, "average_precision": entry},
        "findings": {"Mass": {"auroc": entry, "average_precision": undefined}},
    }
    metrics = report_data.metrics(evaluated, comparison=compared)
    page = write(tmp_path / "report.html", evaluated, metrics=metrics)
    assert "Compared" in headings(page)
    delong = "same resamples of both, those of AUROC by DeLong" in Page(page).text
    assert delong == (method == "delong")
    assert "+0.100 -0.050 to +0.200" in Page(page).text
    assert "&lt;other&gt;" in page
    assert Page(page).faults == []


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
