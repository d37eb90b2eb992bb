"""Plain data of an evaluation that never was, for tests of its report."""

import dataclasses

import numpy as np

from charm_jax.metrics import localisation as metric
from charm_jax.metrics.result import EvaluationResult
from charm_jax.report.contents import Bank, Evaluated, Localisation
from data_pipelines.tables.findings import NIH_FINDINGS

RNG_SEED = 7


def evaluated(n=120, findings=NIH_FINDINGS, seed=RNG_SEED, k=5, slots=32, charm=True):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(findings))) < 0.2).astype(np.int8)
    logits = (rng.normal(size=labels.shape) - 2 + 1.5 * labels).astype(np.float32)
    charms = {}
    if charm:
        charms = {
            "attention": rng.random((n, 2, 2)).astype(np.float32),
            "slots": rng.integers(slots, size=(n, k)).astype(np.int32),
            "similarities": rng.random((n, k)).astype(np.float32),
            "valid": np.ones((n, k), bool),
            "disagreement": rng.random(n).astype(np.float32),
        }
    return Evaluated(
        findings=tuple(findings),
        images=np.array([f"{i // 3:08d}_{i % 3:03d}.png" for i in range(n)]),
        rows=np.arange(n),
        labels=labels,
        logits=logits,
        **charms,
    )


def bank(findings=NIH_FINDINGS, slots=32, filled=30, seed=RNG_SEED):
    rng = np.random.default_rng(seed)
    labels = (rng.random((slots, len(findings))) < 0.2).astype(np.int8)
    features = rng.normal(size=(slots, 16)).astype(np.float32)
    has = np.arange(slots) < filled
    features[~has], labels[~has] = 0, -1
    return Bank(
        features=features,
        labels=labels,
        filled=has,
        images=np.where(has, [f"1{i:07d}_000.png" for i in range(slots)], ""),
        patients=np.where(has, [f"p{i}" for i in range(slots)], ""),
        rows=np.where(np.arange(slots) % 2, np.arange(slots), -1),
    )


