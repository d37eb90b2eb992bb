"""Parse the options and config of a command, and report its errors in one sentence."""

import ast
import contextlib
import dataclasses
import logging
import os
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from tqdm import tqdm

from charm_jax.config import recipe, settings
from charm_jax.config.settings import Settings
from charm_jax.distributed import processes
from data_pipelines import command_line
from data_pipelines.cache import cache_folder
from data_pipelines.errors import InputError, did_you_mean

# In the package where it is installed, beside it in a clone; a user's folder cannot shadow it.
_, _PACKAGE, _CLONE, *_ = Path(__file__).resolve().parents
CONFIGS = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _CLONE) / "configs"
_EXAMPLE = "see --config=list, or configs/effv2s.py for an example"
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
_WIDTH, _COLUMN = 100, 34  # of the help


def run(command: Callable[[list[str]], int]) -> None:
    """Run a command on the process's arguments and exit with its code.

    Compiled steps are kept in the user's cache folder, so that a second start is quick;
    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        _keep_programs(cache_folder())
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of what is intended
    code = guarded(command, sys.argv[1:])
    if code in (130, 143) and not jax.distributed.is_initialized():
        # XLA may still be compiling, and crashes when the interpreter ends before it.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _keep_programs(cache: Path | None) -> None:
    """Keep compiled programs below a folder; if it is None or read-only, each start compiles."""
    if cache is not None:
        with contextlib.suppress(OSError):
            (cache / "xla").mkdir(parents=True, exist_ok=True)
            if os.access(cache / "xla", os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Return the command's exit code, or print a sentence; see ``command_line.guarded``."""
    log = _notices()
    return command_line.guarded(lambda: command(argv), _sentence_of, log)


def _sentence_of(error: BaseException) -> str | None:
    text, full = str(error), "RESOURCE_EXHAUSTED: "
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and full in text):
        reason = text.rpartition(full)[2].partition("\n")[0].rstrip(".") or "no details are known"
        return (
            f"The memory is used up ({reason}): end other programs that use it, or train with a "
            "smaller --config.stages.STAGE.batch_size or --config.data.image_size."
        )
    if isinstance(error, RuntimeError | AssertionError) and (reason := _no_device()):
        return (
            f"JAX finds no device ({reason}): install charm-jax[cuda] and NVIDIA's driver to use a "
            "GPU, or unset JAX_PLATFORMS."
        )
    return command_line.sentence_of(error)


def _no_device() -> str | None:
    """Return why JAX has no device at all, or None."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for an unknown JAX_PLATFORMS=cuda
        reason = (str(error).splitlines() or [""])[0].partition(" (")[0].rstrip(".")
        return f"JAX_PLATFORMS={jax.config.jax_platforms}{reason and ': '}{reason}"
    return None


class Notice(logging.Formatter):
    """Mark the library's warnings."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format a record whose text is final."""
        if record.levelno >= logging.WARNING:
            record.message = f"warning: {record.message}"
        return super().formatMessage(record)


