"""Compare the remedies of the sweep ``tail`` on real images, by patient folds.

    charm-jax sweep tail_folds --config.data.dir=DIR
    charm-jax sweep report tail_folds --config.data.dir=DIR

DIR holds tables of ChestX-ray14 and all or some of its images, which are divided into folds: those
of both official lists. Both stages have the same batches, so that they share a compiled step.
"""

import runpy
from pathlib import Path


def get_sweep() -> dict:
    """Return the rows of ``tail`` but its augmentations; the first is compared with all others."""
    tail = runpy.run_path(str(Path(__file__).with_name("tail.py")))["get_sweep"]()
    augmentations = [row for row in tail["rows"] if "augment" in "".join(row.get("keys", {}))]
    return tail | {
        "rows": [row for row in tail["rows"] if row not in augmentations],
        "keys": {
            "data.source": "nih_chest_xray14",
            "data.missing": "skip",
            "stages.focal.batch_size": 32,
        },
        "seeds": [0],
        "folds": 5,
    }
