import numpy as np
import pytest
from PIL import Image
from tables import small_table

from data_pipelines.inspect import pictures
from data_pipelines.inspect.image_statistics import measure_images
from data_pipelines.inspect.table_statistics import co_occurrence, part_statistics
from data_pipelines.tables.findings import NIH_FINDINGS


@pytest.fixture
def titles(monkeypatch):
    """The titles of the figures that are saved."""
    seen, save = [], pictures._save

    def remember(figure, path):
        seen.append(figure.get_suptitle())
        save(figure, path)

    monkeypatch.setattr(pictures, "_save", remember)
    return seen


def _table(n, findings, path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(image).save(path / "image.png")
    labels = np.random.default_rng(1).integers(-1, 2, (n, len(findings)), np.int8)
    return small_table(n, path / "image.png", findings=findings, labels=labels)


def _draw_all(folder, table, simulated):
    rows = np.arange(len(table.images))
    names = ("a", "b", "c", "d")[: 3 + simulated]
    parts = {name: part_statistics(table, rows[start::4]) for start, name in enumerate(names)}
    stages = {"first": parts, "second": parts}
    pictures.draw_prevalence(folder / "prevalence.png", stages, simulated=simulated)
    pictures.draw_co_occurrence(
        folder / "together.png", table.findings, *co_occurrence(table, rows), simulated=simulated
    )
    images = table.store.read(rows[:3], 32)
    groups = {"Mass": list(zip(["a", "b" * 60, "c"], images, strict=True)), "Hernia": []}
    pictures.draw_contact_sheet(folder / "sheet.png", groups, simulated=simulated)
    statistics = measure_images(table, rows, 32)
    pictures.draw_image_statistics(folder / "images.png", statistics, simulated=simulated)


@pytest.mark.parametrize(
    ("findings", "simulated"), [(NIH_FINDINGS, True), (("Mass",), False)], ids=["many", "one"]
)
def test_pictures_are_drawn_large_enough_and_say_what_is_simulated(
    tmp_path, titles, findings, simulated
):
    folder = tmp_path / "out"
    folder.mkdir()
    _draw_all(folder, _table(30, findings, tmp_path), simulated)
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["images.png", "prevalence.png", "sheet.png", "together.png"]
    for file in folder.iterdir():
        with Image.open(file) as picture:
            assert picture.width >= 300 and picture.height >= 200
            grey = np.asarray(picture.convert("L"))
        assert len(np.unique(grey)) > 20 and (grey < 200).mean() > 0.005
    assert len(titles) == 4
    assert all(("SIMULATED" in title) == simulated for title in titles)


def test_findings_that_nobody_has_or_knows_are_drawn(tmp_path):
    labels = np.array([[0, -1]] * 6, np.int8)
    table = small_table(6, findings=("Mass", "Edema"), labels=labels)
    stages = {"only": {"train": part_statistics(table, np.arange(6))}}
    pictures.draw_prevalence(tmp_path / "a.png", stages, simulated=False)
    shares = co_occurrence(table, np.arange(6))
    pictures.draw_co_occurrence(tmp_path / "b.png", table.findings, *shares, simulated=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_picture_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        pictures.draw_contact_sheet(tmp_path / "a.png", {"Mass": []}, simulated=False)
    assert not list(tmp_path.iterdir())
