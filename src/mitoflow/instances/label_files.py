"""Masks and labels in files, whatever tool wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.data.masks import BYTE, NOT_LOOKED_AT, SUBTRACT_1, WORD, MaskValues, agree_on_rule, binarise
from mitoflow.errors import InputError
from mitoflow.instances.components import label
from mitoflow.io import file_names, ome, remote, volumes
from mitoflow.io.spacing import Notify, Spacing

OBJECTS_A_LABEL = 1.5  # separate objects for each label, from which on values are likely to name no mitochondria


@dataclass(frozen=True)
class Labelled:
    """The mitochondria of a file.

    Attributes
    ----------
    voxels
        ``(Z, Y, X)`` unsigned integers, as `read_labels` returns them; 0 also where nobody looked.
    looked_at
        ``(Z, Y, X)`` bool.
    spacing
        The voxel size that the file states.
    """

    voxels: NDArray[Any]
    looked_at: NDArray[np.bool_]
    spacing: Spacing


def read_labels(source: str, notify: Notify = lambda _: None) -> tuple[NDArray[Any], Spacing]:
    """Read a mask or labels into memory; the same rules hold in all formats.

    Parameters
    ----------
    source
        A TIFF, MRC, DM3, DM4, HDF5, OME-Zarr or N5, also one on a server, or a folder or glob of slices. Values are
        integers, or floating-point numbers that are whole.
    notify
        Called with what the user should know: which files are the slices, doubts about the voxel size, chunks that are
        missing and so taken for empty, and how values are read where that is not obvious.

    Returns
    -------
    voxels
        ``(Z, Y, X)`` unsigned integers, 0 for background; where there are antialiased edges, all is {0, 1}, with 1 for
        what is above half (see `mitoflow.data.masks`).
    spacing
        The voxel size that the file states.

    Raises
    ------
    InputError
        It cannot be read, or is neither a mask nor labels.
    """
    voxels, spacing, _ = _read(source, notify)
    return voxels, spacing


def read_mitochondria(source: str, notify: Notify = lambda _: None) -> Labelled:
    """Read a mask or labels of mitochondria as `read_labels` does, and report what is likely to be a mistake.

    These are masks that may be inverted, labels that look like a mask of several values, and what nobody looked at: in
    a mask of 0, 128 and 255 that is 128.

    Raises
    ------
    InputError
        As for `read_labels`, or there are several values and none of them is 0.
    """
    voxels, spacing, files = _read(source, notify)
    looked_at = np.ones(voxels.shape, bool)
    if _is_partial(voxels):
        looked_at = voxels != NOT_LOOKED_AT
        voxels = np.where(looked_at, voxels, 0).astype(voxels.dtype)
        share = 1 - looked_at.mean()
        notify(f"note: {source}: {share:.0%} of the voxels are {NOT_LOOKED_AT}, which nobody looked at")
    elif voxels.min() > 0 and voxels.min() != voxels.max():
        found = ", ".join(map(str, np.unique(voxels)[:3])) + (", ..." if len(np.unique(voxels)) > 3 else "")
        raise InputError(source, f"the values {found} and no 0", "0 for background", SUBTRACT_1)
    contacts = _describe_contacts(source, files) if is_mask(voxels) else ()
    for line in (*_describe_dense(voxels, looked_at, source, files), *_describe_values(voxels, source), *contacts):
        notify(line)
    return Labelled(voxels, looked_at, spacing)


def is_mask(voxels: NDArray[Any]) -> bool:
    """Return whether voxels are those of a mask and not labels: they have one value besides 0, or the values of masks.

    1, 255 and 65535 side by side come from slices that were saved in different ways.
    """
    return bool(((voxels == 0) | (voxels == voxels.max())).all()) or bool(np.isin(voxels, (0, 1, BYTE, WORD)).all())


def _describe_contacts(source: str, files: Sequence[Path]) -> Iterator[str]:
    """Say where a mask does not hold what divides its mitochondria in `mitoflow predict`."""
    with suppress(InputError, OSError):  # most files have no lineage
        if ome.CONTACTS in ome.read_lineage(files[0]):
            remedy = "name its instances, which `predict --instances` writes, to use them"
            yield f"note: {source}: divided at necks alone, without the contacts that its model knows; {remedy}"


def _is_partial(voxels: NDArray[Any]) -> bool:
    """Return whether voxels are those of a mask of 0 and 255 in which 128 marks what nobody looked at."""
    return all((voxels == value).any() for value in (NOT_LOOKED_AT, BYTE)) and bool(
        np.isin(voxels, (0, NOT_LOOKED_AT, BYTE)).all()
    )


def _describe_dense(
    voxels: NDArray[Any], looked_at: NDArray[np.bool_], source: str, files: Sequence[Path]
) -> Iterator[str]:
    """Warn of files that may be inverted: with more mitochondria than anything else."""
    parts = [(voxels, looked_at)] if len(files) == 1 else list(zip(voxels, looked_at, strict=True))
    shares = [np.count_nonzero(part) / max(1, np.count_nonzero(seen)) for part, seen in parts]
    dense = [(file.name, share) for file, share in zip(files, shares, strict=True) if share > 0.5]
    if dense:
        name, share = dense[0]
        where = "" if len(files) == 1 else f" in {len(dense)} of {len(files)} files, such as {name}"
        found = f"{share:.0%} of the voxels are mitochondrion{where}"
        yield f"warning: {source}: {found}; if it is black on them, invert it"


def _describe_values(voxels: NDArray[Any], source: str) -> Iterator[str]:
    """Warn of labels that name too few of the objects, as in a mask some of whose objects have another value.

    Labels name each mitochondrion: there are about as many values as objects that do not touch. A mitochondrion of
    several parts is fine, but where there are half as many objects again as values, one value stands for many of them.

    128 is what nobody looked at beside 255 alone. Where most mitochondria have it, it is likely to mean that too.
    """
    unseen = np.count_nonzero(voxels == NOT_LOOKED_AT)
    if unseen > np.count_nonzero(voxels) / 2:
        found = f"{NOT_LOOKED_AT}, {unseen / voxels.size:.0%} of the voxels, is read as mitochondrion"
        yield f"warning: {source}: {found}; if nobody looked there, give all mitochondria {BYTE}"
    if is_mask(voxels):
        return
    values = np.unique(voxels[voxels > 0]).tolist()
    objects = int(label(voxels > 0).max())
    if objects >= OBJECTS_A_LABEL * len(values):
        named = ", ".join(map(str, values[:3])) + (", ..." if len(values) > 3 else "")
        found = f"{objects} separate objects, but {len(values)} values ({named}), each read as one mitochondrion"
        yield f"warning: {source}: {found}; if it is a mask, give all of them one value"


def _read(source: str, notify: Notify) -> tuple[NDArray[Any], Spacing, list[Path]]:
    """Return what `read_labels` does, and the files: one, or one for each slice.

    Each file may mark mitochondria in its own way.
    """
    files, volume = _open(source, notify)
    whole = (0, volume.shape[1], 0, volume.shape[2])
    voxels = _as_unsigned(np.stack([volume.read(z, whole) for z in range(volume.shape[0])]), source)
    for line in volumes.describe_absent(source, volume.absent_chunks()):
        notify(line)
    values = [MaskValues(file) for file in files]
    for z, one in enumerate(voxels):
        values[z if len(files) > 1 else 0].add(one)
    if _require_rule(values, source) == "half":
        soft = [each for each in values if each.rule == "half"]
        where = f" of {len(soft)} of {len(files)} files, such as {soft[0].path.name}" if len(files) > 1 else ""
        whites = sorted({each.white for each in soft if each.white})
        at = f"of {' and '.join(map(str, whites))}, the largest value" if whites else "range"
        notify(f"note: {source}: antialiased edges{where} are cut at half {at}")
        of_slices = values if len(files) > 1 else values * len(voxels)
        voxels = np.stack([binarise(one, "half", each.white) for one, each in zip(voxels, of_slices, strict=True)])
    elif is_mask(voxels) and len(used := [value for value in (1, BYTE, WORD) if (voxels == value).any()]) > 1:
        notify(f"note: {source}: the values {', '.join(map(str, used))} all mean mitochondrion")
    return voxels, volume.spacing, files


def _open(
    source: str, notify: Notify
) -> tuple[list[Path], volumes.StackVolume | volumes.FolderVolume | volumes.Hdf5Volume]:
    """Open a mask or labels; also returns its files: one, or one for each slice."""
    if remote.is_url(source) or volumes.is_chunked(Path(source)):
        return [Path(source)], volumes.open_volume(source, is_mask=True, notify=notify)
    files = volumes.find_files("INPUT", [source])
    for line in file_names.describe(files) if len(files) > 1 else []:
        notify(line)
    return files, volumes.StackVolume([volumes.open_file(file, is_mask=True) for file in files], notify=notify)


def _as_unsigned(voxels: NDArray[Any], source: str) -> NDArray[Any]:
    """Return voxels as unsigned integers; raises `InputError` where they are negative or not whole."""
    low, high = voxels.min(), voxels.max()
    is_whole = voxels.dtype.kind in "iu" or (voxels == np.rint(voxels)).all()
    if not is_whole or low < 0 or high >= 2**63:
        found = f"{voxels.dtype} voxels of {voxels.ndim} axes" + (f" with the value {low:g}" if low < 0 else "")
        raise InputError(source, found, "a mask or labels, axes yx or zyx", "name an output of `mitoflow predict`")
    return voxels if voxels.dtype.kind == "u" else voxels.astype(np.min_scalar_type(int(high)))


def _require_rule(values: Sequence[MaskValues], source: str) -> str:
    """Return the rule of the files of one stack; raises `InputError` where there is none."""
    try:
        return agree_on_rule(values)
    except InputError as error:
        where = error.where if len(values) > 1 else source
        raise InputError(where, error.found, error.expected, "name a mask or labels, of one kind") from None
