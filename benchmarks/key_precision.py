"""Compare predictions of a run that votes with those from keys rounded to bfloat16.

    python benchmarks/key_precision.py RUN

Scores the test part with the bank as it is and with its keys rounded, all arithmetic in float32.
"""

import argparse
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from charm_jax.inference import loaded
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.classification import auroc_and_ap
from charm_jax.runs import data as run_data


def rounded(model: LoadedModel) -> LoadedModel:
    """Return the model with keys of bfloat16's precision."""
    memory = model.state.memory
    keys = memory.features.astype(jnp.bfloat16).astype(jnp.float32)
    return dataclasses.replace(
        model, state=model.state.replace(memory=memory.replace(features=keys))
    )


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    model = loaded.load_run(parser.parse_args().run)
    data = run_data.load_data(model.settings)
    rows = data.split.rows(model.settings.stage_names[-1], "test")
    exact, other = (m.predict_rows(data, rows, "test") for m in (model, rounded(model)))
    labels, findings = data.table.labels[rows], data.table.findings
    values = [
        [entry["auroc"] for entry in auroc_and_ap(out["logits"], labels, findings).values()]
        for out in (exact, other)
    ]
    same = [len({*a} & {*b}) / len(a) for a, b in zip(exact["slots"], other["slots"], strict=True)]
    first = exact["slots"][:, 0] == other["slots"][:, 0]
    keys = model.state.memory.features
    print(
        f"{len(rows)} images, {keys.shape[0]} keys of {keys.shape[1]}: {keys.nbytes / 1e6:.1f} MB"
    )
    print(f"largest difference of a logit: {np.abs(exact['logits'] - other['logits']).max():.2e}")
    print(f"macro AUROC: {np.mean(values[0]):.5f}, rounded {np.mean(values[1]):.5f}")
    print(f"largest difference of a finding: {np.abs(np.subtract(*values)).max():.1e}")
    print(f"the same nearest cases: {np.mean(same):.2%}; the same nearest one: {first.mean():.2%}")


if __name__ == "__main__":
    main()
