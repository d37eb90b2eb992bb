"""Write the model card of a portable model: a README with the header of the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from charm_jax import __version__
from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.metrics.result import EvaluationResult, Interval
from charm_jax.report import provenance
from charm_jax.report.contents import number
from charm_jax.runs import portable


def render(
    name: str,
    model: LoadedModel,
    calibrator: Calibrator,
    evaluations: Mapping[str, EvaluationResult],
    directory: Path,
) -> str:
    """Return the text of the card.

    Args:
        name: of the folder.
        model: portable model.
        calibrator: its calibration.
        evaluations: results by the name of their folder.
        directory: the folder as far as it is written.
    """
    trained, memory = model.trained, model.state.memory
    pictures = [*(directory / portable.THUMBNAILS).glob("*.png")]
    limits = zip(calibrator.findings, calibrator.thresholds().tolist(), strict=True)
    return _template().render(
        name=name,
        version=__version__,
        settings=model.settings,
        checkpoint=model.checkpoint,
        simulated=trained["simulated"],
        source=trained["source"],
        trained=trained,
        stage=trained["stages"][model.settings.stage_names[-1]],
        findings=model.pathologies,
        began_from=model.provenance["began_from"],
        thresholds={finding: None if np.isnan(limit) else limit for finding, limit in limits},
        reference=calibrator.reference,
        stored=None if memory is None else len(set(memory.case_ids.tolist()) - {-1}),
        images_named=bool(trained.get("images_named")),
        pictures=len(pictures),
        evaluations=evaluations,
        notices={key: provenance.notices(result) for key, result in evaluations.items()},
        leaks={key: " ".join(provenance.leak(result)) for key, result in evaluations.items()},
        results=[_result(name, result) for result in evaluations.values()],
        disclaimer=provenance.DISCLAIMER,
    )


def _result(name: str, result: EvaluationResult) -> dict[str, Any]:
    """Return an entry of ``model-index``, the hub's own form of results."""
    said = " (SIMULATED images)" if result.simulated else ""
    values = {
        "roc_auc": ("Macro AUROC", "auroc"),
        "average_precision": ("Macro AP", "average_precision"),
    }
    return {
        "task": {"type": "image-classification", "name": "Multi-label chest X-ray classification"},
        "dataset": {"type": result.source, "name": f"{result.source}{said}", "split": result.split},
        "metrics": [
            {"type": kind, "name": f"{title}{said}", "value": round(result.macro[key].value, 4)}
            for kind, (title, key) in values.items()
            if result.macro[key].value is not None
        ],
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=False,  # Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"with_interval": _with_interval, "cell": _cell}
    return environment.get_template("README.md")


def _cell(text: object) -> str:
    """Return text for a cell of a table, without what ends one."""
    return " ".join(str(text).replace("|", "\\|").split())


def _with_interval(value: float | None, interval: Interval) -> str:
    low, high = interval
    return number(value) + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
