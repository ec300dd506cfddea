"""TIFF stacks, read one slice at a time, and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile

from mitoflow.core.files import replacing
from mitoflow.errors import InputError
from mitoflow.io._tiff_segments import keep_to_size, require_bounded
from mitoflow.io.spacing import parse_xml

if TYPE_CHECKING:
    from mitoflow.io.remote import Location, Url  # at run time imported where an address is read

Array = npt.NDArray[Any]

STACK_AXES = "ZIQ"  # z, and tifffile's letters for pages of an unnamed axis
CLASSIC_TIFF = 2**32 - 2**25  # bytes of pixels that leave room for the directories below 4 GB
LARGEST_TILE = 2**26  # pixels of a tile or strip, unless the image itself has more
LARGEST_RATIO = 2**12  # bytes of a page for each byte of the whole file, however well it is compressed
AXIS_WORDS = {"S": "colour samples a pixel, as RGB has", "C": "channels", "T": "time points"}
NO_COLOURS = "; if these are slices, save them with tifffile.imwrite(NAME, STACK, photometric='minisblack')"
#: What the pages of a stack have in common, each by its name.
STORED: dict[str, Callable[[tifffile.TiffPage], object]] = {
    "pixel type": lambda page: page.dtype,
    "compression": lambda page: tifffile.COMPRESSION(page.compression).name,
    "photometric interpretation": lambda page: tifffile.PHOTOMETRIC(page.photometric).name,
    "predictor": lambda page: page.predictor,
    "strips or tiles": lambda page: " x ".join(map(str, page.chunks)),
}
HYPERSTACK = "if they are slices, say so in Fiji (Image > Hyperstacks > Re-order Hyperstack), else save one of them"


class Pixels(Protocol):
    """Where the pixels of a stack are."""

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        """Return a slice ``(Y, X)`` of that shape as it is stored."""


@dataclass(frozen=True)
class Stack:
    """A stack in a TIFF file, or in another one that `Pixels` reads, of which one slice at a time is in memory.

    Attributes
    ----------
    path
        The file; of `joined` pages the first; of an address its server and folders.
    shape
        ``(Z, Y, X)`` in pixels; a single page has ``Z = 1``.
    dtype
        Integer type of the pixels in native byte order; 1-bit pages read as uint8 of 0 and 1.
    black
        What is stored for black: 0, or the largest value where 0 is white.
    palette
        What the file shows for each stored value: (values, 3) of red, green and blue in the file, (values,) of a grey
        palette that is looked up when a slice is read; None where values are shown as they are.
    address
        Of a stack on a server.
    absent_chunks
        Returns how many chunks are missing and read as empty; see `mitoflow.io.volumes.open_volume`.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    _pixels: Pixels = field(repr=False)
    black: int = 0
    palette: Array | None = field(default=None, repr=False, compare=False)
    address: Url | None = None
    absent_chunks: Callable[[], int] = field(default=lambda: 0, repr=False, compare=False)

    @property
    def location(self) -> Location:
        """The address where there is one, and otherwise the path."""
        return self.address or self.path

    def slice(self, z: int) -> Array:
        """Return slice ``z`` as ``(Y, X)``; no other page is read.

        Raises
        ------
        InputError
            The page cannot be decoded.
        """
        if not 0 <= z < self.shape[0]:
            raise IndexError(f"slice {z} of {self.path}, which has {self.shape[0]}")
        try:
            return self.shown(self._pixels.read(self.path, z, self.shape[1:]).astype(self.dtype, copy=False))
        except (InputError, OSError, MemoryError):
            raise
        except Exception as error:  # every codec raises errors of its own type
            found = f"slice {z} that cannot be decoded ({error})"
            raise InputError(self.path, found, "an intact file", "copy or export the file again") from None

    def shown(self, stored: Array) -> Array:
        """Return pixels with 0 for black, as viewers show them."""
        if self.palette is not None:
            return np.asarray(self.palette[stored])
        return self.black - stored if self.black else stored

    def slices(self) -> Iterator[Array]:
        """Yield the slices ``(Y, X)`` in order of z."""
        return (self.slice(z) for z in range(self.shape[0]))

    @property
    def is_file(self) -> bool:
        """Whether all slices are in one TIFF file."""
        return isinstance(self._pixels, _Consecutive | _Paged)


