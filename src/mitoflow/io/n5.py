"""N5 folders, on this machine or on a server: an array in blocks, each a file, with its axes in the order x, y, z.

The format: https://github.com/saalfeldlab/n5, which Zarr 3 does not read. Blocks come by Zarr's stores and codecs, so
that servers, credentials and limits are those of OME-Zarr. tensorstore would let the process end where some blocks are
damaged. The voxel size is that of the "dialects" which n5-viewer, BigCat, COSEM
and Fiji write: https://github.com/saalfeldlab/n5-ij/wiki/N5-Metadata-Dialects
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.registry import get_codec
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from mitoflow.errors import InputError
from mitoflow.io._chunks import LARGE, OVERHEAD, SMALL, UNPACKED
from mitoflow.io.hdf5 import Layout
from mitoflow.io.ome import corners, require_inside
from mitoflow.io.remote import Location, Url, open_store
from mitoflow.io.spacing import NEEDED, Sizes, Spacing, Warn, in_nanometres

ENDING = ".n5"
ATTRIBUTES = "attributes.json"
FIRST_LEVEL = "s0"  # the full resolution, in a folder of several
#: The codecs of compressions by the names that N5 has for them.
PACKINGS = {"raw": "", "gzip": "gzip", "bzip2": "bz2", "blosc": "blosc", "zstd": "zstd"}
TYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {"float32", "float64"}
FIJI = {"x": "pixelWidth", "y": "pixelHeight", "z": "pixelDepth"}
MOST_FOLDERS, NAMED = 10_000, 5  # that are looked through for datasets, and datasets that an error lists
REMEDY = "name a dataset in the folder, or save the stack as OME-Zarr or TIFF"


def split(path: Path) -> tuple[Path, str] | None:
    """Return the folder that ends with ``.n5`` and the dataset in it that a path means; None for other paths."""
    for place in (path, *path.parents):
        if place.suffix.lower() == ENDING and not path.is_file():
            return place, "" if place == path else path.relative_to(place).as_posix()
    return None


def is_n5(place: Location) -> bool:
    """Return whether a path or an address is that of an N5, or in one that ends with ``.n5``."""
    if isinstance(place, Url):
        return any(part.lower().endswith(ENDING) for part in place.path.parts)
    return split(place) is not None or (place / ATTRIBUTES).is_file()


@dataclass(frozen=True)
class N5Image:
    """A dataset of an N5.

    Attributes
    ----------
    path
        The folder of the dataset, or its address.
    array
        Shape, type and blocks, in the order of `axes`.
    axes
        ``yx`` or ``zyx``.
    spacing
        See `mitoflow.io.spacing.Spacing`.
    origin
        0 along each of the axes.
    """

    path: Location
    array: Layout
    axes: str
    spacing: Spacing
    origin: tuple[float, ...]
    _packing: str = field(repr=False)  # the codec of the blocks, or ""
    _store: Store = field(repr=False)
    _is_whole: bool = field(repr=False)
    _missed: set[str] = field(default_factory=set, repr=False)

    def read(self, place: tuple[slice, ...]) -> np.ndarray:
        """Return a box of the array; where blocks are missing it is 0.

        Raises
        ------
        InputError
            The image is damaged there, the server does not answer, or blocks are missing that were not to be.
        """
        sides = self.array.chunks
        grid = (range(each.start // side, -(-each.stop // side)) for each, side in zip(place, sides, strict=True))
        places = list(itertools.product(*grid))
        voxels = np.zeros([each.stop - each.start for each in place], self.array.dtype)
        try:
            blocks = sync(_fetch(self._store, [_name(corner) for corner in places]))
            for corner, block in zip(places, blocks, strict=True):
                if block is not None:
                    starts = [at * side for at, side in zip(corner, sides, strict=True)]
                    _copy(self._unpack(corner, block), starts, voxels, place)
                    continue
                self._missed.add(_name(corner))
                if self._is_whole:
                    raise ValueError(f"{_name(corner)} is missing, which `predict --fill-missing` takes for empty")
        except (InputError, MemoryError):
            raise
        except Exception as error:  # every codec raises errors of its own type
            if isinstance(error, OSError) and error.errno:  # the machine, and not the file
                raise
            where = ", ".join(f"{axis} {s.start} to {s.stop - 1}" for axis, s in zip(self.axes, place, strict=True))
            found, remedy = f"voxels that cannot be read ({where}: {error})", "copy or export the image again"
            raise InputError(self.path, found, "intact blocks", remedy) from None
        return voxels

    def missing_chunks(self, most: int = 1000) -> list[str]:
        """Return the names of the blocks that have no file, and at most so many; on a server of those read so far."""
        if isinstance(self.path, Url):
            return sorted(self._missed)[:most]
        folder = self.path
        grid = [-(-length // side) for length, side in zip(self.array.shape, self.array.chunks, strict=True)]
        names = (_name(corner) for corner in corners(grid))
        return list(itertools.islice((name for name in names if not (folder / name).is_file()), most))

    def _unpack(self, corner: Sequence[int], block: bytes) -> np.ndarray:
        """Return the voxels of a block, which may be cut off where the array ends.

        Raises ValueError where it has fewer than the array has there, or unpacks to more than it has room for.
        """
        name, sides, dtype = _name(corner), self.array.chunks, self.array.dtype
        mode, rank = struct.unpack_from(">HH", block)
        if mode or rank != len(sides):
            raise ValueError(f"{name} has {rank} axes, or a length of its own")
        lengths = struct.unpack_from(f">{rank}I", block, 4)[::-1]
        fewest = (min(side, whole - at * side) for at, side, whole in zip(corner, sides, self.array.shape, strict=True))
        packed, most = memoryview(block)[4 + 4 * rank :], math.prod(sides) * dtype.itemsize
        fits = len(packed) <= most + most // 100 + OVERHEAD
        if not fits or any(not few <= n <= side for few, n, side in zip(fewest, lengths, sides, strict=True)):
            raise ValueError(f"{name} has {' x '.join(map(str, lengths[::-1]))} voxels in {len(packed)} bytes")
        unpacked: Any = packed
        if self._packing:
            if UNPACKED[self._packing](packed, most) > most:
                raise ValueError(f"{name} unpacks to more than the {most} bytes of a block")
            unpacked = get_codec({"id": self._packing}).decode(packed)
        return np.frombuffer(unpacked, dtype.newbyteorder(">")).reshape(lengths)


def _copy(block: np.ndarray, starts: Sequence[int], voxels: np.ndarray, place: Sequence[slice]) -> None:
    """Copy what a block, which starts there in the array, has of a place to the voxels of that place."""
    into, source = [], []
    for start, length, part in zip(starts, block.shape, place, strict=True):
        first, last = max(start, part.start), min(start + length, part.stop)
        into.append(slice(first - part.start, last - part.start))
        source.append(slice(first - start, last - start))
    voxels[tuple(into)] = block[tuple(source)]


def _name(corner: Sequence[int]) -> str:
    """Return the name of a block by its place along z, y and x."""
    return "/".join(map(str, corner[::-1]))


async def _fetch(store: Store, names: Sequence[str]) -> list[bytes | None]:
    found = await asyncio.gather(*(store.get(name, default_buffer_prototype()) for name in names))
    return [None if each is None else each.to_bytes() for each in found]


def open_n5(place: Location, warn: Warn = lambda _: None, *, is_whole: bool = False) -> N5Image:
    """Open a dataset of an N5: that of the path or address, the full resolution of several, or the only one.

    `warn` is as in `mitoflow.io.spacing.in_nanometres`. With `is_whole`, reading where a block is missing is an error;
    otherwise the block is 0.

    Raises
    ------
    InputError
        There is no dataset, or several; it has more than three axes, holds no numbers, or is packed in a way that is
        not known to keep to a size; the server does not answer.
    """
    attributes, place = _find_dataset(place)
    if isinstance(place, Path):
        require_inside(place, place)
    try:
        shape, sides = (tuple(map(_length, attributes[name])) for name in ("dimensions", "blockSize"))
        kind, compression = str(attributes["dataType"]), attributes["compression"]
        if kind not in TYPES or compression["type"] not in PACKINGS:
            raise ValueError(f"{kind} voxels packed by {compression['type']}, and not one of {', '.join(PACKINGS)}")
        array = Layout(shape[::-1], np.dtype(kind), sides[::-1])
        if len(sides) != len(shape):
            raise ValueError(f"blocks of {len(sides)} axes for an array of {len(shape)}")
        size = array.dtype.itemsize * math.prod(sides)
        if size > min(LARGE, max(SMALL, 2 * array.dtype.itemsize * math.prod(shape))):
            raise ValueError(f"blocks of {sides} for an array of {shape}")
        if not 2 <= len(shape) <= 3:
            raise ValueError(f"{len(shape)} axes, and not x, y or x, y, z")
        sizes = _sizes(attributes, "xyz"[: len(shape)], _level(place.name))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        found = f"no dataset of N5 that can be read ({type(error).__name__}: {error})"
        raise InputError(place, found, "an N5 dataset", REMEDY) from None
    if sizes and not any(unit for _, unit in sizes.values()) and {side for side, _ in sizes.values()} != {1}:
        sides_found = ", ".join(f"{axis} {side}" for axis, (side, _) in sizes.items())
        warn(InputError(place, f"a voxel of {sides_found} without a unit", "a unit, such as nm", NEEDED))
    return N5Image(
        path=place,
        array=array,
        axes="zyx"[-len(shape) :],
        spacing=in_nanometres({axis: sizes[axis] for axis in "zyx" if axis in sizes}, place, warn),
        origin=(0.0,) * len(shape),
        _packing="zlib" if compression.get("useZlib") else PACKINGS[compression["type"]],
        _store=open_store(place),
        _is_whole=is_whole,
    )


def _length(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"the length {value!r}")
    return value


def _attributes(place: Location) -> dict[str, Any]:
    """Return the attributes of a folder, none where there are none."""
    file = place / ATTRIBUTES
    if isinstance(file, Path):
        content = file.read_bytes() if file.is_file() else None
    else:
        (content,) = sync(_fetch(open_store(place), [ATTRIBUTES]))
    try:
        found = json.loads(content or b"{}")
    except ValueError as error:
        raise InputError(file, f"no JSON ({error})", "attributes of N5", REMEDY) from None
    return found if isinstance(found, dict) else {}


def _find_dataset(place: Location) -> tuple[dict[str, Any], Location]:
    """Return the attributes of the dataset that is meant, with what the folder around it adds, and its place."""
    if isinstance(place, Path) and not place.exists():
        raise InputError(place, "no such folder", "an N5", "check the path")
    if isinstance(place, Path) and (found := list(itertools.islice(_datasets(place), NAMED + 1))) and found != [place]:
        if len(found) > 1:
            listed = ", ".join(map(str, found[:NAMED])) + (", ..." if len(found) > NAMED else "")
            raise InputError(place, "several datasets", "the name of one", f"name one: {listed}")
        place = found[0]
    own = _attributes(place)
    if "dimensions" not in own:
        around, own, place = own, _attributes(place / FIRST_LEVEL), place / FIRST_LEVEL
    else:
        around = _attributes(place.parent)
    if "dimensions" not in own:
        raise InputError(place.parent, "no dataset", "an N5 dataset", REMEDY)
    return _inherited(around, place.name) | own, place


def _inherited(around: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a folder says of the voxel size of its levels, of which one is named."""
    found = {key: around[key] for key in ("pixelResolution", "resolution", "units", "axes") if key in around}
    factors, level = around.get("scales", around.get("downsamplingFactors")), _level(name)
    if isinstance(factors, list) and level < len(factors):
        found["downsamplingFactors"] = factors[level]
    return found


