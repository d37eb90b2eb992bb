import pytest

from data_pipelines.sources import SOURCES


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_states_content_and_terms(source):
    card = SOURCES[source].card
    assert card.description.endswith(".")
    assert card.license.endswith(".")


def test_simulated_images_are_called_simulated():
    assert "SIMULATED" in SOURCES["phantom"].card.description
