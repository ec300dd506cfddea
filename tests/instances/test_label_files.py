"""Masks and labels of all formats are read by one rule, and what is likely to be a mistake is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from mitoflow.errors import InputError
from mitoflow.instances.label_files import read_labels, read_mitochondria
from mitoflow.io import ome

CUBES = [np.s_[1:4, 2:8, 2:8], np.s_[1:4, 2:8, 20:26], np.s_[1:4, 20:26, 2:8]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(*values: int) -> np.ndarray:
    """Cubes of 3 x 6 x 6 voxels that do not touch, each with its value."""
    mask = np.zeros((5, 32, 32), np.uint8)
    for place, value in zip(CUBES, values, strict=False):
        mask[place] = value
    return mask


def write_zarr(voxels: np.ndarray, *, write_empty: bool = True) -> str:
    """Write an image of chunks of one slice, as zarr-python does, which leaves empty ones out unless it is told."""
    ome.create_multiscale(Path("m.ome.zarr"), voxels.shape, voxels.dtype, 8)
    ome.finish_multiscale(Path("m.ome.zarr"), ome.Description("zyx"))
    config = {"write_empty_chunks": write_empty}
    chunks = (1, *voxels.shape[1:])
    array = zarr.create_array(
        "m.ome.zarr/0", shape=voxels.shape, dtype=voxels.dtype, chunks=chunks, zarr_format=2, overwrite=True,
        config=config, chunk_key_encoding={"name": "v2", "separator": "/"},
    )  # fmt: skip
    array[:] = voxels
    return "m.ome.zarr"


def write_n5(voxels: np.ndarray) -> str:
    """Write an N5 without compression whose empty blocks, of one slice, are left out, as Fiji does."""
    Path("m.n5").mkdir()
    about = {
        "dimensions": voxels.shape[::-1],
        "blockSize": [*voxels.shape[:0:-1], 1],
        "dataType": str(voxels.dtype),
        "compression": {"type": "raw"},
    }
    Path("m.n5/attributes.json").write_text(json.dumps(about))
    header = np.array([0, 3], ">u2").tobytes() + np.array([*voxels.shape[:0:-1], 1], ">u4").tobytes()
    Path("m.n5/0/0").mkdir(parents=True)
    for z, one in enumerate(voxels):
        if one.any():
            Path(f"m.n5/0/0/{z}").write_bytes(header + one.tobytes())
    return "m.n5"


def write_hdf5(voxels: np.ndarray) -> str:
    with h5py.File("m.h5", "w") as file:
        dataset = file.create_dataset("mask", voxels.shape, voxels.dtype, chunks=(1, *voxels.shape[1:]))
        for z, one in enumerate(voxels):
            if one.any():
                dataset[z] = one
    return "m.h5"


def write_float(voxels: np.ndarray) -> str:
    tifffile.imwrite("m.tif", voxels.astype(np.float32))
    return "m.tif"


def notes_of(source: str) -> list[str]:
    notes: list[str] = []
    read_mitochondria(source, notes.append)
    return notes


@pytest.mark.parametrize("write", [write_zarr, write_n5, write_hdf5, write_float])
def test_all_formats_have_the_rules_of_tiff(write: Callable[[np.ndarray], str]) -> None:
    """Antialiased edges are cut at half range, stray values are no labels, and a grey image is no mask."""
    mask = draw(255)
    mask[1:4, 1, 2:8], mask[1:4, 8, 2:8] = 200, 90  # the edges, above and below half
    mask[0, 30, 30] = mask[4, 30, 30] = 3  # stray values
    source = write(mask)
    notes: list[str] = []
    voxels, _ = read_labels(source, notes.append)
    assert np.unique(voxels).tolist() == [0, 1]
    assert np.count_nonzero(voxels) == 3 * 7 * 6
    assert notes == [f"note: {source}: antialiased edges are cut at half range"]


def soft_square(white: int) -> np.ndarray:
    """Slices of a square with antialiased edges: 16 x 16 pixels from half of that value on, 18 x 18 above 0."""
    slopes = np.rint(np.array([250, 600, 900, *[1000] * 12, 900, 600, 250]) * (white / 1000)).astype(np.uint16)
    return np.pad(np.minimum.outer(slopes, slopes)[None].repeat(5, 0), ((0, 0), (9, 9), (9, 9)))


@pytest.mark.parametrize("white", [4095, 32767])
@pytest.mark.parametrize("write", [write_zarr, write_hdf5, write_float])
def test_antialiased_edges_of_any_depth_are_cut_at_half_of_it(white: int, write: Callable[[np.ndarray], str]) -> None:
    mask = soft_square(white)
    mask[4] = mask[4] // 3  # the end of the object, which does not reach half
    source = write(mask)
    notes: list[str] = []
    voxels, _ = read_labels(source, notes.append)
    assert np.count_nonzero(voxels, axis=(1, 2)).tolist() == [256, 256, 256, 256, 0]
    assert notes == [f"note: {source}: antialiased edges are cut at half of {white}, the largest value"]


def test_files_of_a_stack_may_have_edges_of_different_depths() -> None:
    for number, white in enumerate((255, 4095, 32767)):
        tifffile.imwrite(f"s{number}.tif", soft_square(white)[0])
    notes: list[str] = []
    voxels, _ = read_labels("s*.tif", notes.append)
    assert np.count_nonzero(voxels, axis=(1, 2)).tolist() == [256] * 3
    assert "antialiased edges of 3 of 3 files, such as s0.tif are cut at half of 4095 and 32767" in notes[-1]


@pytest.mark.parametrize("write", [write_zarr, write_hdf5, write_float])
def test_a_grey_image_is_no_mask_in_any_format(write: Callable[[np.ndarray], str]) -> None:
    source = write(np.random.default_rng(0).integers(1, 255, (5, 32, 32), np.uint8))
    with pytest.raises(InputError, match=f"^{source}: found the values of a grey image"):
        read_labels(source)


@pytest.mark.parametrize("write", [lambda mask: write_zarr(mask, write_empty=False), write_n5, write_hdf5])
def test_chunks_that_a_program_left_out_are_background_and_reported(write: Callable[[np.ndarray], str]) -> None:
    """The first and the last of five slices are empty."""
    source = write(draw(255, 255))
    notes: list[str] = []
    voxels, _ = read_labels(source, notes.append)
    np.testing.assert_array_equal(voxels, draw(255, 255))
    assert notes == [
        f"note: {source}: 2 chunks are not there and read as empty; if the mask is not empty there, copy it again"
    ]


@pytest.mark.parametrize("values", [(255, 2, 255), (255, 255, 254), (1, 2, 2)])
def test_objects_of_a_mask_with_another_value_are_reported(values: tuple[int, int, int]) -> None:
    tifffile.imwrite("m.tif", draw(*values))
    low, high = sorted({*values})
    assert notes_of("m.tif") == [
        f"warning: m.tif: 3 separate objects, but 2 values ({low}, {high}), each read as one mitochondrion; "
        "if it is a mask, give all of them one value"
    ]


def test_labels_of_several_parts_are_no_mask() -> None:
    """Three values for three objects, and for four where one mitochondrion is in two parts."""
    labels = draw(1, 2, 3)
    tifffile.imwrite("m.tif", labels)
    assert notes_of("m.tif") == []
    labels[1:4, 20:26, 20:26] = 3
    tifffile.imwrite("m.tif", labels)
    assert notes_of("m.tif") == []


def test_one_inverted_file_of_several_is_reported() -> None:
    Path("masks").mkdir()
    for z, one in enumerate(draw(255, 255)):
        tifffile.imwrite(f"masks/m{z}.tif", 255 - one if z == 2 else one)
    warning = "masks: 93% of the voxels are mitochondrion in 1 of 5 files, such as m2.tif; if it is black on them, "
    assert notes_of("masks")[1:] == [f"warning: {warning}invert it"]


def test_a_mask_of_1_and_2_is_refused_with_its_likely_cause() -> None:
    """As ilastik exports a segmentation into background and mitochondria; regions may fill a stack."""
    tifffile.imwrite("m.tif", 1 + (draw(1, 1) > 0).astype(np.uint8))
    with pytest.raises(InputError, match=r"the values 1, 2 and no 0.*where 1 is background, as ilastik .*subtract 1"):
        read_mitochondria("m.tif")
    assert np.unique(read_labels("m.tif")[0]).tolist() == [1, 2]


def test_what_nobody_looked_at_is_no_mitochondrion() -> None:
    mask = draw(255)
    mask[3:] = 128
    tifffile.imwrite("m.tif", mask)
    notes: list[str] = []
    found = read_mitochondria("m.tif", notes.append)
    assert np.count_nonzero(found.voxels) == 2 * 6 * 6
    assert np.count_nonzero(found.looked_at) == 3 * 32 * 32
    assert notes == ["note: m.tif: 40% of the voxels are 128, which nobody looked at"]


@pytest.mark.parametrize("value", [1, 254])
def test_128_beside_another_value_than_255_is_reported(value: int) -> None:
    """It is read as a mitochondrion, which would be larger than all others."""
    mask = draw(value)
    mask[3:] = 128
    tifffile.imwrite("m.tif", mask)
    warning = (
        "m.tif: 128, 40% of the voxels, is read as mitochondrion; if nobody looked there, give all mitochondria 255"
    )
    assert f"warning: {warning}" in notes_of("m.tif")
