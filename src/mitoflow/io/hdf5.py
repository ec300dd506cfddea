"""HDF5 files of ilastik, Fiji and PlantSeg: an array in a file, which is named ``FILE.h5/NAME/OF/THE/DATASET``.

Axes are those of ``axistags``, which vigra and ilastik write; see https://ukoethe.github.io/vigra/doc-release/vigranumpy
The voxel size is that of ``element_size_um``, which Fiji and PlantSeg write, or of ``axistags`` with ``axis_units``.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mitoflow.errors import InputError
from mitoflow.io._chunks import LARGE, OVERHEAD, SMALL, UNPACKED
from mitoflow.io.spacing import Sizes, Spacing, Warn, in_nanometres

ENDINGS = (".h5", ".hdf5")
MOST_OBJECTS = 10_000  # groups and datasets of a file that are looked through
NAMED = 5  # datasets that an error lists
#: Filters by their numbers, and how many times as many bytes as there are they can unpack to.
DEFLATE, LZF = 1, 32000
KEEP_SIZE = {2: "shuffle", 3: "fletcher32"}
RATIOS = {DEFLATE: 1032, LZF: 90}
MOST_UNPACKED = 2**28  # bytes of memory for unpacking a chunk that are taken without looking at it first
ATTRIBUTES = ("axistags", "axis_units", "element_size_um")
#: Prints attributes as JSON. Where a file is damaged HDF5 1.14 can read text of variable length in an endless loop, so
#: another process reads it, which may use so many seconds of a processor.
SECONDS = 5
READ_TEXT = f"""
import json, resource, sys, h5py
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
attributes = h5py.File(sys.argv[1], "r")[sys.argv[2]].attrs
print(json.dumps({{name: attributes[name] for name in sys.argv[3:]}}))
"""
FEWEST_COLUMNS = 5  # an array whose last axis is shorter ends with channels
REMEDY = "export the stack again, as HDF5 or TIFF"


def is_hdf5(path: Path) -> bool:
    """Return whether a path has the name of an HDF5 file or of a dataset in one."""
    return split(path) is not None


def split(path: Path) -> tuple[Path, str] | None:
    """Return the HDF5 file and the name of the dataset that a path means, "" for a file alone; None for other paths."""
    for place in (path, *path.parents):
        if place.suffix.lower() in ENDINGS and not place.is_dir():
            return place, "" if place == path else path.relative_to(place).as_posix()
    return None


@dataclass(frozen=True)
class Layout:
    """Shape, type and chunks of an array whose axes are in the order t, c, z, y, x."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Hdf5Image:
    """A dataset of an HDF5 file.

    Attributes
    ----------
    file
        The file.
    path
        The file and in it the dataset.
    array
        See `Layout`.
    axes
        A letter for each axis of the array, such as ``tczyx``.
    spacing
        See `mitoflow.io.spacing.Spacing`.
    missing
        Chunks that were never written.
    """

    file: Path
    path: Path
    array: Layout
    axes: str
    spacing: Spacing
    missing: int
    _dataset: h5py.Dataset = field(repr=False)
    _order: tuple[int, ...] = field(repr=False)  # for each axis of the array that of the dataset
    _unsure: frozenset[tuple[int, ...]] = field(repr=False)  # where chunks begin that may unpack to too much

    def read(self, place: tuple[slice, ...]) -> np.ndarray:
        """Return a box of the array.

        Raises
        ------
        InputError
            The file is damaged there.
        """
        stored = [slice(0)] * len(place)
        for axis, part in zip(self._order, place, strict=True):
            stored[axis] = part
        try:
            self._require_bounded(stored)
            return np.asarray(self._dataset[tuple(stored)]).transpose(self._order)
        except MemoryError:
            raise
        except Exception as error:  # h5py raises errors of many types
            if isinstance(error, OSError) and error.errno:  # the machine, and not the file
                raise
            where = ", ".join(f"{axis} {s.start} to {s.stop - 1}" for axis, s in zip(self.axes, place, strict=True))
            found, remedy = f"voxels that cannot be read ({where}: {error})", "copy or export the file again"
            raise InputError(self.path, found, "intact chunks", remedy) from None

    def _require_bounded(self, place: Sequence[slice]) -> None:
        """Raise ValueError where a chunk unpacks to more bytes than it has room for."""
        if not self._unsure:
            return
        chunks = self._dataset.chunks
        starts = (range(s.start // side * side, s.stop, side) for s, side in zip(place, chunks, strict=True))
        most = math.prod(chunks) * self._dataset.dtype.itemsize
        for start in itertools.product(*starts):
            if start in self._unsure:
                left_out, packed = self._dataset.id.read_direct_chunk(start)
                if not left_out and UNPACKED["zlib"](memoryview(packed), most) > most:
                    raise ValueError(f"a chunk unpacks to more than its {most} bytes")


def open_hdf5(path: Path, warn: Warn = lambda _: None) -> Hdf5Image:
    """Open a dataset of an HDF5 file, the one that the path names or the only one.

    `warn` is as in `mitoflow.io.spacing.in_nanometres`.

    Raises
    ------
    InputError
        The file is missing, damaged or no HDF5; there is no such dataset, or several and none is named; it holds no
        numbers, has other axes than t, c, z, y and x, refers to other files, is packed in a way that mitoflow does not
        know, or would take far more memory than its voxels.
    """
    file, name = split(path) or (path, "")
    try:
        opened = h5py.File(file, "r")
        dataset, place = _find_dataset(opened, file, name)
        attributes = _read_attributes(dataset, file)
        dtype, axes = dataset.dtype, _axes(dataset.shape, attributes, place)
        if dtype.kind not in "buif":
            expected = "integers or floating-point numbers"
            raise InputError(place, f"{dtype} voxels", expected, "save the image as 8- or 16-bit")
        missing, unsure = _look_at_chunks(dataset, place)
        sizes = _sizes(attributes, axes)
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(file, "no such file", "an HDF5 file", "check the path") from None
    except BlockingIOError:
        raise InputError(file, "a file that a program is writing", "one that is complete", "close it there") from None
    except Exception as error:  # damaged metadata raises errors of many types
        if isinstance(error, OSError) and error.errno:  # the machine, and not the file
            raise
        raise InputError(path, f"no HDF5 that can be read ({error})", "an HDF5 file", REMEDY) from None
    order = tuple(axes.index(axis) for axis in "tczyx" if axis in axes)
    chunks = dataset.chunks or (1,) * len(axes)
    array = Layout(
        tuple(dataset.shape[axis] for axis in order),
        np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("="),
        tuple(chunks[axis] for axis in order),
    )
    return Hdf5Image(
        file=file,
        path=place,
        array=array,
        axes="".join(axes[axis] for axis in order),
        spacing=in_nanometres(sizes, place, warn),
        missing=missing,
        _dataset=dataset,
        _order=order,
        _unsure=frozenset(unsure),
    )


def _find_dataset(opened: h5py.File, file: Path, name: str) -> tuple[h5py.Dataset, Path]:
    """Return a dataset and its place; links to other files are not followed."""
    names: list[str] = []
    count = itertools.count(1)

    def note(found: str, object_: Any) -> str | None:
        if isinstance(object_, h5py.Dataset):
            names.append(found)
        return found if next(count) == MOST_OBJECTS else None  # ends the visit

    opened.visititems(note)
    images = [each for each in names if opened[each].ndim >= 2]
    listed = ", ".join(str(file / each) for each in images[:NAMED])
    listed += f", ... ({len(images)} in all)" if len(images) > NAMED else ""
    if name and name not in names:
        raise InputError(file / name, "no such dataset", "one of the file", f"name one: {listed or 'it has none'}")
    if not name and len(images) != 1:
        found = f"{len(images)} datasets" if images else "no dataset of two axes or more"
        raise InputError(file, found, "the name of one", f"name one: {listed}" if images else REMEDY)
    name = name or images[0]
    return opened[name], file / name


def _read_attributes(dataset: h5py.Dataset, file: Path) -> dict[str, Any]:
    """Return those of `ATTRIBUTES` that there are; raises ValueError where one of them is damaged."""
    names = [name for name in ATTRIBUTES if name in dataset.attrs]
    texts = [name for name in names if dataset.attrs.get_id(name).dtype.kind == "O"]
    read = {name: dataset.attrs[name] for name in names if name not in texts}
    if not texts:
        return read
    # -P: a file of the working directory is no module.
    command = [sys.executable, "-P", "-c", READ_TEXT, file, dataset.name, *texts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' and '.join(texts)} cannot be read")
    found: dict[str, Any] = json.loads(done.stdout)
    return read | found


def _axes(shape: tuple[int, ...], attributes: Mapping[str, Any], place: Path) -> str:
    """Return a letter for each axis: those of ``axistags``, or what the shape says."""
    if tags := _tags(attributes):
        axes = [str(tag["key"]) for tag in tags]
    else:
        usual = ("yx", "yxc", "zyxc", "tzyxc") if shape[-1:] < (FEWEST_COLUMNS,) else ("yx", "zyx", "czyx", "tczyx")
        axes = next(([*each] for each in usual if len(each) == len(shape)), [])
    if 0 in shape:
        raise InputError(place, f"an array of shape {shape}", "at least one voxel", REMEDY)
    if len(axes) != len(shape) or len({*axes}) != len(axes) or not {*"yx"} <= {*axes} <= {*"tczyx"}:
        found = f"axes {', '.join(axes) or 'without names'} of an array of shape {shape}"
        raise InputError(place, found, "axes yx or zyx", "save the stack with these axes alone")
    return "".join(axes)


def _tags(attributes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what vigra and ilastik write of each axis, or nothing."""
    return list(json.loads(attributes["axistags"])["axes"]) if "axistags" in attributes else []


def _sizes(attributes: Mapping[str, Any], axes: str) -> Sizes:
    """Return the voxel size of the attributes; programs write 1 micrometre along each axis where they know none."""
    if "element_size_um" in attributes:
        sides = np.ravel(attributes["element_size_um"]).tolist()
        known = dict(zip("xyz", sides[::-1], strict=False))  # of a slice there are two or three
        return {} if {*sides} == {1.0} else {axis: (known.get(axis), "um") for axis in "zyx" if axis in axes}
    units = json.loads(attributes.get("axis_units", "{}"))
    return {
        tag["key"]: (tag.get("resolution"), str(units.get(tag["key"]) or ""))
        for tag in _tags(attributes)
        if tag["key"] in "zyx"
    }


def _look_at_chunks(dataset: h5py.Dataset, place: Path) -> tuple[int, set[tuple[int, ...]]]:
    """Return how many chunks were never written, and where those begin that are to be looked at before unpacking.

    Raises
    ------
    InputError
        The voxels are in other files, are packed in a way that is not known to keep to a size, or chunks are far
        larger than the array.
    """
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.is_virtual or dataset.external:
        raise InputError(place, "voxels that are in other files", "an image in one file", REMEDY)
    if dataset.chunks is None:
        stored = dataset.id.get_storage_size()
        if stored < size:
            found = f"a dataset without its voxels ({stored} of {size} bytes)"
            raise InputError(place, found, "all voxels", "copy or export the file again")
        return 0, set()
    most = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if most > min(LARGE, max(SMALL, 2 * size)):
        raise InputError(place, f"chunks of {dataset.chunks} for an array of {dataset.shape}", "small chunks", REMEDY)
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(each)[0]: plist.get_filter(each)[3].decode() for each in range(plist.get_nfilters())}
    packing = filters.keys() - KEEP_SIZE.keys()
    if len(packing) > 1 or plist.get_nfilters() > len(filters) or not packing <= RATIOS.keys():
        remedy = "save it with gzip or without compression, such as with `h5repack -f GZIP=1`"
        raise InputError(place, f"voxels packed by {', '.join(filters.values())}", "gzip or LZF", remedy)
    ratio = max((RATIOS[each] for each in packing), default=1)
    unsure: set[tuple[int, ...]] = set()
    written, largest = 0, 0

    def look(chunk: Any) -> None:
        nonlocal written, largest
        written, largest = written + 1, max(largest, chunk.size)
        if chunk.size * ratio > max(most, MOST_UNPACKED):
            unsure.add(chunk.chunk_offset)

    dataset.id.chunk_iter(look)
    if largest > most + most // 100 + OVERHEAD or (unsure and packing != {DEFLATE}):
        raise InputError(place, f"a chunk of {largest} bytes for {most} bytes of voxels", "small chunks", REMEDY)
    grid = math.prod(-(-length // side) for length, side in zip(dataset.shape, dataset.chunks, strict=True))
    return grid - written, unsure
