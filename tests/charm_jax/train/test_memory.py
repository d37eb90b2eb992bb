import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from recipes import experiment_of

from charm_jax.config import cli
from charm_jax.train import memory, setup
from data_pipelines.errors import InputError

GIB = 2**30


def experiment(resident):
    config = cli.load_config("demo")
    config.data.resident = resident
    config.data.image_size = 32
    config.model.charm = False
    config.model.input_range = "unit"
    made = experiment_of(config, {"bce": 640, "focal": 1280}, findings=3)
    made.data.prevalence = (0.1,) * 3
    made.data.seen = np.arange(2000)
    made.data.table.images = np.arange(2500)
    vars(made)["cases"] = None  # not loaded
    return made


def plans(made):
    return [setup.make_plan(made, phase) for phase in made.settings.phases]


@pytest.fixture
def holding(monkeypatch):
    """Check a training on a device of so many GiB."""

    def check(made, gib):
        device = SimpleNamespace(
            memory_stats=lambda: {"bytes_limit": gib * GIB},
            platform="gpu",
            compute_capability="8.0",
        )
        monkeypatch.setattr(memory.jax, "local_devices", lambda: [device])
        memory.check_memory(made, plans(made))

    return check


@pytest.fixture
def needing(monkeypatch):
    """A step that works in 4 GiB beside arguments of 2 GiB, which it gives back in place."""
    analysis = SimpleNamespace(
        temp_size_in_bytes=4 * GIB,
        argument_size_in_bytes=2 * GIB,
        output_size_in_bytes=GIB,
        alias_size_in_bytes=GIB,
    )
    compiled = SimpleNamespace(memory_analysis=lambda: analysis)
    lowered = SimpleNamespace(compile=lambda: compiled)
    monkeypatch.setattr(memory, "_lowered", lambda experiment, plan: lowered)


@pytest.mark.parametrize(
    ("resident", "gib", "remedy"),
    [
        (False, 5, r"set --config\.stages\.focal\.batch_size=48\.$"),
        (
            True,
            5,
            r"set --config\.stages\.focal\.batch_size=48 or --config\.data\.resident=False\.$",
        ),
        (True, 1, r"set --config\.data\.resident=False\.$"),
        (False, 1, r"set a smaller --config\.data\.image_size\.$"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_with_what_would(
    holding, needing, resident, gib, remedy
):
    with pytest.raises(InputError, match=rf"needs 6\.0 GiB .* may take {gib}\.0 GiB: {remedy}"):
        holding(experiment(resident), gib)


def test_a_step_that_fits_is_accepted(holding, needing):
    holding(experiment(True), 6)


def test_on_a_cpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(memory, "_lowered", None)
    memory.check_memory(experiment(True), ())


def test_resident_images_count_as_memory():
    sizes = {}
    for resident in (False, True):
        made = experiment(resident)
        arguments = jax.tree.leaves(memory._lowered(made, plans(made)[0]).args_info)
        sizes[resident] = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arguments)
    batch = 32 * (32 * 32 + 3 + 4)
    assert sizes[True] - sizes[False] == 2000 * (32 * 32 + 3 + 4) + 2500 * 4 - batch
