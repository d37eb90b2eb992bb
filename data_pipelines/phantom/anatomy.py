"""Draw the healthy thorax of a simulated X-ray."""

import dataclasses
import functools

import numpy as np

TISSUE = 0.70  # grey level of heart, liver, fluid and airless lung


@dataclasses.dataclass(frozen=True)
class Thorax:
    """Hold the shapes of one chest; lengths in units of 19 cm."""

    half_width: float  # of the rib cage at its widest, inner edge
    apex: float  # y of the lungs' tips
    domes: tuple[float, float]  # y of the top of each half of the diaphragm, image left first
    dome_curve: float  # drop from the dome to the costophrenic angle, per squared unit
    heart_ratio: float  # width of the heart over that of the rib cage
    mediastinum: float  # half-width
    midline: float  # x of the mediastinum
    lung_level: float  # grey level of aerated lung
    markings: float  # strength of the vessels
    rib_phase: float  # 0 to 1
    rib_gap: float
    breasts: float  # added grey level, 0 for none
    bubble: float  # half-width of the gastric bubble

    @property
    def heart(self) -> tuple[float, float]:
        """X of the heart's left and right edge; a third lies left."""
        width = 2 * self.half_width * self.heart_ratio
        return self.midline - 0.31 * width, self.midline + 0.69 * width

    def wall(self, y: np.ndarray | float) -> np.ndarray | float:
        """Return the half-width of the rib cage at height y."""
        depth = np.clip((y - self.apex) / (0.55 - self.apex), 0, 1)
        return self.half_width * (1 - (1 - depth) ** 2.3) ** 0.6


@dataclasses.dataclass(frozen=True)
class Place:
    """Locate a finding; position and extent run from 0 to 1."""

    side: int
    along: float
    across: float
    extent: float
    noise: np.random.Generator


@dataclasses.dataclass
class Film:
    """Hold an unfinished picture, ``[size, size]``; signs change the last three arrays."""

    thorax: Thorax
    x: np.ndarray
    y: np.ndarray
    pixel: float
    heart: np.ndarray  # 1 in the heart, also behind the diaphragm
    lung: np.ndarray  # 1 in the lungs, behind heart and diaphragm 0
    inward: np.ndarray  # distance from the chest wall towards the midline
    image: np.ndarray
    markings: (
        np.ndarray
    )  # added grey level of vessels, lost where a sign covers or replaces the lung
    covered: np.ndarray  # most that a sign has replaced so far, 0 to 1

    def below(self, level: np.ndarray | float, soft: float = 0.0) -> np.ndarray:
        """Return 1 below the line y = level and 0 above it."""
        return edge(self.y - level, max(soft, self.pixel))

    def half(self, side: int) -> np.ndarray:
        """Return 1 on one side of the midline, 0 on the other."""
        return edge(side * (self.x - self.thorax.midline), self.pixel)

    def disc(self, x: float, y: float, radius: float, soft: float = 0.0) -> np.ndarray:
        """Return a filled circle with an edge at least a pixel wide."""
        return edge(radius - np.hypot(self.x - x, self.y - y), max(soft, self.pixel))

    def bump(self, x: float, y: float, wide: float, high: float) -> np.ndarray:
        """Return a Gaussian of height 1 with the given standard deviations."""
        return np.exp(-0.5 * (((self.x - x) / wide) ** 2 + ((self.y - y) / high) ** 2))

    def spot(self, place: Place, top: float, bottom: float, radius: float) -> tuple[float, float]:
        """Return the centre of a round sign in open lung."""
        y = top + (bottom - top) * place.along
        heart = self.thorax.heart[place.side > 0] if y > 0.05 else self.thorax.midline
        inner = max(place.side * heart, self.thorax.mediastinum + 0.04) + radius
        outer = max(float(self.thorax.wall(y)) - radius, inner)
        return place.side * (inner + (outer - inner) * place.across), y

    def opacify(self, amount: np.ndarray, level: float = TISSUE) -> None:
        """Replace lung by a grey level, completely where ``amount`` is 1."""
        amount = np.clip(amount, 0, 1)
        self.image += amount * (level - self.image)
        self.markings *= 1 - amount
        self.covered = np.maximum(self.covered, amount)


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Return 1 for positive, 0 for negative distances, a ramp between."""
    return np.clip(distance / width + 0.5, 0, 1)


@functools.lru_cache(maxsize=32)
def spread(size: int, cells: int) -> np.ndarray:
    """Return weights ``[size, cells]`` that interpolate coarse noise to pixels."""
    at = (np.arange(size) + 0.5) / size * (cells - 1)
    weights = np.exp(-0.5 * ((at[:, None] - np.arange(cells)) / 0.6) ** 2)
    return (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)


def texture(noise: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Draw smooth noise, mean 0 and variance 1, about ``cells`` blobs across."""
    weights = spread(size, cells)
    return weights @ noise.standard_normal((cells, cells), np.float32) @ weights.T


def healthy_thorax(patient_seed: int) -> Thorax:
    """Draw the measures of a patient without findings.

    Args:
        patient_seed: not negative; the same for all images of the patient.
    """
    rng = np.random.Generator(np.random.PCG64((patient_seed, 0)))
    right = rng.uniform(0.40, 0.50)
    return Thorax(
        half_width=rng.uniform(0.72, 0.80),
        apex=rng.uniform(-0.86, -0.78),
        domes=(right, right + rng.uniform(0.02, 0.07)),
        dome_curve=rng.uniform(1.2, 1.6),
        heart_ratio=float(np.clip(rng.normal(0.45, 0.015), 0.41, 0.49)),
        mediastinum=rng.uniform(0.11, 0.15),
        midline=0.0,
        lung_level=rng.uniform(0.19, 0.25),
        markings=rng.uniform(0.8, 1.2),
        rib_phase=rng.uniform(),
        rib_gap=rng.uniform(0.17, 0.20),
        breasts=rng.uniform(0.03, 0.09) * (rng.uniform() < 0.435),
        bubble=rng.uniform(0.08, 0.15),
    )


