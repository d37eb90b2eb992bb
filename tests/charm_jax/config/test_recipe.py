"""Keys, their explanations and what is suggested for unknown ones."""

import pytest

from charm_jax.config import recipe, settings, validate

PUBLISHED = settings.from_dict(recipe.defaults().to_dict() | {"name": "x"})


def test_the_published_values_are_valid_and_explained():
    validate.check(PUBLISHED)
    for path, key in recipe.KEYS.items():
        assert key.help and not key.help.endswith("."), path
        assert not key.choices or key.default in key.choices, path


def test_every_setting_has_a_key():
    """The table of keys and the types of the settings agree, key by key."""

    def flat(node, prefix=""):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    assert set(flat(PUBLISHED.raw)) == set(recipe.KEYS)
    for key in recipe.KEYS:
        group, _, name = key.partition(".")
        held = getattr(PUBLISHED, group)
        if group == "stages":
            stage, _, name = name.partition(".")
            held = held[stage]
        elif group == "data" and "." in name:  # an option of one source
            continue
        assert not name or hasattr(held, name), f"{key} has no field in settings.py"


def test_the_data_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("CHARM_DATA", "/elsewhere")
    assert recipe.defaults().data.dir == "/elsewhere"
    monkeypatch.delenv("CHARM_DATA")
    assert recipe.defaults().data.dir == recipe.KEYS["data.dir"].default


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sed", ["seed"]),
        ("data.imge_size", ["data.image_size"]),
        ("image_size", ["data.image_size"]),
        ("data.imagesize", ["data.image_size"]),
        ("modle.momentum", ["model.momentum"]),
        ("modle", ["model"]),
        ("phantom.seed", ["data.phantom.seed"]),
        ("lr", ["stages.bce.peak_lr", "stages.focal.peak_lr"]),
        ("stages.focal.lr", ["stages.focal.peak_lr"]),
        ("stage.bce.LR", ["stages.bce.peak_lr"]),
        ("learning-rate", ["stages.bce.peak_lr", "stages.focal.peak_lr"]),
        ("epochs", ["stages.bce.epochs", "stages.focal.epochs"]),
        ("train.batch_size", ["stages.bce.batch_size", "stages.focal.batch_size"]),
        ("bs", ["stages.bce.batch_size", "stages.focal.batch_size"]),
        ("k", ["model.retrieval_k"]),
        ("model.m", ["model.momentum"]),
        ("model.treshold", ["model.rarity_threshold"]),
        ("num_workers", ["data.processes"]),
        ("xyz", []),
        ("wd", []),
        ("model.x", []),
        ("optimizer", []),
        ("", []),
    ],
)
def test_a_key_is_suggested_only_where_one_is_near(given, meant):
    assert recipe.nearest(given) == meant


def test_every_synonym_leads_to_a_key():
    for name, word in recipe._SYNONYMS.items():
        assert recipe.nearest(name), name
        assert all(key.split(".")[-1] == word for key in recipe.nearest(name))
