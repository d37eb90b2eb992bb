"""Running the commands as a user does, on a small simulated set."""

import json
import shutil
import subprocess
import sys

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


def read(path):
    return json.loads(path.read_text())


def copy_data(finished, folder):
    shutil.copytree(finished[0] / "data", folder / "data")
