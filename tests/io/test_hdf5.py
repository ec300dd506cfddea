from __future__ import annotations

import fcntl
import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mitoflow.data.importing import find_pairs, whole
from mitoflow.errors import InputError
from mitoflow.evaluation.measuring import table_of
from mitoflow.instances.label_files import read_labels
from mitoflow.io import hdf5, volumes
from mitoflow.io.spacing import read_tiff_spacing

STACK = np.random.default_rng(0).integers(0, 256, (5, 70, 90)).astype(np.uint8)
WHOLE = (0, 70, 0, 90)


def write(path: Path, stack: np.ndarray = STACK, name: str = "volume/data", **options: Any) -> Path:
    attributes = options.pop("attributes", {})
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=stack, **options).attrs.update(attributes)
    return path


def axistags(axes: str, **resolutions: float) -> np.bytes_:
    """Describe axes as vigra does."""
    tags = [{"key": axis, "typeFlags": 2, "resolution": resolutions.get(axis, 0), "description": ""} for axis in axes]
    return np.bytes_(json.dumps({"axes": tags}))


def read(path: Path, **options: Any) -> np.ndarray:
    volume = volumes.open_volume(str(path), **options)
    _, height, width = volume.shape
    return np.stack([volume.read(z, (0, height, 0, width)) for z in range(volume.shape[0])])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, ">u2", np.float32, bool])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunks": (2, 32, 64)},
        {"chunks": (3, 64, 64), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (1, 70, 90), "compression": "lzf"},
    ],
)
def test_slices_and_boxes(tmp_path: Path, dtype: Any, layout: dict[str, Any]) -> None:
    stack = (STACK > 127 if dtype is bool else STACK).astype(dtype)
    volume = volumes.open_volume(str(write(tmp_path / "a.h5", stack, **layout)))
    assert (volume.axes, volume.shape, volume.spacing) == ("zyx", STACK.shape, {})
    assert volume.dtype == (np.uint8 if dtype is bool else np.dtype(dtype).newbyteorder("="))
    for z in (0, 4, 2, 3, 1):
        np.testing.assert_array_equal(volume.read(z, (3, 50, 7, 61)), stack[z, 3:50, 7:61])
        np.testing.assert_array_equal(volume.read(z, WHOLE), stack[z])


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx", "zyxc", "tzyxc", "tczyx", "xyzct"])
def test_axes_in_any_order(tmp_path: Path, axes: str) -> None:
    stored = STACK[None, None].transpose(
        ["tczyx".index(axis) for axis in "tc" if axis not in axes] + ["tczyx".index(axis) for axis in axes]
    )
    stored = stored.reshape([{"z": 5, "y": 70, "x": 90}.get(axis, 1) for axis in axes])
    path = write(tmp_path / "a.h5", stored, attributes={"axistags": axistags(axes)}, chunks=True)
    np.testing.assert_array_equal(read(path), STACK)


@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 1), (1, 70, 90), (1, 1, 1, 70, 90), (1, 1, 70, 90, 1)])
def test_a_single_slice_without_names_of_its_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(read(write(tmp_path / "a.hdf5", STACK[0].reshape(shape))), STACK[:1])


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"element_size_um": [0.03, 0.004, 0.005]}, {"z": 30, "y": 4, "x": 5}),
        ({"element_size_um": [1.0, 1.0, 1.0]}, {}),
        ({"element_size_um": [0.004, 0.005]}, {"y": 4, "x": 5}),
        ({"axistags": axistags("zyx", z=30, y=4, x=5)}, {}),
        (
            {
                "axistags": axistags("zyx", z=0.03, y=4, x=5).decode(),
                "axis_units": '{"z": "µm", "y": "nm", "x": "nm", "t": ""}',
            },
            {"z": 30, "y": 4, "x": 5},
        ),
    ],
)
def test_voxel_size(tmp_path: Path, attributes: dict[str, Any], spacing: dict[str, float]) -> None:
    path = write(tmp_path / "a.h5", attributes=attributes)
    assert volumes.open_volume(str(path)).spacing == pytest.approx(spacing)
    assert volumes.read_spacing(path / "volume/data") == pytest.approx(spacing)
    given = volumes.open_volume(str(path), spacing={"x": 9.0})
    assert given.spacing == pytest.approx({**spacing, "x": 9})


def test_a_dataset_is_named_where_there_are_several(tmp_path: Path) -> None:
    path = write(write(tmp_path / "a.h5", attributes={}), 255 - STACK, "labels")
    write(path, np.arange(9), "row")
    with pytest.raises(InputError, match=r"a.h5: found 2 datasets.* name one: .*a.h5/labels, .*a.h5/volume/data$"):
        volumes.open_volume(str(path))
    with pytest.raises(InputError, match=r"a.h5/raw: found no such dataset.*a.h5/labels, .*a.h5/volume/data$"):
        volumes.open_volume(str(path / "raw"))
    with pytest.raises(InputError, match=r"axes without names of an array of shape \(9,\)"):
        volumes.open_volume(str(path / "row"))
    np.testing.assert_array_equal(read(path / "labels"), 255 - STACK)
    np.testing.assert_array_equal(read(path / "volume/data"), STACK)
    assert volumes.name_of(str(path / "volume/data")) == "a.h5/volume/data"
    assert table_of(str(path / "volume/data")) == tmp_path / "a.csv"
    assert volumes.open_volume(str(path / "labels")).state() != volumes.open_volume(str(path / "volume/data")).state()


