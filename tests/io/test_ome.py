from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mitoflow.errors import InputError
from mitoflow.io import ome, spacing, tiff
from mitoflow.io.ome import Description
from tests.services import open_in_imagej

VOXELS = np.random.default_rng(0).integers(0, 256, (5, 530, 600), np.uint8)
LINEAGE = {"model": "mitoflow", "input": "Größe & <Maß>.tif"}
KNOWN = Description("zyx", {"z": 30.0, "y": 4.0, "x": 5.0}, (2, 0, 7), LINEAGE)


def stored(path: Path, voxels: np.ndarray, depth: int = 2) -> zarr.Array[Any]:
    array = ome.create_multiscale(path, voxels.shape, voxels.dtype, depth)
    array[:] = voxels
    return array


@pytest.mark.parametrize("voxels", [VOXELS, VOXELS[0], VOXELS[:2, :7, :300].astype(np.float32) / 255])
def test_a_tiff_is_what_was_stored(tmp_path: Path, voxels: np.ndarray) -> None:
    axes = "zyx"[-voxels.ndim :]
    ome.write_tiff(tmp_path / "o.tif", stored(tmp_path / "a", voxels), Description(axes, KNOWN.spacing, (), LINEAGE))
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.is_ome
        assert not file.is_bigtiff
        assert file.series[0].axes == axes.upper()
        assert not file.pages.first.is_tiled
        assert file.pages.first.compression == 8
        np.testing.assert_array_equal(file.asarray(), voxels)
    assert ome.read_lineage(tmp_path / "o.tif") == LINEAGE


def test_a_tiff_above_4_gb_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "CLASSIC_TIFF", VOXELS.size - 1)
    ome.write_tiff(tmp_path / "o.tif", stored(tmp_path / "a", VOXELS), KNOWN)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.is_bigtiff
        assert file.pages.first.is_tiled
        np.testing.assert_array_equal(file.asarray(), VOXELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("voxels", "size", "seen"),
    [
        (VOXELS, {"z": 30.25, "y": 4.0, "x": 5.0}, ((30.25, 4, 5), "nm")),
        (VOXELS[0], {"y": 4.0, "x": 5.0}, ((1, 4, 5), "nm")),
        (VOXELS[:, :7].astype(np.uint32) * 200, {"z": 30.0, "y": 4.0, "x": 5.0}, ((30, 4, 5), "nm")),
        (VOXELS[:, :7].astype(np.uint32) * 2000, {}, ((1, 1, 1), "pixel")),
        ((VOXELS[:, :7] / 255).astype(np.float32), {"y": 4.0, "x": 5.0}, ((1, 1, 1), "pixel")),
    ],
    ids=["stack", "slice", "labels of 16 bits", "labels of 32 bits", "z unknown"],
)
def test_imagej_opens_a_tiff_with_slices_as_z(
    tmp_path: Path, voxels: np.ndarray, size: dict[str, float], seen: tuple[tuple[float, ...], str]
) -> None:
    path = tmp_path / "o.tif"
    ome.write_tiff(path, zarr.array(voxels), Description("zyx"[-voxels.ndim :], size, (), LINEAGE))
    opened = open_in_imagej(path)
    depth = len(voxels) if voxels.ndim == 3 else 1
    assert opened.shape == (1, depth, 1, *voxels.shape[-2:])
    assert (opened.voxel_size, opened.unit) == (pytest.approx(seen[0]), seen[1])
    np.testing.assert_array_equal(opened.pixels.reshape(voxels.shape), voxels)
    assert spacing.read_tiff_spacing(path) == size, "OME says the same"


def test_labels_take_16_bits_where_that_is_enough(tmp_path: Path) -> None:
    for largest, dtype in ((2**16 - 1, np.uint16), (2**16, np.uint32)):
        labels = np.array([[0, 7, largest]], np.uint32)
        ome.write_tiff(tmp_path / "labels.tif", zarr.array(labels), Description("yx"))
        written = tifffile.imread(tmp_path / "labels.tif")
        assert written.dtype == dtype
        np.testing.assert_array_equal(written, labels)


