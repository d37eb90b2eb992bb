"""Options, help, packaged configs and notices, which all commands share."""

import logging
import os
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import charm_jax.convert
import charm_jax.eval.__main__ as evaluate
import charm_jax.memory.__main__ as memory
import charm_jax.predict.__main__ as predict
import charm_jax.train.__main__ as train
from charm_jax.config import cli, recipe, settings, validate
from charm_jax.config.cli import Command, Option, guarded, parse, say
from data_pipelines.errors import InputError
from data_pipelines.progress import progress

COMMANDS = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "memory": memory,
    "convert": charm_jax.convert,
}
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


OPTIONS = {"run": Option("", "run"), "draw": Option(True, "draw")}
WORDS = Command("", OPTIONS, ("data.", "runs_dir"), words=True)
TRAIN = Command("", OPTIONS, config=True)


@pytest.fixture(autouse=True)
def usual_verbosity():
    yield
    cli._set_verbosity(quiet=False, verbose=False)


@pytest.mark.parametrize(
    "line",
    [
        "a b --run x --nodraw --config.data.image_size=32",
        "--run x a --nodraw --config.data.image_size 32 b",
        "a --config.data.image_size=32 -nodraw b --run=x",
        "--run=x -config.data.image_size=32 --nodraw -- a b",
    ],
)
def test_options_and_words_come_in_any_order(line):
    arguments = parse(WORDS, line.split())
    assert arguments.words == ["a", "b"]
    assert arguments.flags.run == "x"
    assert arguments.flags.draw is False
    assert arguments.overrides == {"data.image_size": 32}


def test_two_dashes_end_the_options():
    arguments = parse(WORDS, ["a", "--", "--run", "--help", "--config.seed=1"])
    assert arguments.words == ["a", "--run", "--help", "--config.seed=1"]
    assert (arguments.flags.run, arguments.overrides) == ("", {})


def test_values_have_the_types_of_their_keys():
    given = "--config.seed=3 --config.model.momentum=1 --config.name=4 --noconfig.model.charm"
    overrides = parse(TRAIN, [*given.split(), "--config.data.resident"]).overrides
    expected = {"seed": 3, "model.momentum": 1.0, "name": "4", "model.charm": False}
    assert overrides == expected | {"data.resident": True}
    assert {key: type(value) for key, value in overrides.items()} == {
        key: type(recipe.KEYS[key].default) for key in overrides
    }


def test_a_command_refuses_what_it_does_not_use():
    with pytest.raises(InputError, match=r"only --config\.data\.\* and --config\.runs_dir can be"):
        parse(WORDS, ["--config.seed=1"])
    with pytest.raises(InputError, match="Unexpected option --config: name a run with --run"):
        parse(WORDS, ["--config", "demo"])
    with pytest.raises(InputError, match="Unexpected argument 'b': options start with --"):
        parse(TRAIN, ["b"])
    with pytest.raises(InputError, match="no option --epochs: --help lists"):
        parse(WORDS, ["--epochs=3"])


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("asked", ["--help", "-h", "-help"])
def test_help_explains_the_command_its_options_and_its_keys(name, asked, capsys):
    with pytest.raises(SystemExit) as leaving:
        COMMANDS[name].main(["demo", asked])
    assert leaving.value.code == 0
    shown, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.splitlines()[0].endswith(".")
    assert f"\nusage: charm-jax {name} " in shown
    assert f"\n    charm-jax {name} " in shown
    assert "\n  -q, --quiet " in shown
    entries = shown.split("keys, each")[1].splitlines()[1:]
    keys = {line.split()[0] for line in entries if line[2] != " "}
    stages = {f"stages.STAGE.{name}" for name in recipe._STAGE_KEYS}
    everything = {key for key in recipe.KEYS if not key.startswith("stages.")}
    data = {key for key in everything if key.startswith("data.")}
    assert (
        keys
        == {
            "train": everything | stages,
            "eval": data | {"runs_dir"},
            "predict": {"data.dir", "data.csv", "data.value_range", "runs_dir"},
            "memory": data | {"runs_dir"},
            "convert": {"runs_dir"},
        }[name]
    )