@dataclass(frozen=True)
class _Consecutive:
    """Uncompressed slices one after the other from byte ``start`` on, however many directories the file has."""

    start: int
    stored: np.dtype[Any]

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        pixels = shape[0] * shape[1]
        offset = self.start + z * pixels * self.stored.itemsize
        return np.fromfile(path, self.stored, pixels, offset=offset).reshape(shape)


@dataclass(frozen=True)
class _Paged:
    """One TIFF directory per slice, kept as its file offset: the last slice costs as much as the first."""

    directories: tuple[int, ...]

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        with tifffile.TiffFile(path) as file:
            return read_page(file, z, self.directories[z]).asarray().reshape(shape)


@dataclass(frozen=True)
class _Pages:
    """A file per slice."""

    stacks: tuple[Stack, ...]

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        return self.stacks[z].slice(0)


def joined(pages: Sequence[Stack]) -> Stack:
    """Return files of one page each as one stack, in their order.

    Raises
    ------
    InputError
        A file has more than a page, or another size or pixel type than the first.
    """
    first = pages[0]
    for page in pages:
        require_page_like(first, page)
    return Stack(
        first.path,
        (len(pages), *first.shape[1:]),
        first.dtype,
        _Pages(tuple(pages)),
        absent_chunks=lambda: sum(page.absent_chunks() for page in pages),
    )


def require_page_like(first: Stack, other: Stack) -> None:
    """Raise `InputError` unless both are single pages of the same size and pixel type."""
    for stack in (first, other):
        if stack.shape[0] != 1:
            found = f"{stack.shape[0]} slices in one of several files"
            raise InputError(stack.path, found, "one file with all slices, or one slice a file", "name that file alone")
    if (first.shape, first.dtype) != (other.shape, other.dtype):
        found, expected = (f"{s.shape[2]} x {s.shape[1]} pixels of {s.dtype}" for s in (other, first))
        raise InputError(other.path, found, f"{expected}, as in {first.path}", "leave it out, or export it again")


def read_page(file: tifffile.TiffFile, number: int, offset: int) -> tifffile.TiffPage:
    """Return the page whose directory is at `offset`; it raises ValueError in place of decoding more than its size.

    Raises
    ------
    ValueError
        It is stored in another way than the first page.
    """
    file.filehandle.seek(offset)
    page = tifffile.TiffPage(file, number)
    if page.hash != file.pages.first.hash:
        raise ValueError("it is stored in another way than the first")
    keep_to_size(page)
    return page


def open_stack(path: Path) -> Stack:
    """Open an EM image, uint8 or uint16, of one page ``(Y, X)`` or many ``(Z, Y, X)``.

    Reads the directories of the file but no pixels. Where the file stores 0 for white, or stores grey values as a
    palette, pixels are read as they are shown.

    Raises
    ------
    InputError
        The file is missing, no TIFF, truncated, a part of an image of several files, of another pixel type (float
        images are searched for NaN, to say so), or has colours or an axis besides z, y and x: channels or time.
    """
    stack = shown_grey(_without_float(_open(path)))
    if stack.dtype not in (np.uint8, np.uint16):
        expected = "uint8 or uint16, which have no sign"
        raise InputError(path, f"{stack.dtype} pixels", expected, "scale the image to one of them and save it again")
    return stack


def open_grey(path: Path) -> Stack:
    """Open an EM image of any integer or floating-point type, otherwise as `open_stack`.

    Raises
    ------
    InputError
        As in `open_stack`; or signed or floating-point pixels are stored with 0 for white.
    """
    stack = shown_grey(_open(path))
    if stack.black and stack.dtype.kind != "u":
        found = f"{stack.dtype} pixels with white as the smallest"
        raise InputError(path, found, "black as the smallest", "invert the image and save it with black as 0")
    return stack


def shown_grey(stack: Stack) -> Stack:
    """Return an image with its palette as grey values; raises `InputError` where it has colours."""
    if stack.palette is None:
        return stack
    if _has_colours(stack.palette):
        raise InputError(stack.path, "a palette of colours", "grey values", "convert the image to greyscale")
    return replace(stack, palette=stack.palette[:, 0])


def _has_colours(palette: Array) -> bool:
    return bool((palette != palette[:, :1]).any())


