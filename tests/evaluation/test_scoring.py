from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from mitoflow.config.params import Instances
from mitoflow.errors import InputError
from mitoflow.evaluation import scoring
from mitoflow.io import ome


@pytest.fixture
def truth(tmp_path: Path) -> np.ndarray:
    """Two cubes."""
    truth = np.zeros((16, 64, 64), np.uint8)
    truth[2:10, 8:16, 8:16] = 255
    truth[2:10, 40:48, 40:48] = 255
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    return truth


def test_a_truth_of_another_voxel_size_is_told(tmp_path: Path, truth: np.ndarray) -> None:
    paths = [str(tmp_path / name) for name in ("mask.tif", "coarse.tif")]
    for path, nanometres in zip(paths, (5, 50), strict=True):
        metadata = {"axes": "ZYX", "unit": "nm", "spacing": nanometres}
        tifffile.imwrite(path, truth, imagej=True, resolution=(1 / nanometres, 1 / nanometres), metadata=metadata)
    notes: list[str] = []
    scoring.score(*paths, notify=notes.append)
    assert "coarse.tif: found a voxel of z 50, y 50, x 50 nm, expected a voxel of z 5, y 5, x 5 nm" in "".join(notes)


def test_a_mask_is_compared_by_voxels_and_mitochondria(tmp_path: Path, truth: np.ndarray) -> None:
    mask = truth.copy()
    mask[2:10, 40:48, 40:54] = 0
    mask[2:10, 40:48, 46:54] = 255  # six of eight voxels beside the second cube
    mask[12:14, 30:34, 30:34] = 255  # a speck
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    scores = scoring.score(str(tmp_path / "mask.tif"), str(tmp_path / "truth.tif"))
    hit, missed, added = 512 + 128, 384, 384 + 32
    assert scores["dice"] == pytest.approx(2 * hit / (2 * hit + missed + added))
    assert scores["iou"] == pytest.approx(hit / (hit + missed + added))
    assert (scores["instances"], scores["true_instances"]) == (2, 2)
    assert (scores["instance_precision_50"], scores["instance_recall_50"]) == (0.5, 0.5)
    assert scores["instance_f1_75"] == pytest.approx(1 / 2)
    assert scores["panoptic_quality"] == pytest.approx(1 / 2)
    assert scores["volume_fraction"] == pytest.approx((hit + added) / truth.size)
    assert 0 < scores["error_near_boundary"] < 1


def test_what_nobody_looked_at_does_not_count(tmp_path: Path, truth: np.ndarray) -> None:
    mask = truth.copy()
    mask[2:10, 8:16, 8:12] = 0
    truth[:, :, 32:] = 128  # with one of the two cubes
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    for name, array in (("partial.tif", truth), ("left.tif", truth[:, :, :32])):
        tifffile.imwrite(tmp_path / name, array)
    tifffile.imwrite(tmp_path / "left_mask.tif", mask[:, :, :32])
    notes: list[str] = []
    scores = scoring.score(str(tmp_path / "mask.tif"), str(tmp_path / "partial.tif"), notify=notes.append)
    assert scores == scoring.score(str(tmp_path / "left_mask.tif"), str(tmp_path / "left.tif"))
    assert scores["dice"] == pytest.approx(2 / 3)
    assert len(notes) == 1
    assert "50% of the voxels are 128, which nobody looked at" in notes[0]


def test_a_box_that_was_looked_at_scores_as_if_it_were_cut_out(tmp_path: Path, truth: np.ndarray) -> None:
    """It cuts both cubes: where it ends there is no boundary, as at the frame of a slice."""
    box, mask = np.s_[4:9, 4:60, 10:44], np.roll(truth, 3, axis=1)
    partial = np.full_like(truth, 128)
    partial[box] = truth[box]
    for name, array in (("mask", mask), ("partial", partial), ("cut_mask", mask[box]), ("cut", truth[box])):
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
    scores = scoring.score(str(tmp_path / "mask.tif"), str(tmp_path / "partial.tif"))
    assert scores == scoring.score(str(tmp_path / "cut_mask.tif"), str(tmp_path / "cut.tif"))
    # Of a profile 7 pixels of the side and 2 of a row are matched; boundary are 18 and 14, without those at the box.
    assert scores["boundary_f1"] == pytest.approx((9 + 9) / (18 + 14))