def test_chunks_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("data", STACK.shape, np.uint8, chunks=(1, 70, 90))
        dataset[:2] = STACK[:2]
    with pytest.raises(InputError, match="3 missing chunks.*--fill-missing"):
        volumes.open_volume(str(tmp_path / "a.h5"))
    np.testing.assert_array_equal(read(tmp_path / "a.h5", fill_missing=True)[:3], [*STACK[:2], 0 * STACK[0]])


def test_a_chunk_that_unpacks_to_far_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("data", (1, 1024, 1024), np.uint8, chunks=(1, 1024, 1024), compression="gzip")
        dataset.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(2**26), level=1))
    volume = volumes.open_volume(str(path))
    with pytest.raises(InputError, match="unpacks to more than its 1048576 bytes"):
        volume.read(0, (0, 64, 0, 64))


def test_a_chunk_that_hardly_compresses_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1, 700, 700)).astype(np.uint8)
    path = write(tmp_path / "a.h5", noise, chunks=(1, 600, 600), compression="gzip")
    assert hdf5.open_hdf5(path)._unsure
    np.testing.assert_array_equal(read(path), noise)


def test_other_files_are_not_read(tmp_path: Path) -> None:
    inner = write(tmp_path / "inner.h5", name="data")
    layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
    layout[:] = h5py.VirtualSource(inner, "data", STACK.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("virtual", layout)
        file["link"] = h5py.ExternalLink(str(inner), "/data")
        file.create_dataset("outside", STACK.shape, STACK.dtype, external=[(str(tmp_path / "raw"), 0, STACK.nbytes)])
    for name, said in {"virtual": "in other files", "outside": "in other files", "link": "no such dataset"}.items():
        with pytest.raises(InputError, match=said):
            volumes.open_volume(str(tmp_path / "a.h5" / name))


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "cut.h5").write_bytes(write(tmp_path / "whole.h5").read_bytes()[:-1])
    write(tmp_path / "row.h5", np.arange(9))
    write(tmp_path / "colours.h5", np.zeros((70, 90, 3), np.uint8))
    write(tmp_path / "empty.h5", np.zeros((0, 90, 90), np.uint8))
    write(tmp_path / "complex.h5", np.zeros((70, 90), complex))
    write(tmp_path / "axes.h5", STACK, attributes={"axistags": axistags("zzx")})
    write(tmp_path / "tags.h5", STACK, attributes={"axistags": "no JSON"})
    lines = {
        "gone.h5": "no such file",
        "text.h5": "no HDF5 that can be read",
        "cut.h5": "truncated",
        "row.h5": "no dataset of two axes or more",
        "colours.h5": "3 channels",
        "empty.h5": "at least one voxel",
        "complex.h5": "integers or floating-point",
        "axes.h5": "axes z, z, x",
        "tags.h5": "no HDF5 that can be read",
    }
    for name, said in lines.items():
        with pytest.raises(InputError, match=said):
            volumes.open_volume(str(tmp_path / name))


def test_a_file_that_is_being_written_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="a file that a program is writing"):
            volumes.open_volume(str(path))
    np.testing.assert_array_equal(read(path), STACK)


def test_images_and_masks_are_imported(tmp_path: Path) -> None:
    mask = np.zeros(STACK.shape, np.uint32)
    mask[:, 10:30, 10:40] = 70_000
    path = write(
        write(tmp_path / "a.h5", name="raw", attributes={"element_size_um": [0.03, 0.004, 0.004]}), mask, "label"
    )
    found = find_pairs([str(path / "raw")], [str(path / "label")], ("--images", "--masks"))
    whole(found.pairs)[0].write(tmp_path / "data", lambda _: None)
    written = tmp_path / f"data/images/{found.pairs[0].name}.tif"
    assert read_tiff_spacing(written) == pytest.approx({"z": 30, "y": 4, "x": 4})
    np.testing.assert_array_equal(found.pairs[0].mask.slice(3), mask[3])
    voxels, spacing = read_labels(str(path / "label"))
    np.testing.assert_array_equal(voxels, mask)
    assert spacing == {}


def test_damage_that_lets_hdf5_hang_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5", attributes={"axistags": axistags("zyx").decode()})
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")  # after its header of 16 bytes there is the text, whose size comes 8 bytes later
    text = content.index(b'{"axes"')
    after = text + -(-len(axistags("zyx")) // 8) * 8
    assert heap + 32 == text
    content[after : after + 16] = bytes(16)  # the free space that follows, which is said to be empty
    path.write_bytes(content)
    monkeypatch.setattr(hdf5, "READ_TEXT", hdf5.READ_TEXT.replace(str(hdf5.SECONDS), "2"))
    with pytest.raises(InputError, match="axistags cannot be read"):
        volumes.open_volume(str(path))
