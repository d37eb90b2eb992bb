"""Run the commands on a small simulated set, in a process of their own or in this one."""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from unittest import mock

from charm_jax.config import cli

SMALL = [
    "--config.data.phantom.train_images=420",
    "--config.data.phantom.test_images=310",
    "--config.data.phantom.image_size=32",
    "--config.data.image_size=32",
    "--config.stages.bce.frozen_epochs=1",
    "--config.stages.bce.epochs=2",
    "--config.stages.focal.epochs=2",
    "--config.stages.focal.batch_size=32",
    "--config.checkpoint.every_steps=3",
    "--config.log.every_steps=4",
    "--config.preset=published",
]


def command(module, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", f"charm_jax.{module}", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
    )


def train(*arguments, cwd):
    return command("train", *SMALL, *arguments, cwd=cwd)


def command_here(module, *arguments, cwd):
    """Run a command in this process, which has imported everything already.

    The result is that of ``command``; signal handlers and environment are put back.
    """
    main = importlib.import_module(f"charm_jax.{module}.__main__").main
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            mock.patch.dict(os.environ),
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = cli.guarded(main, list(arguments))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), err.getvalue())


def train_here(*arguments, cwd):
    return command_here("train", *SMALL, *arguments, cwd=cwd)


def read(path):
    return json.loads(path.read_text())


def copy_with_earlier(finished, folder):
    """Copy the run `demo` with its data, and once more as `other`, as it was after stage 1."""
    for part in ("runs", "data"):
        shutil.copytree(finished[0] / part, folder / part)
    shutil.copytree(folder / "runs/demo", folder / "runs/other")
    shutil.rmtree(folder / "runs/other/checkpoints/focal")
    return folder


def copy_data(finished, folder):
    shutil.copytree(finished[0] / "data", folder / "data")