def test_levels_keep_every_second_voxel_of_long_axes(tmp_path: Path) -> None:
    path = tmp_path / "o.ome.zarr"
    stored(path, VOXELS)
    ome.finish_multiscale(path, KNOWN)
    group = zarr.open_group(path, mode="r")
    assert sorted(group.array_keys()) == ["0", "1", "2"]
    np.testing.assert_array_equal(group["1"][:], VOXELS[:, ::2, ::2])
    np.testing.assert_array_equal(group["2"][:], VOXELS[:, ::4, ::4])
    multiscale = group.attrs["multiscales"][0]
    assert multiscale["version"] == "0.4"
    assert [axis["unit"] for axis in multiscale["axes"]] == ["nanometer"] * 3
    scale, shift = multiscale["datasets"][2]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [30, 16, 20]}
    assert shift == {"type": "translation", "translation": [60, 0, 35]}
    assert ome.read_lineage(path) == LINEAGE


@pytest.mark.parametrize(
    ("voxels", "lineage", "expected"),
    [
        (VOXELS, LINEAGE, {"version": "0.4"}),
        (VOXELS.astype(np.uint32), LINEAGE, {"version": "0.4"}),
        (VOXELS.astype(np.float32) / 255, LINEAGE, None),
        (VOXELS, {}, None),
    ],
    ids=["mask", "instances", "probability", "image"],
)
def test_other_programs_learn_that_masks_and_instances_are_labels(
    tmp_path: Path, voxels: np.ndarray, lineage: dict[str, str], expected: dict[str, str] | None
) -> None:
    stored(tmp_path / "o.ome.zarr", voxels[:, :64, :64])
    ome.finish_multiscale(tmp_path / "o.ome.zarr", Description("zyx", KNOWN.spacing, (), lineage))
    assert zarr.open_group(tmp_path / "o.ome.zarr", mode="r").attrs.get("image-label") == expected


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "o.ome.zarr"
    stored(path, VOXELS * 0)
    ome.finish_multiscale(path, KNOWN)
    image = ome.open_multiscale(path)
    assert (image.axes, image.array.shape, image.spacing) == ("zyx", VOXELS.shape, KNOWN.spacing)
    assert image.missing_chunks() == [], "empty chunks are written too"
    (path / "0/1/0/1").unlink()
    assert image.missing_chunks() == ["1/0/1"]


def test_where_an_image_begins_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "o.ome.zarr"
    stored(path, VOXELS)
    ome.finish_multiscale(path, KNOWN)
    assert ome.open_multiscale(path).origin == KNOWN.origin
    group = zarr.open_group(path, mode="r+")
    (multiscale,) = group.attrs["multiscales"]
    twice = [{"type": "scale", "scale": [1, 1, 2]}, {"type": "translation", "translation": [15, 8, 0]}]
    group.attrs["multiscales"] = [multiscale | {"coordinateTransformations": twice}]
    moved = ome.open_multiscale(path)
    assert moved.spacing == {**KNOWN.spacing, "x": 2 * KNOWN.spacing["x"]}
    shifts = zip(KNOWN.origin, (15, 8, 0), (moved.spacing[axis] for axis in "zyx"), strict=True)
    assert moved.origin == pytest.approx([start + shift / side for start, shift, side in shifts])


def test_background_is_not_missing(tmp_path: Path) -> None:
    """A worker opens what another process began, and zarr would remove a chunk that becomes empty."""
    stored(tmp_path / "a", VOXELS)
    ome.open_level(tmp_path / "a")[:] = 0
    ome.finish_multiscale(tmp_path / "a", KNOWN)
    assert ome.open_multiscale(tmp_path / "a").missing_chunks() == []


def test_an_unknown_voxel_size_has_no_unit(tmp_path: Path) -> None:
    stored(tmp_path / "o.zarr", VOXELS[0, :9, :9])
    ome.finish_multiscale(tmp_path / "o.zarr", Description("yx"))
    image = ome.open_multiscale(tmp_path / "o.zarr")
    assert (image.axes, image.spacing) == ("yx", {})


