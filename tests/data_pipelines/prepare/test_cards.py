import pytest

from data_pipelines.prepare.cards import card_of
from data_pipelines.sources import SOURCES


@pytest.mark.parametrize("source", [*SOURCES, "a source without a card"])
def test_every_source_states_content_and_terms(source):
    card = card_of(source)
    assert card.description.endswith(".")
    assert card.license.endswith(".")


def test_simulated_images_are_called_simulated():
    assert "SIMULATED" in card_of("phantom").description
