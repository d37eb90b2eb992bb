"""How often intervals hold the true AUROC, on SIMULATED scores of patients with like images.

    python benchmarks/bootstrap_coverage.py

Each simulation draws patients with several images; the images of one share a part of their scores
and tend to share their findings. A score is normal, higher by d where the finding is present, so
that the true AUROC is Φ(d / √2) and the true average precision an integral. Printed is, for the
patient bootstrap, the image bootstrap and DeLong's interval, the share of the simulations whose
95 % interval holds the truth: 93 to 97 % is right, less means that an interval is too narrow.
"""

import argparse
import multiprocessing
import time
from functools import partial

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from charm_jax.metrics import bootstrap, classification, delong

PREVALENCE = np.array([0.3, 0.15, 0.08])
EFFECT = np.array([1.0, 1.2, 1.5])  # d
NAMES = ("common", "medium", "rare")
METHODS = ("patient bootstrap", "image bootstrap", "DeLong")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--images", type=float, default=4.0, help="mean number a patient")
    parser.add_argument("--shared", type=float, default=0.6, help="share of a score's variance")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def draw(seed: int, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and patients of one simulation."""
    rng = np.random.default_rng(seed)
    counts = rng.geometric(1 / args.images, args.patients)
    patients = np.repeat(np.arange(args.patients), counts)

    def alike() -> np.ndarray:
        """Draw standard normal values, correlated within a patient."""
        of_patient = rng.normal(size=(args.patients, len(NAMES)))[patients]
        of_image = rng.normal(size=(len(patients), len(NAMES)))
        return np.sqrt(args.shared) * of_patient + np.sqrt(1 - args.shared) * of_image

    labels = (alike() < norm.ppf(PREVALENCE)).astype(np.int8)
    return alike() + EFFECT * labels, labels, patients


def truth() -> dict[str, np.ndarray]:
    """Compute the true value of each finding, and of their mean."""
    threshold = np.linspace(12, -12, 200_001)[:, None]
    recall, alarms = norm.sf(threshold - EFFECT), norm.sf(threshold)
    precision = PREVALENCE * recall / (PREVALENCE * recall + (1 - PREVALENCE) * alarms)
    values = {
        "auroc": norm.cdf(EFFECT / np.sqrt(2)),
        "average_precision": np.sum(np.diff(recall, axis=0) * precision[1:], axis=0),
    }
    return {metric: np.append(value, value.mean()) for metric, value in values.items()}


TRUTH = truth()


def covered(seed: int, args: argparse.Namespace) -> np.ndarray:
    """Whether each method's interval holds the truth, `[methods, metrics, findings + macro]`.

    DeLong's has no average precision: NaN.
    """
    scores, labels, patients = draw(seed, args)
    held = np.full((len(METHODS), 2, len(NAMES) + 1), np.nan)
    for method, clusters in enumerate((patients, np.arange(len(patients)))):
        drawn = bootstrap.resampled(scores, labels, clusters, resamples=args.resamples, seed=seed)
        for metric, values in enumerate((drawn.auroc, drawn.average_precision)):
            columns = np.column_stack([values, bootstrap.macro(values)])
            key = ("auroc", "average_precision")[metric]
            for column, expected in enumerate(TRUTH[key]):
                low, high = bootstrap.interval(columns[:, column])
                held[method, metric, column] = low is not None and low <= expected <= high
    shares = delong.influence(scores, labels)
    shares = np.column_stack([shares, delong.macro(shares)])
    summary = classification.summarise(scores, labels, NAMES)
    values = [summary["findings"][name]["auroc"] for name in NAMES] + [summary["macro_auroc"]]
    for column, (value, expected) in enumerate(zip(values, TRUTH["auroc"], strict=True)):
        low, high = delong.interval(value, shares[:, column])
        held[2, 0, column] = low is not None and low <= expected <= high
    return held


def main() -> None:
    args = arguments()
    began = time.perf_counter()
    with multiprocessing.Pool(args.processes) as pool:
        simulations = pool.imap_unordered(partial(covered, args=args), range(args.simulations))
        held = list(tqdm(simulations, total=args.simulations, unit=" simulations"))
    share = 100 * np.mean(held, axis=0)
    print(f"{args}, {time.perf_counter() - began:.0f} s, SIMULATED scores\n")
    print("| metric | method | " + " | ".join((*NAMES, "macro")) + " |")
    print("| --- " * (len(NAMES) + 3) + "|")
    for metric, name in enumerate(("AUROC", "AP")):
        for method in METHODS[: 3 - metric]:
            values = share[METHODS.index(method), metric]
            print(f"| {name} | {method} | " + " | ".join(f"{v:.1f} %" for v in values) + " |")


if __name__ == "__main__":
    main()
