"""What the commands share: the config and its overrides, and how an error leaves."""

import difflib
import errno
import importlib.machinery
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from charm_jax.config import recipe, settings
from charm_jax.config.settings import Settings
from charm_jax.distributed import processes
from data_pipelines.errors import InputError, did_you_mean

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.py"


def run(command: Callable[[list[str]], int]) -> None:
    """Run a command on the process's arguments and exit with its code.

    Bad input becomes one sentence on standard error and exit code 2; so does a disk that is full or
    may not be written. What is wrong with the program itself keeps its traceback.

    Compiled steps are kept in the user's cache folder, so that a second start is quick;
    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "charm_jax" / "xla"))
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of what is meant to be
    sys.exit(guarded(command, sys.argv[1:]))


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Return the command's exit code, or 2 after a sentence."""
    _notices()
    try:
        return command(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # whoever read the results has read enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the very end
        return 128 + signal.SIGPIPE
    except OSError as error:
        sentence = _sentence_of(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
    return 2


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


def _sentence_of(error: OSError) -> str | None:
    where = error.filename or "the run's folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{where}: no space is left on the disk: free some and start the command again, it "
            "continues from the last complete checkpoint."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{where} may not be read or written ({error.strerror}): change its permissions, or "
            "for the folder of a run choose another with --config.runs_dir."
        )
    return None


def say(text: str) -> None:
    """Log a notice, which goes to standard error; results alone go to standard output."""
    _notices().info(text)


def load_config(path: Path, preset: str | None = None) -> ConfigDict:
    """Return the recipe with the changes of a preset and of a config file.

    Args:
        path: of the config file.
        preset: a key of ``recipe.PRESETS``; None for the file's own.

    Raises:
        InputError: the file is missing, has no ``get_config``, or names a key or type that the
            recipe does not have; or there is no such preset.
    """
    if not path.is_file():
        raise InputError(f"There is no config file {path}: name one, such as configs/effv2s.py.")
    config = recipe.defaults()
    changes = _changes(path).to_dict()
    preset = changes.get("preset", "") if preset is None else preset
    if preset not in recipe.PRESETS:
        known = [name for name in recipe.PRESETS if name]
        raise InputError(f"config.preset is {preset!r}: {did_you_mean(str(preset), known)}")
    merge(config, recipe.PRESETS[preset], "preset")
    merge(config, changes, str(path))
    if not config.name:
        config.name = path.stem
    return config


def _changes(path: Path) -> ConfigDict:
    """Run the file's ``get_config()``."""
    spec = importlib.util.spec_from_loader(
        f"config_{path.stem}",
        importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path)),
    )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        changes = module.get_config()
    except Exception as error:  # whatever a user's file may do
        raise InputError(
            f"{path} is no config ({type(error).__name__}: {error}): see configs/effv2s.py for one."
        ) from error
    if not isinstance(changes, ConfigDict):
        raise InputError(
            f"{path}: get_config() returns {type(changes).__name__} and not an ml_collections "
            "ConfigDict: see configs/effv2s.py."
        )
    return changes


def merge(config: ConfigDict, changes: dict, where: str, prefix: str = "config") -> None:
    """Write ``changes`` into ``config``, key by key.

    Raises:
        InputError: a key that ``config`` lacks, or a value of another type.
    """
    for key, value in changes.items():
        name = f"{prefix}.{key}"
        if key not in config:
            raise InputError(f"{where}: {_unknown(name, config, prefix)}")
        if isinstance(config[key], ConfigDict):
            if not isinstance(value, dict):
                raise InputError(
                    f"{where}: {name} is a group of keys, not {value!r}: set one of them."
                )
            merge(config[key], value, where, name)
            continue
        kind = type(config[key])
        if type(value) is int and kind is float:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{where}: {name} is {value!r} but must be of type {kind.__name__}.")
        config[key] = value


