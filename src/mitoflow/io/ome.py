"""OME-TIFF and OME-Zarr: metadata of an image, and images that are written a box at a time.

OME-TIFF: Goldberg et al., "The Open Microscopy Environment Data Model and XML file", Genome Biology 6:R47, 2005.
OME-Zarr: Moore et al., "OME-Zarr: a cloud-optimized bioimaging file format with international community support",
Histochemistry and Cell Biology 160, 2023; versions 0.4 and 0.5 are read, and 0.4 is written, which more programs know.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import zarr
from numcodecs import Blosc

from mitoflow.core.files import file_digest, require_no_pipe, short_digest
from mitoflow.errors import InputError
from mitoflow.io import spacing, tiff
from mitoflow.io._chunks import BoundedStore, open_bounded
from mitoflow.io.remote import Location, Url, open_store
from mitoflow.io.spacing import Spacing, Warn

#: The key of the lineage in the attributes of an OME-Zarr, and in the annotations of an OME-TIFF.
LINEAGE = "mitoflow/lineage"
#: Keys in the lineage of masks that somebody corrected, or drew from nothing; they say how.
CORRECTED, DRAWN = "corrected", "drawn"
CONTACTS = "contacts"  # key of the lineage where the model knows where mitochondria touch
#: The key in the attributes of an OME-Zarr of what the voxels were when mitoflow wrote them.
VOXELS = "mitoflow/voxels"
#: Files of an OME-Zarr: metadata, and chunks that are named by their places; and what macOS adds to a folder.
OWN_FILE = re.compile(r"(\d+/)*(\d+|\.z(array|attrs|group)|\.DS_Store)")

TIFF_ENDINGS, ZARR_ENDINGS = (".tif", ".tiff"), (".zarr",)
TILE = 256  # pixels of a side of the tiles of a TIFF, and rows of its strips
CHUNK = 512  # pixels of a side of the chunks of a Zarr; whole tiles
BUFFER = 2**25  # bytes of tiles that are compressed at the same time
IMAGE_DESCRIPTION = 270  # the number of the tag
LARGEST_TOP = 256  # voxels along an axis of the smallest level of a pyramid

ZARR_REMEDY = "name the folder of an OME-Zarr image, or save the stack as OME-Zarr or TIFF"


@dataclass(frozen=True)
class Description:
    """The metadata of an image.

    Attributes
    ----------
    axes
        ``yx`` or ``zyx``.
    spacing
        See `mitoflow.io.spacing.Spacing`.
    origin
        Its first voxel in world coordinates, in voxels along `axes`.
    lineage
        Where it comes from.
    """

    axes: str
    spacing: Spacing = field(default_factory=dict)
    origin: tuple[float, ...] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)


def is_tiff(path: Path) -> bool:
    """Return whether a path has the name of a TIFF."""
    return path.suffix.lower() in TIFF_ENDINGS


def is_zarr(path: Path) -> bool:
    """Return whether a path has the name of a Zarr."""
    return path.suffix.lower() in ZARR_ENDINGS


def write_tiff(path: Path, pixels: zarr.Array[Any] | np.ndarray, description: Description) -> None:
    """Write an OME-TIFF, compressed without loss, with one row of tiles in memory.

    ImageJ opens it too, with slices as Z and the voxel size. It reads neither tiles nor BigTIFF, so an image whose
    pixels fit into a classic TIFF is in strips, and a larger one in tiles, which ImageJ opens by Bio-Formats alone.

    Parameters
    ----------
    path
        The file. It is a BigTIFF where the pixels before compression need more than 4 GB.
    pixels
        ``(Y, X)`` or ``(Z, Y, X)``, as `description` says. uint32 becomes uint16 if its values fit, because
        more programs show it.
    description
        The metadata; OME-TIFF cannot store the origin of a part.
    """

    def bands() -> Iterator[np.ndarray]:
        planes: Any = [()] if pixels.ndim == 2 else [(z,) for z in range(pixels.shape[0])]
        for plane in planes:
            for top in range(0, pixels.shape[-2], CHUNK):
                yield np.asarray(pixels[(*plane, slice(top, top + CHUNK), slice(None))])

    def tiles() -> Iterator[np.ndarray]:
        for band in bands():
            for y in range(0, band.shape[0], TILE):
                for x in range(0, band.shape[1], TILE):
                    yield band[y : y + TILE, x : x + TILE].astype(dtype, copy=False)

    def strips() -> Iterator[bytes]:
        for band in bands():
            for y in range(0, band.shape[0], TILE):
                yield zlib.compress(band[y : y + TILE].astype(dtype.newbyteorder("<"), copy=False).tobytes())

    dtype = pixels.dtype
    if dtype == np.uint32 and max(int(band.max()) for band in bands()) < 2**16:
        dtype = np.dtype(np.uint16)
    is_large = tiff.needs_bigtiff(pixels.shape, dtype)
    # Programs that know OME take the first of several descriptions, and ImageJ takes the last one.
    descriptions = [_ome_xml(pixels.shape, dtype, description)]
    layout: dict[str, Any] = {"tile": (TILE, TILE), "buffersize": BUFFER}
    if not is_large:
        text, resolution = spacing.imagej_metadata(pixels.shape, description.spacing)
        descriptions.append(text)
        layout = {"rowsperstrip": TILE, **resolution}
    with tifffile.TiffWriter(path, bigtiff=is_large, byteorder="<") as file:
        file.write(
            tiles() if is_large else strips(),
            shape=pixels.shape,
            dtype=dtype,
            compression="zlib",
            photometric="minisblack",
            metadata=None,
            extratags=[(IMAGE_DESCRIPTION, "s", 0, text.encode(), True) for text in descriptions],
            **layout,
        )


def _ome_xml(shape: tuple[int, ...], dtype: np.dtype, description: Description) -> str:
    metadata = spacing.ome_metadata(description.axes, description.spacing)
    if description.lineage:
        metadata["MapAnnotation"] = {"Namespace": LINEAGE, "Value": dict(description.lineage)}
    z, y, x = (1, *shape)[-3:]
    document = tifffile.OmeXml()
    document.addimage(dtype, shape, (z, 1, 1, y, x, 1), **metadata)
    return str(document.tostring(declaration=True))


def create_multiscale(path: Path, shape: tuple[int, ...], dtype: np.dtype, depth: int) -> zarr.Array[Any]:
    """Create an OME-Zarr image and return its full resolution, to be written; `finish_multiscale` completes it.

    Parameters
    ----------
    path
        The folder.
    shape
        ``(Y, X)`` or ``(Z, Y, X)``.
    dtype
        Of the voxels.
    depth
        Slices of a chunk. Every chunk is written, also if it is empty, so a missing chunk is a lost one.
    """
    return _create_level(zarr.open_group(path, mode="w", zarr_format=2), "0", shape, dtype, depth)


def open_level(path: Path) -> zarr.Array[Any]:
    """Return the full resolution of an image that `create_multiscale` created, to write to it."""
    with zarr.config.set({"array.write_empty_chunks": True}):  # opening ignores the argument `config`
        return zarr.open_array(path / "0", mode="r+")


def sweep(path: Path) -> None:
    """Remove chunks that a kill left half-written; no process may write to the image meanwhile."""
    for chunk in path.rglob("*.partial"):  # Zarr writes a chunk beside its place
        chunk.unlink()


def _create_level(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, depth: int) -> zarr.Array[Any]:
    largest = (depth, CHUNK, CHUNK)[-len(shape) :]
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(min(length, chunk) for length, chunk in zip(shape, largest, strict=True)),
        compressors=Blosc("zstd", clevel=3, shuffle=Blosc.SHUFFLE),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk that is missing is one that was lost
        overwrite=True,
    )


def finish_multiscale(path: Path, description: Description) -> None:
    """Add the lower resolutions and the metadata to an image that `create_multiscale` created.

    Each level keeps every second voxel along the axes that are longer than 256, so that masks and labels keep
    their values. Other programs see by ``image-label`` that they are labels. The metadata have a digest of the full
    resolution, by which `is_as_written` notices corrections.
    """
    group = zarr.open_group(path, mode="r+")
    level = zarr.open_array(path / "0", mode="r")
    steps, levels = [(1,) * level.ndim], [level]
    while max(level.shape) > LARGEST_TOP:
        factors = tuple(2 if length > LARGEST_TOP else 1 for length in level.shape)
        level = _add_level(group, str(len(levels)), level, factors)
        levels.append(level)
        steps.append(tuple(a * b for a, b in zip(steps[-1], factors, strict=True)))
    labels = {"image-label": {"version": "0.4"}} if are_labels(description.lineage, level.dtype) else {}
    multiscales, digest = [_multiscale(description, steps)], _digest_of_voxels(path)
    group.attrs.update({"multiscales": multiscales, **labels, LINEAGE: dict(description.lineage), VOXELS: digest})


def _digest_of_voxels(image: Path) -> str:
    """Return digits that change with the chunks of the full resolution; a copy of the folder has the same."""
    level = image / "0"
    chunks = sorted(path.relative_to(level).as_posix() for path in level.rglob("*") if path.name.isdecimal())
    return short_digest([[name, file_digest(level / name)] for name in chunks if (level / name).is_file()])


def _add_level(group: zarr.Group, name: str, upper: zarr.Array[Any], factors: tuple[int, ...]) -> zarr.Array[Any]:
    shape = tuple(-(-length // factor) for length, factor in zip(upper.shape, factors, strict=True))
    depth = upper.chunks[0] if len(shape) == 3 else 1
    lower = _create_level(group, name, shape, upper.dtype, depth)
    for corner in np.ndindex(*(-(-length // chunk) for length, chunk in zip(shape, lower.chunks, strict=True))):
        into, source = [], []
        for place, length, chunk, factor in zip(corner, shape, lower.chunks, factors, strict=True):
            start, stop = place * chunk, min((place + 1) * chunk, length)
            into.append(slice(start, stop))
            source.append(slice(start * factor, (stop - 1) * factor + 1, factor))
        lower[tuple(into)] = upper[tuple(source)]
    return lower


def _multiscale(description: Description, steps: list[tuple[int, ...]]) -> dict[str, Any]:
    """Return the metadata of a pyramid; the scale of an axis whose voxel size is unknown counts voxels."""
    axes, known = description.axes, description.spacing
    sizes = [known.get(axis, 1.0) for axis in axes]
    origin = [size * start for size, start in zip(sizes, description.origin or (0,) * len(axes), strict=True)]
    shift = [{"type": "translation", "translation": origin}] if any(origin) else []
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [size * count for size, count in zip(sizes, step, strict=True)]},
                *shift,
            ],
        }
        for number, step in enumerate(steps)
    ]
    named = [{"name": axis, "type": "space", **({"unit": "nanometer"} if axis in known else {})} for axis in axes]
    return {"version": "0.4", "axes": named, "datasets": datasets, "type": "nearest"}


@dataclass(frozen=True)
class Multiscale:
    """The full resolution of an OME-Zarr image.

    Attributes
    ----------
    path
        The folder of the array, or its address.
    array
        Its voxels, read-only.
    axes
        A letter for each axis of the array, such as ``tczyx``.
    spacing
        See `mitoflow.io.spacing.Spacing`.
    origin
        Its first voxel in world coordinates, in voxels along each of the axes.
    """

    path: Location
    array: zarr.Array[Any]
    axes: str
    spacing: Spacing
    origin: tuple[float, ...]

    def read(self, place: tuple[slice, ...]) -> np.ndarray:
        """Return a box of the array.

        Raises
        ------
        InputError
            The image is damaged there, or the server does not answer.
        """
        try:
            return np.asarray(self.array[place])
        except (InputError, MemoryError):
            raise
        except Exception as error:  # every codec raises errors of its own type
            if isinstance(error, OSError) and error.errno:  # the machine, and not the file
                raise
            where = ", ".join(f"{axis} {s.start} to {s.stop - 1}" for axis, s in zip(self.axes, place, strict=True))
            found, remedy = f"voxels that cannot be read ({where}: {error})", "copy or export the image again"
            raise InputError(self.path, found, "intact chunks", remedy) from None

    def missing_chunks(self, most: int = 1000) -> list[str]:
        """Return the names of the chunks, or shards, that have no file, and at most so many.

        Of an image on a server these are the ones that reading has missed so far: a request for each chunk would take
        hours.
        """
        array, path = self.array, self.path
        if isinstance(path, Url):
            return sorted(array.store.missed)[:most] if isinstance(array.store, BoundedStore) else []
        sides = array.shards or array.chunks
        grid = [-(-length // side) for length, side in zip(array.shape, sides, strict=True)]
        keys = (array.metadata.encode_chunk_key(corner) for corner in corners(grid))
        return list(itertools.islice((key for key in keys if not (path / key).is_file()), most))


def open_multiscale(path: Location, warn: Warn = lambda _: None, *, is_whole: bool = False) -> Multiscale:
    """Open an OME-Zarr image of version 0.4 or 0.5; `warn` is as in `mitoflow.io.spacing.in_nanometres`.

    With `is_whole`, reading where a chunk is missing is an error; otherwise the chunk is empty.

    Raises
    ------
    InputError
        The folder does not exist, is not an OME-Zarr image, has other axes than t, c, z, y and x in this order,
        refers to files outside of it, or would take far more memory than its voxels (see `mitoflow.io._chunks`); the
        server does not answer.
    """
    group = _open_group(path)
    attributes: Mapping[str, Any] = dict(group.attrs)
    described = attributes.get("ome", attributes)
    if isinstance(described, dict) and "bioformats2raw.layout" in described:
        raise InputError(path, "a collection of images", "one image", f"name one of them, such as {path / '0'}")
    try:
        multiscale = described["multiscales"][0]
        axes = [str(axis if isinstance(axis, str) else axis["name"]) for axis in multiscale["axes"]]
        units = [{} if isinstance(axis, str) else axis for axis in multiscale["axes"]]
        dataset = multiscale["datasets"][0]
        place = path / str(dataset["path"])
        require_inside(path, place)
        array = open_bounded(open_store(place), group.metadata.zarr_format, is_whole=is_whole)
        (scale, shift), (more, further) = (
            [_transformation(each, kind, array.ndim) for kind in ("scale", "translation")]
            for each in (dataset, multiscale)
        )
        sides = [a * b for a, b in zip(scale, more, strict=True)]
        is_scaled = _states_scale(dataset, multiscale)
        origin = tuple((t * b + u) / side for t, b, u, side in zip(shift, more, further, sides, strict=True))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        found = f"no image of OME-Zarr 0.4 or 0.5 ({type(error).__name__}: {error})"
        raise InputError(path, found, "an OME-Zarr image", ZARR_REMEDY) from None
    names = "".join(axes)
    if len(axes) != array.ndim or axes != [axis for axis in "tczyx" if axis in axes] or "yx" not in names:
        found = f"axes {', '.join(axes)} of an array of shape {array.shape}"
        raise InputError(path, found, "axes yx or zyx", "save the stack with these axes alone")
    sizes = {
        axis: (side, str(unit.get("unit", "")))
        for axis, side, unit in zip(axes, sides, units, strict=True)
        if axis in "zyx"
    }
    if not is_scaled:
        if any(unit for _, unit in sizes.values()):
            found, expected = "no scale that can be read for its unit of length", "a scale in its metadata"
            warn(InputError(path, found, expected, spacing.NEEDED))
        sizes = {}
    return Multiscale(place, array, names, spacing.in_nanometres(sizes, path, warn), origin)


def require_inside(folder: Location, array: Location) -> None:
    """Refuse an array outside of the folder of the image, and links that lead out of it.

    Raises
    ------
    InputError
        There is one.
    """
    remedy = "copy what is meant into the folder, if you trust it"
    if isinstance(folder, Url) or isinstance(array, Url):
        outside = [array] if {"", ".."} & {*str(array).removeprefix(f"{folder}/").split("/")} else []
    else:
        home = folder.resolve()
        places = (array, *(entry for entry in array.rglob("*") if entry.is_symlink()))
        outside = [place for place in places if not place.resolve().is_relative_to(home)]
    if outside:
        raise InputError(folder, f"{outside[0]}, which is outside of it", "an image in one folder", remedy)


def _open_group(path: Location) -> zarr.Group:
    """Open the folder of an image.

    Of a server each format is asked for by itself: many refuse, in place of saying that there is no such file.
    """
    if isinstance(path, Path) and not path.exists():
        raise InputError(path, "no such folder", "an OME-Zarr image", "check the path")
    store = open_store(path)
    formats: tuple[Literal[2, 3] | None, ...] = (2, 3) if isinstance(path, Url) else (None,)
    failures: list[Exception] = []
    for zarr_format in formats:
        try:
            return zarr.open_group(store, mode="r", zarr_format=zarr_format, use_consolidated=False)
        except Exception as error:  # damaged metadata raises errors of many types
            failures.append(error)
    refusal = next((error for error in failures if isinstance(error, InputError)), None)
    raise refusal or InputError(path, f"no group of Zarr ({failures[-1]})", "an OME-Zarr image", ZARR_REMEDY) from None


def _transformation(described: Mapping[str, Any], kind: str, axes: int) -> list[float]:
    """Return the scale or the translation of each axis; a scale comes before a translation."""
    for transformation in described.get("coordinateTransformations", []):
        if transformation["type"] == kind and kind in transformation:  # a translation may also be in a file
            if any(isinstance(value, bool) for value in transformation[kind]):
                raise ValueError(f"a {kind} with what is no number: {transformation[kind]}")
            values = [float(value) for value in transformation[kind]]
            if len(values) != axes:
                raise ValueError(f"a {kind} of {len(values)} axes and not {axes}")
            return values
    return [1.0 if kind == "scale" else 0.0] * axes


def _states_scale(*described: Mapping[str, Any]) -> bool:
    """Return whether the scale of an image is in its metadata: not in a file, an affine transformation or nowhere."""
    each = [found for one in described for found in one.get("coordinateTransformations", [])]
    scales = [found for found in each if found["type"] not in ("identity", "translation")]
    return bool(scales) and all(found["type"] == "scale" and "scale" in found for found in scales)


def corners(grid: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the indices of a grid of any size, the last axis fastest; `numpy.ndindex` refuses large ones."""
    for number in range(math.prod(grid)):
        corner, rest = [], number
        for length in reversed(grid):
            rest, at = divmod(rest, length)
            corner.append(at)
        yield tuple(reversed(corner))


