"""How much of what is no X-ray of its kind a run flags, and how much of what is.

    python benchmarks/unfamiliar.py RUN      # after python -m charm_jax.predict FILE --run RUN

Takes the test part of the run, the same images turned, inverted and mirrored, crops of three
photographs that come with matplotlib and scikit-learn, noise and constants, and prints the share
that each measure flags, for RESULTS.md.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import matplotlib
import numpy as np
import sklearn
from PIL import Image

from charm_jax.inference import loaded
from charm_jax.inference.steps import eval_step
from charm_jax.metrics import ood
from charm_jax.runs import data as run_data

_BATCH = 64
_PHOTOGRAPHS = (
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
)


def crops(size: int, each: int = 100) -> np.ndarray:
    """Random squares of the photographs, ``[n, size, size, 1]`` uint8."""
    rng, made = np.random.default_rng(0), []
    for path in _PHOTOGRAPHS:
        image = Image.open(path).convert("L")
        for _ in range(each):
            side = int(rng.uniform(0.3, 1) * min(image.size))
            x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
            crop = image.crop((x, y, x + side, y + side))
            made.append(np.array(crop.resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(made)[..., None]


def outputs(step, state, images: np.ndarray, findings: int) -> dict[str, np.ndarray]:
    """Run the step on images that are in no table."""
    made = []
    unknown = np.full(_BATCH, -1, np.int32)
    for start in range(0, len(images), _BATCH):
        some = images[start : start + _BATCH]
        padded = np.pad(some, [(0, _BATCH - len(some)), (0, 0), (0, 0), (0, 0)])
        labels = np.full((_BATCH, findings), -1, np.int8)
        batch = {"image": padded, "labels": labels, "case_id": unknown, "patient_id": unknown}
        out = jax.device_get(step(state, batch))
        made.append({name: value[: len(some)] for name, value in out.items()})
    return {name: np.concatenate([out[name] for out in made]) for name in made[0]}


def row(name: str, said: Mapping[str, np.ndarray], reference: Mapping) -> str:
    judged = ood.judge(reference, ood.measures(said), said["thumbnail"])
    flags = {measure: value >= ood.LIMIT for measure, value in judged.items()}
    sds = said["thumbnail"].std(axis=(1, 2))
    places = range(len(sds))
    reasons = [ood.reasons({m: v[i] for m, v in judged.items()}, sds[i]) for i in places]
    shares = [f"{100 * flag.mean():.1f} %" for flag in flags.values()]
    any_of_them = 100 * np.mean([bool(reason) for reason in reasons])
    return " | ".join(["", name, f"{len(sds)}", *shares, f"{any_of_them:.1f} %", ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    model = loaded.load_run(run)
    data = run_data.load_data(model.settings)
    reference = json.loads((run / "novelty.json").read_text())
    rows = data.split.rows(model.settings.stage_names[-1], "test")
    test = model.predict_rows(data, rows, "test", large=("thumbnail",))
    step, size = model.compile(eval_step), model.settings.data.image_size
    some = data.table.store.read(rows[:200], size)
    kinds = {
        "upside down": some[:, ::-1],
        "quarter turn": np.rot90(some, axes=(1, 2)),
        "inverted": 255 - some,
        "mirrored": some[:, :, ::-1],
        "crops of three photographs": crops(size),
        "noise": np.random.default_rng(0).integers(0, 256, (50, size, size, 1), dtype=np.uint8),
        "constants": np.full((50, size, size, 1), 5 * np.arange(50)[:, None, None, None], np.uint8),
    }
    measures = " | ".join(reference["percentiles"])
    print(f"| images | number | {measures} | flagged |")
    print("| --- |" + " --- |" * (len(reference["percentiles"]) + 2))
    print(row("test part", test, reference))
    findings = len(data.table.findings)
    for name, images in kinds.items():
        print(row(name, outputs(step, model.state, images, findings), reference))


if __name__ == "__main__":
    main()