@pytest.mark.parametrize(
    "transformations",
    [
        [],
        [{"type": "identity"}],
        [{"type": "scale", "path": "scale"}],
        [{"type": "affine", "affine": [[30, 0, 0, 0], [0, 4, 0, 0], [0, 0, 5, 0]]}],
        [{"type": "scale", "scale": [30, 4, 5]}, {"type": "rotation", "rotation": [[1, 0], [0, 1]]}],
    ],
)
def test_a_scale_that_cannot_be_read_is_unknown_and_told(tmp_path: Path, transformations: list[dict[str, Any]]) -> None:
    path, doubts = tmp_path / "o.ome.zarr", list[InputError]()
    stored(path, VOXELS[:, :64, :64])
    ome.finish_multiscale(path, KNOWN)
    group = zarr.open_group(path, mode="r+")
    (multiscale,) = group.attrs["multiscales"]
    datasets = [{"path": "0", "coordinateTransformations": transformations}]
    group.attrs["multiscales"] = [multiscale | {"datasets": datasets}]
    assert ome.open_multiscale(path, doubts.append).spacing == {}
    assert "found no scale that can be read for its unit of length" in str(doubts[0])


def version_05(path: Path, axes: str = "tczyx", **shards: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    voxels = VOXELS[None, None]
    array = group.create_array("s0", shape=voxels.shape, dtype=voxels.dtype, chunks=(1, 1, 2, 256, 256), **shards)
    array[:] = voxels
    described = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in axes]
    scale = [{"type": "scale", "scale": [1, 1, 0.03, 0.004, 0.002]}]
    twice = [{"type": "scale", "scale": [1, 1, 1, 1, 2]}]
    dataset = {"path": "s0", "coordinateTransformations": scale}
    multiscale = {"axes": described, "datasets": [dataset], "coordinateTransformations": twice}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    return path


def test_version_05_is_read(tmp_path: Path) -> None:
    image = ome.open_multiscale(version_05(tmp_path / "i.zarr", shards=(1, 1, 4, 512, 512)))
    assert image.axes == "tczyx"
    assert image.spacing == pytest.approx({"z": 30, "y": 4, "x": 4})
    np.testing.assert_array_equal(image.array[0, 0], VOXELS)
    assert image.missing_chunks() == []
    (image.path / "c/0/0/1/0/1").unlink()
    assert image.missing_chunks() == ["c/0/0/1/0/1"]


def plain_array(path: Path) -> None:
    zarr.create_array(path, shape=(9, 9), dtype=np.uint8)


def no_metadata(path: Path) -> None:
    zarr.open_group(path, mode="w").create_array("0", shape=(9, 9), dtype=np.uint8)


def collection(path: Path) -> None:
    zarr.open_group(path, mode="w").attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}


def broken_metadata(path: Path) -> None:
    no_metadata(path)
    (path / "zarr.json").write_text("{")


def without_its_array(path: Path) -> None:
    version_05(path)
    (path / "s0/zarr.json").unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "found no such folder"),
        (Path.mkdir, "found no group of Zarr"),
        (plain_array, "found no group of Zarr"),
        (no_metadata, "found no image of OME-Zarr 0.4 or 0.5"),
        (broken_metadata, "found no group of Zarr"),
        (without_its_array, "found no image of OME-Zarr"),
        (collection, "found a collection of images, expected one image; name one of them"),
        (lambda path: version_05(path, "tcxyz"), r"found axes t, c, x, y, z of an array of shape"),
        (lambda path: version_05(path, "tcqyx"), r"found axes t, c, q, y, x of an array of shape"),
        (lambda path: version_05(path, "zyx"), r"found no image of OME-Zarr|found axes z, y, x of an array"),
    ],
)
def test_what_is_no_image_is_one_line(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "i.zarr")
    with pytest.raises(InputError, match=message):
        ome.open_multiscale(tmp_path / "i.zarr")


def test_images_of_others_have_no_lineage(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "i.tif", VOXELS)
    (tmp_path / "text.tif").write_text("text")
    version_05(tmp_path / "i.zarr")
    wrong = {"i.tif": "no lineage", "i.zarr": "no lineage", "text.tif": "not a TIFF", "x.tif": "no such file"}
    for name, message in wrong.items():
        with pytest.raises(InputError, match=message):
            ome.read_lineage(tmp_path / name)