def open_mask(path: Path) -> Stack:
    """Open a mask: as `open_labels`, but of integers alone; raises `InputError` for floating-point numbers."""
    return _without_float(open_labels(path))


def open_labels(path: Path) -> Stack:
    """Open a mask or labels: as `open_stack`, but of any type of pixel, and with values as stored.

    A palette of grey values is looked up: a program may store 0 for white. ImageJ's inverted lookup table is not, as
    ImageJ masks mean what they store; neither are colours, where they show labels on a black background.

    Raises
    ------
    InputError
        As in `open_stack`, or the background has a colour.
    """
    return as_stored(_open(path))


def as_stored(stack: Stack) -> Stack:
    """Return a mask or labels with its values as stored, but for a palette of grey values; see `open_labels`."""
    stack = replace(stack, black=0)
    if stack.palette is None:
        return stack
    if _has_colours(stack.palette):
        if stack.palette[0].any():
            found = f"a palette of colours with {tuple(stack.palette[0].tolist())} for 0"
            raise InputError(stack.path, found, "black for 0, the background", "save the mask with 0 and 255")
        return replace(stack, palette=None)
    grey = stack.palette[:, 0]
    is_inverted = bool((grey == len(grey) - 1 - np.arange(len(grey))).all())
    return replace(stack, palette=None if is_inverted else grey)


def _open(path: Path) -> Stack:
    with _open_tiff(path) as file:
        try:
            _require_whole_chain(path, file)
            stack = _locate_slices(path, file)
        except (InputError, OSError):
            raise
        except Exception as error:  # the type of the error depends on the damaged byte
            raise _truncated(path, f"damaged directories, {error}") from None
    return stack


def _open_tiff(path: Path) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except FileNotFoundError:
        raise InputError(path, "no such file", "a TIFF", "check the path") from None
    except IsADirectoryError:
        raise InputError(path, "a folder", "a TIFF", "name a file in it") from None
    except OSError:
        raise
    except Exception as error:  # the type of the error depends on the damaged byte
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic[:2] in (b"II", b"MM"):
            raise _truncated(path, str(error)) from None
        found = f"no TIFF but a file that begins with {magic!r}" if magic else "an empty file"
        raise InputError(path, found, "a TIFF", "save or export it as TIFF") from None


def _truncated(path: Path, detail: str) -> InputError:
    return InputError(path, f"a truncated file ({detail})", "a whole TIFF", "copy or export the file again")


def _require_whole_chain(path: Path, file: tifffile.TiffFile) -> None:
    """Follow the directories to the last one, which must say that it is the last."""
    pages, size = len(file.pages), file.filehandle.size
    if not pages:
        raise _truncated(path, f"no directory within its {size} bytes")
    file.filehandle.seek(file.pages.next_page_offset or 0)
    following = file.filehandle.read(file.tiff.offsetsize)
    if following != bytes(file.tiff.offsetsize):
        raise _truncated(path, f"page {pages + 1} begins beyond its {size} bytes")