def _level(name: str) -> int:
    """Return the number of a level, ``s0``, ``s1`` and so on; 0 for what has another name."""
    return int(name[1:]) if re.fullmatch(r"s\d{1,3}", name, re.ASCII) else 0


def _datasets(folder: Path) -> Iterator[Path]:
    """Yield the datasets in a folder, or it; of the levels of one image the first."""
    waiting = [folder]
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        place = waiting.pop(0)
        if "dimensions" in _attributes(place):
            yield place
        elif "dimensions" in _attributes(place / FIRST_LEVEL):
            yield place / FIRST_LEVEL
        else:
            waiting += sorted(each for each in place.iterdir() if each.is_dir() and not each.is_symlink())


def _sizes(attributes: Mapping[str, Any], axes: str, level: int) -> Sizes:
    """Return the voxel size with its units, as far as the attributes say; `axes` are those of the array on disk.

    Sizes and units are in the order of ``axes`` where the attributes have it: programs of Python write z first.
    """
    if transform := attributes.get("transform"):  # of COSEM, which names the axes
        sizes = zip(transform["scale"], map(str, transform["units"]), strict=True)
        return dict(zip(transform["axes"], sizes, strict=True))
    if "pixelWidth" in attributes:  # of Fiji
        unit = str(attributes.get("pixelUnit", ""))
        return {axis: (attributes.get(FIJI[axis]), unit) for axis in axes}
    units = attributes.get("units", "")
    sides = attributes.get("pixelResolution", attributes.get("resolution"))  # of n5-viewer, and of BigCat
    if isinstance(sides, dict):
        units, sides = sides.get("unit", ""), sides["dimensions"]
    factors = attributes.get("downsamplingFactors", None if level else [1] * len(axes))
    if sides is None or factors is None:
        return {}
    named = [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in attributes.get("axes", axes)]
    if sorted(named) != sorted(axes):
        raise ValueError(f"axes {', '.join(named)}, and not {', '.join(axes)}")
    each = [str(unit) for unit in (units if isinstance(units, list) else [units] * len(axes))]
    scaled = [float(side) * float(factor) for side, factor in zip(sides, factors, strict=True)]
    return dict(zip(named, zip(scaled, each, strict=True), strict=True))
