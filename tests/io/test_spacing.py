from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mitoflow.errors import InputError
from mitoflow.io import spacing

STACK = np.zeros((3, 64, 64), np.uint8)
MICRONS = {"axes": "ZYX", "spacing": 0.03, "unit": "um"}
OME = {"axes": "ZYX", "PhysicalSizeX": 4.5, "PhysicalSizeXUnit": "nm", "PhysicalSizeZ": 0.03}


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ({"ome": True, "metadata": OME}, {"x": 4.5, "z": 30}),
        ({"ome": True, "metadata": {**OME, "PhysicalSizeXUnit": "pixel"}}, {"z": 30}),
        ({"imagej": True, "metadata": MICRONS, "resolution": (200, 250)}, {"z": 30, "y": 4, "x": 5}),
        ({"imagej": True, "metadata": {**MICRONS, "unit": "\\u00B5m"}}, {"z": 30, "y": 1000, "x": 1000}),
        ({"imagej": True, "metadata": {"axes": "ZYX", "unit": "pixel"}}, {}),
        ({"metadata": None, "resolution": (72, 72)}, {}),
    ],
)
def test_the_voxel_size_comes_from_what_a_program_wrote(
    tmp_path: Path, written: dict[str, Any], known: dict[str, float]
) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK, photometric="minisblack", **written)
    assert spacing.read_tiff_spacing(tmp_path / "s.tif") == pytest.approx(known)


@pytest.mark.parametrize(
    ("units", "known"),
    [
        ({"unit": "nm", "zunit": "micron"}, {"z": 30, "y": 4, "x": 5}),
        ({"unit": "micron", "yunit": "nm", "zunit": "nm"}, {"z": 0.03, "y": 4, "x": 5000}),
        ({"unit": "\\u00C5"}, {"z": 0.003, "y": 0.4, "x": 0.5}),
        ({"unit": "A"}, {"z": 0.003, "y": 0.4, "x": 0.5}),
        ({"unit": "\\u03BCm", "yunit": "nanometres", "zunit": "Nanometer"}, {"z": 0.03, "y": 4, "x": 5000}),
        ({"unit": "pixel", "zunit": "um"}, {"z": 30}),
    ],
)
def test_each_axis_of_imagej_has_its_own_unit(tmp_path: Path, units: dict[str, str], known: dict[str, float]) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.03, **units}
    tifffile.imwrite(tmp_path / "s.tif", STACK, imagej=True, metadata=metadata, resolution=(0.2, 0.25))
    assert spacing.read_tiff_spacing(tmp_path / "s.tif") == pytest.approx(known)


@pytest.mark.parametrize("unit", ["nm", "nanometer", "nanometre", "nanometers", "nanometres", "NM", "nm "])
def test_a_unit_is_known_by_all_its_spellings(unit: str) -> None:
    assert spacing.in_nanometres({"x": (4, unit)}, Path("s")) == {"x": 4}


@pytest.mark.parametrize("unit", ["Mm", "furlong", "\N{MICRO SIGN}meter"])
def test_an_unknown_unit_is_named(unit: str) -> None:
    doubts: list[InputError] = []
    sizes = {"z": (4, unit), "x": (4, "nm")}
    assert spacing.in_nanometres(sizes, Path("s.tif"), doubts.append) == {"x": 4}
    assert len(doubts) == 1
    assert str(doubts[0]).startswith(f"s.tif: found a voxel size in {unit!r}, expected a unit of length")
    assert spacing.in_nanometres(sizes, Path("s.tif"), doubts.append, given="z") == {"x": 4}
    assert len(doubts) == 1


def test_sides_that_are_a_thousandfold_apart_are_a_warning() -> None:
    doubts: list[InputError] = []
    sizes = {"z": (30, "nm"), "y": (4, "nm"), "x": (4, "um")}
    assert spacing.in_nanometres(sizes, Path("s.tif"), doubts.append)["x"] == 4000
    assert [doubt.found for doubt in doubts] == ["a voxel of z 30, y 4, x 4000 nm"]
    spacing.in_nanometres({"z": (90, "nm"), "y": (1, "nm")}, Path("s.tif"), doubts.append)
    spacing.in_nanometres({"z": (9, "pixel"), "y": (0, "nm")}, Path("s.tif"), doubts.append)
    assert len(doubts) == 1


NM = {"z": 50.0, "y": 5.0, "x": 5.0}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"z": 50.4, "y": 5.0, "x": 5.0}, ""),
        ({"x": 5.0}, ""),
        ({}, ""),
        ({"z": 5.0, "y": 5.0, "x": 5.0}, "b: found a voxel of z 5 nm, expected a voxel of z 50 nm as in a, which is"),
        ({"y": 50.0, "x": 50.0}, "b: found a voxel of y 50, x 50 nm, expected a voxel of y 5, x 5 nm as in a, which"),
    ],
)
def test_voxel_sizes_that_contradict_each_other_are_told(other: spacing.Spacing, said: str) -> None:
    doubts: list[InputError] = []
    spacing.warn_of_other_size(other, "b", NM, "a", doubts.append)
    assert len(doubts) == bool(said)
    assert said in " ".join(map(str, doubts))


def test_what_a_person_gives_replaces_what_the_file_states_with_a_note() -> None:
    notes: list[str] = []
    assert spacing.replace_stated(NM, None, "a", notes.append) == NM
    assert spacing.replace_stated({}, NM, "a", notes.append) == NM
    assert spacing.replace_stated(NM, {"y": 5.0, "x": 5.0}, "a", notes.append) == NM
    assert notes == []
    assert spacing.replace_stated(NM, {"y": 5.0, "x": 7.0}, "a", notes.append) == {"z": 50.0, "y": 5.0, "x": 7.0}
    assert notes == ["note: a: a voxel of x 5 nm in the file is replaced by what was given, x 7 nm"]


def test_the_option_is_in_nanometres() -> None:
    assert spacing.parse("30,4,5") == {"z": 30, "y": 4, "x": 5}
    assert spacing.parse("4, 5") == {"y": 4, "x": 5}
    assert spacing.parse("5") == {"z": 5, "y": 5, "x": 5}


@pytest.mark.parametrize("text", ["", "5nm", "1,2,3,4", "0,1,1", "-5", "nan"])
def test_other_sizes_are_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"--voxel-size: found .*, expected nanometres along z, y and x"):
        spacing.parse(text)
