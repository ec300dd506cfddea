"""Where two mitochondria touch, by masks in which each has a number of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter, minimum_filter

from mitoflow.data.network_input import UNLABELLED
from mitoflow.io.tiff import Array

#: The pixels around one within which another mitochondrion is in contact with it: up to two along an axis. The band on
#: both sides of a contact is then four pixels wide, which a network that works at half of the resolution can draw.
NEAR = np.add.outer(np.arange(-2, 3) ** 2, np.arange(-2, 3) ** 2) <= 5


def find_contacts(labels: Array) -> npt.NDArray[np.uint8]:
    """Return 1 where two mitochondria touch, 0 in the rest of them, and `UNLABELLED` in the background.

    Parameters
    ----------
    labels
        ``(Y, X)``, any integer type: 0 for background, a number of its own for each mitochondrion.

    Returns
    -------
    (Y, X) uint8 in {0, 1, `UNLABELLED`}
    """
    _, places = np.unique(labels, return_inverse=True)
    numbers = places.reshape(labels.shape).astype(np.int32)
    if not (labels == 0).any():
        numbers += 1  # np.unique counts from the smallest value, which is no background here
    highest = maximum_filter(numbers, footprint=NEAR)
    lowest = minimum_filter(np.where(numbers > 0, numbers, numbers.max() + 1), footprint=NEAR)
    return np.where(numbers > 0, (highest != numbers) | (lowest != numbers), UNLABELLED).astype(np.uint8)
