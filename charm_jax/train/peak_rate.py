"""The peak rate of a stage: the config's, or with ``find_lr`` that of a range test, done once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from charm_jax.config.cli import say
from charm_jax.config.settings import Settings
from charm_jax.distributed import mesh, processes
from charm_jax.models.baseline import Baseline
from charm_jax.models.charm import Charm
from charm_jax.models.state import TrainState, begin_stage
from charm_jax.runs import folder
from charm_jax.runs.data import Data
from charm_jax.train import lr_finder, setup
from charm_jax.train.loop import Plan
from data_pipelines.errors import InputError
from data_pipelines.loading.resident import ResidentCases


@dataclasses.dataclass(frozen=True)
class PeakRate:
    """What a range test needs of a run.

    Attributes:
        config: of the run.
        data: of the run.
        model: the network.
        cases: on the devices, or None.
        directory: of the run; ``range_test_<stage>.json`` and ``.png`` are written there.
        title: of the picture.
    """

    config: Settings
    data: Data
    model: Charm | Baseline
    cases: ResidentCases | None
    directory: Path
    title: str

    def of(self, plan: Plan, state: TrainState) -> float:
        """The peak rate of a stage that begins with ``state``.

        Raises:
            InputError: the range test found no rate at which the loss falls.
        """
        keys = self.config.stages[plan.part]
        if not keys.find_lr:
            return keys.peak_lr
        path = self.directory / f"range_test_{plan.stage}.json"
        if not processes.broadcast_from_first(path.exists):
            say(f"Range test of stage {plan.stage}: {lr_finder.STEPS} steps on a copy.")
            result = self._range_test(plan, state)
            processes.broadcast_from_first(lambda: self._write(path, plan, result))
        peak = processes.broadcast_from_first(lambda: folder.read_json(path)["peak_lr"])
        say(f"Peak rate of stage {plan.stage} by its range test: {peak:.2e} ({path}).")
        return peak

    def _range_test(self, plan: Plan, state: TrainState) -> dict[str, Any]:
        optimizer = setup.range_test_optimizer(self.config, plan)
        step = setup.train_step(self.config, self.model, plan, optimizer, self.cases)
        epochs = -(-lr_finder.STEPS // plan.steps_per_epoch)
        longer = dataclasses.replace(plan, epochs=epochs)
        batches = setup.training_batches(self.config, self.data, longer, 0)
        begun = begin_stage(state, optimizer, state.rng, freeze_trunk=plan.freeze_trunk)
        begun = mesh.replicated(begun, mesh.mesh())
        try:
            rates, losses = lr_finder.sweep(begun, batches, step)
        finally:
            batches.close()
        peak = lr_finder.suggest(rates, losses)
        if peak is None:
            raise InputError(
                f"The range test of stage {plan.stage} found no rate at which the loss falls: set "
                f"--config.stages.{plan.part}.find_lr=False and peak_lr."
            )
        return {"peak_lr": peak, "rates": rates.tolist(), "losses": losses.tolist()}

    def _write(self, path: Path, plan: Plan, result: dict[str, Any]) -> None:
        from charm_jax.report import curves

        curves.draw_sweep(
            path.with_suffix(".png"),
            f"{self.title}\nrange test of stage {plan.stage}",
            np.array(result["rates"]),
            np.array(result["losses"]),
            result["peak_lr"],
        )
        folder.write_json(path, result)
