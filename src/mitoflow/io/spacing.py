"""Voxel sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from mitoflow.errors import InputError

if TYPE_CHECKING:
    import tifffile  # at run time imported where a TIFF is read: the registered model runs without it

#: Nanometres of a voxel along the axes ``z``, ``y`` and ``x``, as far as they are known.
Spacing = dict[str, float]
#: Nanometres of a voxel along z, y and x, all of them known.
Size = tuple[float, float, float]

NM2_PER_UM2, NM3_PER_UM3 = 1e6, 1e9

#: For each axis the size of a voxel, and its unit.
Sizes = Mapping[str, tuple[object, str]]
#: Called with each note and warning for the user, one line each.
Notify = Callable[[str], object]
#: Called with each doubt about a file that can be used all the same.
Warn = Callable[[InputError], object]


def _spellings(name: str, *others: str) -> tuple[str, ...]:
    """Return what a unit is called: its name, also in British English and in plural, and symbols."""
    return (*others, *(f"{each}{end}" for each in (name, name.replace("meter", "metre")) for end in ("", "s")))


NANOMETRES = {
    **dict.fromkeys(_spellings("picometer", "pm"), 1e-3),
    **dict.fromkeys(_spellings("angstrom", "A", "\N{ANGSTROM SIGN}", "å", "ångström"), 0.1),
    **dict.fromkeys(_spellings("nanometer", "nm"), 1.0),
    **dict.fromkeys(_spellings("micrometer", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m", "um"), 1e3),
    **dict.fromkeys(_spellings("micron", "\N{MICRO SIGN}"), 1e3),
    **dict.fromkeys(_spellings("millimeter", "mm"), 1e6),
    **dict.fromkeys(_spellings("centimeter", "cm"), 1e7),
    **dict.fromkeys(_spellings("meter", "m"), 1e9),
}
LARGE = ("Mm", "Pm")  # mega- and petametres, which in lower case would be something else
NO_UNIT = ("", "pixel", "pixels", "px", "inch", "reference frame", "none", "null")  # the voxel size is unknown
NEEDED = "give --voxel-size, or correct the file"
TOLERANCE = 0.01  # by which two files may differ in the size of the same voxels
APART = 100  # longest side of a voxel over its shortest, from which on a unit is more likely to be wrong


def as_warnings(notify: Notify) -> Warn:
    """Return what reports doubts as lines for the user."""
    return lambda doubt: notify(f"warning: {doubt}")


def read_tiff_spacing(path: Path, warn: Warn = lambda _: None, given: Container[str] = ()) -> Spacing:
    """Return the voxel size that OME-XML or ImageJ wrote into a TIFF.

    What a plain TIFF says in its resolution tags is that of a screen more often than that of a microscope. `warn` and
    `given` are as in `in_nanometres`.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        if file.ome_metadata:
            sizes = _of_ome(file.ome_metadata)
        elif file.imagej_metadata:
            sizes = _of_imagej(file.imagej_metadata, file.pages.first.tags)
        else:
            sizes = {}
    return in_nanometres(sizes, path, warn, given)


def ome_metadata(axes: str, spacing: Spacing) -> dict[str, Any]:
    """Return what tifffile is to write as OME-XML of an image with the axes ``yx`` or ``zyx``."""
    metadata: dict[str, Any] = {"axes": axes.upper()}
    for axis, size in spacing.items():
        if axis in axes:
            metadata |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": "nm"}
    return metadata


