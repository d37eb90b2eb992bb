"""Draw simulated chest X-rays in the layout of ChestX-ray14."""

import json
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from data_pipelines.errors import InputError
from data_pipelines.phantom.anatomy import (
    Place,
    Thorax,
    healthy_film,
    healthy_thorax,
    paint_bones,
    paint_markings,
)
from data_pipelines.phantom.labels import derived_seed, generator, sample_patients
from data_pipelines.phantom.signs import DENSITY_SIGNS, SHAPE_SIGNS, sign_boxes
from data_pipelines.progress import progress
from data_pipelines.tables.findings import NIH_FINDINGS, NO_FINDING

GENERATOR_VERSION = 1  # raise it when the same seed gives other output
MILLIMETRES = 380.0  # height and width of the area that a picture shows
RECORD = "phantom.json"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOXES = "BBox_List_2017.csv"
BOXES_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h]"
BOXED_SIDE = 1024  # pixels a side of ChestX-ray14's images, in which its boxes are given
NOTICE = """\
Every image in this folder is SIMULATED: drawn by a program, of no patient, not for clinical use.

Written by CHARM-JAX, data_pipelines.phantom, generator version {version}, seed {seed}:
{train_images} train_val and {test_images} test images of {image_size} x {image_size} pixels.
The sets of findings are drawn from the counts of all 112,120 images of ChestX-ray14, but each of
the 14 findings has at least {min_train_positives} positives in train_val
and {min_test_positives} in test, by added patients with one image each: rare findings can be more
frequent here than there. Every label is exact. Scores on these images say nothing of scores on
X-rays.
"""


def _place(patient_seed: int, image_seed: int, number: int) -> Place:
    rng = np.random.Generator(np.random.PCG64((patient_seed, 1 + number)))
    noise = np.random.Generator(np.random.PCG64((image_seed, 101 + number)))
    return Place(1 if rng.uniform() < 0.5 else -1, *rng.uniform(size=3), noise)


def _same_shape(thorax: Thorax, place: Place) -> Thorax:
    del place
    return thorax


def draw_phantom(
    findings: Collection[str], patient_seed: int, image_seed: int, size: int
) -> UInt8[np.ndarray, "size size"]:
    """Draw one simulated frontal chest X-ray; see ``draw_with_boxes``."""
    return draw_with_boxes(findings, patient_seed, image_seed, size)[0]


def draw_with_boxes(
    findings: Collection[str], patient_seed: int, image_seed: int, size: int
) -> tuple[UInt8[np.ndarray, "size size"], dict[str, Int[np.ndarray, "boxes 4"]]]:
    """Draw one simulated frontal chest X-ray, and locate its signs.

    Args:
        findings: names of ``NIH_FINDINGS``; empty for a normal chest.
        patient_seed: not negative; fixes the anatomy, and the place and extent of each finding.
        image_seed: not negative; fixes position, breath, exposure and noise.
        size: height and width in pixels.

    Returns:
        8-bit grey levels, air dark and bone bright, the patient's left on the image's right; and
        the boxes of each finding (``sign_boxes``).

    Raises:
        InputError: an unknown finding.
    """
    if unknown := sorted(set(findings) - set(NIH_FINDINGS)):
        raise InputError(f"No sign is known for {unknown[0]!r}: use {', '.join(NIH_FINDINGS)}.")
    view = np.random.Generator(np.random.PCG64((image_seed, 100)))
    thorax, places = healthy_thorax(patient_seed), {}
    for number, name in enumerate(NIH_FINDINGS):
        if name in findings:
            places[name] = _place(patient_seed, image_seed, number)
            thorax = SHAPE_SIGNS.get(name, _same_shape)(thorax, places[name])
    film = healthy_film(thorax, size, view)
    paint_markings(film, np.random.Generator(np.random.PCG64((patient_seed, 50))))
    boxes = {name: sign_boxes(name, film) for name in places if name not in DENSITY_SIGNS}
    for name, sign in DENSITY_SIGNS.items():
        if name in places:
            film.covered[:] = 0
            sign(film, places[name])
            boxes[name] = sign_boxes(name, film)
    film.image += film.markings
    paint_bones(film)
    gain, gamma, grain = view.uniform(0.9, 1.1), view.uniform(0.85, 1.2), view.uniform(0.012, 0.025)
    exposed = gain * np.clip(film.image, 0, 1) ** gamma
    exposed += grain * view.standard_normal((size, size), np.float32)
    return (255 * np.clip(exposed, 0, 1) + 0.5).astype(np.uint8), boxes


def _write_images(
    directory: Path, patients: list[list[str]], first_patient: int, seed: int, size: int, bar: tqdm
) -> tuple[list[str], list[str], list[str]]:
    """Draw the images of one split; return their names, table rows and rows of boxes."""
    names, rows, boxes = [], [], []
    for patient, images in enumerate(patients, first_patient):
        patient_seed = derived_seed(seed, 2, patient)
        rng = generator(seed, 3, patient)
        age = int(np.clip(rng.normal(47, 17), 1, 95))
        gender = "F" if healthy_thorax(patient_seed).breasts else "M"
        for follow_up, labels in enumerate(images):
            names.append(f"{patient:08d}_{follow_up:03d}.png")
            findings = () if labels == NO_FINDING else labels.split("|")
            image_seed = derived_seed(seed, 4, patient, 1 + follow_up)
            pixels, drawn = draw_with_boxes(findings, patient_seed, image_seed, size)
            Image.fromarray(pixels).save(directory / names[-1])
            for finding, edges in drawn.items():
                for left, top, right, bottom in edges * (BOXED_SIDE / size):
                    place = f"{left:.3f},{top:.3f},{right - left:.3f},{bottom - top:.3f}"
                    boxes.append(f"{names[-1]},{finding},{place}")
            rows.append(
                f"{names[-1]},{labels},{follow_up},{patient},{age},{gender},PA,"
                f"{size},{size},{MILLIMETRES / size:.3f},{MILLIMETRES / size:.3f}"
            )
            bar.update()
    return names, rows, boxes


