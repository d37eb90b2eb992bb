"""Take a trained model out of its run.

usage: charm-jax export [RUN] --out PATH [--format FORMAT] [options]

    charm-jax export demo --format portable --out shared/demo
    charm-jax export demo --format onnx --out demo.onnx

portable writes a folder for charm_jax.load, charm-jax predict and charm-jax eval, which works
without the run and names nobody. onnx and stablehlo write a program from images to scores, if it
computes what JAX does, and a JSON beside it. exit codes: 0 done; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import dataclasses
from pathlib import Path

from charm_jax.config import cli
from charm_jax.config.cli import Option, say
from charm_jax.export import portable, verified
from charm_jax.inference import loaded
from charm_jax.runs.arguments import CHECKPOINT, MEMORY, find_run, read_settings
from charm_jax.weights.card import beside
from data_pipelines.atomic_files import check_writable
from data_pipelines.errors import InputError, listed

_OPTIONS = {
    "format": Option("portable", "what to write", ["portable", *verified.FORMATS]),
    "out": Option("", "new folder or file"),
    **CHECKPOINT,
    **MEMORY,
    "thumbnails": Option(False, "add small pictures of the stored cases (portable)"),
    "keep_names": Option(False, "keep the names of images; those of patients never (portable)"),
}


def main(argv: list[str]) -> int:
    """Export a checkpoint of a run and return the exit code.

    Raises:
        InputError: there is no such run, checkpoint or memory, or the output exists.
    """
    command = cli.Command(__doc__, _OPTIONS, ("data.dir", "data.csv", "runs_dir"), words=True)
    arguments = cli.parse(command, argv)
    values = arguments.flags
    if len(arguments.words) > 1:
        raise InputError(
            f"{len(arguments.words)} runs are named: name one, for example charm-jax export demo "
            "--out shared/demo."
        )
    for name in ("thumbnails", "keep_names"):
        if values[name].value and values.format != "portable":
            raise InputError(f"--{name} is for --format portable: leave it out.")
    out = _check_out(values.out)
    if values.format != "portable":
        _check_out(str(beside(out)))
    run = find_run(arguments, arguments.words[0] if arguments.words else "")
    model = loaded.load_run(run, values.checkpoint, values.memory)
    # The data may have moved since training.
    model = dataclasses.replace(model, settings=read_settings(run, arguments))
    if values.format == "portable":
        portable.write(model, out, thumbnails=values.thumbnails, keep_names=values.keep_names)
    else:
        found = verified.write(model, out, values.format)
        shown = ", ".join(f"{name} {value:.1g}" for name, value in found.items())
        batches = listed(map(str, verified.BATCHES))
        say(f"Largest differences from JAX in batches of {batches}: {shown}.")
    say(f"Wrote {model.description} to {out}.")
    return 0


def _check_out(text: str) -> Path:
    """Return the path of the output, which must be new.

    Raises:
        InputError: it exists, or cannot be written.
    """
    if not text:
        raise InputError("--out is empty: name a new folder or file with --out.")
    out = Path(text)
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} already exists: move it or choose another --out.")
    check_writable(out.parent, "choose another --out")
    return out


if __name__ == "__main__":
    cli.run(main)