def test_labels_are_taken_as_they_are(tmp_path: Path, truth: np.ndarray) -> None:
    labels = np.where(truth > 0, 70_000, 0).astype(np.uint32)
    labels[2:10, 8:16, 12:16] = 70_001  # half of a cube; the other half goes with the other cube
    array = ome.create_multiscale(tmp_path / "labels.ome.zarr", labels.shape, labels.dtype, 8)
    array[:] = labels
    ome.finish_multiscale(tmp_path / "labels.ome.zarr", ome.Description("zyx"))
    criteria = Instances(smallest_voxels=256)
    scores = scoring.score(str(tmp_path / "labels.ome.zarr"), str(tmp_path / "truth.tif"), criteria)
    assert (scores["dice"], scores["instances"], scores["instance_precision_50"]) == (1, 2, 0.5)


def test_what_predict_writes_can_be_scored(tmp_path: Path, truth: np.ndarray) -> None:
    """Labels of 64 bits with gaps, axes t and c, TIFF labels of 32 bits; and a chunk that is lost is reported."""
    labels = np.where(truth > 0, 2**40, 0).astype(np.uint64)
    labels[2:10, 8:16, 8:16] = 2**41
    array = ome.create_multiscale(tmp_path / "l.ome.zarr", labels.shape, labels.dtype, 8)
    array[:] = labels
    ome.finish_multiscale(tmp_path / "l.ome.zarr", ome.Description("zyx"))
    tifffile.imwrite(tmp_path / "l.tif", np.minimum(labels, 70_000).astype(np.uint32) + (labels > 2**40))
    for name in ("l.ome.zarr", "l.tif"):
        scores = scoring.score(str(tmp_path / name), str(tmp_path / "truth.tif"))
        assert (scores["dice"], scores["instances"], scores["instance_f1_75"]) == (1, 2, 1)
    (tmp_path / "l.ome.zarr/0/0/0/0").unlink()
    notes: list[str] = []
    scoring.score(str(tmp_path / "l.ome.zarr"), str(tmp_path / "truth.tif"), notify=notes.append)
    (note,) = notes
    assert "l.ome.zarr: 1 chunk is not there and read as empty; if the mask is not empty there, copy it again" in note


def test_antialiased_edges_are_cut_at_half_as_the_pipeline_does(tmp_path: Path) -> None:
    z, y, x = np.mgrid[:40, :64, :64]
    distance = 14 - np.sqrt((z - 20) ** 2 + (y - 32) ** 2 + (x - 32) ** 2)
    tifffile.imwrite(tmp_path / "drawn.tif", (np.clip(distance / 2 + 0.5, 0, 1) * 255).astype(np.uint8))
    tifffile.imwrite(tmp_path / "mask.tif", (distance > 0).astype(np.uint8) * 255)
    scores = scoring.score(str(tmp_path / "mask.tif"), str(tmp_path / "drawn.tif"))
    assert scores["dice"] == pytest.approx(1, abs=0.01)
    assert (scores["true_instances"], scores["instance_f1_75"]) == (1, 1)


def write_slices(folder: Path, slices: Iterable[np.ndarray]) -> str:
    folder.mkdir()
    for z, one in enumerate(slices):
        tifffile.imwrite(folder / f"s{z}.tif", one)
    return str(folder)