def _write_set(directory: Path, sets: dict[str, int]) -> None:
    """Write every file of the set into an empty directory."""
    (directory / "images").mkdir()
    train_part = sample_patients(
        sets["train_images"], sets["min_train_positives"], derived_seed(sets["seed"], 5)
    )
    test_part = sample_patients(
        sets["test_images"], sets["min_test_positives"], derived_seed(sets["seed"], 6)
    )
    table, boxes, first = [HEADER], [BOXES_HEADER], 1
    total = sets["train_images"] + sets["test_images"]
    with progress(total=total, desc="drawing simulated X-rays", unit="images") as bar:
        for part, patients in (("train_val", train_part), ("test", test_part)):
            names, rows, drawn = _write_images(
                directory / "images", patients, first, sets["seed"], sets["image_size"], bar
            )
            (directory / f"{part}_list.txt").write_text("".join(f"{n}\n" for n in names))
            table += rows
            boxes += drawn
            first += len(patients)
    (directory / "Data_Entry_2017_v2020.csv").write_text("\n".join(table) + "\n")
    (directory / BOXES).write_text("\n".join(boxes) + "\n")
    (directory / "SIMULATED.txt").write_text(NOTICE.format(**sets))
    (directory / RECORD).write_text(json.dumps(sets, indent=1) + "\n")


def _check_sizes(sets: dict[str, int]) -> None:
    smallest = {"train_images": 1, "test_images": 1, "image_size": 16}
    for name, value in sets.items():
        if value < smallest.get(name, 0):
            raise InputError(
                f"{name} = {value} is too small for a simulated set: "
                f"give {smallest.get(name, 0)} or more."
            )


def write_phantoms(directory: Path, **sizes: int) -> None:
    """Write a simulated set in the layout of ChestX-ray14, unless the folder already holds it.

    There is a box around each sign, in pixels of 1024 x 1024 images as that set has them.
    Each patient is in one split, with 3.6 images on average. Labels follow the joint frequencies
    of ChestX-ray14 except for the minimum of positives. Image i depends only on the seed, its
    patient and its follow-up number. The set appears whole or not at all: it is drawn in a hidden
    sibling folder that is then renamed.

    Args:
        directory: folder to write, absent or empty.
        **sizes: see ``holds_phantoms``.

    Raises:
        InputError: the folder has other content, a size is too small, or there are too few images
            for the positives.
    """
    directory, sets = Path(directory), _sets(**sizes)
    _check_sizes(sets)
    if holds_phantoms(directory, **sizes):
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{directory.name}-"
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=prefix) as hidden:
            drawn = Path(hidden) / "set"
            drawn.mkdir()
            _write_set(drawn, sets)
            drawn.rename(directory)
    except OSError as error:
        if _recorded(directory) != sets:  # otherwise another run has written the same set
            raise InputError(
                f"Simulated images cannot be written to {directory} ({error.strerror}): "
                "name a folder that can be written to."
            ) from error


def holds_phantoms(directory: Path, **sizes: int) -> bool:
    """Whether a folder holds a simulated set, judged by its ``phantom.json``.

    Args:
        **sizes: ``train_images`` and ``test_images``, exact numbers; ``image_size`` in pixels, 16
            or more; ``seed``, not negative; ``min_test_positives`` (20) and
            ``min_train_positives`` (24), least numbers of images with each finding.

    Raises:
        InputError: the folder has other content.
    """
    if _recorded(directory) == _sets(**sizes):
        return True
    if directory.is_file():
        raise InputError(f"{directory} is a file: name a folder for the simulated set.")
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(
            f"{directory} holds other files than the requested simulated set: name a new or empty "
            "folder, or the one that holds the set."
        )
    return False


def _sets(
    *,
    train_images: int,
    test_images: int,
    image_size: int,
    seed: int,
    min_test_positives: int = 20,
    min_train_positives: int = 24,
) -> dict[str, int]:
    """Return the content of ``phantom.json``."""
    return {
        "version": GENERATOR_VERSION,
        "train_images": train_images,
        "test_images": test_images,
        "image_size": image_size,
        "seed": seed,
        "min_test_positives": min_test_positives,
        "min_train_positives": min_train_positives,
    }


def _recorded(directory: Path) -> dict[str, int] | None:
    """Read the record of a complete simulated set; None for anything else."""
    try:
        return json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def contact_sheet(path: Path, tile: int = 128) -> None:
    """Draw an overview: eight normal chests, then four of each finding.

    Args:
        path: PNG file to write.
        tile: height and width of an example in pixels.
    """
    across, line = 8, 18
    groups = [("No Finding", 8), *((name, 4) for name in NIH_FINDINGS)]
    rows = sum(count for _, count in groups) // across
    sheet = Image.new("L", (across * tile, line + rows * (tile + line)))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    pen.text((4, 2), "SIMULATED: drawn by a program, no patient", fill=255, font=font)
    place = 0
    for title, count in groups:
        for number in range(count):
            left = place % across * tile
            top = line + place // across * (tile + line)
            if number == 0:
                pen.text((left + 4, top + 2), title.replace("_", " "), fill=255, font=font)
            findings = () if title == NO_FINDING else (title,)
            pixels = draw_phantom(findings, place, place, tile)
            sheet.paste(Image.fromarray(pixels), (left, top + line))
            place += 1
    sheet.save(path, optimize=True)
