"""The columns of ``benchmarks/tail.py``."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

NAMES = ("A", "B", "C")
PREVALENCE = {"A": 0.4, "B": 0.01, "C": 0.03}


@pytest.fixture
def tail(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("tail")


@pytest.fixture
def folds(tmp_path):
    """Two runs, labels and logits of each; the second one has no image with B."""
    runs, parts = [], []
    for fold in range(2):
        generator = np.random.default_rng(fold)
        labels = (generator.random((80, 3)) < (0.4, 0.1, 0.2)).astype(int)
        labels[:, 1] *= fold == 0
        logits = generator.normal(size=(80, 3)) + labels
        columns = {f"{name}_logit": logits[:, i] for i, name in enumerate(NAMES)}
        columns |= {f"{name}_label": labels[:, i] for i, name in enumerate(NAMES)}
        run = tmp_path / str(fold)
        (run / "eval/test").mkdir(parents=True)
        table = pd.DataFrame({"patient": np.arange(80) // 2, **columns})
        table.to_csv(run / "eval/test/predictions.csv", index=False)
        (run / "split.json").write_text(json.dumps({"prevalence": PREVALENCE}))
        runs.append(run)
        parts.append((labels, logits.astype(np.float32)))
    return runs, parts


@pytest.mark.parametrize(
    ("kind", "score"),
    [("auroc", roc_auc_score), ("average_precision", average_precision_score)],
)
def test_a_finding_is_averaged_over_the_folds_that_have_it(tail, folds, kind, score):
    runs, parts = folds
    means = tail.means_of(runs, 0)
    a, c = (np.mean([score(y[:, i], z[:, i]) for y, z in parts]) for i in (0, 2))
    b = score(parts[0][0][:, 1], parts[0][1][:, 1])
    wanted = {"macro": np.mean([a, b, c]), "head": a, "medium": c, "tail": b}
    found = {column: means[kind, column][0] for column in wanted}
    assert found == pytest.approx(wanted, abs=1e-6)
    low, high = np.quantile(means[kind, "head"][1:], [0.025, 0.975])
    assert low < a < high


def test_groups_are_by_prevalence_or_the_ends(tail):
    by_prevalence = {"macro": ["A", "B", "C"], "head": ["A"], "medium": ["C"], "tail": ["B"]}
    assert tail.groups_of(PREVALENCE, 0) == by_prevalence
    ends = {"macro": ["B", "C", "A"], "1 most frequent": ["A"], "1 rarest": ["B"]}
    assert tail.groups_of(PREVALENCE, 1) == ends
