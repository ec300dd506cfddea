"""Read, pair and write EM stacks and their mitochondria masks, one slice at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from mitoflow.core.workspace import read_yaml, replacing, write_yaml
from mitoflow.errors import InputError

Array = npt.NDArray[Any]
Rule = Literal["nonzero", "half"]

SMALLEST_SIDE = 64  # pixels of what is learned or measured from
CAMERA_DEPTHS = (10, 12, 14, 16)
STACK_AXES = "ZIQ"  # z, and tifffile's letters for pages whose axis nobody named
CLASSIC_TIFF = 2**32 - 2**25  # bytes of pixels that leave room for the directories below 4 GB
LARGEST_TILE = 2**26  # pixels of a tile or strip, unless the image itself has more
LARGEST_RATIO = 2**12  # bytes of a page for each byte of the whole file, however well it is compressed
AXIS_WORDS = {"S": "colour samples a pixel, as RGB has", "C": "channels", "T": "time points"}


@dataclass(frozen=True)
class Stack:
    """A stack in a TIFF file, of which one slice at a time is in memory.

    Attributes
    ----------
    path
        The file; of `joined` pages the first.
    shape
        ``(Z, Y, X)`` in pixels; a single page has ``Z = 1``.
    dtype
        Integer type of the pixels in native byte order; 1-bit pages read as uint8 of 0 and 1.
    black
        What is stored for black: 0, or the largest value where 0 is white, as with ImageJ's inverted lookup table.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    _pixels: _Consecutive | _Paged | _Pages = field(repr=False)
    black: int = 0

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
        except Exception as error:  # every codec raises a kind of its own
            found = f"slice {z} that cannot be decoded ({error})"
            raise InputError(self.path, found, "an intact TIFF", "copy or export the file again") from None

    def shown(self, stored: Array) -> Array:
        """Return pixels with 0 for black, as viewers show them."""
        return self.black - stored if self.black else stored

    def slices(self) -> Iterator[Array]:
        """Yield the slices ``(Y, X)`` in order of z."""
        return (self.slice(z) for z in range(self.shape[0]))

    @property
    def is_file(self) -> bool:
        """Whether all slices are in one file."""
        return not isinstance(self._pixels, _Pages)


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
    return Stack(first.path, (len(pages), *first.shape[1:]), first.dtype, _Pages(tuple(pages)))


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
    """Return the page whose directory is at `offset`; raises ValueError where it is stored otherwise than the first."""
    file.filehandle.seek(offset)
    page = tifffile.TiffPage(file, number)
    if page.hash != file.pages.first.hash:
        raise ValueError("it is stored in another way than the first")
    return page


def open_stack(path: Path) -> Stack:
    """Open an EM image, uint8 or uint16, of one page ``(Y, X)`` or many ``(Z, Y, X)``.

    Reads the directories of the file but no pixels. Where the file stores 0 for white, pixels are read inverted.

    Raises
    ------
    InputError
        The file is missing, no TIFF, truncated, of another pixel type (float images are searched for NaN, to say so),
        or has an axis besides z, y and x: colours, channels or time.
    """
    stack = _open(path)
    if stack.dtype not in (np.uint8, np.uint16):
        raise InputError(path, f"{stack.dtype} pixels", "uint8 or uint16", "save the image as 8- or 16-bit")
    return stack


def open_mask(path: Path) -> Stack:
    """Open a mask: as `open_stack`, but of any integer type, as instance labels need, and with values as stored.

    Raises
    ------
    InputError
        As in `open_stack`.
    """
    return replace(_open(path), black=0)


