"""Run ``charm-jax COMMAND``, also as ``python -m charm_jax COMMAND``."""

import difflib
import importlib
import sys

from charm_jax import __version__
from data_pipelines import stopping

_COMMANDS = {
    "train": ("charm_jax.train.__main__", "train a network from a config"),
    "eval": ("charm_jax.eval.__main__", "score a run or a weight file, and write a report"),
    "predict": ("charm_jax.predict.__main__", "predict image files"),
    "memory": ("charm_jax.memory.__main__", "list, edit or refill the memory bank of a run"),
    "runs": ("charm_jax.runs.__main__", "list, compare, reduce and delete runs"),
    "sweep": ("charm_jax.sweep.__main__", "train and compare the rows of a table"),
    "export": (
        "charm_jax.export.__main__",
        "write a model as a portable folder, ONNX or StableHLO",
    ),
    "serve": ("charm_jax.serve.__main__", "serve a model as a web page and an HTTP interface"),
    "push": ("charm_jax.export.push", "send a portable model to the Hugging Face hub"),
    "convert": ("charm_jax.convert", "write a run's weights for PyTorch or as safetensors"),
    "prepare": ("data_pipelines.prepare.__main__", "write a data set as shards of small images"),
    "inspect": ("data_pipelines.inspect.__main__", "describe a data set before training on it"),
    "phantom": ("data_pipelines.phantom.__main__", "draw simulated chest X-rays"),
}
# They read no config, and start without what that imports.
_WITHOUT_CONFIG = ("data_pipelines.", "charm_jax.runs.")


def main() -> None:
    """Run the command that the first argument names, and leave with its exit code."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "--version":
        print(f"charm-jax {__version__}")
    elif name in ("--help", "-h"):
        print("usage: charm-jax COMMAND [options]\n\ncommands:")
        for command, (_, help_text) in _COMMANDS.items():
            print(f"  {command:<9} {help_text}")
        print("\nexample: charm-jax train\n`charm-jax COMMAND --help` describes a command.")
        print("Research software, not a medical device.")
    elif name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(_COMMANDS)}."
        print(f"error: There is no command {name!r}: {remedy}", file=sys.stderr)
        sys.exit(2)
    else:
        stopping.exit_at_once()  # until the command itself handles the signals
        module = importlib.import_module(_COMMANDS[name][0])
        sys.argv = [f"charm-jax {name}", *rest]
        if module.__name__.startswith(_WITHOUT_CONFIG):
            sys.exit(module.main(rest))
        from charm_jax.config import cli

        cli.run(module.main)


if __name__ == "__main__":
    main()
