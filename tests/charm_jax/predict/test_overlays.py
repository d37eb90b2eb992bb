"""Pictures of one image never replace those of another."""

import numpy as np
import pytest
from PIL import Image

from charm_jax.predict.overlays import Overlays

HEAT = np.linspace(0, 1, 4).reshape(2, 2)


@pytest.fixture
def images(tmp_path):
    """Images of two folders that have the same name."""
    paths = [tmp_path / place / "x.png" for place in ("monday", "tuesday")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        Image.fromarray(np.full((8, 8), 90 * number + 50, np.uint8)).save(path)
    return paths


def draw(path, out, *titles):
    """The pictures that a call of the command would write."""
    heats = dict.fromkeys(titles or ("attention",), HEAT)
    return Overlays(out, 32, "container").write(path.name, path, heats)


def test_equally_named_images_of_two_calls_keep_their_pictures(tmp_path, images):
    out = tmp_path / "out"
    first = draw(images[0], out)["attention"]
    before = Image.open(first).convert("RGB").tobytes()
    second = draw(images[1], out)["attention"]
    assert first.endswith("out/x.attention.png")
    assert second.endswith("out/x.png.attention.png")
    assert Image.open(first).tobytes() == before != Image.open(second).tobytes()


def test_the_pictures_of_an_image_are_replaced_by_its_own_from_wherever_it_is_named(
    tmp_path, images, monkeypatch
):
    out = tmp_path / "out"
    written = [draw(path, out) for path in images]
    monkeypatch.chdir(images[0].parent)
    again = [
        draw(path, out, "attention", "Mass")
        for path in (images[0].relative_to(images[0].parent), images[1])
    ]
    assert [made["attention"] for made in again] == [made["attention"] for made in written]
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize("content", [b"mine", None])
def test_a_file_of_the_user_s_own_stays(tmp_path, images, content):
    """It is no picture, or one without a note of its image."""
    mine = tmp_path / "x.Mass.png"
    if content is None:
        Image.new("RGB", (4, 4)).save(mine)
    else:
        mine.write_bytes(content)
    before = mine.read_bytes()
    made = draw(images[0], tmp_path, "attention", "Mass")
    assert {path.rsplit("/", 1)[1] for path in made.values()} == {
        "x.png.attention.png",
        "x.png.Mass.png",
    }
    assert mine.read_bytes() == before