def test_help_gives_choices_and_published_values(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "stages.STAGE.epochs maximum number of epochs after the frozen ones; 0 or more" in shown
    assert "(default: bce 20, focal 10)" in shown
    assert "densenet121, vgg16_lka (default: efficientnet_v2_s)" in shown
    assert "$CHARM_DATA" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_understood(name):
    module = COMMANDS[name]
    lines = [line for line in module.__doc__.splitlines() if line.startswith("    charm-jax")]
    assert lines
    command = Command(module.__doc__, module._OPTIONS, ("data.",), config=True, words=True)
    for line in lines:
        words = shlex.split(line.strip().split("   ")[0])
        assert words[:2] == ["charm-jax", name]
        parse(command, words[2:])


def test_packaged_configs_are_listed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        train.main(["--config=list"])
    assert leaving.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["demo", "effv2s", "lite0"]
    assert all(line.endswith(".") and len(line) <= 100 for line in lines)


def test_a_packaged_config_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    assert cli.load_config("effv2s") == cli.load_config(CONFIGS / "effv2s.py")
    assert cli.load_config("demo").name == "demo"
    # A path names the user's own.
    shutil.copy(CONFIGS / "demo.py", tmp_path / "configs" / "mine.py")
    assert cli.load_config("configs/mine.py") == cli.load_config("demo")


def test_a_whole_number_in_a_file_serves_a_key_of_text(tmp_path):
    file = tmp_path / "twelve.py"
    text = (
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({})\n"
    )
    for value in (4095, "4095"):
        file.write_text(text.replace("{}", f"{{'data': {{'value_range': {value!r}}}}}"))
        assert cli.load_config(file).data.value_range == "4095"
    file.write_text(text.replace("{}", "{'data': {'value_range': 0.5}}"))
    with pytest.raises(InputError, match=r"config\.data\.value_range is 0\.5"):
        cli.load_config(file)


def test_the_published_config_states_the_values_of_the_recipe():
    config = recipe.defaults()
    config.name = "effv2s"
    assert cli.load_config("effv2s", "published") == config
    notebook = cli.load_config("effv2s", "notebook")
    for stage in recipe.STAGES:
        for key, value in recipe.PRESETS["notebook"]["stages"][stage].items():
            assert notebook.stages[stage][key] == value, key


@pytest.mark.parametrize("name", ["demo", "effv2s", "lite0"])
def test_stored_cases_vote_unless_the_published_memory_is_asked_for(name):
    config = cli.load_config(name)
    assert (config.preset, config.model.memory, config.model.retrieval_k) == ("vote", "vote", 100)
    published = cli.load_config(name, "published")
    assert (published.preset, published.model.memory) == ("published", "published")
    assert published.model.retrieval_k == 5


def test_lite0_has_a_variant_for_small_sets():
    small = cli.load_config("lite0:small")
    assert (small.refit, small.stages.bce.frozen_epochs) == ("plain", 20)
    assert small.stages.bce.batch_size == small.stages.focal.batch_size == 32
    validate.check(settings.from_dict(small.to_dict()))
    assert cli.load_config("lite0:large") == cli.load_config("lite0")
    with pytest.raises(InputError, match="its variants are large and small, not tiny"):
        cli.load_config("lite0:tiny")


@pytest.mark.parametrize("backbone", recipe.BACKBONES)
def test_every_backbone_is_a_variant(backbone):
    config = cli.load_config(f"effv2s:{backbone}")
    assert config.model.backbone == backbone
    assert config.name == ("effv2s" if backbone == "efficientnet_v2_s" else backbone)
    assert cli.load_config(f"{CONFIGS}/effv2s.py:{backbone}") == config
    validate.check(settings.from_dict(config.to_dict()))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ([], ["told", "warned"]),
        (["-q"], ["warned"]),
        (["--quiet"], ["warned"]),
        (["-v"], ["told", "warned", "details"]),
        (["--verbose"], ["told", "warned", "details"]),
    ],
)
def test_quiet_and_verbose_choose_the_notices(options, seen, capsys):
    kept = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())

    def command(argv):
        parse(TRAIN, argv)
        logging.getLogger("charm_jax").addHandler(handler)  # as run.log is
        say("told")
        say("warning: warned")
        logging.getLogger("charm_jax.models").debug("details")
        with progress(total=1, desc="counting", unit="images") as bar:
            bar.update()
            assert bar.n == 1
        print("result")
        return 0

    try:
        assert guarded(command, options) == 0
    finally:
        logging.getLogger("charm_jax").removeHandler(handler)
    out, err = capsys.readouterr()
    assert out == "result\n"
    shown = [line for line in err.splitlines() if not line.startswith("Set on")]
    assert [line.removeprefix("warning: ") for line in shown] == seen
    assert "warning: warned" in shown
    assert kept[:2] == ["told", "warned"]


