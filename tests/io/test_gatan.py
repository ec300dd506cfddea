"""DM3 and DM4: files are written here by the descriptions that `mitoflow.io.gatan` names."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mitoflow.data.importing import find_pairs, whole
from mitoflow.errors import InputError
from mitoflow.instances.label_files import read_labels
from mitoflow.io import gatan, volumes
from mitoflow.io.spacing import read_tiff_spacing

STACK = np.random.default_rng(0).integers(0, 256, (5, 70, 90)).astype(np.uint8)
WHOLE = (0, 70, 0, 90)
TYPES = {"int16": 1, "float32": 2, "complex64": 3, "uint8": 6, "int32": 7, "uint16": 10, "uint32": 11, "float64": 12}
#: Numbers of simple types in tags, and of an array of one of them.
USHORT, ULONG, DOUBLE, ARRAY = 4, 5, 7, 20
FORMATS = {USHORT: "<H", ULONG: "<I", DOUBLE: "<d"}

#: A group is a dictionary, or a list where tags have no name; a tag is the number of a type with a value or an array.
Tag = dict[str, Any] | list[Any] | tuple[int, Any]


def encoded(tag: Tag, version: int) -> bytes:
    """Return what follows the name of a tag."""
    number = ">Q" if version == 4 else ">I"
    if isinstance(tag, dict | list):
        named = tag.items() if isinstance(tag, dict) else (("", each) for each in tag)
        entries = b"".join(entry(name, each, version) for name, each in named)
        return b"\0\1" + struct.pack(number, len(tag)) + entries
    kind, value = tag
    if isinstance(value, bytes):
        items = len(value) // struct.calcsize(FORMATS.get(kind, "<B"))
        info, data = (ARRAY, kind, items), value
    else:
        info, data = (kind,), struct.pack(FORMATS[kind], value)
    return b"%%%%" + b"".join(struct.pack(number, each) for each in (len(info), *info)) + data


def entry(name: str, tag: Tag, version: int) -> bytes:
    content = encoded(tag, version)
    size = struct.pack(">Q", len(content)) if version == 4 else b""
    kind = 20 if isinstance(tag, dict | list) else 21
    return struct.pack(">BH", kind, len(name)) + name.encode("latin-1") + size + content


def image(stack: np.ndarray, sizes: tuple[float, ...], unit: str, kind: int | None = None) -> dict[str, Any]:
    """Return the tags of an image, whose axes and sizes are in the order x, y, z in the file."""
    calibrations = [
        {"Origin": (DOUBLE, 0.0), "Scale": (DOUBLE, size), "Units": (USHORT, unit.encode("utf-16-le"))}
        for size in sizes
    ]
    described = {
        "Calibrations": {"Dimension": calibrations},
        "Data": (10, np.ascontiguousarray(stack).astype(stack.dtype.newbyteorder("<")).tobytes()),
        "DataType": (ULONG, TYPES[stack.dtype.name] if kind is None else kind),
        "Dimensions": [(ULONG, length) for length in stack.shape[::-1]],
    }
    return {"ImageData": described, "Name": (USHORT, "cell".encode("utf-16-le"))}


PREVIEW = image(np.full((8, 8), 7, np.int32), (1, 1), "", 23)


def write(
    path: Path,
    stack: np.ndarray,
    sizes: tuple[float, ...] = (5, 4, 30),
    unit: str = "nm",
    *,
    images: list[dict[str, Any]] | None = None,
    tags: dict[str, Any] | None = None,
) -> Path:
    """Write a stack as DigitalMicrograph does, after its preview; `sizes` are those of x, y and z."""
    version = int(path.suffix[-1])
    if images is None:
        images = [PREVIEW, image(stack, sizes[: stack.ndim], unit)]
    root = {
        "DocumentTags": {"Two": [(ULONG, 1), {"Three": (DOUBLE, 2.5)}]},
        "ImageList": images,
        "Thumbnails": [{"ImageIndex": (ULONG, 0)}] if images[:1] == [PREVIEW] else [],
    }
    content = encoded(root if tags is None else tags, version)
    number = ">Q" if version == 4 else ">I"
    path.write_bytes(struct.pack(">I", version) + struct.pack(number, len(content)) + b"\0\0\0\1" + content + bytes(8))
    return path


@pytest.mark.parametrize("ending", ["dm3", "dm4"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_slices_and_voxel_size(tmp_path: Path, ending: str, dtype: type) -> None:
    volume = volumes.open_volume(str(write(tmp_path / f"a.{ending}", STACK.astype(dtype))))
    assert (volume.axes, volume.shape, volume.dtype) == ("zyx", STACK.shape, dtype)
    assert volume.spacing == {"z": 30, "y": 4, "x": 5}
    for z in range(5):
        np.testing.assert_array_equal(volume.read(z, (3, 50, 7, 61)), STACK[z, 3:50, 7:61])
        np.testing.assert_array_equal(volume.read(z, WHOLE), STACK[z])


def test_a_single_slice_in_micrometres_without_a_preview(tmp_path: Path) -> None:
    images = [image(STACK[0], (0.005, 0.004), "\N{MICRO SIGN}m")]
    volume = volumes.open_volume(str(write(tmp_path / "a.dm4", STACK[0], images=images)))
    assert (volume.axes, volume.shape) == ("yx", (1, 70, 90))
    assert volume.spacing == pytest.approx({"y": 4, "x": 5})
    np.testing.assert_array_equal(volume.read(0, WHOLE), STACK[0])


def test_a_folder_of_slices_is_a_stack(tmp_path: Path) -> None:
    for z, each in enumerate(STACK):
        write(tmp_path / f"s{z + 8}.dm3", each)
    volume = volumes.open_volume(str(tmp_path))
    assert (volume.shape, volume.spacing) == (STACK.shape, {"y": 4, "x": 5})
    np.testing.assert_array_equal(np.stack([volume.read(z, WHOLE) for z in range(5)]), STACK)


def test_a_size_without_a_unit_is_unknown_and_another_one_is_a_doubt(tmp_path: Path) -> None:
    assert volumes.open_volume(str(write(tmp_path / "a.dm3", STACK, (1, 1, 1), ""))).spacing == {}
    doubts: list[str] = []
    volume = volumes.open_volume(str(write(tmp_path / "b.dm3", STACK[0], (1, 1), "1/nm")), notify=doubts.append)
    assert volume.spacing == {}
    assert "a voxel size in '1/nm'" in doubts[0]


def test_images_and_masks_are_imported(tmp_path: Path) -> None:
    write(tmp_path / "a.dm4", STACK.astype(np.uint16))
    labels = (STACK > 127).astype(np.int32) * 70_000
    write(tmp_path / "b.dm4", labels)
    (pair,) = find_pairs([str(tmp_path / "a.dm4")], [str(tmp_path / "b.dm4")], ("--images", "--masks")).pairs
    whole([pair])[0].write(tmp_path / "data", lambda _: None)
    assert read_tiff_spacing(tmp_path / "data/images/a.tif") == {"z": 30, "y": 4, "x": 5}
    np.testing.assert_array_equal(pair.image.slice(3), STACK[3])
    np.testing.assert_array_equal(pair.mask.slice(3), labels[3])
    voxels, spacing = read_labels(str(tmp_path / "b.dm4"))
    np.testing.assert_array_equal(voxels, labels)
    assert spacing == {"z": 30, "y": 4, "x": 5}
    with pytest.raises(InputError, match="int32 voxels, expected uint8 or uint16"):
        find_pairs([str(tmp_path / "b.dm4")], [str(tmp_path / "b.dm4")], ("--images", "--masks"))


def test_what_is_no_stack_of_grey_values_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "complex.dm3", STACK.astype(np.complex64))
    write(tmp_path / "row.dm3", STACK[0, 0])
    write(tmp_path / "four.dm4", STACK[None], (1, 1, 1, 1))
    write(tmp_path / "empty.dm4", STACK[:0])
    write(tmp_path / "colours.dm3", STACK, images=[PREVIEW, image(STACK[0].astype(np.int32), (1, 1), "nm", 23)])
    write(tmp_path / "two.dm3", STACK, images=[PREVIEW, *2 * [image(STACK, (1, 1, 1), "nm")]])
    for unit in ("s", "sec", "Time", "eV"):
        write(tmp_path / f"{unit}.dm4", STACK, images=[PREVIEW, image(STACK, (1, 1, 1), unit)])
    write(tmp_path / "none.dm4", STACK, images=[])
    (tmp_path / "text.dm3").write_text("no DM3")
    (tmp_path / "nothing.dm3").write_bytes(b"")
    (tmp_path / "cut.dm3").write_bytes(write(tmp_path / "whole.dm3", STACK).read_bytes()[:-600])
    big = bytearray(write(tmp_path / "big.dm3", STACK).read_bytes())
    big[11] = 0
    (tmp_path / "big.dm3").write_bytes(big)
    lines = {
        "complex.dm3": "found complex numbers",
        "row.dm3": r"an array of shape \(90,\)",
        "four.dm4": r"an array of shape \(1, 5, 70, 90\)",
        "empty.dm4": r"an array of shape \(0, 70, 90\)",
        "colours.dm3": "found colours",
        "two.dm3": "2 images",
        **{f"{unit}.dm4": f"5 images along an axis in {unit}," for unit in ("s", "sec", "Time", "eV")},
        "none.dm4": "no image",
        "text.dm3": "no DM3 or DM4 that can be read",
        "nothing.dm3": "no DM3 or DM4 that can be read",
        "cut.dm3": "no DM3 or DM4 that can be read",
        "big.dm3": "not written Little Endian",
        "gone.dm3": "no such file",
    }
    for name, said in lines.items():
        with pytest.raises(InputError, match=said):
            volumes.open_volume(str(tmp_path / name))


def test_files_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = image(STACK, (1, 1, 1), "nm")
    large["ImageData"]["Dimensions"] = [(ULONG, 2**31 - 1)] * 3
    with pytest.raises(InputError, match=f"slices need {(2**31 - 1) ** 3} bytes, it has 3"):
        volumes.open_volume(str(write(tmp_path / "a.dm4", STACK, images=[PREVIEW, large])))
    long = bytearray(write(tmp_path / "b.dm4", STACK).read_bytes())
    place = long.index(b"Units") + 5 + 8 + 4 + 3 * 8  # size of the tag, its mark, and numbers before the length
    long[place : place + 8] = struct.pack(">Q", 2**62)
    (tmp_path / "b.dm4").write_bytes(long)
    with pytest.raises(InputError, match="no DM3 or DM4 that can be read"):
        volumes.open_volume(str(tmp_path / "b.dm4"))
    monkeypatch.setattr(gatan, "MOST_READS", 1000)
    many = write(tmp_path / "c.dm3", STACK, tags={"Many": [(ULONG, 1)] * 2000})
    with pytest.raises(InputError, match="tags that do not end"):
        volumes.open_volume(str(many))


def test_without_its_package_the_remedy_is_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.dm3", STACK)
    monkeypatch.setitem(sys.modules, "ncempy.io", None)
    with pytest.raises(InputError, match=r"pip install 'mitoflow\[gatan\]'"):
        volumes.open_volume(str(tmp_path / "a.dm3"))