def _open(path: Path) -> Stack:
    with _open_tiff(path) as file:
        try:
            _require_whole_chain(path, file)
            stack = _locate_slices(path, file)
        except (InputError, OSError):
            raise
        except Exception as error:  # what damage raises depends on the byte
            raise _truncated(path, f"damaged directories, {error}") from None
    if stack.dtype.kind == "f":
        raise _explain_float(stack)
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
    except Exception as error:  # what damage raises depends on the byte
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
    series, size = file.series, file.filehandle.size
    first, page = series[0], series[0].keyframe
    if first.is_multifile:
        raise InputError(path, "an OME-TIFF spread over several files", "one file", "export the stack as one file")
    _require_one_stack(path, series)
    if page.dtype is None or page.dtype.kind not in "buif":
        found = f"pixels of {page.bitspersample} bits that are no plain numbers"
        raise InputError(path, found, "uint8 or uint16", "save the image as 8- or 16-bit")

    height, width = page.shape
    if math.prod(page.chunks) > max(LARGEST_TILE, 4 * height * width):
        found = f"tiles of {' x '.join(map(str, page.chunks))} pixels in an image of {width} x {height}"
        raise InputError(path, found, "tiles that are no larger than the image", "export the file again")
    claimed = height * width * page.dtype.itemsize
    if claimed > LARGEST_TILE and claimed > LARGEST_RATIO * size:
        raise _truncated(path, f"slices of {claimed} bytes in {size} bytes")
    depth = sum(math.prod(s.shape) for s in series) // (height * width)
    if file.is_imagej and first.kind != "imagej":
        # Where an ImageJ hyperstack needs more bytes than there are, tifffile falls back to the pages that it finds.
        raise _truncated(path, f"only {depth} of the slices that ImageJ wrote")
    pixels: _Consecutive | _Paged
    if len(series) == 1 and first.dataoffset is not None:
        if not first.dataoffset or len(page.dataoffsets) != len(page.databytecounts):
            raise _truncated(path, "its directory does not tell where the pixels are")
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
    return Stack(path, (depth, height, width), dtype, pixels, black)


def _require_one_stack(path: Path, series: Sequence[tifffile.TiffPageSeries]) -> None:
    """Refuse colours, channels, time and images of several kinds.

    Pages that were appended one by one are as many series to tifffile; where they are alike they are one stack.
    """
    first = series[0]
    shape, axes = first.get_shape(squeeze=False), first.get_axes(squeeze=False)
    lengths = {axis: length for axis, length in zip(axes, shape, strict=True) if length > 1 and axis not in "YX"}
    for axis, length in lengths.items():
        if axis not in STACK_AXES:
            found = f"{length} {AXIS_WORDS.get(axis, f'planes along axis {axis}')} (axes {first.axes} of {first.shape})"
            remedy = "convert it to greyscale" if axis == "S" else "save one of them, with z as the only stack axis"
            raise InputError(path, found, "greyscale of axes YX or ZYX", remedy)
    if len(lengths) > 1 or len(first.keyframe.shape) != 2:
        found = f"axes {first.axes} of {first.shape} in pages of {first.keyframe.shape}"
        raise InputError(path, found, "axes YX or ZYX with one slice a page", "save it as a plain stack")
    if len(series) > 1 and not all(s.axes == "YX" and s.keyframe.hash == first.keyframe.hash for s in series):
        shapes = ", ".join(sorted({str(s.shape) for s in series}))
        raise InputError(path, f"{len(series)} images of shapes {shapes}", "one stack", "save each as a file")


def _is_within(page: tifffile.TiffPage | tifffile.TiffFrame, size: int) -> bool:
    """Tell whether all strips or tiles of a page are there; tifffile takes those that are not for black."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    is_whole = all(length > 0 and 0 < start <= size - length for start, length in parts)
    return is_whole and len(parts) == math.prod(page.chunked)


def _explain_float(stack: Stack) -> InputError:
    found, remedy = f"{stack.dtype} pixels", "scale the image to 8- or 16-bit and save it again"
    with_nan = next((z for z, plane in enumerate(stack.slices()) if np.isnan(plane).any()), None)
    if with_nan is not None:
        found, remedy = f"{found} with NaN (first in slice {with_nan})", f"fill the missing pixels, then {remedy}"
    return InputError(stack.path, found, "uint8 or uint16", remedy)


def needs_bigtiff(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Tell whether pixels take more bytes than a classic TIFF holds beside its directories."""
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


@dataclass(frozen=True)
class Pair:
    """An image and its mask of equal shape; ``name`` is their file name without suffix."""

    name: str
    image: Stack
    mask: Stack


