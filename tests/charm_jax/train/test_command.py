import sys

import pytest
from recipes import experiment_of

from charm_jax.config import recipe
from charm_jax.train import __main__ as command
from data_pipelines.errors import InputError


@pytest.mark.parametrize(
    ("average", "over"), [(0.0, ""), (0.9, ""), (0.99, "100"), (0.9999, "10,000")]
)
def test_an_average_over_more_steps_than_the_run_has_draws_a_warning(average, over):
    config = recipe.defaults()
    config.model.average = average
    # (3 + 20) steps of stage 1 and 10 of stage 2.
    notes = command._long_average(experiment_of(config, {"bce": 64, "focal": 128}))
    assert notes == [
        f"warning: config.model.average {average} averages over {over} steps, more than the 33 of "
        "this run: set it to 0.7, a tenth of them."
    ] * bool(over)


def test_only_frozen_random_weights_draw_a_warning():
    config = recipe.defaults()
    experiment = experiment_of(config, {})
    (note,) = command._random_and_frozen(experiment.settings, "")
    assert "stage bce starts with a frozen trunk" in note
    config.stages.bce.freeze_trunk = False
    assert command._random_and_frozen(experiment_of(config, {}).settings, "") == []


def test_a_dry_run_names_the_extra_that_the_weights_to_download_need(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    config = recipe.defaults()
    config.model.init_from = "imagenet"
    with pytest.raises(InputError, match=r'pip install "charm-jax\[torch\]"'):
        command._report_dry_run(experiment_of(config, {}), {})