def read_lineage(path: Location) -> dict[str, str]:
    """Return the lineage that mitoflow wrote into an image.

    Raises
    ------
    InputError
        There is no such image, it cannot be read, or mitoflow did not write it.
    """
    if isinstance(path, Url) or is_zarr(path):
        lineage = _open_group(path).attrs.asdict().get(LINEAGE, {})
    else:
        lineage = _tiff_lineage(path)
    if not lineage or not isinstance(lineage, dict):
        raise InputError(path, "no lineage", "an output of `mitoflow predict`", "name one")
    return {str(key): str(value) for key, value in lineage.items()}


def has_lineage(path: Location) -> bool:
    """Return whether an image is one that mitoflow wrote; False where it cannot be read."""
    try:
        return bool(read_lineage(path))
    except (InputError, OSError):
        return False


def is_as_written(image: Path) -> bool:
    """Return whether an image with a lineage shows what a model predicted, and nobody's corrections.

    The lineage says so of those that were made in mitoflow. An OME-Zarr that was changed in place afterwards has other
    voxels than it says; one of an older mitoflow does not say which it had, and may be changed. A TIFF that another
    program saved has no lineage.
    """
    if not {CORRECTED, DRAWN}.isdisjoint(read_lineage(image)):
        return False
    return not is_zarr(image) or _open_group(image).attrs.asdict().get(VOXELS) == _digest_of_voxels(image)


