"""Masks and labels in files, whatever tool wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.data.masks import BYTE, NOT_LOOKED_AT, WORD, MaskValues, agree_on_rule, binarise
from mitoflow.errors import InputError
from mitoflow.io import file_names, hdf5, n5, ome, remote, volumes
from mitoflow.io.spacing import Notify, Spacing, as_warnings


def read_labels(source: str, notify: Notify = lambda _: None) -> tuple[NDArray[Any], Spacing]:
    """Read a mask or labels into memory.

    Parameters
    ----------
    source
        A TIFF, MRC, DM3, DM4, HDF5, OME-Zarr or N5, also one on a server, or a folder or glob of slices. Values are
        integers, or floating-point numbers that are whole.
    notify
        Called with what the user should know: which files are the slices, doubts about the voxel size, and how values
        are read where that is not obvious.

    Returns
    -------
    voxels
        ``(Z, Y, X)`` unsigned integers, 0 for background; where a TIFF has antialiased edges, all is {0, 1}, with 1
        for what is above half (see `mitoflow.data.masks`).
    spacing
        The voxel size that the file states.

    Raises
    ------
    InputError
        It cannot be read, or is neither a mask nor labels.
    """
    path = remote.locate(source)
    if isinstance(path, remote.Url) or ome.is_zarr(path) or n5.is_n5(path):
        image = volumes.open_folder(path, as_warnings(notify), is_whole=True)
        if lost := image.missing_chunks():
            raise InputError(path, f"missing chunks, the first {lost[0]}", "every chunk", "copy them again")
        alone = tuple(place for place, axis in enumerate(image.axes) if axis in "tc" and image.array.shape[place] == 1)
        voxels = image.read(tuple(slice(0, length) for length in image.array.shape)).squeeze(alone)
        spacing = image.spacing
    else:
        voxels, spacing = _read_files(source, notify)
    found, (low, high) = f"{voxels.dtype} voxels of {voxels.ndim} axes", (voxels.min(), voxels.max())
    is_whole = voxels.dtype.kind in "iub" or (voxels == np.rint(voxels)).all()
    if not is_whole or low < 0 or high >= 2**63 or voxels.ndim not in (2, 3):
        found += f" with the value {low:g}" if low < 0 else ""
        raise InputError(source, found, "a mask or labels, axes yx or zyx", "name an output of `mitoflow predict`")
    if voxels.dtype.kind != "u":
        voxels = voxels.astype(np.min_scalar_type(int(high)))
    return voxels.reshape((1, *voxels.shape)[-3:]), spacing


def is_mask(voxels: NDArray[Any]) -> bool:
    """Return whether voxels are those of a mask and not labels: they have one value besides 0, or the values of masks.

    1, 255 and 65535 side by side come from slices that were saved in different ways.
    """
    return bool(((voxels == 0) | (voxels == voxels.max())).all()) or bool(np.isin(voxels, (0, 1, BYTE, WORD)).all())


def is_partial(voxels: NDArray[Any]) -> bool:
    """Return whether voxels are those of a mask of 0 and 255 in which 128 marks what nobody looked at."""
    return all((voxels == value).any() for value in (NOT_LOOKED_AT, BYTE)) and bool(
        np.isin(voxels, (0, NOT_LOOKED_AT, BYTE)).all()
    )


def warn_of_dense_mask(voxels: NDArray[Any], source: str, notify: Notify) -> None:
    """Report a mask that may be inverted: with more mitochondria than anything else."""
    share = np.count_nonzero(voxels) / voxels.size
    if share > 0.5 and not is_partial(voxels):
        notify(f"warning: {source}: {share:.0%} of the voxels are mitochondrion; if it is black on them, invert it")


def _read_files(source: str, notify: Notify) -> tuple[NDArray[Any], Spacing]:
    """Return the slices of a file, or of one file for each, as stored; with antialiased edges in one of them as {0, 1}.

    Each file may mark mitochondria in its own way.
    """
    volume: volumes.Volume
    if hdf5.is_hdf5(Path(source)):
        files, volume = [Path(source)], volumes.open_volume(source, notify=notify)
    else:
        files = volumes.find_files("INPUT", [source])
        for line in file_names.describe(files) if len(files) > 1 else []:
            notify(line)
        volume = volumes.StackVolume([volumes.open_file(file, is_mask=True) for file in files], notify=notify)
    whole = (0, volume.shape[1], 0, volume.shape[2])
    voxels = np.stack([volume.read(z, whole) for z in range(volume.shape[0])])
    if voxels.dtype.kind not in "iu":
        return voxels, volume.spacing
    values = [MaskValues(file) for file in files]
    for z, one in enumerate(voxels):
        values[z if len(files) > 1 else 0].add(one)
    if _require_rule(values) == "half":
        soft = [each.path.name for each in values if each.rule == "half"]
        where = f" of {len(soft)} of {len(files)} files, such as {soft[0]}" if len(files) > 1 else ""
        notify(f"note: {source}: antialiased edges{where} are cut at half range")
        voxels = np.stack([binarise(one, "half") for one in voxels])
    elif is_mask(voxels) and len(used := [value for value in (1, BYTE, WORD) if (voxels == value).any()]) > 1:
        notify(f"note: {source}: the values {', '.join(map(str, used))} all mean mitochondrion")
    return voxels, volume.spacing


def _require_rule(values: Sequence[MaskValues]) -> str:
    """Return the rule of the files of one stack; raises `InputError` where there is none."""
    try:
        return agree_on_rule(values)
    except InputError as error:
        raise InputError(error.where, error.found, error.expected, "name a mask or labels, of one kind") from None
