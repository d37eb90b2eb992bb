"""Docstrings, comments, messages and pages avoid stilted phrases."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STILTED = re.compile(
    r"\b(of which|of whose|(is|are) to be|anew|likewise|hangs? on|as above|a thing to)\b",
    re.IGNORECASE,
)
OPENING = re.compile(r"(What|Whose|Of|As)\b")  # of a docstring


def prose(source):
    """Yield (line, text, whether it is a docstring) of docstrings, comments and messages."""
    docstrings = set()
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, holders) and ast.get_docstring(node):
            docstrings.add(node.body[0].value)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value, node in docstrings
    comments, last = [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:  # one sentence may take several lines
            line, text = token.start[0], token.string.lstrip("# ")
            if line == last + 1:
                comments[-1] = comments[-1][0], f"{comments[-1][1]} {text}"
            else:
                comments.append((line, text))
            last = line
    yield from ((line, text, False) for line, text in comments)


def page_prose(text):
    """Yield (line, text, False) of each paragraph and table row of a page, without code."""
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    for block in re.finditer(r"([^|\n].*\n?)+|\|.*", text):
        line = text.count("\n", 0, block.start()) + 1
        yield line, re.sub(r"`[^`]*`", "", block[0]), False


def faults(parts):
    for line, text, docstring in parts:
        text = " ".join(text.split())
        yield from (f"{line}: {found[0]!r}" for found in STILTED.finditer(text))
        if docstring and (found := OPENING.match(text)):
            yield f"{line}: opens with {found[0]!r}"


def test_no_phrase_is_stilted():
    rooms = ("charm_jax", "data_pipelines", "configs", "docs")
    files = [path for room in rooms for path in walk(room)]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = []
    for path in [*files, *pages]:
        name = path.relative_to(ROOT).as_posix()
        parts = (prose if path.suffix == ".py" else page_prose)(path.read_text(encoding="utf-8"))
        found += [f"{name}:{fault}" for fault in faults(parts)]
    assert not found, "\n".join(found)


def walk(room):
    return sorted((ROOT / room).rglob("*.py"))


def test_each_kind_of_text_is_read():
    source = (
        '"""Whose is this?"""\n\n'
        "# These words go on, and a thing\n# to fix runs over two lines.\n\n"
        "def f(n):\n"
        '    """Do it, likewise."""\n'
        '    raise ValueError(f"{n} files, of "\n        "which none fits")\n'
    )
    assert sorted(faults(prose(source))) == [
        "1: opens with 'Whose'",
        "3: 'a thing to'",
        "7: 'likewise'",
        "8: 'of which'",
    ]
    assert list(faults(page_prose("x\n\nAs above, `anew`.\n\n```\nanew\n```\n"))) == [
        "3: 'As above'"
    ]
