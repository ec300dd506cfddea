"""EM stacks of any size and format, read a box at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
import zarr

from mitoflow.core.files import require_no_pipe
from mitoflow.errors import InputError
from mitoflow.io import file_names, gatan, hdf5, mrc, n5, ome, png, remote
from mitoflow.io.remote import Location
from mitoflow.io.spacing import (
    Notify,
    Spacing,
    Warn,
    as_warnings,
    read_tiff_spacing,
    replace_stated,
    warn_of_other_size,
)
from mitoflow.io.tiff import (
    Array,
    Box,
    Stack,
    as_stored,
    open_grey,
    open_labels,
    open_mask,
    open_stack,
    read_page,
    require_page_like,
    shown_grey,
)

ZARR_FILES = (".zgroup", ".zarray", "zarr.json")  # one of them is in the folder of a Zarr
KINDS = "a TIFF, a folder or a quoted glob of slices, an MRC, a DM3 or DM4, an HDF5, an OME-Zarr or an N5"
#: What the files of slices may be, each by its name.
SLICES: dict[str, Callable[[Path], bool]] = {
    "TIFF": ome.is_tiff,
    "PNG": png.is_png,
    "MRC": mrc.is_mrc,
    "DM3 or DM4": gatan.is_gatan,
}
MISSING = 2**20  # chunks without a file: to find as many takes twenty seconds
SHOWN = 1000  # missing chunks that are counted for a message
SLAB = 2**26  # bytes of the consecutive slices that are read together from chunks that are several slices deep


class Volume(Protocol):
    """A stack that can be read box by box.

    Attributes
    ----------
    axes
        ``yx`` or ``zyx``, as in the file; a single slice is read as a stack of one slice in both cases.
    shape
        ``(Z, Y, X)``.
    dtype
        Any integer or floating-point type.
    spacing
        See `mitoflow.io.spacing.Spacing`.
    origin
        Its first voxel in world coordinates, in voxels along `axes`; 0 for a TIFF, which does not store it.
    files
        The files or the folder that it is read from, resolved; none where it is on a server.
    """

    axes: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    spacing: Spacing
    origin: tuple[float, ...]
    files: list[Path]

    def read(self, z: int, box: Box) -> Array:
        """Return the box ``y0, y1, x0, x1`` of slice `z`, (Y, X).

        Raises
        ------
        InputError
            The file is damaged there.
        """

    def state(self) -> list[Any]:
        """Return what identifies the volume: names, sizes and times of its files, and how it is derived from them."""


def open_volume(
    source: str,
    *,
    spacing: Spacing | None = None,
    fill_missing: bool = False,
    is_mask: bool = False,
    notify: Notify = lambda _: None,
) -> StackVolume | FolderVolume | Hdf5Volume:
    """Open a stack of any format: a file, a folder or glob of slices, an OME-Zarr, a dataset of an N5 or HDF5.

    Parameters
    ----------
    source
        Where it is; for a dataset of an HDF5 file see `mitoflow.io.hdf5`, for one of an N5 `mitoflow.io.n5`, for
        addresses `mitoflow.io.remote`.
    spacing
        The voxel size, in place of what the file says; along axes that it lacks, that of the file.
    fill_missing
        Whether chunks that are missing in a Zarr or HDF5 are empty, as the specifications say; otherwise they are lost.
    is_mask
        Whether it is a mask or labels: missing chunks are empty, for most programs leave empty ones out, and values
        are read as they are stored; true is 1. `absent_chunks` of the volume says how many are missing.
    notify
        Called with what the user should know: doubts about the voxel size, and which of several files are the stack.

    Raises
    ------
    InputError
        It does not exist, cannot be read, its server does not answer, or it is no greyscale stack with axes YX or ZYX.
    """
    doubt = notify if spacing is None else lambda _: None
    volume = _open(source, notify, doubt, fill_missing=fill_missing, is_mask=is_mask)
    volume.spacing = replace_stated(volume.spacing, spacing, source, notify)
    return volume


def _open(
    source: str, notify: Notify, doubt: Notify, *, fill_missing: bool, is_mask: bool
) -> StackVolume | FolderVolume | Hdf5Volume:
    """Open a stack with the voxel size that it states; `doubt` is called with the doubts about that."""
    path, warn, fills = Path(source), as_warnings(doubt), fill_missing or is_mask
    if remote.is_url(source):
        return FolderVolume(open_folder(remote.Url(source), warn, is_whole=not fills), is_mask=is_mask)
    if _is_folder(path):
        return FolderVolume(open_folder(path, warn), fill_missing=fills, is_mask=is_mask)
    require_no_pipe((hdf5.split(path) or (path, ""))[0])
    if hdf5.is_hdf5(path):
        return Hdf5Volume(hdf5.open_hdf5(path, warn), fill_missing=fills)
    if not path.exists() and not set(source) & set("*?["):
        raise InputError(path, "no such file", KINDS, "check the path")
    files = find_files("INPUT", [source])
    for line in file_names.describe(files) if len(files) > 1 else []:
        notify(line)
    return StackVolume([open_file(file, is_mask=is_mask) for file in files], doubt)


def is_chunked(path: Path) -> bool:
    """Return whether a path is that of a Zarr or N5, of an HDF5 file, or of a dataset in one."""
    return _is_folder(path) or hdf5.is_hdf5(path)


def _is_folder(path: Path) -> bool:
    """Return whether a path is that of a Zarr or N5, by its name or by what is in it."""
    return ome.is_zarr(path) or n5.is_n5(path) or any((path / name).is_file() for name in ZARR_FILES)


def open_folder(place: Location, warn: Warn = lambda _: None, *, is_whole: bool = False) -> ome.Multiscale | n5.N5Image:
    """Open an N5 or an OME-Zarr; see `mitoflow.io.n5.open_n5` and `mitoflow.io.ome.open_multiscale`."""
    is_zarr = isinstance(place, Path) and ome.is_zarr(place)
    if n5.is_n5(place) and not is_zarr:
        return n5.open_n5(place, warn, is_whole=is_whole)
    return ome.open_multiscale(place, warn, is_whole=is_whole)


def is_image(path: Path) -> bool:
    """Return whether a path has the name of an image of any format."""
    return is_chunked(path) or any(is_one(path) for is_one in SLICES.values())


def absolute(source: str) -> str:
    """Return a source as it can be given in any folder."""
    return source if remote.is_url(source) else str(Path(source).absolute())


def name_of(source: str) -> str:
    """Return what a stack is called: the name of its file or folder, and of the dataset in it; or its address."""
    if remote.is_url(source):
        return source
    path = Path(source)
    file, dataset = hdf5.split(path) or n5.split(path) or (path, "")
    return f"{file.name}/{dataset}" if dataset else file.name


def find_files(option: str, patterns: Sequence[str]) -> list[Path]:
    """Return the files that are named, in natural order within a folder or glob; each counts once.

    Of a folder or glob these are the files of `SLICES`, without overlays that mitoflow drew. Links count as files
    of their own: tools of versioned data link equal slices to one file.

    Raises
    ------
    InputError
        A pattern matches no file; the error begins with `option`. A match is a pipe or a device. A folder has
        files of several kinds, or a file and its copy.
    """
    found: dict[Path, Path] = {}  # by resolved folder: a file that was named twice counts once
    for pattern in patterns:
        path = Path(pattern)
        require_no_pipe(path)
        inside = path.iterdir() if path.is_dir() else file_names.matching(pattern)
        slices = [path] if path.is_file() else _slices_of_one_kind(f"{option} {pattern}", inside)
        matches = sorted(slices, key=lambda match: file_names.natural_order(str(match)))
        if not matches:
            is_name = not set(pattern) & set("*?[")
            what = "no such file" if is_name and not path.is_dir() else "no TIFF, PNG, MRC, DM3 or DM4 file"
            expected = "a file, or a folder or a quoted glob of slices"
            raise InputError(f"{option} {pattern}", what, expected, "check the path")
        for match in matches:
            require_no_pipe(match)
            found.setdefault(match.parent.resolve() / match.name, match)
    file_names.refuse_copies(list(found))
    return list(found.values())


def _slices_of_one_kind(where: str, paths: Iterable[Path]) -> list[Path]:
    """Return the files that may be slices; raises `InputError`, which begins with `where`, if they are of two kinds."""
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        kind = next((name for name, is_one in SLICES.items() if is_one(path)), "")
        if kind and not path.name.startswith(".") and not png.is_overlay(path):
            kinds.setdefault(kind, []).append(path)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} files, such as {min(files).name}" for kind, files in sorted(kinds.items()))
        most = max(kinds.values(), key=len)
        remedy = f"name those that are meant, such as 'FOLDER/*{most[0].suffix}'"
        raise InputError(where, found, "slices of one kind", remedy)
    return next(iter(kinds.values()), [])


def open_file(path: Path, *, is_mask: bool = False) -> Stack:
    """Open a file of slices: an image as `mitoflow.io.tiff.open_grey` does, a mask or labels as `open_labels` does.

    Raises
    ------
    InputError
        It cannot be read.
    """
    if mrc.is_mrc(path):
        return mrc.open_mrc(path)
    if gatan.is_gatan(path):
        return gatan.open_gatan(path)
    if png.is_png(path):
        return as_stored(png.open_png(path)) if is_mask else shown_grey(png.open_png(path))
    return open_labels(path) if is_mask else open_grey(path)


class StackVolume:
    """A file with all slices, or one file for each.

    Parameters
    ----------
    stacks
        One stack, or single pages in their order.
    notify
        Called with doubts about the voxel size, which is that of the first file.
    spacing
        The voxel size, in place of what the first file says; along axes that it lacks, that of the file.

    Raises
    ------
    InputError
        Of several files one has more than a page, or they differ in size or pixel type.
    """

    def __init__(
        self, stacks: Sequence[Stack], notify: Notify = lambda _: None, spacing: Spacing | None = None
    ) -> None:
        first = stacks[0]
        for stack in stacks[1:]:
            try:
                require_page_like(first, stack)
            except InputError as error:
                remedy = f"{error.remedy}; or predict each by itself, into a folder"
                raise InputError(error.where, error.found, error.expected, remedy) from None
        self._stacks = stacks
        self.shape = (first.shape[0] if len(stacks) == 1 else len(stacks), *first.shape[1:])
        self.axes = "yx" if self.shape[0] == len(stacks) == 1 else "zyx"
        self.dtype = first.dtype
        self.origin = (0.0,) * len(self.axes)
        self.spacing = read_common_spacing([stack.path for stack in stacks], as_warnings(notify)) | (spacing or {})
        self.files = [stack.path.resolve() for stack in stacks]
        # The file stays open while its slices are read: to find a late page, tifffile follows all pages before it.
        self._pages = functools.lru_cache(maxsize=1)(_TiffPages)

    def read(self, z: int, box: Box) -> Array:
        """See `Volume`."""
        stack, page = (self._stacks[0], z) if len(self._stacks) == 1 else (self._stacks[z], 0)
        if not stack.is_file:
            y0, y1, x0, x1 = box
            return np.array(stack.slice(page)[y0:y1, x0:x1])
        try:
            return stack.shown(self._pages(stack.path, stack.shape).read(page, box).astype(self.dtype, copy=False))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # every codec raises a kind of its own
            found = f"slice {page} that cannot be decoded ({error})"
            raise InputError(stack.path, found, "an intact TIFF", "copy or export the file again") from None

    def state(self) -> list[Any]:
        """See `Volume`."""
        return [_state(stack.path) for stack in self._stacks]

    def absent_chunks(self) -> int:
        """Return 0: a file that lacks a part of its voxels is refused."""
        return 0


def _state(path: Path) -> list[Any]:
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


class _TiffPages:
    """The open file: bytes of uncompressed pages are found directly, of others their strips or tiles are decoded."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self._path, self._shape = path, shape
        self._file = tifffile.TiffFile(path)
        self._series = self._file.series
        first = self._series[0]
        self._start = first.dataoffset if len(self._series) == 1 else None
        stored = first.keyframe.dtype
        self._stored = None if stored is None else stored.newbyteorder(self._file.byteorder)
        self._alone = threading.Lock()  # reading moves the position in the file

    def read(self, page: int, box: Box) -> Array:
        y0, y1, x0, x1 = box
        if self._start is not None:
            # The map is released again, so that resident memory does not grow.
            whole = np.memmap(self._path, self._stored, "r", self._start, self._shape)
            return np.array(whole[page, y0:y1, x0:x1])
        with self._alone:
            entry = self._series[0][page] if len(self._series) == 1 else self._series[page][0]
            if entry is None:
                raise ValueError("its directory is missing")
            stored = read_page(self._file, page, entry.offset)
            return np.asarray(zarr.open_array(stored.aszarr(), mode="r")[y0:y1, x0:x1])