def _locate_slices(path: Path, file: tifffile.TiffFile) -> Stack:
    """Find where the pixels of every slice are, and that they are within the file."""
    _require_one_file(path, file)
    series, size = file.series, file.filehandle.size
    first, page = series[0], series[0].keyframe
    _require_one_stack(path, series)
    if page.dtype is None or page.dtype.kind not in "buif":
        found = f"pixels of {page.bitspersample} bits that are no plain numbers"
        raise InputError(path, found, "uint8 or uint16", "save the image as 8- or 16-bit")
    require_bounded(path, page)

    height, width = page.shape
    if math.prod(page.chunks) > max(LARGEST_TILE, 4 * height * width):
        found = f"tiles of {' x '.join(map(str, page.chunks))} pixels in an image of {width} x {height}"
        raise InputError(path, found, "tiles that are no larger than the image", "export the file again")
    claimed = height * width * page.dtype.itemsize
    if claimed > LARGEST_TILE and claimed > LARGEST_RATIO * size:
        raise _truncated(path, f"slices of {claimed} bytes in {size} bytes")
    depth = sum(math.prod(s.shape) for s in series) // (height * width)
    if file.is_imagej and first.kind not in ("imagej", "ome"):
        # Where an ImageJ hyperstack needs more bytes than there are, tifffile falls back to the pages that it finds.
        raise _truncated(path, f"only {depth} of the slices that ImageJ wrote")
    _require_every_page(path, file, depth)
    pixels: _Consecutive | _Paged
    if len(series) == 1 and first.dataoffset is not None:
        if not first.dataoffset or len(page.dataoffsets) != len(page.databytecounts):
            raise _truncated(path, "its directory does not say where the pixels are")
        end = first.dataoffset + depth * height * width * page.dtype.itemsize
        if end > size:
            raise _truncated(path, f"{depth} slices need {end} bytes, it has {size}")
        pixels = _Consecutive(first.dataoffset, page.dtype.newbyteorder(file.byteorder))
    else:
        whole = [entry.offset for s in series for entry in s if entry is not None and _is_within(entry, size)]
        if len(whole) < depth:
            raise _truncated(path, f"only {len(whole)} of {depth} slices are within its {size} bytes")
        pixels = _Paged(tuple(whole))
    dtype = np.dtype(np.uint8) if page.dtype.kind == "b" else page.dtype
    black = (1 << page.bitspersample) - 1 if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else 0
    return Stack(path, (depth, height, width), dtype, pixels, black, _palette(page))


def _palette(page: tifffile.TiffPage) -> Array | None:
    """Return the colours of the values of a page, (values, 3) uint8, or uint16 where pixels have more than 8 bits."""
    if page.photometric != tifffile.PHOTOMETRIC.PALETTE or page.colormap is None:
        return None
    colours = np.asarray(page.colormap).T
    if page.bitspersample > 8:
        return colours
    return np.asarray(colours >> 8 if colours.max() > 255 else colours, np.uint8)  # some programs write 8 of 16 bits


def _require_one_file(path: Path, file: tifffile.TiffFile) -> None:
    """Refuse an OME-TIFF whose pixels or metadata are in other files, before tifffile looks for these.

    Only the metadata say which page is which slice, channel or time point.
    """
    root = parse_xml(file.ome_metadata or "<OME/>")
    elsewhere = {each.get("MetadataFile") for each in root.iterfind("{*}BinaryOnly")}
    own = root.get("UUID")
    for uuid in root.iterfind(".//{*}TiffData/{*}UUID"):
        name = uuid.get("FileName")
        if uuid.text != own and not (own is None and (name or "").lower() == path.name.lower()):
            elsewhere.add(name)
    if elsewhere:
        found = f"a part of an OME-TIFF of several files, with {', '.join(sorted(map(str, elsewhere))[:3])}"
        remedy = "save the stack as one file, in Fiji by Bio-Formats or with `bfconvert`"
        raise InputError(path, found, "an image in one file", remedy)


def _require_one_stack(path: Path, series: Sequence[tifffile.TiffPageSeries]) -> None:
    """Refuse colours, channels, time, axes in another order than z, y, x, and images of several kinds.

    Pages that were appended one by one are as many series to tifffile; where they are alike they are one stack.
    """
    first = series[0]
    shape, axes = first.get_shape(squeeze=False), first.get_axes(squeeze=False)
    long = [(axis, length) for axis, length in zip(axes, shape, strict=True) if length > 1 or axis in "YX"]
    for axis, length in long:
        if axis not in f"{STACK_AXES}YX":
            what, remedy = f"{length} {AXIS_WORDS.get(axis, f'planes along axis {axis}')}", HYPERSTACK
            if axis == "S":
                is_planar = first.keyframe.planarconfig == tifffile.PLANARCONFIG.SEPARATE
                remedy = f"convert it to greyscale{NO_COLOURS if is_planar else ''}"
                if length - len(first.keyframe.extrasamples) == 1:
                    what, remedy = "grey values with alpha", "save it without alpha"
            found = f"{what} (axes {first.axes} of {first.shape})"
            raise InputError(path, found, "greyscale of axes YX or ZYX", remedy)
    names = "".join(axis for axis, _ in long)
    if len(names) > 3 or not names.endswith("YX") or len(first.keyframe.shape) != 2:
        found = f"axes {first.axes} of {first.shape} in pages of {first.keyframe.shape}"
        raise InputError(path, found, "axes YX or ZYX with one slice a page", "save the slices as a plain stack")
    if len(series) > 1:
        _require_alike(path, series)