def soft(mask: np.ndarray, dtype: type) -> np.ndarray:
    """Return a mask with antialiased edges."""
    return np.round(ndimage.gaussian_filter(mask / mask.max(), 0.7) * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize(
    ("second", "note"),
    [
        (lambda mask: mask // 255, "the values 1, 255 all mean mitochondrion"),
        (lambda mask: soft(mask, np.uint8), "antialiased edges of 2 of 4 files, such as s1.tif are cut at half range"),
    ],
)
def test_slices_that_were_saved_in_different_ways_are_one_mask(
    tmp_path: Path, truth: np.ndarray, second: Callable[[np.ndarray], np.ndarray], note: str
) -> None:
    """Values side by side are no labels: each file has its own rule."""
    folder = write_slices(tmp_path / "s", [second(one) if z % 2 else one for z, one in enumerate(truth[2:6])])
    tifffile.imwrite(tmp_path / "truth.tif", truth[2:6], photometric="minisblack")
    notes: list[str] = []
    scores = scoring.score(folder, str(tmp_path / "truth.tif"), Instances(smallest_voxels=9), notify=notes.append)
    assert (scores["dice"], scores["instances"], scores["instance_f1_75"]) == (pytest.approx(1, abs=0.02), 2, 1)
    assert notes == [f"note: {folder}: 4 slices, s0.tif to s3.tif", f"note: {folder}: {note}"]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_masks_are_read_alike_from_a_file_and_a_folder(tmp_path: Path, truth: np.ndarray, form: str) -> None:
    """Soft edges in 16 bits, and an indexed white 0."""

    def write(name: str, mask: np.ndarray, **settings: Any) -> str:
        if form == "folder":
            (tmp_path / name).mkdir()
        for z, one in enumerate(mask[2:10]) if form == "folder" else [(0, mask[2:10])]:
            tifffile.imwrite(tmp_path / (f"{name}/{z}.tif" if form == "folder" else f"{name}.tif"), one, **settings)
        return str(tmp_path / (name if form == "folder" else f"{name}.tif"))

    plain = write("plain", truth)
    wide = write("wide", soft(truth, np.uint16))
    palette = np.zeros((3, 256), np.uint16)
    palette[:, 0] = 65535
    indexed = write("indexed", (truth == 0).astype(np.uint8), photometric="palette", colormap=palette)
    assert scoring.score(wide, plain, Instances(smallest_voxels=9))["dice"] > 0.9
    assert scoring.score(indexed, plain)["dice"] == 1


@pytest.mark.parametrize("value", [3, 90, 254])
def test_stray_grey_values_make_no_labels_of_a_mask(tmp_path: Path, truth: np.ndarray, value: int) -> None:
    """As a lossy format or a paint program leaves them: without the rule all mitochondria would be one label."""
    mask = truth.copy()
    mask[3, 8, 8] = mask[5, 20, 20] = mask[9, 60, 3] = value
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    scores = scoring.score(str(tmp_path / "mask.tif"), str(tmp_path / "truth.tif"), Instances(smallest_voxels=9))
    assert (scores["instances"], scores["instance_f1_75"]) == (2, 1)


def test_labels_of_single_slices_stay_labels(tmp_path: Path, truth: np.ndarray) -> None:
    """Also where all labels of a slice are too small to have inner pixels."""
    labels = (truth > 0).astype(np.uint16)
    labels[:, :, 32:] *= 2
    labels[2, 8:16] = labels[2, 40:48] = 0
    labels[2, 8, 8:10], labels[2, 40, 40:42], labels[2, 41, 41] = 1, 2, 3
    folder = write_slices(tmp_path / "labels", labels)
    scores = scoring.score(folder, str(tmp_path / "truth.tif"), Instances(smallest_voxels=256))
    assert (scores["instances"], scores["instance_f1_75"]) == (2, 1)


def test_labels_beside_antialiased_edges_are_refused(tmp_path: Path, truth: np.ndarray) -> None:
    labels = (truth > 0) * np.uint8(7)
    folder = write_slices(tmp_path / "s", [labels[2], soft(truth[3], np.uint8)])
    with pytest.raises(InputError, match=r"s1.tif: found antialiased edges, but labels in .*s0.tif, .*of one kind$"):
        scoring.score(folder, str(tmp_path / "truth.tif"))


def test_an_inverted_mask_is_a_warning(tmp_path: Path, truth: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "inverted.tif", 255 - truth)
    notes: list[str] = []
    scoring.score(str(tmp_path / "inverted.tif"), str(tmp_path / "truth.tif"), notify=notes.append)
    (note,) = notes
    assert note.endswith("inverted.tif: 98% of the voxels are mitochondrion; if it is black on them, invert it")


def test_labels_below_the_smallest_size_do_not_count(tmp_path: Path, truth: np.ndarray) -> None:
    labels = (truth > 0).astype(np.uint8)
    labels[2:10, 40:48, 40:48] = 2
    labels[12:14, 30:34, 30:34] = 3
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    paths = [str(tmp_path / "labels.tif")] * 2
    assert scoring.score(*paths)["instances"] == 2
    assert scoring.score(*paths, Instances(smallest_voxels=32))["instances"] == 3
    assert scoring.score(*paths, spacing={"z": 10.0, "y": 10.0, "x": 10.0})["instances"] == 0


def test_signed_labels_are_labels_where_none_is_negative(tmp_path: Path, truth: np.ndarray) -> None:
    labels = (truth > 0).astype(np.int32)
    labels[2:10, 40:48, 40:48] = 2
    tifffile.imwrite(tmp_path / "signed.tif", labels)
    assert scoring.score(str(tmp_path / "signed.tif"), str(tmp_path / "truth.tif"))["instances"] == 2
    tifffile.imwrite(tmp_path / "signed.tif", -labels)
    with pytest.raises(InputError, match="the value -2"):
        scoring.score(str(tmp_path / "signed.tif"), str(tmp_path / "truth.tif"))


def test_a_damaged_chunk_is_one_line(tmp_path: Path, truth: np.ndarray) -> None:
    array = ome.create_multiscale(tmp_path / "m.ome.zarr", truth.shape, truth.dtype, 8)
    array[:] = truth
    ome.finish_multiscale(tmp_path / "m.ome.zarr", ome.Description("zyx"))
    chunk = tmp_path / "m.ome.zarr/0/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(InputError, match="voxels that cannot be read .z 0 to 7"):
        scoring.score(str(tmp_path / "m.ome.zarr"), str(tmp_path / "truth.tif"))


def test_nothing_against_nothing_is_perfect(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "empty.tif", np.zeros((64, 64), np.uint8))
    scores = scoring.score(str(tmp_path / "empty.tif"), str(tmp_path / "empty.tif"))
    assert (scores["dice"], scores["instances"], scores["panoptic_quality"]) == (1, 0, 1)


def test_another_size_is_one_line(tmp_path: Path, truth: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "short.tif", truth[1:])
    with pytest.raises(InputError, match="short.tif: found 15 x 64 x 64 voxels, expected 16 x 64 x 64, as in"):
        scoring.score(str(tmp_path / "short.tif"), str(tmp_path / "truth.tif"))


def test_probabilities_are_refused(tmp_path: Path, truth: np.ndarray) -> None:
    array = ome.create_multiscale(tmp_path / "p.ome.zarr", truth.shape, np.dtype(np.float32), 8)
    array[:] = 0.5
    ome.finish_multiscale(tmp_path / "p.ome.zarr", ome.Description("zyx"))
    with pytest.raises(InputError, match="found float32 voxels of 3 axes, expected a mask or labels"):
        scoring.score(str(tmp_path / "p.ome.zarr"), str(tmp_path / "truth.tif"))


def test_slices_that_were_looked_at_are_scored_by_their_profiles(tmp_path: Path, truth: np.ndarray) -> None:
    """One slice of a cube is far below the smallest volume: 0 of 0 instances would be a perfect score for any mask."""
    partial = np.full_like(truth, 128)
    partial[[4, 8]] = truth[[4, 8]]
    wrong = np.zeros_like(truth)
    wrong[:, 24:32, 24:32] = 255
    half = truth.copy()
    half[:, :, 32:] = 0
    for name, mask in (("partial", partial), ("wrong", wrong), ("half", half)):
        tifffile.imwrite(tmp_path / f"{name}.tif", mask)
    paths = {name: str(tmp_path / f"{name}.tif") for name in ("partial", "wrong", "half", "truth")}
    notes: list[str] = []

    def score(prediction: str, truth: str) -> dict[str, float]:
        nm = {"z": 20.0, "y": 20.0, "x": 20.0}
        return scoring.score(paths[prediction], paths[truth], spacing=nm, notify=notes.append)

    found = score("wrong", "partial")
    assert (found["dice"], found["instance_f1_50"], found["instances"], found["true_instances"]) == (0, 0, 2, 4)
    assert notes[1].endswith("wrong.tif: what was looked at is no box, so instances are the profiles of single slices")
    found = score("half", "partial")
    assert (found["instance_precision_50"], found["instance_recall_50"]) == (1, 0.5)
    found = score("partial", "truth")
    assert (found["dice"], found["instance_f1_75"], found["instances"]) == (1, 1, 4)
    assert found["volume_fraction"] == 128 / 64**2
    other = np.full_like(truth, 128)
    other[5] = truth[5]
    tifffile.imwrite(tmp_path / "wrong.tif", other)
    with pytest.raises(InputError, match=r"wrong.tif: found no voxel that was looked at, as in .*partial.tif"):
        score("wrong", "partial")


def test_where_no_object_counts_instances_have_no_score(tmp_path: Path, truth: np.ndarray) -> None:
    for name, place in (("a", 8), ("b", 40)):
        speck = np.zeros_like(truth)
        speck[4, place, place : place + 2] = 255
        tifffile.imwrite(tmp_path / f"{name}.tif", speck)
    notes: list[str] = []
    scores = scoring.score(str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), notify=notes.append)
    blank = {name for name, value in scores.items() if np.isnan(value)}
    assert blank == {name for name in scores if name.startswith(("instance_", "panoptic"))}
    assert scores["dice"] == 0
    assert notes[0].endswith("all objects of both are too small to count, so scores of instances are blank")
