"""Where the real images are, and a tiny folder in the NIH layout."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import save
from PIL import Image

from data_pipelines.images import dicom
from data_pipelines.sources import nih_chest_xray14
from data_pipelines.tables.case_table import CaseTable

HEADER_V2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def _test_data(folder: str) -> Path:
    root = os.environ.get("CHARM_TEST_DATA")
    path = Path(root or ".") / folder
    if root and path.is_dir():
        return path
    message = f"needs {folder}/ in the folder that CHARM_TEST_DATA names"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def nih_dir() -> Path:
    """1,000 real images, the full table of 112,120 rows and the official lists."""
    return _test_data("nih_chest_xray14")


@pytest.fixture(scope="session")
def nih_table(nih_dir: Path) -> CaseTable:
    """The full table of the real images, read once."""
    return nih_chest_xray14.load(nih_dir)


@pytest.fixture(scope="session")
def fullsize_dir() -> Path:
    """A few images at full size."""
    return _test_data("nih_fullsize")


@dataclasses.dataclass
class NihFolder:
    """A folder in the NIH layout: 4 patients of 3 images each, patient 3 in the test list."""

    path: Path
    csv: Path
    names: list[str]

    def file(self, name: str) -> Path:
        return next(self.path.rglob(name))

    def edit_csv(self, old: str, new: str) -> None:
        text = self.csv.read_text()
        assert old in text
        self.csv.write_text(text.replace(old, new, 1))


_LABELS = ("No Finding", "Mass", "Cardiomegaly|Effusion")


@pytest.fixture
def make_nih(tmp_path: Path) -> Callable[..., NihFolder]:
    def make(name: str = "Data_Entry_2017_v2020.csv", original_header: bool = False) -> NihFolder:
        root = tmp_path / "nih"
        # The original file's header ends in a comma, and so does each of its rows.
        tail = "," if original_header else ""
        names, lines = [], [HEADER_V2020 + tail]
        for i in range(12):
            image = f"{i // 3:08d}_{i % 3:03d}.png"
            names.append(image)
            lines.append(f"{image},{_LABELS[i % 3]},{i % 3},{i // 3},57,M,PA,64,64,0.1,0.1{tail}")
            folder = root / f"images_{i // 6 + 1:03d}" / "images"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / image)
        (root / name).write_text("\n".join(lines) + "\n")
        (root / "train_val_list.txt").write_text("\n".join(names[:9]) + "\n")
        (root / "test_list.txt").write_text("\n".join(names[9:]))
        return NihFolder(root, root / name, names)

    return make


@pytest.fixture
def nih(make_nih: Callable[..., NihFolder]) -> NihFolder:
    return make_nih()


@pytest.fixture
def grey(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Saves a DICOM object and reads it as grey in [0, 1]; its header is found in order first."""

    def read(dataset):
        path = save(dataset, tmp_path / "image")
        found = dicom.read_grey(path)
        assert dicom.check_header(path) == found.remarks
        image = 1 - found.values if found.inverted else found.values
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
        return image

    return read