def read_pairs(part: Path) -> list[Pair]:
    """Open the pairs in ``part``/images and ``part``/masks, in natural order of their names (``s2`` before ``s10``).

    Parameters
    ----------
    part
        ``data/train`` or ``data/test``.

    Raises
    ------
    InputError
        A folder is missing or holds no TIFF, an image has no mask or a mask no image, their sizes differ, two files
        have the same name but for the suffix, or a file cannot be used (`open_stack`, `open_mask`).
    """
    images, masks = _tiffs_by_name(part / "images"), _tiffs_by_name(part / "masks")
    for name in sorted(images.keys() ^ masks.keys(), key=natural_order):
        if name in images:
            raise InputError(images[name], "an image without mask", f"{part / 'masks' / images[name].name}", "add it")
        raise InputError(masks[name], "a mask without image", f"{part / 'images' / masks[name].name}", "add it")
    return [open_pair(name, images[name], masks[name]) for name in sorted(images, key=natural_order)]


def _tiffs_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder of TIFF files", "run `mitoflow data --help`")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".tif", ".tiff") or path.name.startswith("."):
            continue
        if path.stem in files:
            raise InputError(path, f"the name of {files[path.stem].name}", "one file a name", "rename one of them")
        files[path.stem] = path
    if not files:
        raise InputError(folder, "an empty folder", "TIFF files", "run `mitoflow data --help`")
    return files


def natural_order(name: str) -> tuple[tuple[str, int], ...]:
    """Order numbers within names by value."""
    return tuple((text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name))


def open_pair(name: str, image_path: Path, mask_path: Path) -> Pair:
    """Open an image and its mask to learn or to measure from.

    Raises
    ------
    InputError
        One of them cannot be used (`open_stack`, `open_mask`), they differ in size, or are smaller than 64 x 64 pixels.
    """
    image, mask = open_stack(image_path), open_mask(mask_path)
    if min(image.shape[1:]) < SMALLEST_SIDE:
        found = f"{image.shape[2]} x {image.shape[1]} pixels"
        remedy = "leave the file out or crop it less"
        raise InputError(image_path, found, f"at least {SMALLEST_SIDE} on each side", remedy)
    if image.shape != mask.shape:
        found = f"{_size(mask)} beside an image of {_size(image)}"
        raise InputError(mask_path, found, "the size of its image", "export image and mask of the same region")
    return Pair(name, image, mask)


def _size(stack: Stack) -> str:
    depth, height, width = stack.shape
    return f"{depth} slices of {width} x {height}"


class MaskValues:
    """What the values of one mask say about the rule that turns it into mitochondria.

    Three kinds of masks are in use. Masks of two values read alike under both rules. Instance labels are flat: most
    pixels of a label lie among equal ones. Antialiased edges are thin: 0 and 255 dominate, and hardly a pixel between
    them lies among equal ones. What is neither flat nor dominated by 0 and 255 is no mask but a grey image.

    Attributes
    ----------
    path
        The mask.
    values
        The values found, of which at most three are kept.
    """

    FLAT_SHARE = 0.1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: set[int] = set()
        self._histogram = np.zeros(256, np.int64)
        self._between = 0
        self._flat = 0

    def add(self, mask: Array) -> None:
        """Count in one slice ``(Y, X)``.

        Raises
        ------
        InputError
            A value is negative.
        """
        low, high = int(mask.min()), int(mask.max())
        if low < 0:
            raise InputError(self.path, f"the value {low}", "0 for background and above for mitochondria", "relabel it")
        if len(self.values) <= 2:
            two_valued = bool(((mask == low) | (mask == high)).all())
            found = {low, high} if two_valued else set(np.unique(mask)[:3].tolist())
            self.values = set(sorted(self.values | found)[:3])
        between = mask > 0
        if mask.dtype == np.uint8:
            self._histogram += np.bincount(mask.ravel(), minlength=256)
            between &= mask < 255
        if between.any():
            self._between += int(between.sum())
            self._flat += int((between[1:-1, 1:-1] & _lies_among_equals(mask)).sum())

    @property
    def rule(self) -> Rule | None:
        """The rule that this mask needs, or None where it reads alike under both.

        Raises
        ------
        InputError
            The values are those of a grey image.
        """
        commonest_between = self._histogram[1:255].max()
        if len(self.values) <= 2:
            lost_by_half = commonest_between > 0 and 1 < max(self.values) < 128
            return "nonzero" if lost_by_half else None
        if self._flat >= self.FLAT_SHARE * self._between:
            return "nonzero"
        if min(self._histogram[0], self._histogram[255]) > commonest_between:
            return "half"
        remedy = "look whether images and masks are swapped, or give --mask-rule"
        raise InputError(self.path, "the values of a grey image", "0/1, 0/255, labels or antialiased edges", remedy)