def _heart(thorax: Thorax, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    left, right = thorax.heart
    wide, high = (right - left) / 2, 0.24 + 0.2 * thorax.heart_ratio
    across = x - (left + right) / 2
    # Shearing y tilts the apex down without changing the width, so the ratio stays exact.
    down = y - 0.22 * across - (sum(thorax.domes) / 2 - 0.16)
    return edge(1 - np.hypot(across / wide, down / high), 0.08)


def healthy_film(thorax: Thorax, size: int, view: np.random.Generator) -> Film:
    """Draw body, lungs, heart and abdomen, slightly shifted and rotated."""
    shift_x, shift_y, angle, zoom, breath = view.uniform(-1, 1, 5)
    thorax = dataclasses.replace(thorax, domes=tuple(d + 0.02 * breath for d in thorax.domes))
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    u, v = (line[None, :] - 0.03 * shift_x), (line[:, None] - 0.03 * shift_y)
    cos, sin = np.cos(0.05 * angle) * (1 + 0.04 * zoom), np.sin(0.05 * angle) * (1 + 0.04 * zoom)
    x, y = np.float32(cos) * u + np.float32(sin) * v, np.float32(cos) * v - np.float32(sin) * u
    pixel = 2 / size
    out = np.abs(x)
    inward = thorax.wall(y) - out
    dome = np.where(x < thorax.midline, *map(np.float32, thorax.domes))
    diaphragm = dome + thorax.dome_curve * (out - 0.36) ** 2
    central = edge(thorax.mediastinum + 0.04 * np.cos(5 * y) - np.abs(x - thorax.midline), 0.05)
    heart = _heart(thorax, x, y)
    hidden = np.maximum(central, heart)
    lung = edge(inward, 1.5 * pixel) * edge(diaphragm - y, 0.03) * (1 - hidden)
    shoulders = 0.32 + 1.1 * np.sqrt(np.clip((y + 1.0) / 0.4, 0, 1))
    body = shoulders - 0.46 * np.clip((y + 0.6) / 0.5, 0, 1)
    image = 0.03 + 0.50 * edge(body - out, 0.04)
    image += (
        (TISSUE - image)
        * np.maximum(hidden, edge(y - diaphragm + 0.05, 0.04))
        * edge(body - out, 0.04)
    )
    image += (thorax.lung_level - image) * lung
    bubble = edge(1 - np.hypot((x - 0.36) / thorax.bubble, (y - dome - 0.13) / 0.07), 0.3)
    image -= 0.35 * bubble * edge(y - diaphragm - 0.02, 0.03)
    unmarked = np.zeros_like(image)
    return Film(thorax, x, y, pixel, heart, lung, inward, image, unmarked, unmarked.copy())


def paint_markings(film: Film, patient_noise: np.random.Generator) -> None:
    """Paint the hila and the vessels that fan out from them."""
    size = film.x.shape[0]
    out, down = np.abs(film.x) - 0.17, film.y + 0.06
    away = np.hypot(out, down)
    phase = np.where(film.x < 0, *map(np.float32, patient_noise.uniform(0, 6, 2)))
    fan = np.clip(np.cos(9 * np.arctan2(down, out) + 4 * away + phase), 0, 1) ** 2
    fine = 0.12 * texture(patient_noise, size, 27)
    hilum = 0.22 * np.exp(-0.5 * ((out - 0.02) ** 2 / 0.006 + down**2 / 0.016))
    vessels = (0.16 * fan + fine * 0.16) * np.exp(-away / 0.4)
    film.markings += film.thorax.markings * film.lung * (vessels + hilum)


def paint_bones(film: Film) -> None:
    """Paint ribs, clavicles, spine, trachea and breasts over everything."""
    thorax, out = film.thorax, np.abs(film.x)
    arch = film.y - 0.7 * np.clip(out - 0.25, 0, 1) ** 2 + 0.25 * np.exp(-out / 0.12)
    ribs = np.clip(1.6 * np.cos(2 * np.pi * (arch / thorax.rib_gap + thorax.rib_phase)) - 0.5, 0, 1)
    film.image += 0.065 * ribs * edge(film.inward + 0.03, 0.05) * (1 - film.below(0.62, 0.1))
    slope = film.y + 0.60 + 0.22 * out
    film.image += (
        0.13 * edge(0.028 - np.abs(slope), 0.03) * edge(0.8 - out, 0.1) * edge(out - 0.08, 0.06)
    )
    centre = np.abs(film.x - 0.4 * thorax.midline)
    bodies = 0.7 + 0.3 * np.cos(2 * np.pi * film.y / 0.13)
    film.image += 0.10 * edge(0.085 - centre, 0.04) * bodies
    windpipe = edge(0.04 - np.abs(film.x - thorax.midline), 0.03)
    film.image -= 0.20 * windpipe * (1 - film.below(-0.30, 0.15))
    film.image += 0.10 * film.bump(thorax.midline + thorax.mediastinum + 0.02, -0.36, 0.05, 0.06)
    for side in (-1, 1) if thorax.breasts else ():
        film.image += thorax.breasts * film.disc(side * 0.43, 0.26, 0.34, 0.10)