def localisation(evaluated, pairs=20):
    """Maps and boxes of images, the last without heat."""
    rng = np.random.default_rng(RNG_SEED)
    rows, columns = np.arange(pairs), np.arange(pairs) % min(3, len(evaluated.findings))
    first = rng.uniform(0, 0.5, (pairs, 2))
    boxes = np.hstack([first, first + rng.uniform(0.2, 0.5, (pairs, 2))])
    truth = metric.Truth(boxes, np.arange(pairs), columns, rows // 3)
    maps = {
        "attention": rng.random((pairs, 2, 2)),
        "grad_cam": rng.random((pairs, 2, 2)),
        "grad_cam_finer": rng.random((pairs, 4, 4)),
    }
    maps["grad_cam"][-1] = 0
    located = {name: metric.from_maps(heats) for name, heats in maps.items()}
    located |= {"image_centre": metric.image_centre(truth), "mean_box": metric.mean_box(truth)}
    result = metric.score(located, truth, evaluated.findings)
    return Localisation(result, truth, rows, maps, located)


def read(rows):
    ramp = np.add.outer(np.arange(32), np.arange(32)) * 4
    return np.stack([((ramp + 3 * row) % 256).astype(np.uint8) for row in rows])


def measured(labels):
    """One finding's entry of ``metrics.json``."""
    known = labels[labels >= 0]
    positives, negatives = int((known == 1).sum()), int((known == 0).sum())
    entry = {
        "positives": positives,
        "negatives": negatives,
        "unknown": len(labels) - len(known),
        "prevalence": positives / len(known) if len(known) else None,
        "threshold": 0.21,
        "temperature": 1.3,
    }
    numbers = {
        "auroc": 0.81,
        "auroc_interval": [0.72, 0.88],
        "average_precision": 0.45,
        "average_precision_interval": [0.31, 0.58],
        "tp": 14,
        "fp": 25,
        "fn": 6,
        "tn": 75,
        "f1": 0.4,
        "sensitivity": 0.7,
        "specificity": 0.75,
        "ppv": 0.36,
        "npv": 0.93,
        "brier": 0.1,
        "ece_equal_width": 0.05,
        "ece_equal_mass": 0.04,
        "operating_points": {
            "sensitivity_95": {"threshold": 0.0004, "tp": 19, "fp": 80, "fn": 1, "tn": 20},
            "specificity_95": {},
        },
    }
    undefined = dict.fromkeys(numbers) | {
        "auroc_interval": [None, None],
        "average_precision_interval": [None, None],
        "operating_points": {"sensitivity_95": {}, "specificity_95": {}},
    }
    return entry | (numbers if positives and negatives else undefined)


def group(names, value):
    interval = [None, None] if value is None else [value - 0.1, value + 0.1]
    return {
        "findings": names,
        "undefined": [],
        "auroc": value,
        "auroc_interval": interval,
        "average_precision": value,
        "average_precision_interval": interval,
    }


BANK = {
    "source": "nih_chest_xray14",
    "split": "train",
    "images_sha256": None,
    "patients_known": True,
    "images_here": 0,
}


def metrics(evaluated, **changes):
    findings = {
        name: measured(evaluated.labels[:, column])
        for column, name in enumerate(evaluated.findings)
    }
    undefined = [name for name, entry in findings.items() if entry["auroc"] is None]
    defined = len(findings) - len(undefined)
    macro = {
        "value": 0.8123,
        "interval": [0.7911, 0.8312],
        "findings": defined,
        "undefined": undefined,
    }
    women = {
        "n_images": 60,
        "n_patients": 20,
        "macro_auroc": 0.8,
        "macro_auroc_interval": [0.45, 0.86],
        "findings": dict.fromkeys(findings, 0.8),
        "undefined": [],
    }
    men = women | {
        "macro_auroc": None,
        "macro_auroc_interval": [None, None],
        "findings": dict.fromkeys(findings),
        "undefined": list(findings),
    }
    names = list(findings)
    return {
        "source": "nih_chest_xray14",
        "simulated": False,
        "data": {},
        "reading": {},
        "rule": "official",
        "split": "test",
        "split_sha256": "ab" * 32,
        "cases_sha256": "ba" * 32,
        "checkpoint": "focal/123",
        "n_images": len(evaluated.images),
        "n_patients": -(-len(evaluated.images) // 3),
        "patients_known": True,
        "images_present": 1000,
        "images_missing": 0,
        "refused": 0,
        "leak_images": 0,
        "leak_of": 90,
        "leak_of_all": 0,
        "leak_seen": 0,
        "trained_on_simulated": False,
        "began_from": None,
        "bank": BANK,
        "macro_auroc": 0.8123,
        "macro_auroc_interval": [0.7911, 0.8312],
        "macro": {
            "auroc": macro,
            "average_precision": macro | {"value": 0.45, "interval": [0.4, 0.5]},
            "f1": {"value": 0.4, "findings": defined, "undefined": undefined},
        },
        "interval_method": {"auroc": "bootstrap", "average_precision": "bootstrap"},
        "calibration": {
            "checkpoint": "focal/123",
            "split_sha256": "ef" * 32,
            "on_these_images": False,
        },
        "groups": {
            "head": group(names[:1], 0.7),
            "medium": group([], None),
            "tail": group(names[1:], 0.6),
        },
        "subgroups": {"sex": {"F": women, "M": men}, "view": {}},
        "findings": findings,
        "undefined": undefined,
    } | changes


def result(evaluated, **changes):
    """The result whose ``metrics.json`` this is, with changed fields."""
    whole = EvaluationResult.from_json(metrics(evaluated))
    return dataclasses.replace(whole, **changes)


CONFIG = {
    "name": "a run",
    "data": {"image_size": 32, "dir": "data"},
    "model": {
        "backbone": "efficientnet_v2_nano",
        "charm": True,
        "fusion": True,
        "momentum_branch": True,
        "retrieval_k": 5,
        "rarity": "norm_inlier",
        "memory": "published",
    },
}
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"jax": "0.10.2"},
    "commit": "c0ffee",
    "devices": ["cpu"],
}
SUMMARY = {
    "stages": {"focal": {"epochs": 2, "best_epoch": 1, "stopped_early": True}},
    "seconds": 12.5,
    "params_sha256": "cd" * 32,
}


def log():
    for stage in ("bce", "focal"):
        for step in (4, 8):
            line = {"stage": stage, "step": step}
            yield {"kind": "interval", **line, "loss": 1 / step, "rate": 1e-3, "b1": 0.9}
            losses = {"train_loss": 1 / step, "val_loss": 2 / step, "val_macro_auroc": None}
            yield {"kind": "epoch", **line, "epoch": step // 4, **losses}