def _lies_among_equals(mask: Array) -> npt.NDArray[np.bool_]:
    """Tell for every inner pixel whether its 3 x 3 neighbourhood has one value."""
    rows = (mask[:, :-2] == mask[:, 1:-1]) & (mask[:, 1:-1] == mask[:, 2:])
    same_above = mask[:-1, 1:-1] == mask[1:, 1:-1]
    flat: npt.NDArray[np.bool_] = rows[:-2] & rows[1:-1] & rows[2:] & same_above[:-1] & same_above[1:]
    return flat


def agree_on_rule(masks: Iterable[MaskValues]) -> Rule:
    """Return the one rule that reads all ``masks``: ``nonzero`` where every rule does.

    Raises
    ------
    InputError
        Two masks need different rules, or one is a grey image.
    """
    needing: dict[Rule, Path] = {}
    for mask in masks:
        if mask.rule is not None:
            needing.setdefault(mask.rule, mask.path)
    if len(needing) == 2:
        found = f"antialiased edges, but labels in {needing['nonzero']}"
        raise InputError(needing["half"], found, "masks of one kind", "save them alike or give --mask-rule")
    return next(iter(needing), "nonzero")


def binarise(mask: Array, rule: Rule) -> npt.NDArray[np.uint8]:
    """Return 1 for mitochondrion and 0 for background.

    Parameters
    ----------
    mask
        ``(Y, X)``, any integer type.
    rule
        ``nonzero``: every value above 0 is mitochondrion, as in 0/1, 0/255 and instance labels. ``half``: 8-bit values
        from 128 on are, as in masks with antialiased edges; 0/1 and wider types have no such edges and read as nonzero.

    Returns
    -------
    (Y, X) uint8 in {0, 1}
    """
    if rule == "half" and mask.dtype == np.uint8 and mask.max(initial=0) > 1:
        return (mask > 127).astype(np.uint8)
    return (mask > 0).astype(np.uint8)


def require_one_dtype(pairs: Sequence[Pair]) -> np.dtype[Any]:
    """Return the pixel type that all images have.

    Raises
    ------
    InputError
        Some images are uint8 and others uint16.
    """
    first = pairs[0].image
    for pair in pairs:
        if pair.image.dtype != first.dtype:
            found = f"{pair.image.dtype} pixels, but {first.dtype} in {first.path}"
            raise InputError(pair.image.path, found, "one bit depth", "convert the images to one of them")
    return first.dtype


def neighbours(z: int, context: int, step: int, held: range) -> list[int]:
    """Return the slices that slice `z` is seen with: `context` on each side, `step` apart, itself in the middle.

    Where one lies outside `held`, the first or last slice held stands in for it.
    """
    near = range(z - context * step, z + context * step + 1, step)
    return [min(max(place, held.start), held.stop - 1) for place in near]


def camera_depth(maximum: int) -> int:
    """Return the smallest of 10, 12, 14 and 16 bits that holds ``maximum``."""
    return next(depth for depth in CAMERA_DEPTHS if maximum < 1 << depth)


def to_unit(image: Array, bit_depth: int) -> npt.NDArray[np.float32]:
    """Return ``image`` (any shape, unsigned) over its largest possible value: float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32((1 << bit_depth) - 1)


@dataclass(frozen=True)
class Conventions:
    """How the grey values and masks of a data set are to be read: what stage `validate` hands to later stages.

    Attributes
    ----------
    bit_depth
        Bits that the grey values of the training images use; see `camera_depth`.
    mask_rule
        See `binarise`.
    """

    bit_depth: int
    mask_rule: Rule

    def write(self, path: Path) -> None:
        """Write the conventions as YAML."""
        write_yaml(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Conventions:
        """Read conventions that `write` wrote; raises `InputError` where they are missing or broken."""
        values = read_yaml(path, "run `dvc repro validate`", ("bit_depth", "mask_rule"))
        return cls(values["bit_depth"], values["mask_rule"])