def are_labels(lineage: Mapping[str, str], dtype: np.dtype) -> bool:
    """Return whether an image is a mask or instances that mitoflow wrote: it has a lineage and integers."""
    return bool(lineage) and dtype.kind in "ui"


def foreign_file(image: Path) -> str | None:
    """Return the name of a file in the folder of an OME-Zarr that is no part of an image as mitoflow writes it."""
    inside = (path.relative_to(image).as_posix() for path in image.rglob("*") if not path.is_dir())
    return next((name for name in inside if not OWN_FILE.fullmatch(name)), None)


def refuse_outputs(images: Iterable[Location]) -> None:
    """Raise `InputError` where one of the images is an output of an earlier prediction.

    Parameters
    ----------
    images
        Files, folders of arrays in an OME-Zarr, or addresses.
    """
    for image in images:
        around = (image, *image.parents) if isinstance(image, Path) else ()
        path = next((place for place in around if is_zarr(place)), image)
        if has_lineage(path):
            remedy = "name the images alone, such as 'FOLDER/s*.tif', or move it away"
            raise InputError(path, "an output of `mitoflow predict` among the input", "images", remedy)


def _tiff_lineage(path: Path) -> dict[str, str]:
    require_no_pipe(path)
    try:
        with tifffile.TiffFile(path) as file:
            text = file.ome_metadata
    except FileNotFoundError:
        raise InputError(path, "no such file", "an output of `mitoflow predict`", "check the path") from None
    except (tifffile.TiffFileError, struct.error, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise InputError(path, f"no TIFF ({error})", "an output of `mitoflow predict`", "name another file") from None
    annotations = spacing.parse_xml(text or "<OME/>").findall(".//{*}MapAnnotation")
    entries = [entry for each in annotations if each.get("Namespace") == LINEAGE for entry in each.iter()]
    return {entry.get("K", ""): entry.text or "" for entry in entries if entry.get("K")}
