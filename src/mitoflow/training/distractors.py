"""Structures that resemble mitochondria and are none, drawn into crops that show few of them."""

from __future__ import annotations

import cv2
import numpy as np

from mitoflow.data.network_input import UNLABELLED

# Lengths are pixels of the crop, or parts of its shorter side; grey values lie in [0, 1].
SHEATHS = 1, 3  # how many a crop gets
RADIUS = 0.05, 1.5  # mean distance of a sheath from its centre, as a part of the side, evenly in log
THICKNESS = 5.0, 60.0  # of the sheath, pixels, evenly in log
UNEVENNESS = 0.35  # standard deviation of the first harmonic of the radius, as a part of it
EDGE = 0.5, 2.0  # standard deviation of the blur of its edges, pixels
DARKEST = 0.12  # the quantile of the crop's grey values below which that of a sheath lies
LAMELLAE = 0.04  # greatest amplitude of the layers
PERIOD = 3.0, 9.0  # pixels from one layer to the next


def add_myelin(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw sheaths of myelin: dark bands with faint layers along uneven closed curves.

    Myelin is as dark as mitochondria and larger than they are, and a few training slices may show none of it. A sheath
    covers what lies under it, mitochondria too; a curve that is smaller than its sheath is thick gives a solid patch.

    Parameters
    ----------
    image
        (Y, X, C) float32 in [0, 1], where C are neighbouring slices; all get the same sheaths.
    mask
        (Y, X, 1) in {0, 1}, and 2 where nobody looked (`network_input.UNLABELLED`); or (Y, X, 2) with contacts, which
        are unknown under a sheath.
    rng
        Source of the random numbers.

    Returns
    -------
    Image and mask with the sheaths, new arrays of the same shape and dtype.
    """
    image, mask = image.copy(), mask.copy()
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(*SHEATHS, endpoint=True))):
        thickness = _log_uniform(THICKNESS, rng)
        distance = _distance_to_curve((height, width), rng)
        covered = (distance < thickness / 2).astype(np.float32)
        cover = cv2.GaussianBlur(covered, (0, 0), rng.uniform(*EDGE))[..., None]
        layers = np.cos(2 * np.pi * distance / _log_uniform(PERIOD, rng)) * rng.uniform(0, LAMELLAE)
        # Its noise is that of the crop, from another place.
        noise = image - cv2.GaussianBlur(image, (0, 0), 1.5).reshape(image.shape)
        noise = np.roll(noise, rng.integers(image.shape[:2]), (0, 1))
        grey = np.quantile(image[::4, ::4], rng.uniform(0, DARKEST)) + layers[..., None] + noise
        image = (image * (1 - cover) + grey * cover).astype(np.float32)
        mask[cover[..., 0] >= 0.5] = (0, UNLABELLED)[: mask.shape[-1]]
    return np.clip(image, 0, 1), mask


def _log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))


def _distance_to_curve(sides: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the distance of each pixel, (Y, X) float32, from a random closed curve that may leave the crop."""
    height, width = sides
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    radius = np.ones_like(angles)
    for harmonic in range(1, 6):
        radius += rng.normal(0, UNEVENNESS / harmonic) * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.1) * _log_uniform(RADIUS, rng) * min(sides)
    centre = rng.uniform(-0.25, 1.25, 2) * (width, height)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None] + centre
    # The distance is right inside a margin too, so that a curve just outside the crop reaches into it.
    margin = int(np.ceil(THICKNESS[1] / 2))
    canvas = np.full((height + 2 * margin, width + 2 * margin), 255, np.uint8)
    cv2.polylines(canvas, [np.rint(points + margin).astype(np.int32)], isClosed=True, color=(0,))
    distance = cv2.distanceTransform(canvas, cv2.DIST_L2, 5)
    inside = distance[margin : margin + height, margin : margin + width]
    return np.minimum(inside, 2 * margin)  # it is not defined where the whole curve lies outside the canvas
