"""Tables of masks and labels in files of other tools."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from mitoflow.config.params import Instances
from mitoflow.errors import InputError
from mitoflow.evaluation.measuring import measure_file, table_of
from mitoflow.io import ome

CRITERIA = Instances()
NM = {"z": 20.0, "y": 10.0, "x": 10.0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def labels() -> NDArray[np.uint16]:
    """Two that touch, one of two pieces, and a speck."""
    labels = np.zeros((20, 60, 80), np.uint16)
    labels[3:13, 5:25, 5:20], labels[3:13, 5:25, 20:35] = 7, 900
    labels[3:13, 35:50, 5:20], labels[3:13, 35:50, 40:55] = 12, 12
    labels[15, 30, 70] = 13
    return labels


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


def save(kind: str, labels: NDArray[np.uint16]) -> str:
    """Save labels as programs do that people correct them with."""
    if kind == "zarr":
        array = ome.create_multiscale(Path("l.ome.zarr"), labels.shape, labels.dtype, 8)
        array[:] = labels
        ome.finish_multiscale(Path("l.ome.zarr"), ome.Description("zyx", NM))
        return "l.ome.zarr"
    if kind == "imagej":
        known = {"spacing": 0.02, "unit": "um", "axes": "ZYX"}
        tifffile.imwrite("l.tif", labels, imagej=True, resolution=(100, 100), metadata=known)
    elif kind == "napari":
        tifffile.imwrite("l.tif", labels.astype(np.int64), compression="zlib")
    elif kind == "float":
        tifffile.imwrite("l.tif", labels.astype(np.float32))
    return "l.tif"


def test_an_image_of_another_voxel_size_is_told(labels: NDArray[np.uint16]) -> None:
    source, notes = save("imagej", labels), list[str]()
    tifffile.imwrite("grey.tif", labels, imagej=True, resolution=(10, 10), metadata={"axes": "ZYX", "unit": "um"})
    measure_file(source, Path("t.csv"), criteria=CRITERIA, image="grey.tif", notify=notes.append)
    found = "grey.tif: found a voxel of y 100, x 100 nm, expected a voxel of y 10, x 10 nm as in l.tif, which is taken"
    assert found in notes[0]
    size = {"y": 100.0, "x": 100.0}  # the distance between slices stays that of the file
    measure_file(source, Path("u.csv"), criteria=CRITERIA, image="grey.tif", spacing=size, notify=notes.append)
    replaced = "note: l.tif: a voxel of y 10, x 10 nm in the file is replaced by what was given, y 100, x 100 nm"
    assert replaced in notes


@pytest.mark.parametrize("kind", ["zarr", "imagej", "napari", "float"])
def test_labels_of_any_tool_are_measured(kind: str, labels: NDArray[np.uint16]) -> None:
    notes: list[str] = []
    known = None if kind in ("zarr", "imagej") else NM
    source = save(kind, labels)
    measured = measure_file(source, table_of(source), criteria=CRITERIA, spacing=known, notify=notes.append)
    table = rows("l.csv")
    assert [(row["label"], row["volume_voxels"]) for row in table] == [("7", "3000"), ("12", "4500"), ("900", "3000")]
    assert [float(row["volume_um3"]) for row in table] == pytest.approx([0.006, 0.009, 0.006])
    assert notes == [
        f"note: {source}: labels below 500 voxels: left out; --smallest-um3 0 and --smallest-voxels 0 keep all (1)"
    ]
    (totals,) = rows("l_totals.csv")
    assert totals["mitochondria"] == "3"
    assert measured.summary == "3 mitochondria, 15.6 per cubic micrometre; 10.94% of the volume"


def test_a_mask_is_taken_apart(labels: NDArray[np.uint16]) -> None:
    tifffile.imwrite("mask.tif", ((labels > 0) * 255).astype(np.uint8))
    measure_file("mask.tif", Path("t.csv"), criteria=CRITERIA, spacing=NM)
    assert sorted(int(row["volume_voxels"]) for row in rows("t.csv")) == [2250, 2250, 6000]


def test_an_image_gives_grey_values_and_the_voxel_size(labels: NDArray[np.uint16]) -> None:
    tifffile.imwrite("l.tif", labels)
    image = np.full(labels.shape, 200, np.uint8)
    image[labels == 7] = 50
    image[3:13, 5:25, 5:10] = 80  # a third of it
    known = {"spacing": 0.02, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite("image.tif", image, imagej=True, resolution=(100, 100), metadata=known)
    measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, image="image.tif")
    first, *_ = rows("t.csv")
    assert float(first["grey_mean"]) == 60
    assert float(first["grey_sd"]) == pytest.approx(np.std([80, 50, 50]), rel=1e-5)
    assert float(first["volume_um3"]) == pytest.approx(0.006)


def test_regions_have_a_table_of_their_own(labels: NDArray[np.uint16]) -> None:
    tifffile.imwrite("l.tif", labels)
    cells = np.zeros(labels.shape, np.uint8)
    cells[:, :30], cells[:, 30:, :30] = 2, 5
    tifffile.imwrite("cells.tif", cells)
    measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, spacing=NM, regions="cells.tif")
    assert [row["region"] for row in rows("t.csv")] == ["2", "0", "2"]  # half of 12 is in none
    found = {row["region"]: (row["mitochondria"], float(row["volume_fraction"])) for row in rows("t_regions.csv")}
    assert found == {"2": ("2", pytest.approx(6000 / 48000)), "5": ("0", pytest.approx(2250 / 18000))}


def test_labels_that_float64_does_not_tell_apart_keep_their_grey_values_and_regions() -> None:
    """Segmentations of whole brains number their objects beyond 2**53."""
    labels, cells, image = (np.zeros((8, 20, 40), dtype) for dtype in (np.uint64, np.uint64, np.uint8))
    for number, place, grey in ((1, np.s_[:, 5:15, 2:12], 50), (2, np.s_[:, 5:15, 22:32], 200)):
        labels[place], cells[place], image[place] = 2**59 + number, 2**60 + number, grey
    for name, array in (("l", labels), ("cells", cells), ("image", image)):
        tifffile.imwrite(f"{name}.tif", array)
    measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, spacing=NM, image="image.tif", regions="cells.tif")
    found = [(int(row["label"]), float(row["grey_mean"]), int(row["region"])) for row in rows("t.csv")]
    assert found == [(2**59 + 1, 50, 2**60 + 1), (2**59 + 2, 200, 2**60 + 2)]


def test_a_single_slice_has_profiles(labels: NDArray[np.uint16]) -> None:
    tifffile.imwrite("slice.tif", labels[5])
    measured = measure_file("slice.tif", Path("t.csv"), criteria=CRITERIA, spacing={"y": 10.0, "x": 10.0})
    assert measured.summary == "3 profiles, 6.25 per square micrometre; 21.88% of the area"
    assert {"area_um2", "circularity", "feret_max_um"} <= rows("t.csv")[0].keys()


def test_without_a_voxel_size_voxels_are_counted(labels: NDArray[np.uint16]) -> None:
    tifffile.imwrite("l.tif", labels)
    notes: list[str] = []
    measured = measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, notify=notes.append)
    assert "the voxel size is unknown, so sizes are in voxels alone; give --voxel-size" in notes[0]
    assert measured.summary == "3 mitochondria, voxel size unknown; 10.94% of the volume"


def test_what_cannot_be_measured_is_one_line(labels: NDArray[np.uint16]) -> None:
    tifffile.imwrite("l.tif", labels)
    tifffile.imwrite("short.tif", labels[1:])
    tifffile.imwrite("p.tif", np.full((5, 9, 9), 0.5, np.float32))
    for source, options, line in (
        ("l.tif", {"image": "short.tif"}, "short.tif: found 19 x 60 x 80 voxels, expected 20 x 60 x 80, as in l.tif"),
        ("l.tif", {"regions": "short.tif"}, "short.tif: found 19 x 60 x 80 voxels"),
        ("p.tif", {}, "p.tif: found float32 voxels of 3 axes, expected a mask or labels"),
        ("none.tif", {}, "none.tif: found no such file"),
    ):
        with pytest.raises(InputError, match=line):
            measure_file(source, Path("t.csv"), criteria=CRITERIA, **options)
    Path("t_totals.csv").touch()
    with pytest.raises(InputError, match="t_totals.csv: found an output that exists"):
        measure_file("l.tif", Path("t.csv"), criteria=CRITERIA)
    with pytest.raises(InputError, match="t_totals.csv: found something that mitoflow did not write"):
        measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, overwrite=True)
    assert not Path("t.csv").exists()
    Path("t_totals.csv").unlink()
    measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, regions="l.tif")
    written = [path.read_bytes() for path in sorted(Path().glob("t*.csv"))]
    assert len(written) == 3
    measure_file("l.tif", Path("t.csv"), criteria=CRITERIA, regions="l.tif", overwrite=True)
    assert [path.read_bytes() for path in sorted(Path().glob("t*.csv"))] == written
    with pytest.raises(InputError, match="give --table NAME.csv"):
        table_of("slices/*.tif")


def test_slices_at_an_unknown_distance_are_no_cubes(labels: NDArray[np.uint16]) -> None:
    """What needs the volume of a voxel is blank, with the reason and the option; the rest is there."""
    Path("slices").mkdir()
    for z, page in enumerate(labels):
        size = {"PhysicalSizeY": 10, "PhysicalSizeYUnit": "nm", "PhysicalSizeX": 10, "PhysicalSizeXUnit": "nm"}
        tifffile.imwrite(f"slices/{z:02}.ome.tif", page, metadata={"axes": "YX", **size})
    notes: list[str] = []
    measured = measure_file("slices", Path("t.csv"), criteria=CRITERIA, notify=notes.append)
    assert any("the distance between slices is unknown" in note and "give --voxel-size" in note for note in notes)
    for row in rows("t.csv"):
        assert {row[name] for name in measured.measures if name.endswith(("_um", "_um2", "_um3"))} == {""}
        assert "voxel size unknown" in row["why_blank"]
        assert int(row["volume_voxels"]) in (3000, 4500)
        assert float(row["centroid_x_voxel"]) > 0
    (totals,) = rows("t_totals.csv")
    assert float(totals["volume_fraction"]) == pytest.approx(0.1094, abs=1e-4)
    assert (totals["density_per_um3"], totals["why_blank"]) == ("", "voxel size unknown")
    measure_file("slices", Path("known.csv"), criteria=CRITERIA, spacing=NM)
    assert [float(row["volume_um3"]) for row in rows("known.csv")] == pytest.approx([0.006, 0.009, 0.006])


def test_what_nobody_looked_at_is_not_measured(labels: NDArray[np.uint16]) -> None:
    """The box that was looked at is measured as if the stack ended there; slices between others are refused."""
    mask = np.where(labels > 0, 255, 0).astype(np.uint8)
    mask[:, 30:] = 128
    tifffile.imwrite("box.tif", mask)
    tifffile.imwrite("image.tif", np.where(labels > 0, 7, 3).astype(np.uint8))
    notes: list[str] = []
    measured = measure_file(
        "box.tif", Path("t.csv"), criteria=CRITERIA, spacing=NM, image="image.tif", notify=notes.append
    )
    assert measured.summary == "1 mitochondrion, 10.4 per cubic micrometre; 12.50% of the volume"  # 6000 of 48000
    assert [(row["volume_voxels"], row["grey_mean"]) for row in rows("t.csv")] == [("6000", "7")]
    assert notes == [
        "note: box.tif: 50% of the voxels are 128, which nobody looked at",
        "note: box.tif: the box that was looked at is measured (z 0:20, y 0:30, x 0:80), "
        "and places count from its corner",
    ]
    mask[1:19:2] = 128
    tifffile.imwrite("slices.tif", mask)
    with pytest.raises(InputError, match="128, which nobody looked at, between parts .*cut out one of these parts"):
        measure_file("slices.tif", Path("s.csv"), criteria=CRITERIA)
    assert not Path("s.csv").exists()
