"""Voxel sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

NANOMETRES = {
    **dict.fromkeys(("pm", "picometer"), 1e-3),
    **dict.fromkeys(("å", "angstrom"), 0.1),
    **dict.fromkeys(("nm", "nanometer"), 1.0),
    **dict.fromkeys(("\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m", "um", "micron", "microns", "micrometer"), 1e3),
    **dict.fromkeys(("mm", "millimeter"), 1e6),
    **dict.fromkeys(("cm", "centimeter"), 1e7),
    **dict.fromkeys(("m", "meter"), 1e9),
}


def read_tiff_spacing(path: Path) -> Spacing:
    """Return the voxel size that OME-XML or ImageJ wrote into a TIFF.

    What a plain TIFF says in its resolution tags is that of a screen more often than that of a microscope.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        if file.ome_metadata:
            return _of_ome(file.ome_metadata)
        if file.imagej_metadata:
            return _of_imagej(file.imagej_metadata, file.pages.first.tags)
    return {}


def ome_metadata(axes: str, spacing: Spacing) -> dict[str, Any]:
    """Return what tifffile is to write as OME-XML of an image with the axes ``yx`` or ``zyx``."""
    metadata: dict[str, Any] = {"axes": axes.upper()}
    for axis, size in spacing.items():
        if axis in axes:
            metadata |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": "nm"}
    return metadata


def _of_ome(text: str) -> Spacing:
    pixels = parse_xml(text).find(".//{*}Pixels")
    if pixels is None:
        return {}
    keys = {axis: f"PhysicalSize{axis.upper()}" for axis in "zyx"}
    return in_nanometres({axis: (pixels.get(key), pixels.get(f"{key}Unit", "um")) for axis, key in keys.items()})


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


def _of_imagej(metadata: Mapping[str, Any], tags: tifffile.TiffTags) -> Spacing:
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}")  # as Java escapes it
    sizes: dict[str, tuple[object, str]] = {"z": (metadata.get("spacing"), unit)}
    for axis in "yx":
        tag = tags.get(f"{axis.upper()}Resolution")
        pixels, units = tag.value if tag and isinstance(tag.value, tuple) and len(tag.value) == 2 else (0, 0)
        sizes[axis] = (units / pixels if pixels else None, unit)
    return in_nanometres(sizes)


def known_voxel_size(spacing: Spacing, depth: int) -> Size | None:
    """Return the voxel size of a volume of so many slices, or None where it is not known along each axis.

    A single slice needs no size along z, which is 1 then.
    """
    needed = "yx" if depth == 1 else "zyx"
    return (spacing.get("z", 1.0), spacing["y"], spacing["x"]) if {*needed} <= spacing.keys() else None


def in_nanometres(sizes: Mapping[str, tuple[object, str]]) -> Spacing:
    """Return sizes with their units in nanometres, as far as they are positive and the unit is known."""
    spacing = {}
    for axis, (size, unit) in sizes.items():
        try:
            nanometres = float(str(size)) * NANOMETRES[unit.lower()]
        except (ValueError, KeyError):
            continue
        if 0 < nanometres < math.inf:
            spacing[axis] = nanometres
    return spacing
