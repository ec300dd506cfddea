from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mitoflow.errors import InputError
from mitoflow.io import volumes
from mitoflow.io.derived_volumes import Levels, RegradedVolume, ResampledVolume
from mitoflow.io.volumes import open_volume

STACK = np.random.default_rng(0).integers(0, 256, (5, 70, 90), np.uint8)
WHOLE = (0, 70, 0, 90)
BOX = (10, 65, 3, 77)

LAYOUTS: dict[str, dict[str, Any]] = {
    "one after the other": {},
    "a directory each": {"metadata": None, "rowsperstrip": 16},
    "big-endian": {"byteorder": ">"},
    "strips": {"compression": "lzw", "rowsperstrip": 16},
    "tiles": {"compression": "zlib", "tile": (32, 32), "predictor": True},
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 30, "unit": "nm"}},
    "OME, BigTIFF": {"ome": True, "bigtiff": True, "metadata": {"axes": "ZYX"}, "tile": (64, 64)},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_of_a_tiff(tmp_path: Path, layout: str, dtype: type) -> None:
    stack = STACK.astype(dtype) * (1 if dtype is np.uint8 else 200)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", **LAYOUTS[layout])
    volume = open_volume(str(tmp_path / "s.tif"))
    assert (volume.axes, volume.shape, volume.dtype) == ("zyx", stack.shape, dtype)
    for z in (4, 0, 2):
        np.testing.assert_array_equal(volume.read(z, BOX), stack[z, 10:65, 3:77])
        np.testing.assert_array_equal(volume.read(z, WHOLE), stack[z])


