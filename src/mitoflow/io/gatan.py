"""DM3 and DM4 files of Gatan's DigitalMicrograph: an array without compression among tags that describe it.

ncempy finds the tags. What they mean is known from files alone, as Gatan does not publish it: G. Jefferis,
https://imagej.net/ij/plugins/DM3Format.gj.html, and C. Boothroyd, https://phyweb.physics.nus.edu.sg/~phybcb/info/dmformat
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mitoflow.errors import InputError
from mitoflow.io.spacing import Sizes, Spacing, Warn, in_nanometres
from mitoflow.io.tiff import Array, Stack

ENDINGS = (".dm3", ".dm4")
#: Types of voxels by their numbers. Files that begin as those of big-endian machines are refused by ncempy.
TYPES = {1: "<i2", 2: "<f4", 6: "u1", 7: "<i4", 9: "i1", 10: "<u2", 11: "<u4", 12: "<f8", 14: "u1"}
OTHERS = {
    **dict.fromkeys((3, 5, 13, 27, 28), "complex numbers"),
    8: "colours",
    23: "colours",
}  # previews are in colours
#: Units, in lower case, along z of what is no stack of slices.
NO_LENGTHS = (
    *("s", "sec", "secs", "second", "seconds", "ms", "min", "minutes", "h", "hr", "hours", "time", "frame", "frames"),
    *("ev", "kev", "energy"),
)
#: The value of a tag.
Tag = str | float
MOST_READS = 2_000_000  # numbers and texts of the tags; files have up to some hundred thousand
LONGEST = 2**20  # bytes of one of them
REMEDY = "export the image again, as DM4 or TIFF"
MISSING = "install it: pip install 'mitoflow[gatan]'"


def is_gatan(path: Path) -> bool:
    """Return whether a path has the name of a DM3 or DM4 file."""
    return path.suffix.lower() in ENDINGS


@dataclass(frozen=True)
class _Slices:
    """The array in the file."""

    start: int
    stored: np.dtype[Any]
    shape: tuple[int, int, int]

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        # Only what is used of the slice is read. The map is released again, so that resident memory does not grow.
        return np.asarray(np.memmap(path, self.stored, "r", self.start, self.shape)[z])


def open_gatan(path: Path) -> Stack:
    """Open a DM3 or DM4 file of any type of real numbers, one slice or many.

    Raises
    ------
    InputError
        The file is missing, none of these, damaged, truncated, has several images, colours or complex numbers, or its
        third axis is time or energy; a package is missing.
    """
    image, size = _read_image(path), path.stat().st_size
    lengths = [_number(length) for length in _of_axes(image, "Dimensions")]
    if not 2 <= len(lengths) <= 3 or min(lengths) < 1:
        found = f"an array of shape {tuple(lengths[::-1])}"
        raise InputError(path, found, "axes yx or zyx with at least one voxel", "save a stack or a slice of it")
    kind = _number(image.get("DataType"))
    if kind not in TYPES:
        found, expected = OTHERS.get(kind, f"voxels of the type {kind}"), "integers or floating-point numbers"
        raise InputError(path, found, expected, "save the image as 8- or 16-bit greyscale")
    unit = _units(image)[2] if len(lengths) == 3 else ""
    if unit.strip().lower() in NO_LENGTHS:
        remedy = "if they are slices, correct the unit of the third axis in DigitalMicrograph, else save one of them"
        raise InputError(path, f"{lengths[2]} images along an axis in {unit}", "greyscale of axes yx or zyx", remedy)
    width, height, depth = (*lengths, 1)[:3]
    stored, start = np.dtype(TYPES[kind]), _number(image.get("Data.arrayOffset"))
    needed = depth * height * width * stored.itemsize
    if start < 0 or start + needed > size or needed > _number(image.get("Data.arraySize")):
        found = f"a truncated or damaged file ({depth} slices need {needed} bytes, it has {size})"
        raise InputError(path, found, "a whole DM3 or DM4", "copy or export the file again")
    shape = (depth, height, width)
    return Stack(path, shape, stored.newbyteorder("="), _Slices(start, stored, shape))


def read_spacing(path: Path, warn: Warn = lambda _: None) -> Spacing:
    """Return the voxel size that the calibration states; `warn` is as in `mitoflow.io.spacing.in_nanometres`.

    Raises
    ------
    InputError
        As for `open_gatan`.
    """
    image = _read_image(path)
    sides = _of_axes(image, "Calibrations.Dimension", ".Scale")
    sizes: Sizes = dict(zip("xyz", zip(sides, _units(image), strict=False), strict=False))
    return in_nanometres({axis: sizes[axis] for axis in "zyx" if axis in sizes}, path, warn)


def _number(value: Tag | None) -> int:
    """Return a whole number, and -1 for what is none in a damaged file."""
    return value if isinstance(value, int) else -1


def _of_axes(image: Mapping[str, Tag], name: str, end: str = "") -> list[Tag]:
    """Return what the axes x, y, z, ... have under a name, as far as there are such tags."""
    found: list[Tag] = []
    while (tag := f"{name}.{len(found) + 1}{end}") in image:
        found.append(image[tag])
    return found


def _units(image: Mapping[str, Tag]) -> list[str]:
    """Return the units along x, y and z, "" where there is none."""
    return [str(unit) for unit in (*_of_axes(image, "Calibrations.Dimension", ".Units"), "", "", "")]


def _read_image(path: Path) -> dict[str, Tag]:
    """Return the tags of the image that a file holds besides its preview, by their names below ``ImageData``."""
    tags = _read_tags(path)
    images: dict[str, dict[str, Tag]] = {}
    for name, value in tags.items():
        number, _, rest = name.removeprefix(".ImageList.").partition(".")
        if name.startswith(".ImageList.") and rest.startswith("ImageData."):
            images.setdefault(number, {})[rest.removeprefix("ImageData.")] = value
    previews = {str(_number(value) + 1) for name, value in tags.items() if _is_preview(name)}
    found = [image for number, image in images.items() if number not in previews and "DataType" in image]
    grey = [image for image in found if OTHERS.get(_number(image["DataType"])) != "colours"]
    found = grey or found  # a preview may have no tag
    if len(found) != 1:
        what = f"{len(found)} images" if found else "no image"
        raise InputError(path, f"{what} in a DM3 or DM4", "one image", "save each as a file" if found else REMEDY)
    return found[0]


def _is_preview(name: str) -> bool:
    return name.startswith(".Thumbnails.") and name.endswith(".ImageIndex")


def _read_tags(path: Path) -> dict[str, Tag]:
    """Return the numbers and texts of a file by the names of their groups, joined by points; of arrays their places."""
    try:
        from ncempy.io import dm
    except ImportError as error:
        raise InputError(path, f"no package for DM3 and DM4 ({error})", "ncempy", MISSING) from None

    class Tags(dm.fileDM):
        """Reads no more than there is, and ends with what takes too long."""

        def fromfile(self, *_: object, dtype: Any, count: int) -> np.ndarray:
            self.reads = getattr(self, "reads", 0) + 1
            length = int(count) * np.dtype(dtype).itemsize
            content = self.fid.read(length) if length <= LONGEST and self.reads <= MOST_READS else b""
            if len(content) < length:
                raise ValueError(f"tags that do not end at byte {self.fid.tell()}")
            return np.frombuffer(content, dtype)

    try:
        with path.open("rb") as stream, np.errstate(all="ignore"):
            tags = Tags(stream).allTags
            return {
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in tags.items()
                if np.ndim(value) == 0
            }
    except FileNotFoundError:
        raise InputError(path, "no such file", "a DM3 or DM4", "check the path") from None
    except MemoryError:
        raise
    except Exception as error:  # the type of the error depends on the damaged byte
        # The machine, and not the file; EINVAL is a place in the file that cannot be.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        found = f"no DM3 or DM4 that can be read ({type(error).__name__}: {error})"
        raise InputError(path, found, "a file of DigitalMicrograph", REMEDY) from None