class ChunkedVolume:
    """An image in chunks; axes t and c of length 1 are left out.

    Parameters
    ----------
    image
        Its axes are in the order t, c, z, y, x.
    is_mask
        Whether it may hold true and false, which are read as 1 and 0.

    Raises
    ------
    InputError
        It holds no numbers, it is empty, or it has several channels or time points.
    """

    def __init__(self, image: ome.Multiscale | n5.N5Image | hdf5.Hdf5Image, *, is_mask: bool = False) -> None:
        array, axes, path = image.array, image.axes, image.path
        for axis, length in zip(axes, array.shape, strict=True):
            if axis in "tc" and length > 1:
                found = f"{length} {'time points' if axis == 't' else 'channels'}"
                raise InputError(path, found, "greyscale of axes yx or zyx", "save one of them")
        self.dtype: np.dtype[Any] = array.dtype.newbyteorder("=")
        if is_mask and self.dtype == bool:
            self.dtype = np.dtype(np.uint8)
        if self.dtype.kind not in "uif":
            expected = "integers or floating-point numbers"
            raise InputError(path, f"{array.dtype} voxels", expected, "save the image as 8- or 16-bit")
        if 0 in array.shape:
            raise InputError(path, f"an array of shape {array.shape}", "at least one voxel", "export the image again")
        self._image = image
        self.axes = "".join(axis for axis in axes if axis in "zyx")
        lengths = dict(zip(axes, array.shape, strict=True))
        self.shape: tuple[int, int, int] = (lengths.get("z", 1), lengths["y"], lengths["x"])
        self.spacing = image.spacing
        self._slab = _Slab(0, (0, 0, 0, 0), np.empty((0, 0, 0), self.dtype))

    def read(self, z: int, box: Box) -> Array:
        """See `Volume`; slices of the same chunks are kept for the next call."""
        slab = self._slab  # another thread may put its own there
        if not slab.holds(z, box):
            slab = self._slab = self._read_slab(z, box)
        return np.asarray(slab.voxels[z - slab.start])

    def _read_slab(self, z: int, box: Box) -> _Slab:
        y0, y1, x0, x1 = box
        axes, array = self._image.axes, self._image.array
        depth = array.chunks[axes.index("z")] if "z" in axes else 1
        several = max(1, SLAB // max(1, (y1 - y0) * (x1 - x0) * self.dtype.itemsize))
        stop = min(z + several, (z // depth + 1) * depth, self.shape[0])
        parts = {"z": slice(z, stop), "y": slice(y0, y1), "x": slice(x0, x1)}
        voxels = self._image.read(tuple(parts.get(axis, slice(0, 1)) for axis in axes))
        return _Slab(z, box, voxels.reshape(stop - z, y1 - y0, x1 - x0).astype(self.dtype, copy=False))


class FolderVolume(ChunkedVolume):
    """An OME-Zarr or N5, on this machine or on a server.

    Parameters
    ----------
    image
        See `open_folder`.
    fill_missing, is_mask
        See `open_volume`.

    Raises
    ------
    InputError
        As for `ChunkedVolume`, or chunks are missing; those on a server are missed when they are read.
    """

    def __init__(
        self, image: ome.Multiscale | n5.N5Image, *, fill_missing: bool = False, is_mask: bool = False
    ) -> None:
        super().__init__(image, is_mask=is_mask)
        self._path = image.path
        self._missing_chunks = image.missing_chunks
        self._lost = image.missing_chunks(MISSING if fill_missing else SHOWN)
        count = f"{SHOWN} or more" if len(self._lost) == SHOWN else len(self._lost)
        found = f"{count} missing chunks, the first {next(iter(self._lost), '')}"
        _require_chunks(self._path, len(self._lost), found, fill_missing=fill_missing)
        self.origin = tuple(start for axis, start in zip(image.axes, image.origin, strict=True) if axis in "zyx")
        self.files = [self._path.resolve()] if isinstance(self._path, Path) else []

    def state(self) -> list[Any]:
        """See `Volume`; of the chunks their number, their bytes and the latest change."""
        path = self._path
        if not isinstance(path, Path):
            return path.state()
        names = (".zarray", "zarr.json", n5.ATTRIBUTES)
        files = [_state(path / name) for name in names if (path / name).is_file()]
        chunks = [each.stat() for each in path.rglob("*") if each.is_file()]
        latest = max((about.st_mtime_ns for about in chunks), default=0)
        return [*files, self._lost, len(chunks), sum(about.st_size for about in chunks), latest]

    def absent_chunks(self) -> int:
        """Return how many chunks are missing and read as empty; on a server, of those that were read so far."""
        return len(self._lost if isinstance(self._path, Path) else self._missing_chunks(MISSING))


class Hdf5Volume(ChunkedVolume):
    """A dataset of an HDF5 file.

    Parameters
    ----------
    image
        See `mitoflow.io.hdf5.open_hdf5`.
    fill_missing
        See `open_volume`.

    Raises
    ------
    InputError
        As for `ChunkedVolume`, or chunks are missing.
    """

    def __init__(self, image: hdf5.Hdf5Image, *, fill_missing: bool = False) -> None:
        super().__init__(image)
        _require_chunks(image.path, image.missing, f"{image.missing} missing chunks", fill_missing=fill_missing)
        self.origin = (0.0,) * len(self.axes)
        self._file = image.file
        self._absent = image.missing
        self.files = [image.file.resolve()]

    def state(self) -> list[Any]:
        """See `Volume`."""
        return [*_state(self._file), str(self._image.path)]

    def absent_chunks(self) -> int:
        """Return how many chunks were never written and are read as empty."""
        return self._absent


def _require_chunks(path: object, missing: int, found: str, *, fill_missing: bool) -> None:
    """Raise `InputError` where chunks are missing, unless they are empty; in either case where most of them are."""
    if missing >= MISSING:
        raise InputError(
            path, f"{MISSING} missing chunks or more", "most chunks", "export the image again, with larger chunks"
        )
    if missing and not fill_missing:
        remedy = (
            "copy them again; where they are empty, save all chunks, or give --fill-missing to `predict` or `suggest`"
        )
        raise InputError(path, found, "every chunk", remedy)


def describe_absent(where: object, absent: int) -> list[str]:
    """Return what the user should know of the chunks that a mask lacks: nothing, or one line."""
    if not absent:
        return []
    chunks = "1 chunk is" if absent == 1 else f"{absent} chunks are"
    return [f"note: {where}: {chunks} not there and read as empty; if the mask is not empty there, copy it again"]


def read_spacing(path: Location, warn: Warn = lambda _: None, given: Container[str] = ()) -> Spacing:
    """Return the voxel size that a file or an image on a server states, in nanometres; see `read_tiff_spacing`."""
    if isinstance(path, remote.Url) or _is_folder(path):
        return open_folder(path, warn).spacing
    if hdf5.is_hdf5(path):
        return hdf5.open_hdf5(path, warn).spacing
    if mrc.is_mrc(path):
        return mrc.read_spacing(path, warn)
    if gatan.is_gatan(path):
        return gatan.read_spacing(path, warn)
    return {} if png.is_png(path) else read_tiff_spacing(path, warn, given)


def read_common_spacing(paths: Sequence[Path], warn: Warn) -> Spacing:
    """Return the voxel size of slices, that of the first file, and report the first one that states another."""
    spacing = read_spacing(paths[0], warn)
    doubts: list[InputError] = []
    for path in paths[1:] if spacing else []:
        warn_of_other_size(read_spacing(path), path, spacing, paths[0].name, doubts.append)
        if doubts:
            warn(doubts[0])
            break
    return spacing


def open_any_stack(path: Location, *, is_mask: bool = False) -> Stack:
    """Open a file of any format, or an image on a server, as a stack of slices.

    An EM image is uint8 or uint16, a mask or labels of any integer type; see `open_stack` and `open_mask` for TIFF.

    Raises
    ------
    InputError
        As for `open_volume`, or its voxels are of another type.
    """
    address = path if isinstance(path, remote.Url) else None
    file = Path(path.path) if isinstance(path, remote.Url) else path
    if not address:
        require_no_pipe(file)
    if not address and png.is_png(file):
        return open_file(file, is_mask=is_mask)
    if not (address or is_chunked(file) or mrc.is_mrc(file) or gatan.is_gatan(file)):
        return open_mask(file) if is_mask else open_stack(file)
    volume = open_volume(str(path), is_mask=is_mask)
    if volume.dtype.kind not in "ui" if is_mask else volume.dtype not in (np.uint8, np.uint16):
        expected = "a mask or labels, of integers" if is_mask else "uint8 or uint16, which have no sign"
        raise InputError(path, f"{volume.dtype} voxels", expected, "save it as one of them")
    return Stack(file, volume.shape, volume.dtype, _Slices(volume), address=address, absent_chunks=volume.absent_chunks)


@dataclass(frozen=True)
class _Slices:
    """The slices of a volume, see `mitoflow.io.tiff.Pixels`."""

    volume: Volume

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        return self.volume.read(z, (0, shape[0], 0, shape[1]))


@dataclass(frozen=True)
class _Slab:
    """Consecutive slices of a box, (Z, Y, X), from slice `start` on."""

    start: int
    box: Box
    voxels: Array

    def holds(self, z: int, box: Box) -> bool:
        return box == self.box and self.start <= z < self.start + len(self.voxels)