def imagej_metadata(shape: tuple[int, ...], spacing: Spacing) -> tuple[str, dict[str, Any]]:
    """Return the description of an image ``(Y, X)`` or ``(Z, Y, X)`` for ImageJ, and the resolution tags beside it.

    ImageJ takes a size that is missing for 1, so there are sizes only where all are known.
    """
    slices = shape[0] if len(shape) == 3 else 1
    lines = ["ImageJ=1.53t", f"images={slices}", f"slices={slices}"]
    size = known_voxel_size(spacing, slices)
    if size is None:
        return "\n".join([*lines, ""]), {}
    z, y, x = size
    tags = {"resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    return "\n".join([*lines, "unit=nm", f"spacing={z}", ""]), tags


def _of_ome(text: str) -> Sizes:
    pixels = parse_xml(text).find(".//{*}Pixels")
    if pixels is None:
        return {}
    keys = {axis: f"PhysicalSize{axis.upper()}" for axis in "zyx"}
    return {axis: (pixels.get(key), pixels.get(f"{key}Unit", "um")) for axis, key in keys.items()}


def parse(text: str) -> Spacing:
    """Return the voxel size given as text, in nanometres: ``z,y,x`` or ``y,x``, or one number for all three.

    Raises
    ------
    InputError
        It is something else.
    """
    try:
        sizes = [float(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2, 3) or not all(0 < size < math.inf for size in sizes):
        raise InputError("--voxel-size", text, "nanometres along z, y and x, such as 30,4,4", "give numbers above 0")
    return dict(zip("zyx", sizes * 3, strict=True)) if len(sizes) == 1 else dict(zip("xyz", sizes[::-1], strict=False))


def parse_xml(text: str) -> ElementTree.Element:
    """Return the root of an XML document; an empty one where it is broken."""
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return ElementTree.Element("broken")


def _of_imagej(metadata: Mapping[str, Any], tags: tifffile.TiffTags) -> Sizes:
    """Return the sizes as ImageJ writes them: ``unit`` is that of x, and of y and z where they have none of their own.

    Characters that are not ASCII are escaped as in Java.
    """
    units = {
        axis: re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), str(metadata[key]))
        for axis, key in {"x": "unit", "y": "yunit", "z": "zunit"}.items()
        if key in metadata
    }
    sizes: dict[str, tuple[object, str]] = {}
    for axis in "yx":
        tag = tags.get(f"{axis.upper()}Resolution")
        pixels, length = tag.value if tag and isinstance(tag.value, tuple) and len(tag.value) == 2 else (0, 0)
        sizes[axis] = (length / pixels if pixels else None, units.get(axis, units.get("x", "")))
    return {"z": (metadata.get("spacing"), units.get("z", units.get("x", ""))), **sizes}


def warn_of_other_size(spacing: Spacing, where: object, taken: Spacing, source: object, warn: Warn) -> None:
    """Report a voxel size, that of the file `where`, that contradicts the one that is taken, that of `source`."""
    if axes := _unlike(spacing, taken):
        found, expected = (f"a voxel of {_in_words(size, axes)}" for size in (spacing, taken))
        warn(InputError(where, found, f"{expected} as in {source}, which is taken", NEEDED))


def replace_stated(stated: Spacing, given: Spacing | None, where: object, notify: Notify) -> Spacing:
    """Return the voxel size as a person gave it, and along other axes as the file `where` states it.

    `notify` is called with a note where the two contradict each other.
    """
    given = given or {}
    if axes := _unlike(given, stated):
        own = f"a voxel of {_in_words(stated, axes)}"
        notify(f"note: {where}: {own} in the file is replaced by what was given, {_in_words(given, axes)}")
    both = {**stated, **given}
    return {axis: both[axis] for axis in "zyx" if axis in both}


def _unlike(one: Spacing, other: Spacing) -> str:
    """Return the axes along which two voxel sizes are known and differ."""
    both = (axis for axis in "zyx" if axis in one and axis in other)
    return "".join(axis for axis in both if not math.isclose(one[axis], other[axis], rel_tol=TOLERANCE))


def _in_words(spacing: Spacing, axes: str) -> str:
    return ", ".join(f"{axis} {spacing[axis]:g}" for axis in axes) + " nm"


def known_voxel_size(spacing: Spacing, depth: int) -> Size | None:
    """Return the voxel size of a volume of so many slices, or None where it is not known along each axis.

    A single slice needs no size along z, which is 1 then.
    """
    needed = "yx" if depth == 1 else "zyx"
    return (spacing.get("z", 1.0), spacing["y"], spacing["x"]) if {*needed} <= spacing.keys() else None


def name_unknown(spacing: Spacing) -> str:
    """Return what a volume whose `known_voxel_size` is None lacks, in words."""
    return "the distance between slices" if {"y", "x"} <= spacing.keys() else "the voxel size"


def in_nanometres(sizes: Sizes, where: object, warn: Warn = lambda _: None, given: Container[str] = ()) -> Spacing:
    """Return sizes with their units in nanometres, as far as they are positive and the unit is known.

    `warn` is called where the file `where` has a unit that is unknown, for an axis whose size is not `given`
    otherwise, or a voxel with sides that are very unlike.
    """
    spacing: dict[str, float] = {}
    unknown = set()
    for axis, (size, unit) in sizes.items():
        factor = NANOMETRES.get(unit, NANOMETRES.get(unit.strip().lower())) if unit not in LARGE else None
        try:
            nanometres = float(str(size)) * (factor or 0)
        except ValueError:
            continue
        if factor is None and unit.strip().lower() not in NO_UNIT and axis not in given:
            unknown.add(unit)
        elif 0 < nanometres < math.inf:
            spacing[axis] = nanometres
    for unit in sorted(unknown):
        warn(InputError(where, f"a voxel size in {unit!r}", "a unit of length, such as nm or micron", NEEDED))
    if spacing and max(spacing.values()) >= APART * min(spacing.values()):
        found = f"a voxel of {_in_words(spacing, ''.join(spacing))}"
        warn(InputError(where, found, "sides of one order of magnitude", f"if a unit is wrong, {NEEDED}"))
    return spacing
