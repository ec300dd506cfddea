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


def test_the_option_is_in_nanometres() -> None:
    assert spacing.parse("30,4,5") == {"z": 30, "y": 4, "x": 5}
    assert spacing.parse("4, 5") == {"y": 4, "x": 5}
    assert spacing.parse("5") == {"z": 5, "y": 5, "x": 5}


@pytest.mark.parametrize("text", ["", "5nm", "1,2,3,4", "0,1,1", "-5", "nan"])
def test_other_sizes_are_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"--voxel-size: found .*, expected nanometres along z, y and x"):
        spacing.parse(text)
