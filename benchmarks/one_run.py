"""A run of the commands, trained and evaluated, for the benchmarks that compare many."""

import subprocess
import sys
from pathlib import Path
from typing import Any


def train_and_evaluate(config: str, keys: dict[str, Any], overrides: list[str]) -> Path:
    """Trains and evaluates the test part; the folder of the evaluation.

    A run that was cut off goes on, and a finished one is only evaluated.

    Args:
        config: path of the config file.
        keys: of the config, ``runs_dir`` and ``name`` among them, and their values.
        overrides: more of them as the command line takes them.
    """
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    train = ["charm_jax.train", "--config", config, *flags, *overrides]
    evaluate = ["charm_jax.eval", "--run", keys["name"], f"--config.runs_dir={keys['runs_dir']}"]
    for command in (train, evaluate):
        subprocess.run([sys.executable, "-m", *command], check=True)
    return Path(keys["runs_dir"]) / keys["name"] / "eval" / "test"