@pytest.mark.parametrize("key", ["runs_dir", "data.dir", "model.init_from"])
@pytest.mark.parametrize("value", ["x" * 300, "loop/x", "file/x"])
def test_a_path_that_cannot_be_is_one_sentence(key, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").touch()
    options = ["--dry_run", "--config", "effv2s", "--config.data.source=csv_folder"]
    assert guarded(train.main, [*options, f"--config.{key}={value}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err


def test_quiet_hides_progress(monkeypatch, capsys):
    monkeypatch.setattr("data_pipelines.progress._SECONDS_BETWEEN_LINES", 0.0)
    for options, lines in ([], 3), (["-q"], 0):
        parse(TRAIN, options)
        assert list(progress(range(3), desc="counting", unit="images")) == [0, 1, 2]
        assert capsys.readouterr().err.count("counting") == lines


def test_verbose_shows_where_an_error_came_from(capsys):
    assert guarded(train.main, ["-v", "--config", "zzz"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("error: There is no config 'zzz'")
    assert guarded(train.main, ["--config", "zzz"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("allocate", "reason"),
    [
        (lambda _: jnp.zeros(1 << 45, jnp.int8), "Out of memory allocating 35184372088832 bytes"),
        (lambda _: np.zeros(1 << 60, np.int8), "Unable to allocate 1.00 EiB for an array"),
    ],
)
def test_memory_that_is_used_up_is_one_sentence(allocate, reason, capsys):
    assert guarded(allocate, []) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: The memory is used up ({reason}")
    assert "--config.stages.STAGE.batch_size" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AssertionError(), "(JAX_PLATFORMS=cuda): install charm-jax[cuda]"),
        (
            RuntimeError("Unable to initialize backend 'cuda': no driver (set JAX_PLATFORMS='')"),
            "(JAX_PLATFORMS=cuda: Unable to initialize backend 'cuda': no driver): install",
        ),
    ],
)
def test_a_missing_backend_is_one_sentence(error, words, capsys, monkeypatch):
    class Platforms:
        jax_platforms = "cuda"

    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(jax, "config", Platforms)
    assert guarded(lambda _: len(jax.devices()), []) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: JAX finds no device ") and words in err


@pytest.mark.parametrize("error", [RuntimeError("RESOURCES"), AssertionError(), KeyError("a")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    def command(_):
        raise error

    with pytest.raises(type(error)):
        guarded(command, [])


def test_programs_are_kept_where_that_is_possible(tmp_path, monkeypatch):
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    cli._keep_programs(None)
    (tmp_path / "file").touch()
    cli._keep_programs(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        cli._keep_programs(tmp_path / "read_only")
    assert set_to == {}
    cli._keep_programs(tmp_path / "cache")
    assert set_to == {"jax_compilation_cache_dir": str(tmp_path / "cache/xla")}
