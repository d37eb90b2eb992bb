import json

import numpy as np
from PIL import Image

from charm_jax.report import curves


def _lines(stage):
    for step in range(1, 9):
        values = {"loss": 1 / step, "rate": 1e-3 * step, "b1": 0.9}
        yield {"kind": "interval", "stage": stage, "step": step, **values}
        if step % 4 == 0:
            values = {"train_loss": 1 / step, "val_loss": 2 / step, "val_macro_auroc": None}
            values["best"] = step == 4  # by another score than the loss
            yield {"kind": "epoch", "stage": stage, "step": step, "epoch": step // 4, **values}


def _looks_drawn(path, width, height):
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.shape[1] >= width
    assert pixels.shape[0] >= height
    assert len(np.unique(pixels)) > 20


def test_curves_have_a_column_for_each_stage_even_without_an_auroc(tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in [*_lines("bce"), *_lines("focal")])
    (tmp_path / "metrics.jsonl").write_text(text)
    curves.draw_curves(tmp_path, "a run", ["bce", "focal"])
    _looks_drawn(tmp_path / "curves.png", 1000, 800)


def test_the_epoch_that_the_run_took_for_the_best_is_marked():
    figure = curves.stage_curves(list(_lines("bce")), ["bce"])
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels[-1] == "best, epoch 1"


def test_a_stage_without_a_line_yet_is_an_empty_column(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    curves.draw_curves(tmp_path, "a run", ["bce"])
    _looks_drawn(tmp_path / "curves.png", 500, 800)


def test_a_sweep_is_drawn(tmp_path):
    rates = 10.0 ** np.linspace(-7, 1, 50)
    curves.draw_sweep(
        tmp_path / "sweep.png", "a stage", rates.tolist(), (1 / (1 + rates)).tolist(), 1e-3
    )
    _looks_drawn(tmp_path / "sweep.png", 600, 400)


def test_a_line_that_a_killed_run_did_not_finish_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    assert curves.read_log(path) == [{"step": 1}]