def _require_alike(path: Path, series: Sequence[tifffile.TiffPageSeries]) -> None:
    """Refuse several images that are not single pages, stored in one way."""
    pages = [each.keyframe for each in series]
    if all(page.hash == pages[0].hash for page in pages):
        if any(each.axes != "YX" for each in series):
            found = f"{len(series)} stacks of {' and '.join(str(len(each)) for each in series[:3])} slices"
            raise InputError(path, found, "one stack", "save each as a file")
        return
    if len(shapes := sorted({str(each.shape[-2:]) for each in series})) > 1:
        found = f"{len(series)} images of shapes {', '.join(shapes)}"
        raise InputError(path, found, "one stack", "save each as a file")
    values = {name: dict.fromkeys(str(read(page)) for page in pages) for name, read in STORED.items()}
    ways = "; ".join(f"{name} {' and '.join(ways)}" for name, ways in values.items() if len(ways) > 1)
    found = f"pages that are stored in different ways ({ways or 'order of bits'})"
    raise InputError(path, found, "pages that are stored alike", "save the stack again")


def _require_every_page(path: Path, file: tifffile.TiffFile, depth: int) -> None:
    """Raise `InputError` where there are more pages of slices than the description states, or different palettes.

    Pages of other sizes, and those that say that they are reduced or a mask, are no slices.
    """
    first, count = file.pages.first, len(file.pages)
    if count <= max(depth, 1) and first.colormap is None:
        return
    pages = (page for page in _whole_pages(file) if page.shape == first.shape)
    slices = [page for page in pages if not (page.is_reduced or page.is_mask)]
    if len(slices) > depth:
        found = f"{len(slices)} pages with a description of {depth} {'slices' if depth > 1 else 'slice'}"
        remedy = "if all pages are slices, save them again as one stack, such as in Fiji"
        raise InputError(path, found, "as many pages as the description says", remedy)
    for number, page in enumerate(slices):
        if not np.array_equal(np.asarray(page.colormap), np.asarray(first.colormap)):
            found = f"another palette in page {number + 1} than in the first"
            raise InputError(path, found, "pages that show the same grey for a value", "convert the stack to greyscale")


def _whole_pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Yield the pages with all of their tags, one at a time; tifffile takes those of the first for a whole series."""
    for number, page in enumerate(file.pages):
        file.filehandle.seek(page.offset)
        yield tifffile.TiffPage(file, number)


def _is_within(page: tifffile.TiffPage | tifffile.TiffFrame, size: int) -> bool:
    """Return whether all strips or tiles of a page exist; tifffile reads missing ones as black."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    is_whole = all(length > 0 and 0 < start <= size - length for start, length in parts)
    return is_whole and len(parts) == math.prod(page.chunked)


def _without_float(stack: Stack) -> Stack:
    if stack.dtype.kind != "f":
        return stack
    found, remedy = f"{stack.dtype} pixels", "scale the image to 8- or 16-bit and save it again"
    with_nan = next((z for z, plane in enumerate(stack.slices()) if np.isnan(plane).any()), None)
    if with_nan is not None:
        found, remedy = f"{found} with NaN (first in slice {with_nan})", f"fill the missing pixels, then {remedy}"
    raise InputError(stack.path, found, "uint8 or uint16", remedy)


def needs_bigtiff(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Return whether pixels take more bytes than a classic TIFF can hold beside its directories."""
    return math.prod(shape) * dtype.itemsize > CLASSIC_TIFF


def write_stack(path: Path, array: Array, description: str | None = None) -> None:
    """Write a stack so that the same pixels give the same bytes: uncompressed, without date or software tag.

    Parameters
    ----------
    path
        The file; replaced only once the new one is whole.
    array
        ``(Z, Y, X)`` or ``(Y, X)``, any integer type; may be a memory map. From 4 GB on the file is a BigTIFF.
    description
        ASCII text for the ImageDescription tag.
    """
    with replacing(path) as beside:
        tifffile.imwrite(
            beside, array, photometric="minisblack", metadata=None, software=False, description=description
        )


#: Part of a slice: first and past-the-end pixel along y, then along x.
Box = tuple[int, int, int, int]