def _unknown(name: str, config: ConfigDict, prefix: str) -> str:
    known = [f"{prefix}.{key}" for key in config]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"there is no key {name}: did you mean {near[0]}?"


def split_config_flag(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take ``--config FILE`` or ``--config=FILE`` out of the arguments."""
    path, rest = None, []
    # absl takes one dash as well as two.
    arguments = iter(f"-{a}" if a.startswith("-config") else a for a in argv)
    for argument in arguments:
        if argument == "--config":
            path = next(arguments, "")
        elif argument.startswith("--config="):
            path = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    if path == "":
        raise InputError("--config needs the path of a config file.")
    return path, rest


def load_and_parse(
    path: Path, argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Settings, flags.FlagValues]:
    """Load a config file and parse overrides; a preset among them ranks below the file."""
    config = load_config(path)
    preset = config.preset
    values = parse(argv, config, define)
    if config.preset != preset:
        config = load_config(path, config.preset)
        values = parse(argv, config, define)
    return settings.from_dict(config.to_dict()), values


def parse_defaults(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Settings, flags.FlagValues]:
    """Parse overrides of the defaults."""
    return parse_over({}, "", argv, define)


def parse_over(
    changes: dict, where: str, argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Settings, flags.FlagValues]:
    """Parse overrides of the defaults with ``changes``, which ``where`` names in errors."""
    config = recipe.defaults()
    merge(config, changes, where)
    values = parse(argv, config, define)
    return settings.from_dict(config.to_dict()), values


def complete(changes: dict, where: str) -> dict:
    """Return all keys of a config that states ``changes`` to the defaults."""
    config = recipe.defaults()
    merge(config, changes, where)
    return config.to_dict()


def parse(
    argv: Sequence[str], config: ConfigDict, define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    """Parse ``--config.a.b=value`` overrides into ``config`` and the command's own flags.

    Args:
        argv: arguments without the program's name.
        config: changed in place; every override needs a key of it and a value of its type.
        define: defines the command's flags on the given FlagValues.

    Raises:
        InputError: an unknown key or flag (the nearest is named) or a value of another type.
    """
    _check_keys(argv, config)
    values = flags.FlagValues()
    define(values)
    if {"--help", "-help", "-h"} & set(argv):
        print(f"{values.get_help()}\nKeys (--config.key=value) and their values:\n\n{config}")
        sys.exit(0)
    argv = ["charm_jax", *argv]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise InputError(f"{str(error).rstrip('.')}; --help lists the flags.") from None
    if len(rest) > 1:
        raise InputError(f"The argument {rest[1]!r} means nothing here: flags begin with --.")
    return values


def allow_only(argv: Sequence[str], keys: tuple[str, ...], shown: str) -> None:
    """Refuses overrides of what a run was trained with.

    Args:
        argv: arguments without the program's name.
        keys: beginnings of the overrides that are allowed, as ``config.data.``.
        shown: what the sentence says of them.

    Raises:
        InputError: the first other override.
    """
    for argument in argv:
        key = argument.lstrip("-").split("=", 1)[0]
        if key.startswith("config.") and not key.startswith(keys):
            raise InputError(
                f"--{key} cannot change what a run was trained with: only {shown} can be given."
            )


def _check_keys(argv: Sequence[str], config: ConfigDict) -> None:
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        node, prefix = config, "config"
        for key in argument.removeprefix("--config.").split("=", 1)[0].split("."):
            if not isinstance(node, ConfigDict):
                raise InputError(f"The command line: {prefix} is a value and has no key {key!r}.")
            if key not in node:
                raise InputError(f"The command line: {_unknown(f'{prefix}.{key}', node, prefix)}")
            node, prefix = node[key], f"{prefix}.{key}"
        if isinstance(node, ConfigDict):
            raise InputError(
                f"The command line: {prefix} is a group of keys: set one of them, such as "
                f"{prefix}.{next(iter(node))}."
            )
