"""The slices that train and those that test, and the one function that scores every tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitoflow.errors import InputError
from mitoflow.evaluation import metrics
from mitoflow.io import tiff

VNC_TRAIN, VNC_TEST = slice(0, 12), slice(14, 20)
EPFL_STEP = 8  # every so many slices of the training volume train


@dataclass(frozen=True)
class Parts:
    """What trains and what tests.

    Attributes
    ----------
    name
        Of the data: ``vnc`` or ``epfl``.
    images, masks
        ``(Z, Y, X)`` uint8, and bool: they train.
    test_images, test_masks
        The same for what tests. No tool chooses anything by these masks.
    """

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    test_images: NDArray[np.uint8]
    test_masks: NDArray[np.bool_]


def vnc(folder: Path) -> Parts:
    """Read ``images.tif`` and ``groundtruth.tif``: slices 0 to 11 train, 14 to 19 test.

    Raises
    ------
    InputError
        A file cannot be read, or does not have 20 slices.
    """
    images, masks = _read(folder, "images.tif", "groundtruth.tif")
    if len(images) != VNC_TEST.stop:
        raise InputError(folder / "images.tif", f"{len(images)} slices", f"the {VNC_TEST.stop} of vnc", "check --vnc")
    return Parts("vnc", images[VNC_TRAIN], masks[VNC_TRAIN], images[VNC_TEST], masks[VNC_TEST])


def epfl(folder: Path) -> Parts:
    """Read the files of EPFL: every eighth slice of the training volume trains, the test volume tests.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    images, masks = _read(folder, "training.tif", "training_groundtruth.tif")
    tested = _read(folder, "testing.tif", "testing_groundtruth.tif")
    return Parts("epfl", images[::EPFL_STEP], masks[::EPFL_STEP], *tested)


READ: dict[str, Callable[[Path], Parts]] = {"vnc": vnc, "epfl": epfl}


def scores(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> dict[str, float]:
    """Return Dice and IoU of the pixels of all slices together; both are ``(Z, Y, X)`` bool.

    Raises
    ------
    ValueError
        They differ in shape.
    """
    counts = metrics.count(truth, found).sum(axis=0)
    return {"dice": round(float(metrics.dice(counts)), 4), "iou": round(float(metrics.iou(counts)), 4)}


def slice_names(count: int) -> list[str]:
    """Return the names of the slices in the folders that the tools read, in the order of z."""
    return [f"slice_{z:03}" for z in range(count)]


def write_slices(folder: Path, stack: NDArray[np.uint8], ending: str) -> None:
    """Write each slice of ``(Z, Y, X)`` as a file of its own, `slice_names` and then `ending`: a TIFF or a PNG."""
    folder.mkdir(parents=True)
    for name, plane in zip(slice_names(len(stack)), stack, strict=True):
        Image.fromarray(plane).save(folder / f"{name}{ending}")


def read_slices(files: Sequence[Path]) -> NDArray[np.bool_]:
    """Return the masks that a tool wrote, one file a slice, as ``(Z, Y, X)`` bool: what is not 0 is mitochondrion."""
    return np.stack([np.asarray(Image.open(path)) != 0 for path in files])


def _read(folder: Path, images: str, masks: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    pixels = np.stack([*tiff.open_grey(folder / images).slices()])
    drawn = np.stack([*tiff.open_mask(folder / masks).slices()])
    if pixels.dtype != np.uint8:
        raise InputError(folder / images, pixels.dtype, "uint8", "convert it")
    if drawn.shape != pixels.shape:
        raise InputError(folder / masks, drawn.shape, f"{pixels.shape}, as {images}", "check the folder")
    if ((drawn > 0) & (drawn < drawn.max())).any():
        raise InputError(folder / masks, "more than two values", "0 and one other", "cut each slice at half")
    return pixels, drawn > 0
