"""Generate parts of pages from the code while the site is built, so that they cannot drift."""

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jupytext
import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from charm_jax import __main__ as commands
from charm_jax.config import recipe
from charm_jax.metrics import result
from data_pipelines.sources import SOURCES


def key_rows(group: str) -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, meaning with valid values) of a group; ``run`` has the undivided keys.

    A key of the stages has one row, with the default of each stage.
    """
    first, *others = recipe.STAGES
    for path, key in recipe.KEYS.items():
        top, _, rest = path.partition(".")
        if (top if rest else "run") != group or rest.startswith(tuple(f"{s}." for s in others)):
            continue
        default = code(key.default)
        if group == "stages":
            rest = rest.removeprefix(f"{first}.")
            stages = {stage: recipe.KEYS[f"stages.{stage}.{rest}"] for stage in recipe.STAGES}
            default = ", ".join(f"{stage} {code(one.default)}" for stage, one in stages.items())
            path = f"stages.STAGE.{rest}"
        values = ", ".join(f"`{value}`" for value in key.choices if value)
        values = values or (key.valid[0] if key.valid else "")
        yield f"`{path}`", default, f"{key.help}; {values}" if values else key.help


def help_of(command: str) -> str:
    """Return what ``charm-jax COMMAND --help`` prints, 80 columns wide where it depends on that."""
    module = importlib.import_module(commands._COMMANDS[command][0])
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [f"charm-jax {command}"]),
        mock.patch.dict("os.environ", COLUMNS="80", NO_COLOR="1"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main(["--help"])
    return printed.getvalue()


def record_rows(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield (field, type, meaning) of a record of ``metrics.json``, its base class's first."""
    record = getattr(result, name)
    docs = "\n".join(inspect.getdoc(one) or "" for one in record.__mro__ if one is not object)
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n        .*)*)", docs, re.MULTILINE))
    for field in dataclasses.fields(record):
        meaning = " ".join(meanings.get(field.name, "").split()).replace("``", "`")
        kind = str(getattr(field.type, "__name__", field.type))
        kind = str(field.type) if typing.get_args(field.type) else kind
        kind = kind.replace(f"{result.__name__}.", "").replace("typing.", "")
        yield f"`{field.name}`", f"`{kind}`".replace("|", "\\|"), meaning.replace("|", "\\|")


def code(value: object) -> str:
    """Return a value as code, or nothing for empty text."""
    return "" if value == "" else f"`{value}`"


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class ConfigKeys(SphinxDirective):
    """Write the table of the config keys of a group."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = key_rows(self.arguments[0])
        return self.parse_text_to_nodes(table(("key", "default", "meaning"), rows))


class CommandsHelp(SphinxDirective):
    """Write the help of each command in a section of its own."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        sections = []
        for name in commands._COMMANDS:
            section = nodes.section(ids=[nodes.make_id(name)], names=[name])
            text = help_of(name)
            section += nodes.title(name, name)
            section += nodes.literal_block(text, text, language="none", classes=["command-help"])
            sections.append(section)
        return sections


class Record(SphinxDirective):
    """Write the fields of a record of ``metrics.json``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = record_rows(self.arguments[0])
        return self.parse_text_to_nodes(table(("key", "type", "meaning"), rows))


def notebook(text: str) -> nbformat.NotebookNode:
    """Return the notebook that a program with ``# %%`` cells stands for."""
    made = jupytext.reads(text, fmt="py:percent")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    return made


class Notebooks(SphinxDirective):
    """List the notebooks that are named, which lie beside the page, with their files."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the list."""
        here = Path(self.env.doc2path(self.env.docname)).parent
        folder = Path(self.env.app.outdir, self.env.docname).parent
        folder.mkdir(parents=True, exist_ok=True)
        items = []
        for name in self.content:
            made = notebook((here / f"{name}.nb.py").read_text(encoding="utf-8"))
            _, about = made.cells[0].source.split("\n\n")[:2]
            for cell in made.cells:  # other pages are not there where the file is opened
                if cell.cell_type == "markdown":
                    cell.source = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", cell.source)
            nbformat.write(made, folder / f"{name}.ipynb")
            about, file = " ".join(about.split()), f'<a href="{name}.ipynb" download>Download</a>'
            items.append(f"- **[]({name}.nb.py).** {about} {file}\n")
        return self.parse_text_to_nodes("".join(items))


class DataSets(SphinxDirective):
    """Write origin and terms of each data source."""

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        rows = (
            (f"`{name}`", card.description, card.license, card.citation, card.homepage)
            for name, card in ((name, source.card) for name, source in SOURCES.items())
        )
        header = ("source", "images and labels", "terms", "citation", "page")
        lines = (tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)
        return self.parse_text_to_nodes(table(header, lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("config-keys", ConfigKeys)
    app.add_directive("commands-help", CommandsHelp)
    app.add_directive("metrics-record", Record)
    app.add_directive("notebook-files", Notebooks)
    app.add_directive("data-sets", DataSets)
    return {"parallel_read_safe": True}
