"""Masks and labels in files, whatever tool wrote them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.data.masks import MaskValues, binarise
from mitoflow.errors import InputError
from mitoflow.io import ome, tiff, volumes
from mitoflow.io.spacing import Spacing, read_tiff_spacing


def read_labels(source: str) -> tuple[NDArray[Any], Spacing]:
    """Read a mask or labels into memory.

    Parameters
    ----------
    source
        A TIFF, an OME-Zarr, or a folder or glob of slices. Values are integers, or floating-point numbers that are
        whole.

    Returns
    -------
    voxels
        ``(Z, Y, X)`` unsigned integers, 0 for background; a TIFF with antialiased edges is {0, 1}, with 1 for what is
        above half (see `mitoflow.data.masks`).
    spacing
        The voxel size that the file states.

    Raises
    ------
    InputError
        It cannot be read, or is neither a mask nor labels.
    """
    path = Path(source)
    if ome.is_zarr(path):
        image = ome.open_multiscale(path)
        if lost := ome.missing_chunks(image):
            raise InputError(path, f"missing chunks, the first {lost[0]}", "every chunk", "copy them again")
        alone = tuple(place for place, axis in enumerate(image.axes) if axis in "tc" and image.array.shape[place] == 1)
        voxels = image.read(tuple(slice(0, length) for length in image.array.shape)).squeeze(alone)
        spacing = image.spacing
    elif path.is_file():
        voxels, spacing = _read_tiff(path), read_tiff_spacing(path)
    else:
        volume = volumes.open_volume(source)
        spacing = volume.spacing
        whole = (0, volume.shape[1], 0, volume.shape[2])
        voxels = np.stack([volume.read(z, whole) for z in range(volume.shape[0])])
    found, (low, high) = f"{voxels.dtype} voxels of {voxels.ndim} axes", (voxels.min(), voxels.max())
    is_whole = voxels.dtype.kind in "iub" or (voxels == np.rint(voxels)).all()
    if not is_whole or low < 0 or high >= 2**63 or voxels.ndim not in (2, 3):
        found += f" with the value {low:g}" if low < 0 else ""
        raise InputError(source, found, "a mask or labels, axes yx or zyx", "name an output of `mitoflow predict`")
    if voxels.dtype.kind != "u":
        voxels = voxels.astype(np.min_scalar_type(int(high)))
    return voxels.reshape((1, *voxels.shape)[-3:]), spacing


def is_mask(voxels: NDArray[Any]) -> bool:
    """Return whether voxels have one value besides 0, as those of a mask do, and not several, as labels do."""
    high = voxels.max()
    return bool(((voxels == 0) | (voxels == high)).all())


def _read_tiff(path: Path) -> NDArray[Any]:
    """Return the slices of a TIFF, with values as stored; where it has antialiased edges as {0, 1}."""
    stack, values = replace(tiff.open_grey(path), black=0), MaskValues(path)
    if stack.dtype != np.uint8:
        return np.stack([*stack.slices()])
    for one in stack.slices():
        values.add(one)
    return np.stack([binarise(one, "half") if values.rule == "half" else one for one in stack.slices()])
