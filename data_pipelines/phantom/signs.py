"""Draw the radiographic signs of the 14 NIH findings.

Coordinates run from -1 to 1, x from the image's left (the patient's right side) to its right, y
downwards; one unit is about 19 cm. Side -1 is the image's left, +1 its right, where the heart's
apex and the gastric bubble lie. Grey levels run from 0 (air, dark) to 1 (bone, bright). Nothing is
measured from a patient: the shapes are the textbook signs, simplified to be visible at 64 x 64.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from data_pipelines.phantom.anatomy import Film, Place, Thorax, edge, texture


def _atelectasis_shape(thorax: Thorax, place: Place) -> Thorax:
    domes = list(thorax.domes)
    domes[place.side > 0] -= 0.16 + 0.08 * place.extent
    return dataclasses.replace(thorax, domes=tuple(domes), midline=0.05 * place.side)


def _cardiomegaly_shape(thorax: Thorax, place: Place) -> Thorax:
    return dataclasses.replace(thorax, heart_ratio=0.59 + 0.10 * place.extent)


def _emphysema_shape(thorax: Thorax, place: Place) -> Thorax:
    return dataclasses.replace(
        thorax,
        half_width=thorax.half_width + 0.05,
        apex=thorax.apex - 0.04,
        domes=tuple(dome + 0.15 + 0.05 * place.extent for dome in thorax.domes),
        dome_curve=0.25,
        heart_ratio=0.75 * thorax.heart_ratio,
        lung_level=thorax.lung_level - 0.11,
        markings=0.4 * thorax.markings,
    )


def _atelectasis(film: Film, place: Place) -> None:
    """Draw a plate from hilum to wall, above a raised diaphragm."""
    top = film.thorax.domes[place.side > 0] - 0.10 - 0.22 * place.along
    reach = place.side * film.x
    slope = 0.5 * (place.across - 0.3)
    off = np.abs(film.y - top - slope * (reach - 0.3))
    thick = 0.035 + 0.02 * place.extent + 0.08 * np.clip(reach - 0.15, 0, 1)
    plate = edge(thick - off, max(0.03, film.pixel)) * film.half(place.side)
    film.opacify(0.85 * plate * film.lung)


def _consolidation(film: Film, place: Place) -> None:
    """Draw an airless lobe, bounded sharply by its fissure."""
    if place.along < 0.5:
        lobe = 1 - film.below(-0.22 + 0.16 * place.across)
    else:
        lobe = film.below(-0.08 + 0.14 * place.across + 0.15 * np.abs(film.x), 0.03)
    film.opacify((0.72 + 0.18 * place.extent) * lobe * film.half(place.side) * (film.lung > 0))


def _infiltration(film: Film, place: Place) -> None:
    """Draw faint patches in the lower zones, mainly of one lung."""
    size = film.x.shape[0]
    patches = np.clip(texture(place.noise, size, 17) + 0.5, 0, 1.6)
    x, y = place.side * 0.42, -0.15 + 0.4 * place.along
    zone = film.bump(x, y, 0.25, 0.28) + (0.3 + 0.5 * place.across) * film.bump(-x, y, 0.25, 0.28)
    film.opacify((0.38 + 0.14 * place.extent) * patches * zone * film.lung)


def _pneumothorax(film: Film, place: Place) -> None:
    """Draw dark air without vessels outside the pleural line."""
    wide = (0.15 + 0.13 * place.extent) * np.clip(1.15 - 0.5 * (film.y + 0.6), 0.4, 1.6)
    from_apex = film.y - film.thorax.apex - 0.1 - 0.14 * place.extent
    inside = np.minimum(film.inward - wide, from_apex)
    here = film.half(place.side) * film.lung
    line = np.exp(-0.5 * (inside / max(0.014, 0.6 * film.pixel)) ** 2)
    film.opacify(edge(-inside, film.pixel) * here, level=0.02)
    film.image += here * (0.34 * line + 0.10 * edge(inside, film.pixel))


def _edema(film: Film, place: Place) -> None:
    """Draw butterfly-shaped haze around both hila."""
    cloud = 1 + 0.25 * texture(place.noise, film.x.shape[0], 13)
    wings = sum(film.bump(side * 0.30, -0.02, 0.17, 0.28) for side in (-1, 1))
    film.opacify((0.75 + 0.15 * place.extent) * wings * cloud * film.lung)


def _fibrosis(film: Film, place: Place) -> None:
    """Draw a coarse network of lines at the bases and walls."""
    network = np.exp(-((texture(place.noise, film.x.shape[0], 21) / 0.28) ** 2))
    low = film.below(0.10 - 0.15 * place.extent, 0.4)
    zone = np.maximum(low, np.clip(1.0 - film.inward / (0.16 + 0.1 * place.across), 0, 1))
    film.opacify((0.60 + 0.20 * place.extent) * network * zone * film.lung, level=0.78)


def _effusion(film: Film, place: Place) -> None:
    """Draw fluid in the costophrenic angle that climbs the wall."""
    level = film.thorax.domes[place.side > 0] + 0.01 - 0.24 * place.extent
    surface = level - (0.16 + 0.1 * place.along) * np.exp(-film.inward / 0.13)
    # Including the soft edge: fluid and diaphragm are equally bright, without a line between them.
    film.opacify(0.95 * film.below(surface, 0.03) * film.half(place.side) * (film.lung > 0))


def _pneumonia(film: Film, place: Place) -> None:
    """Draw one fluffy patch that fades into the lung."""
    radius = 0.13 + 0.05 * place.extent
    x, y = film.spot(place, -0.25, 0.3, radius)
    fluff = 1 + 0.35 * texture(place.noise, film.x.shape[0], 19)
    film.opacify(0.88 * film.bump(x, y, 1.1 * radius, radius) * fluff * film.lung)


def _pleural_thickening(film: Film, place: Place) -> None:
    """Draw a bright band along the side wall and over the apex."""
    thick = 0.07 + 0.05 * place.extent
    cap = film.thorax.apex + 0.10 + 0.06 * place.across - film.y
    band = np.maximum(edge(thick - film.inward, 1.5 * film.pixel), edge(cap, film.pixel))
    above = 1 - film.below(0.15 + 0.15 * place.along, 0.15)
    film.opacify(0.95 * band * above * film.half(place.side) * film.lung, level=0.85)


def _nodule(film: Film, place: Place) -> None:
    """Draw a round density of 2 to 3 cm."""
    radius = nodule_radius(place)
    x, y = film.spot(place, -0.5, 0.25, radius + 0.05)
    film.opacify(film.disc(x, y, radius, 0.03), level=0.80)


def _mass(film: Film, place: Place) -> None:
    """Draw a round, slightly lobed density of 5 to 7 cm."""
    radius = mass_radius(place)
    x, y = film.spot(place, -0.4, 0.2, radius)
    lobe = film.disc(x + 0.4 * radius, y - 0.45 * radius, 0.7 * radius)
    film.opacify(0.95 * np.maximum(film.disc(x, y, radius, 0.03), lobe), level=0.78)


def nodule_radius(place: Place) -> float:
    """Return a nodule's radius in units of 19 cm: 1.0 to 1.4 cm."""
    return 0.055 + 0.02 * place.extent