def test_pages_that_were_appended_one_by_one(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        for page in STACK:
            file.write(page, compression="zlib", contiguous=False)
    volume = open_volume(str(tmp_path / "s.tif"))
    np.testing.assert_array_equal(np.stack([volume.read(z, BOX) for z in range(5)]), STACK[:, 10:65, 3:77])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_where_0_is_white_grey_values_are_read_inverted(tmp_path: Path, compression: str | None) -> None:
    volume = np.random.default_rng(0).integers(0, 200, (2, 64, 64)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", 255 - volume, photometric="miniswhite", compression=compression)
    found = open_volume(str(tmp_path / "a.tif")).read(1, (3, 50, 7, 61))
    np.testing.assert_array_equal(found, volume[1, 3:50, 7:61], strict=True)


def test_threads_may_read_at_the_same_time(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (40, 64, 64), np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", stack, compression="zlib", photometric="minisblack")
    volume = open_volume(str(tmp_path / "s.tif"))
    with ThreadPoolExecutor(4) as threads:
        read = threads.map(lambda z: volume.read(z % 40, (0, 64, 0, 64)), range(400))
        for z, image in enumerate(read):
            np.testing.assert_array_equal(image, stack[z % 40])


def test_a_single_page_is_a_slice(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK[3])
    volume = open_volume(str(tmp_path / "s.tif"))
    assert (volume.axes, volume.shape) == ("yx", (1, 70, 90))
    np.testing.assert_array_equal(volume.read(0, BOX), STACK[3, 10:65, 3:77])


@pytest.mark.parametrize("source", ["slices", "slices/s*.tif"])
def test_a_folder_or_glob_of_slices_in_natural_order(tmp_path: Path, source: str) -> None:
    (tmp_path / "slices").mkdir()
    for z, page in enumerate(STACK):
        tifffile.imwrite(tmp_path / f"slices/s{z + 8}.tif", page)
    volume = open_volume(str(tmp_path / source))
    assert (volume.axes, volume.shape) == ("zyx", STACK.shape)
    np.testing.assert_array_equal(np.stack([volume.read(z, BOX) for z in range(5)]), STACK[:, 10:65, 3:77])


def test_links_to_one_file_are_slices_of_their_own(tmp_path: Path) -> None:
    """DVC and DataLad link equal slices to one file of their cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "slices").mkdir()
    for k in range(2):
        tifffile.imwrite(tmp_path / f"cache/{k}.tif", STACK[k])
    for z, k in enumerate([0, 1, 1, 0]):
        (tmp_path / f"slices/s{z}.tif").symlink_to(tmp_path / f"cache/{k}.tif")
    volume = open_volume(str(tmp_path / "slices"))
    assert volume.shape == (4, 70, 90)
    for z, k in enumerate([0, 1, 1, 0]):
        np.testing.assert_array_equal(volume.read(z, WHOLE), STACK[k])


def test_the_slices_of_a_folder_are_told(tmp_path: Path) -> None:
    for z in (1, 2, 4):
        tifffile.imwrite(tmp_path / f"s{z}.tif", STACK[z])
    told: list[str] = []
    open_volume(str(tmp_path), notify=told.append)
    assert told[0] == f"note: {tmp_path}: 3 slices, s1.tif to s4.tif"
    assert "missing between s2.tif and s4.tif" in told[1]
    tifffile.imwrite(tmp_path / "s2 - Copy.tif", STACK[2])
    with pytest.raises(InputError, match="what looks like a copy of s2.tif"):
        open_volume(str(tmp_path))


def test_doubts_about_a_voxel_size_are_told_for_any_format(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    change_first_axis(path, unit="furlong")
    tifffile.imwrite(tmp_path / "i.tif", STACK, imagej=True, metadata={"axes": "ZYX", "spacing": 1, "unit": "furlong"})
    ome = {"axes": "ZYX", "PhysicalSizeX": 4.5, "PhysicalSizeXUnit": "furlong"}
    tifffile.imwrite(tmp_path / "o.ome.tif", STACK, metadata=ome)
    for name in ("s.zarr", "i.tif", "o.ome.tif"):
        told: list[str] = []
        open_volume(str(tmp_path / name), notify=told.append)
        assert [line for line in told if "'furlong', expected a unit of length" in line]
        told.clear()
        open_volume(str(tmp_path / name), spacing={"x": 4.5}, notify=told.append)
        assert not any("furlong" in line for line in told)


def write_zarr(
    path: Path, voxels: np.ndarray, axes: str = "zyx", chunks: tuple[int, ...] = (4, 32, 32), version: int = 2
) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
    keys = {"name": "v2", "separator": "/"} if version == 2 else {"name": "default", "separator": "/"}
    shape = voxels.shape
    group.create_array("0", shape=shape, dtype=voxels.dtype, chunks=chunks, chunk_key_encoding=keys)[...] = voxels
    scale = [{"type": "scale", "scale": [30.0, 5.0, 5.0][-len(axes) :] if len(axes) < 4 else [1.0] * len(axes)}]
    named = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in axes]
    image = {"axes": named, "datasets": [{"path": "0", "coordinateTransformations": scale}], "version": "0.4"}
    group.attrs.update(
        {"multiscales": [image]} if version == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    return path


def change_first_axis(path: Path, **values: str) -> None:
    group = zarr.open_group(path)
    multiscales: Any = group.attrs["multiscales"]
    multiscales[0]["axes"][0].update(values)
    group.attrs["multiscales"] = multiscales


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("slab", [1, 2 * 55 * 74, 2**26])
def test_boxes_of_a_zarr_in_slabs_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, slab: int
) -> None:
    monkeypatch.setattr(volumes, "SLAB", slab)
    volume = open_volume(str(write_zarr(tmp_path / "s.zarr", STACK, version=version)))
    assert (volume.axes, volume.shape, volume.spacing) == ("zyx", STACK.shape, {"z": 30, "y": 5, "x": 5})
    for z in (0, 1, 2, 3, 4, 1):
        np.testing.assert_array_equal(volume.read(z, BOX), STACK[z, 10:65, 3:77])


def test_more_chunks_than_numpy_counts_are_missing(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    described = json.loads((path / "0/.zarray").read_text())
    (path / "0/.zarray").write_text(json.dumps(described | {"shape": [2**62, 2**40, 90]}))
    with pytest.raises(InputError, match=r"found 1000 or more missing chunks, the first 0/3/0"):
        open_volume(str(path))


def test_an_axis_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    change_first_axis(path, name="")
    with pytest.raises(InputError, match="found axes , y, x of an array of shape"):
        open_volume(str(path))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("key", ["shape", "chunks"])
@pytest.mark.parametrize("axis", [0, 1])
def test_true_is_no_length(tmp_path: Path, version: int, key: str, axis: int) -> None:
    """Zarr takes it for 1, so that 64 rows would become one; fuzzing found it."""
    path = write_zarr(tmp_path / "s.zarr", STACK, version=version)
    file = path / "0" / (".zarray" if version == 2 else "zarr.json")
    described = json.loads(file.read_text())
    is_grid = version == 3 and key == "chunks"
    (described["chunk_grid"]["configuration"]["chunk_shape"] if is_grid else described[key])[axis] = True
    file.write_text(json.dumps(described))
    with pytest.raises(InputError, match="where a length is no number"):
        open_volume(str(path))


@pytest.mark.parametrize("kind", ["scale", "translation"])
def test_true_is_no_voxel_size(tmp_path: Path, kind: str) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    described = json.loads((path / ".zattrs").read_text())
    dataset = described["multiscales"][0]["datasets"][0]
    dataset["coordinateTransformations"] = [{"type": kind, kind: [30.0, True, 5.0]}]
    (path / ".zattrs").write_text(json.dumps(described))
    with pytest.raises(InputError, match=f"a {kind} with what is no number"):
        open_volume(str(path))


def test_single_channels_and_times_are_left_out(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK[None, None], "tczyx", (1, 1, 4, 32, 32))
    volume = open_volume(str(path))
    assert (volume.axes, volume.shape) == ("zyx", STACK.shape)
    np.testing.assert_array_equal(volume.read(4, BOX), STACK[4, 10:65, 3:77])
    flat = open_volume(str(write_zarr(tmp_path / "f.zarr", STACK[0].astype(">u2"), "yx", (32, 32))))
    assert (flat.axes, flat.shape, flat.dtype) == ("yx", (1, 70, 90), np.dtype(np.uint16))
    np.testing.assert_array_equal(flat.read(0, BOX), STACK[0, 10:65, 3:77])


def test_a_given_voxel_size_comes_first(tmp_path: Path) -> None:
    path = str(write_zarr(tmp_path / "s.zarr", STACK))
    assert open_volume(path, spacing={"z": 1, "y": 2, "x": 3}).spacing == {"z": 1, "y": 2, "x": 3}


def test_chunks_that_are_missing_are_an_error_unless_they_are_empty(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    (path / "0/1/0/2").unlink()
    with pytest.raises(
        InputError, match=r"s.zarr/0: found 1 missing chunks, the first 1/0/2.*save all chunks, or give --fill"
    ):
        open_volume(str(path))
    volume = open_volume(str(path), fill_missing=True)
    assert not volume.read(4, (0, 32, 64, 90)).any()
    np.testing.assert_array_equal(volume.read(3, WHOLE), STACK[3])


def test_damage_is_reported_where_it_is_read(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    (path / "0/1/0/2").write_bytes(b"damaged")
    tifffile.imwrite(tmp_path / "s.tif", STACK, compression="zlib")
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        start, count = file.pages[4].dataoffsets[0], file.pages[4].databytecounts[0]
    content = bytearray((tmp_path / "s.tif").read_bytes())
    content[start : start + count] = bytes(count)
    (tmp_path / "s.tif").write_bytes(content)
    for name in ("s.zarr", "s.tif"):
        volume = open_volume(str(tmp_path / name))
        np.testing.assert_array_equal(volume.read(3, BOX), STACK[3, 10:65, 3:77])
        with pytest.raises(InputError, match="slice 4 that cannot be|cannot be read .z 4 to 4"):
            volume.read(4, WHOLE)


def two_sizes(folder: Path) -> str:
    tifffile.imwrite(folder / "1.tif", STACK[0])
    tifffile.imwrite(folder / "2.tif", STACK[0, :, :80])
    return str(folder)


def a_stack_among_slices(folder: Path) -> str:
    tifffile.imwrite(folder / "1.tif", STACK[0])
    tifffile.imwrite(folder / "2.tif", STACK)
    return str(folder / "*.tif")


def page(voxels: np.ndarray, **settings: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        tifffile.imwrite(folder / "s.tif", voxels, **settings)
        return str(folder / "s.tif")

    return write


def image(voxels: np.ndarray, axes: str, chunks: tuple[int, ...]) -> Callable[[Path], str]:
    return lambda folder: str(write_zarr(folder / "s.zarr", voxels, axes, chunks))


def text(folder: Path) -> str:
    (folder / "s.tif").write_text("text")
    return str(folder / "s.tif")


BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "nothing": (lambda folder: str(folder / "s.tif"), "s.tif: found no such file, expected a TIFF, a folder or"),
    "an empty folder": (str, "found no TIFF, PNG, MRC, DM3 or DM4 file"),
    "a glob of nothing": (lambda folder: str(folder / "*.tif"), "found no TIFF, PNG, MRC, DM3 or DM4 file"),
    "no image": (text, "found no TIFF but a file that begins with b'text'"),
    "colour": (page(np.zeros((70, 90, 3), np.uint8), photometric="rgb"), "found 3 colour samples a pixel"),
    "complex": (page(np.zeros((70, 90), np.complex64)), "found pixels of .* that are no plain numbers"),
    "time": (page(STACK, imagej=True, metadata={"axes": "TYX"}), "found 5 time points"),
    "two sizes": (two_sizes, r"2.tif: found 80 x 70 pixels of uint8, expected 90 x 70 .*1.tif"),
    "a stack among slices": (a_stack_among_slices, "2.tif: found 5 slices in one of several files"),
    "truth in a Zarr": (image(STACK > 7, "zyx", (4, 32, 32)), "found bool voxels, expected integers or floating-point"),
    "channels": (image(STACK[:3], "cyx", (1, 32, 32)), "s.zarr/0: found 3 channels"),
    "times": (image(STACK[None, :3], "ctyx", (1, 1, 32, 32)), "found axes c, t, y, x"),
    "zero size": (image(STACK[:, :0], "zyx", (4, 1, 32)), r"found an array of shape \(5, 0, 90\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    make, message = BAD[kind]
    with pytest.raises(InputError, match=message):
        open_volume(make(tmp_path))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_any_numbers_are_grey_values(tmp_path: Path, dtype: type) -> None:
    voxels = (STACK.astype(np.float64) * 3 - 200).astype(dtype)
    tifffile.imwrite(tmp_path / "s.tif", voxels)
    for source in (tmp_path / "s.tif", write_zarr(tmp_path / "s.zarr", voxels)):
        volume = open_volume(str(source))
        assert volume.dtype == dtype
        np.testing.assert_array_equal(volume.read(2, (0, 70, 0, 90)), voxels[2])


def test_levels_are_mapped_and_clipped(tmp_path: Path) -> None:
    stack = np.array([[[0, 1000, 2000, 3000, 65535]]], np.uint16).repeat(70, 1).repeat(14, 2)
    tifffile.imwrite(tmp_path / "s.tif", stack)
    plain = open_volume(str(tmp_path / "s.tif"))
    volume = RegradedVolume(plain, Levels(1000, 3000, 0.2, 0.6, 8))
    assert volume.dtype == np.uint8
    assert volume.read(0, (0, 1, 0, 70))[0, ::14].tolist() == [0, 51, 102, 153, 255]
    assert volume.state() != plain.state()


def test_a_resampled_scan_has_no_seams(tmp_path: Path) -> None:
    volume = ResampledVolume(open_volume(str(write_zarr(tmp_path / "s.zarr", STACK))), (5 / 7, 2.0))
    assert volume.shape == (5, 50, 180)
    assert volume.spacing == pytest.approx({"z": 30, "y": 7, "x": 2.5})
    whole = volume.read(2, (0, 50, 0, 180))
    assert abs(whole.mean() - STACK[2].mean()) < 2
    for y0, y1, x0, x1 in [(0, 20, 0, 99), (20, 50, 0, 99), (0, 50, 99, 180), (49, 50, 179, 180)]:
        np.testing.assert_array_equal(volume.read(2, (y0, y1, x0, x1)), whole[y0:y1, x0:x1])


def test_the_state_differs_between_files(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK)
    before = open_volume(str(tmp_path / "s.tif")).state()
    assert open_volume(str(tmp_path / "s.tif")).state() == before
    tifffile.imwrite(tmp_path / "s.tif", STACK, compression="zlib")
    assert open_volume(str(tmp_path / "s.tif")).state() != before


def test_the_state_differs_when_a_chunk_is_written_anew(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", STACK)
    volume = open_volume(str(path))
    before = volume.state()
    assert open_volume(str(path)).state() == before
    zarr.open_array(path / "0")[4, 0, 0] = 1
    assert volume.state() != before