class _ToStderr(logging.Handler):
    """Print notices above any progress bar, from the first of several processes alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if processes.is_first():
            tqdm.write(self.format(record), file=sys.stderr)


def _notices() -> logging.Logger:
    """Return the project's logger, set up to print on standard error."""
    logger = logging.getLogger("charm_jax")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        handler = _ToStderr()
        handler.setFormatter(Notice())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def _set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Show warnings and errors alone, or debug messages too; other handlers keep all notices."""
    if quiet and verbose:
        raise InputError("-q and -v exclude each other: give one of them.")
    logger = _notices()
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in logger.handlers:
        if isinstance(handler, _ToStderr):
            handler.setLevel(logging.WARNING if quiet else logging.NOTSET)
    # Progress bars and lines follow this logger's level.
    level = logging.ERROR if quiet else logging.NOTSET
    logging.getLogger("data_pipelines.progress").setLevel(level)


def say(text: str) -> None:
    """Log a notice, or a warning if it begins with that word, to standard error."""
    warned = text.startswith("warning: ")
    _notices().log(logging.WARNING if warned else logging.INFO, text.removeprefix("warning: "))


def load_config(name: str | Path, preset: str | None = None) -> ConfigDict:
    """Return the recipe with the changes of a preset and of a config file.

    Args:
        name: of a packaged config, or path of a config file; ``:VARIANT`` after it is the argument
            of its ``get_config``.
        preset: a key of ``recipe.PRESETS``; None for the file's own.

    Raises:
        InputError: the file is missing, has no ``get_config``, or sets an unknown key or a value of
            another type; or the preset is unknown.
    """
    path, variant = _find_config(str(name))
    config = recipe.defaults()
    changes = _changes(path, variant).to_dict()
    preset = changes.get("preset", config.preset) if preset is None else preset
    if preset not in recipe.PRESETS:
        raise InputError(
            f"config.preset is {preset!r}: {did_you_mean(str(preset), recipe.PRESETS)}"
        )
    merge(config, recipe.PRESETS[preset], "preset")
    merge(config, changes, str(path))
    config.preset = preset
    if not config.name:
        config.name = path.stem
    return config


def _find_config(name: str) -> tuple[Path, str]:
    """Return the file of a config and the variant after its colon."""
    for stem, variant in ((name, ""), name.rpartition(":")[::2]):
        packaged = CONFIGS / f"{stem}.py"
        if "/" not in stem and stem != "__init__" and packaged.is_file():
            return packaged, variant
        if Path(stem).is_file():
            return Path(stem), variant
    if "/" in name or name.endswith(".py") or not name:
        raise InputError(f"There is no config file {name!r}: {_EXAMPLE}.")
    raise InputError(f"There is no config {name!r}: {did_you_mean(name, sorted(_packaged()))}")


def _packaged() -> dict[str, str]:
    """Return the packaged configs with the first lines of their docstrings."""
    return {
        path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        for path in sorted(CONFIGS.glob("[!_]*.py"))
    }


def _changes(path: Path, variant: str) -> ConfigDict:
    """Return what ``get_config`` of a file returns."""
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        changes = get_config(variant) if variant else get_config()
    except Exception as error:  # a user's file may raise anything
        raise InputError(
            f"{path} is no config ({type(error).__name__}: {error}): {_EXAMPLE}."
        ) from error
    if not isinstance(changes, ConfigDict):
        raise InputError(
            f"{path}: get_config() returns {type(changes).__name__} and not an ml_collections "
            f"ConfigDict: {_EXAMPLE}."
        )
    return changes


def merge(config: ConfigDict, changes: dict, where: str, prefix: str = "") -> None:
    """Write ``changes`` into ``config``, key by key.

    Raises:
        InputError: a key that ``config`` lacks, or a value of another type.
    """
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if key not in config:
            raise InputError(f"{where}: {_unknown_key(name)}")
        if isinstance(config[key], ConfigDict):
            if not isinstance(value, dict):
                raise InputError(f"{where}: {_group(name)}")
            merge(config[key], value, where, f"{name}.")
            continue
        kind = type(config[key])
        if type(value) is int and kind in (float, str):  # such as a value_range of 4095
            value = kind(value)
        if type(value) is not kind:
            raise InputError(f"{where}: config.{name} is {value!r}: set it to {_KINDS[kind]}.")
        config[key] = value


def _unknown_key(path: str) -> str:
    near = " or ".join(f"config.{key}" for key in recipe.nearest(path))
    remedy = f"did you mean {near}?" if near else "--help lists the keys."
    return f"there is no key config.{path}: {remedy}"


def _group(path: str) -> str:
    first = next(key for key in recipe.KEYS if key.startswith(f"{path}."))
    return f"config.{path} is a group of keys: set one of them, such as config.{first}."


class Option(NamedTuple):
    """Describe an option: a switch if the default is a bool, one of the choices, or text."""

    default: bool | str | None
    help: str
    choices: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Command:
    """Describe a command to its parser and to its users.

    Attributes:
        help: summary, usage and examples: the docstring of its module.
        options: its own options by name.
        keys: beginnings of the config keys that it accepts, such as ``data.``.
        config: whether it takes ``--config``, and then all keys.
        words: whether it takes positional arguments.
    """

    help: str
    options: Mapping[str, Option]
    keys: tuple[str, ...] = ()
    config: bool = False
    words: bool = False


class Arguments(NamedTuple):
    """A parsed command line: flags, positional arguments and values of config keys."""

    flags: flags.FlagValues
    words: list[str]
    overrides: dict[str, Any]


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Parse options and positional arguments in any order; ``--help`` prints and exits.

    Args:
        command: its flags and keys.
        argv: arguments without the program's name; those after ``--`` are positional.

    Raises:
        InputError: an unknown option, key or argument, with the nearest; a value of another type;
            or a key that this command does not accept.
    """
    values = _define(command)
    options = list(argv[: argv.index("--")] if "--" in argv else argv)
    if {"--help", "-help", "-h"} & set(options):
        print(_help(command, values))
        sys.exit(0)
    try:
        words = values(["charm-jax", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_option(error.flagname, command, values)) from None
    except flags.Error as error:
        raise InputError(_rephrase(str(error), values)) from None
    _set_verbosity(quiet=values.quiet, verbose=values.verbose)
    if command.config and values.config == "list":
        print("\n".join(f"{name:<12} {line}" for name, line in _packaged().items()))
        sys.exit(0)
    if words and not command.words:
        switch = words[0].casefold() in ("true", "false")
        remedy = "write --switch or --noswitch" if switch else "options start with --"
        raise InputError(f"Unexpected argument {words[0]!r}: {remedy}.")
    given = {key: values[f"config.{key}"] for key in recipe.KEYS}
    overrides = {key: flag.value for key, flag in given.items() if flag.present}
    refused = [key for key in overrides if not key.startswith(_accepted(command, values))]
    if refused:
        shown = [f"--config.{key}{'*' * key.endswith('.')}" for key in command.keys]
        raise InputError(
            f"--config.{refused[0]} cannot change what a run was trained with: only "
            f"{' and '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))} can be given."
        )
    logging.getLogger("charm_jax").debug("Set on the command line: %s", overrides)
    return Arguments(values, words, overrides)


def _define(command: Command) -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()
    text = "name of a packaged config, or path of a config file; list shows the packaged ones"
    config = {"config": Option(None, text)} if command.config else {}
    for name, (default, text, choices) in {**config, **command.options}.items():
        if choices:
            flags.DEFINE_enum(name, default, choices, text, flag_values=values)
        elif isinstance(default, bool):
            flags.DEFINE_bool(name, default, text, flag_values=values)
        elif isinstance(default, list):
            flags.DEFINE_multi_string(name, default, text, flag_values=values)
        else:
            flags.DEFINE_string(name, default, text, flag_values=values)
    text = "show warnings and errors only"
    flags.DEFINE_bool("quiet", False, text, short_name="q", flag_values=values)
    text = "show debug messages, too"
    flags.DEFINE_bool("verbose", False, text, short_name="v", flag_values=values)
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for path, key in recipe.KEYS.items():
        define[type(key.default)](f"config.{path}", None, key.help, flag_values=values)
    return values


def _accepted(command: Command, values: flags.FlagValues) -> tuple[str, ...]:
    """Return beginnings of the keys that may be set: all where a config is, or may be, given."""
    alone = command.config and (not command.keys or values["config"].value is not None)
    return ("",) if alone else command.keys


def _options(values: flags.FlagValues) -> list[str]:
    """Return the names of the flags that are no config keys, ``quiet`` and ``verbose`` last."""
    names = [name for name in values if not name.startswith("config.") and len(name) > 1]
    return sorted(names, key=("quiet", "verbose").__contains__)


def _unknown_option(name: str, command: Command, values: flags.FlagValues) -> str:
    path = name.removeprefix("config.")
    if name.startswith("config."):
        if path in recipe.GROUPS:
            return f"The command line: {_group(path)}"
        for parent in recipe.KEYS:
            if path.startswith(f"{parent}."):
                key = path.removeprefix(f"{parent}.")
                return f"The command line: config.{parent} is a value and has no key {key!r}."
        return f"The command line: {_unknown_key(path)}"
    if name == "config":
        return "Unexpected option --config: name a run with --run."
    accepted = _accepted(command, values)
    keys = [f"config.{key}" for key in recipe.KEYS if key.startswith(accepted)]
    near = recipe.nearest(name, [*_options(values), *keys])
    remedy = f"did you mean --{' or --'.join(near)}?" if near else "--help lists the options."
    return f"There is no option --{name}: {remedy}"


def _rephrase(message: str, values: flags.FlagValues) -> str:
    """Turn an error message of absl into a sentence with a remedy."""
    missing = re.fullmatch(r"Missing value for flag -*(\S+)", message)
    if missing:
        return f"--{missing[1]} needs a value: {values[missing[1]].help}."
    wrong = re.match(r"flag --([\w.]+)=(.*?): ", message, re.DOTALL)
    if not wrong:
        return f"{message.rstrip('.')}: --help lists the options."
    name, value = wrong.groups()
    key, parser = recipe.KEYS.get(name.removeprefix("config.")), values[name].parser
    if isinstance(parser, flags.EnumParser):
        return f"--{name} is {value!r}: {did_you_mean(value, parser.enum_values)}"
    # The commands' own flags are switches or take text.
    return f"--{name} is {value!r}: set it to {_KINDS[type(key.default) if key else bool]}."


def _help(command: Command, values: flags.FlagValues) -> str:
    """Return summary, usage, options and accepted keys with their explanations."""
    lines = [command.help.strip(), "\noptions:", *_entry("-h, --help", "show this help")]
    for name in _options(values):
        flag = values[name]
        short = f"-{flag.short_name}, " if flag.short_name else ""
        value = "" if flag.boolean else f" {name.upper()}"
        text = flag.help
        if isinstance(flag.parser, flags.EnumParser):
            text += f"; {', '.join(flag.parser.enum_values)}"
        default = "" if flag.boolean and not flag.default else _default(flag.default)
        no = "[no]" if flag.boolean and flag.default else ""
        lines += _entry(f"{short}--{no}{name}{value}", f"{text}{default}")
    accepted = _accepted(command, values)
    lines.append("\nkeys, each given as --config.KEY=VALUE:")
    stages = "stages.bce." in accepted or accepted == ("",)
    for path, key in recipe.KEYS.items():
        if path.startswith("stages."):
            continue
        if path == "checkpoint.every_steps" and stages:
            lines += _stage_entries()
        if path.startswith(accepted):
            lines += _entry(path, _explained(key) + _default(key.default))
    return "\n".join(lines)


def _stage_entries() -> Iterator[str]:
    first, *others = recipe.STAGES
    for path, key in recipe.KEYS.items():
        if path.startswith(f"stages.{first}."):
            name = path.rsplit(".", 1)[1]
            values = {first: key.default}
            values |= {stage: recipe.KEYS[f"stages.{stage}.{name}"].default for stage in others}
            shown = ", ".join(f"{stage} {value}" for stage, value in values.items())
            yield from _entry(f"stages.STAGE.{name}", f"{_explained(key)} (default: {shown})")


def _explained(key: recipe.Key) -> str:
    if key.choices:
        return f"{key.help}; {', '.join(filter(None, key.choices))}"
    return f"{key.help}; {key.valid[0]}" if key.valid else key.help


def _default(value: object) -> str:
    return "" if value in ("", None, []) else f" (default: {value})"


def _entry(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - _COLUMN)
    first = f"  {name:<{_COLUMN - 2}}"
    if len(first) > _COLUMN:
        return [first, *(" " * _COLUMN + line for line in lines)]
    return [first + lines[0], *(" " * _COLUMN + line for line in lines[1:])]


def load_settings(arguments: Arguments, name: str | Path) -> Settings:
    """Return the settings of a config with overrides; a preset among them ranks below the file."""
    config = load_config(name, arguments.overrides.get("preset"))
    config.update_from_flattened_dict(arguments.overrides)
    logging.getLogger("charm_jax").debug("Config %s", _find_config(str(name))[0])
    return settings.from_dict(config.to_dict())


def settings_with(name: str | Path, keys: Mapping[str, Any], where: str) -> Settings:
    """Return the settings of a config with values by ``a.b.c``, which ``where`` names in errors.

    Raises:
        InputError: an unknown key, or a value of another type.
    """
    config = load_config(name, keys.get("preset"))
    for path, value in keys.items():
        nested = value
        for part in reversed(path.split(".")):
            nested = {part: nested}
        merge(config, nested, where)
    return settings.from_dict(config.to_dict())


def settings_from(changes: dict, where: str, overrides: dict[str, Any] | None = None) -> Settings:
    """Return the settings of the defaults with ``changes``, which ``where`` names in errors."""
    config = recipe.defaults()
    merge(config, changes, where)
    config.update_from_flattened_dict(overrides or {})
    return settings.from_dict(config.to_dict())