def mass_radius(place: Place) -> float:
    """Return a mass's radius in units of 19 cm: 2.5 to 3.6 cm."""
    return 0.13 + 0.06 * place.extent


def _hernia(film: Film, place: Place) -> None:
    """Draw a round density behind the heart with an air-fluid level."""
    radius = 0.18 + 0.05 * place.extent
    x = film.thorax.midline + 0.05 + 0.10 * place.across
    y = min(film.thorax.domes) - 0.3 * radius
    film.opacify(film.disc(x, y, radius, 0.03), level=0.86)
    air = film.disc(x, y, 0.74 * radius) * (1 - film.below(y + 0.15 * radius))
    film.opacify(air, level=0.30)


SHAPE_SIGNS: dict[str, Callable[[Thorax, Place], Thorax]] = {
    "Atelectasis": _atelectasis_shape,
    "Cardiomegaly": _cardiomegaly_shape,
    "Emphysema": _emphysema_shape,
}
# In the order of painting: signs that replace the lung come after those that shade it.
DENSITY_SIGNS: dict[str, Callable[[Film, Place], None]] = {
    "Infiltration": _infiltration,
    "Edema": _edema,
    "Fibrosis": _fibrosis,
    "Pneumonia": _pneumonia,
    "Consolidation": _consolidation,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Nodule": _nodule,
    "Mass": _mass,
    "Pleural_Thickening": _pleural_thickening,
    "Effusion": _effusion,
    "Hernia": _hernia,
}
_IN_BOTH_LUNGS = ("Infiltration", "Edema", "Fibrosis", "Emphysema")


def sign_boxes(finding: str, film: Film) -> Int[np.ndarray, "boxes 4"]:
    """Return the boxes around the sign that was painted since ``film.covered`` was 0.

    A box holds what the sign replaces at least half as much as where it replaces most. A sign of
    both lungs has a box in each that holds a tenth of this or more; cardiomegaly has the heart's,
    emphysema those of the lungs.

    Returns:
        Left, top, right and bottom edge in pixels, from 0 to the picture's size.
    """
    cover = {"Cardiomegaly": film.heart, "Emphysema": film.lung}.get(finding, film.covered)
    dense = (cover > 0) & (cover >= 0.5 * cover.max())
    left = film.x < film.thorax.midline
    parts = (dense & left, dense & ~left) if finding in _IN_BOTH_LUNGS else (dense,)
    places = [np.nonzero(part) for part in parts if part.sum() > 0.1 * dense.sum()]
    edges = [(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in places]
    return np.array(edges, int).reshape(-1, 4)
