"""The report of an evaluation: one page that needs no network, no script and no other file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from charm_jax.report import bank as report_bank
from charm_jax.report import provenance, reading, tables
from charm_jax.report import sections as report_sections
from charm_jax.report.cases import Read
from charm_jax.report.contents import Bank, Evaluated
from charm_jax.report.html import Html, element, joined, number, span
from data_pipelines.atomic_files import whole_file

_HERE = Path(__file__).parent / "templates"
Json = Mapping[str, Any]


def write(
    path: Path,
    *,
    metrics: Json,
    evaluated: Evaluated,
    read: Read,
    config: Json,
    environments: Mapping[str, Json],
    summary: Json | None = None,
    log: Sequence[Json] = (),
    bank: Bank | None = None,
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        metrics: the content of ``metrics.json``.
        evaluated: the part and what the network said of it.
        read: the pixels of some rows of the source's table.
        config: of the run, or that the weights were evaluated with.
        environments: versions, commit and devices, by what they were used for.
        summary: of the run; None for weights without one, or before its end.
        log: lines of the run's ``metrics.jsonl``.
        bank: None for a network without one.
    """
    sections = {
        "What was evaluated": report_sections.subject(metrics, config, environments, summary),
        "Findings": report_sections.findings(metrics),
        "Subgroups": tables.subgroups(metrics),
        "Compared": report_sections.comparison(metrics),
        "Published numbers": tables.published(metrics, config["model"]["backbone"]),
        "Each finding": report_sections.each_finding(metrics, evaluated),
        "Most confident errors": report_sections.errors(metrics, evaluated, bank, read),
        "Memory bank": report_bank.section(metrics, evaluated, config, bank, read),
        "Training": report_sections.training(log, metrics),
        "How to read this": reading.reading(metrics),
        "Config": report_sections.settings(config),
    }
    # In every heading, so that a section that is copied out of the page says so too.
    mark = element("small", " SIMULATED images") if metrics["simulated"] else None
    whole = {title: body for title, body in sections.items() if body}
    name = config["name"] or metrics["checkpoint"]
    parts = {
        "title": element("title", f"{name} on {metrics['source']}, {metrics['split']}"),
        "disclaimer": provenance.DISCLAIMER,
        "name": element("h1", f"Evaluation of {name}"),
        "notes": joined(
            *(element("p", text, class_="notice") for text in provenance.warnings(metrics))
        ),
        "figures": _headline(metrics),
        "contents": joined(
            *(joined(element("a", title, href=f"#{_anchor(title)}"), " ") for title in whole)
        ),
        "sections": joined(
            *(
                element("section", element("h2", title, mark), body, id=_anchor(title))
                for title, body in whole.items()
            )
        ),
    }
    page = Template((_HERE / "report.html").read_text(encoding="utf-8"))
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    with whole_file(path) as file:
        file.write(page.substitute(parts, style=style))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _headline(metrics: Json) -> Html:
    simulated = "SIMULATED images" if metrics["simulated"] else "Images"
    tiles = [
        *(
            (f"Macro {name}", number(value["value"], 4), f"95 %: {span(value['interval'], 4)}")
            for name, value in (
                ("AUROC", metrics["macro"]["auroc"]),
                ("average precision", metrics["macro"]["average_precision"]),
            )
        ),
        (
            simulated,
            f"{metrics['n_images']:,}",
            provenance.patients(metrics["n_patients"], metrics),
        ),
        ("Split", metrics["rule"], f"part {metrics['split']}"),
    ]
    return element(
        "div",
        *(
            element("div", element("span", label), element("b", value), element("small", below))
            for label, value, below in tiles
        ),
        class_="figures",
    )
