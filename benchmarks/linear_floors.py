"""Logistic regression on pixels and on frozen features: what a trained network has to beat."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import charm_jax
from charm_jax.metrics.classification import summarise
from charm_jax.weights import load

COMPONENTS = 40
_INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def principal_components(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return 40 principal components of the pixels, fitted on the rows of training."""
    pixels = images.reshape(len(images), -1).astype(np.float32)
    return PCA(COMPONENTS, random_state=0).fit(pixels[train]).transform(pixels)


def frozen_features(
    images: np.ndarray, backbone: str, weights: str, findings: tuple[str, ...]
) -> np.ndarray:
    """Return the pooled features of a backbone with its first weights, ``[n, dim]``.

    Args:
        images: uint8 ``[n, side, side]``.
        backbone: its name.
        weights: value of ``config.model.init_from``.
        findings: names of the outputs, which are not used.
    """
    side = images.shape[1]
    _, state = charm_jax.create_model(
        backbone,
        num_classes=len(findings),
        charm=False,
        weights=weights,
        pathologies=findings,
        image_size=side,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.safetensors"
        charm_jax.save_weights(
            state,
            path,
            name=backbone,
            pathologies=findings,
            image_size=side,
            input_range=load.input_range(weights, backbone),
        )
        return charm_jax.load(path).features(images)


def logits(features: np.ndarray, labels: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Fit a logistic regression for each finding on train; return the scores of test.

    The strength of the penalty, one for all findings, is chosen by macro AUROC on val. A finding
    without both classes in train scores 0 everywhere.
    """
    best, chosen = -1.0, np.empty(0)
    findings = [*map(str, range(labels.shape[1]))]
    for inverse in _INVERSE_PENALTIES:
        scores = np.zeros(labels.shape)
        for column, truth in enumerate(labels.T):
            if len(np.unique(truth[part == "train"])) == 2:
                regression = LogisticRegression(C=inverse, max_iter=300)
                model = make_pipeline(StandardScaler(), regression)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit(features[part == "train"], truth[part == "train"])
                scores[:, column] = model.decision_function(features)
        val = part == "val"
        reached = summarise(scores[val], labels[val], findings)["macro_auroc"]
        if reached > best:
            best, chosen = reached, scores[part == "test"]
    return chosen
