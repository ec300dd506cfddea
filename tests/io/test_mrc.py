from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from mitoflow.data.pairs import open_pair
from mitoflow.errors import InputError
from mitoflow.instances.label_files import read_labels
from mitoflow.io import volumes
from mitoflow.io.mrc import IMOD_SIGNED, IMOD_STAMP

STACK = np.random.default_rng(0).integers(0, 256, (5, 70, 90)).astype(np.uint8)
WHOLE = (0, 70, 0, 90)


def write(path: Path, stack: np.ndarray, angstrom: tuple[float, float, float] = (50, 50, 300)) -> Path:
    """Write a stack whose first row is the top one; the voxel size is in order x, y, z, as mrcfile has it."""
    with mrcfile.new(path) as file:
        file.set_data(np.ascontiguousarray(stack[..., ::-1, :]))
        file.voxel_size = angstrom
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_slices_and_voxel_size(tmp_path: Path, dtype: type) -> None:
    volume = volumes.open_volume(str(write(tmp_path / "a.mrc", STACK.astype(dtype))))
    assert (volume.axes, volume.shape, volume.dtype) == ("zyx", STACK.shape, dtype)
    assert volume.spacing == pytest.approx({"z": 30, "y": 5, "x": 5})
    for z in range(5):
        np.testing.assert_array_equal(volume.read(z, (3, 50, 7, 61)), STACK[z, 3:50, 7:61])
        np.testing.assert_array_equal(volume.read(z, WHOLE), STACK[z])


def test_a_single_slice_and_an_extended_header(tmp_path: Path) -> None:
    write(tmp_path / "a.rec", STACK[0].astype(np.int16))
    with mrcfile.open(tmp_path / "a.rec", "r+") as file:
        file.set_extended_header(np.arange(300, dtype=np.uint8))
    volume = volumes.open_volume(str(tmp_path / "a.rec"))
    assert (volume.axes, volume.shape) == ("yx", (1, 70, 90))
    np.testing.assert_array_equal(volume.read(0, WHOLE), STACK[0])


def test_big_endian(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mrc", STACK.astype(np.int16))
    with mrcfile.open(path) as file:
        header, data = file.header.copy(), file.data.copy()
    stamped = np.array(header)
    swapped = stamped.astype(stamped.dtype.newbyteorder(">"))
    swapped["machst"] = [0x11, 0x11, 0, 0]
    path.write_bytes(swapped.tobytes() + data.astype(">i2").tobytes())
    volume = volumes.open_volume(str(path))
    assert volume.dtype == np.dtype(np.int16).newbyteorder("=")
    np.testing.assert_array_equal(volume.read(4, WHOLE), STACK[4])
    assert volume.spacing == pytest.approx({"z": 30, "y": 5, "x": 5})


@pytest.mark.parametrize(
    ("stamp", "flags", "lowest", "dtype"),
    [
        (IMOD_STAMP, IMOD_SIGNED, 0, np.int8),
        (IMOD_STAMP, 0, -128, np.uint8),
        (0, 0, 0, np.uint8),
        (0, 0, -128, np.int8),
    ],
)
def test_bytes_with_and_without_a_sign(tmp_path: Path, stamp: int, flags: int, lowest: int, dtype: type) -> None:
    path = write(tmp_path / "a.st", STACK.view(np.int8))
    content = bytearray(path.read_bytes())
    content[152:160] = np.array([stamp, flags], "<i4").tobytes()
    content[76:80] = np.array([lowest], "<f4").tobytes()
    path.write_bytes(content)
    volume = volumes.open_volume(str(path))
    np.testing.assert_array_equal(volume.read(1, WHOLE), STACK[1].view(dtype), strict=True)


def test_one_angstrom_is_no_voxel_size(tmp_path: Path) -> None:
    assert volumes.open_volume(str(write(tmp_path / "a.mrc", STACK.astype(np.int16), (1, 1, 1)))).spacing == {}


def damaged(path: Path, start: int, value: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + 4] = np.array([value], "<i4").tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("start", "value", "said"),
    [
        (0, 2**31 - 1, "truncated"),  # columns
        (4, 0, "at least one voxel"),  # rows
        (8, -5, "at least one voxel"),  # slices
        (8, 3, "5 slices in the file, expected 3, as its header says"),
        (12, 4, "integers or floating-point"),  # complex numbers
        (12, 77, "cannot be read"),
        (64, 3, "columns, rows and slices along the axes 3, 2, 3, expected 1, 2, 3, which are x, y and z"),
        (88, 450, "several volumes"),
        (92, 2**31 - 1, "truncated"),  # bytes of the extended header
        (92, -2000, "truncated"),
        (208, 0, "no MRC"),
        (212, 0, "cannot be read"),  # byte order
    ],
)
def test_damaged_headers(tmp_path: Path, start: int, value: int, said: str) -> None:
    path = write(tmp_path / "a.mrc", STACK.astype(np.int16))
    damaged(path, start, value)
    with pytest.raises(InputError, match=said):
        volumes.open_volume(str(path))


def test_other_files_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.mrc", STACK.astype(np.int16))
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "text.mrc").write_text("no MRC")
    for name, said in {"cut.mrc": "truncated", "text.mrc": "no MRC", "gone.mrc": "no such file"}.items():
        with pytest.raises(InputError, match=said):
            volumes.open_volume(str(tmp_path / name))


def test_an_image_and_its_mask_are_a_pair(tmp_path: Path) -> None:
    image = write(tmp_path / "a.mrc", STACK.astype(np.uint16))
    mask = write(tmp_path / "mask.mrc", (STACK > 127).astype(np.int16))
    pair = open_pair("a", image, mask)
    np.testing.assert_array_equal(pair.image.slice(2), STACK[2])
    np.testing.assert_array_equal(pair.mask.slice(2), STACK[2] > 127)
    assert volumes.read_spacing(image) == pytest.approx({"z": 30, "y": 5, "x": 5})
    voxels, spacing = read_labels(str(mask))
    np.testing.assert_array_equal(voxels, STACK > 127)
    assert spacing == pytest.approx({"z": 30, "y": 5, "x": 5})
    with pytest.raises(InputError, match="int16 voxels"):
        open_pair("mask", mask, mask)
