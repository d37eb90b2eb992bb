import contextlib

import pytest

from charm_jax.inference import loaded
from charm_jax.serve.decoding import Decoder
from charm_jax.serve.service import Service


@pytest.fixture(scope="module")
def service(finished):
    return Service(loaded.load_run(finished[0] / "runs/demo"))


@pytest.fixture(scope="module")
def decoder(service):
    predictor = service.predictor
    with contextlib.closing(Decoder(predictor.size, predictor.value_range, processes=1)) as made:
        yield made
