"""N5: files are written by tensorstore; a few blocks by hand, as the specification describes them."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from mitoflow.data.importing import find_pairs, whole
from mitoflow.errors import InputError
from mitoflow.evaluation.measuring import table_of
from mitoflow.inference.collection import find_images
from mitoflow.instances.label_files import read_labels
from mitoflow.io import volumes
from mitoflow.io.spacing import read_tiff_spacing
from mitoflow.io.volumes import open_volume
from tests.services import HTTPFolder, ObjectStore

STACK = np.random.default_rng(0).integers(0, 256, (5, 70, 90)).astype(np.uint8)
WHOLE = (0, 70, 0, 90)
GZIP = {"type": "gzip", "level": 1}
NM = {"pixelResolution": {"dimensions": [5, 4, 30], "unit": "nm"}}


def write(
    path: Path,
    stack: np.ndarray = STACK,
    attributes: dict[str, Any] = NM,
    compression: dict[str, Any] = GZIP,
    side: int = 32,
) -> Path:
    """Write a dataset whose axes on disk are x, y, z, with blocks of `side` along x and y, and 2 along z."""
    metadata = {
        "dimensions": stack.shape[::-1],
        "blockSize": [side, side, 2][: stack.ndim],
        "dataType": stack.dtype.name,
        "compression": compression,
    }
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    array = tensorstore.open(spec, create=True, delete_existing=True, fill_value=None).result()
    array[...] = stack.transpose()
    describe(path, **attributes)
    return path


def describe(path: Path, **attributes: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "attributes.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | attributes))


def read(source: Path | str, **options: Any) -> np.ndarray:
    volume = open_volume(str(source), **options)
    depth, height, width = volume.shape
    return np.stack([volume.read(z, (0, height, 0, width)) for z in range(depth)])


@pytest.mark.parametrize(
    "compression",
    [
        {"type": "raw"},
        GZIP,
        {"type": "gzip", "useZlib": True},
        {"type": "bzip2"},
        {"type": "zstd", "level": 1},
        {"type": "blosc", "cname": "lz4", "clevel": 3, "shuffle": 1},
    ],
)
def test_slices_and_voxel_size(tmp_path: Path, compression: dict[str, Any]) -> None:
    for dtype in (np.uint8, np.uint16, np.float32):
        stack = STACK.astype(dtype)
        volume = open_volume(str(write(tmp_path / f"{dtype.__name__}.n5/em", stack, compression=compression)))
        assert (volume.axes, volume.shape, volume.dtype) == ("zyx", stack.shape, dtype)
        assert volume.spacing == {"z": 30, "y": 4, "x": 5}
        np.testing.assert_array_equal(volume.read(3, (3, 50, 7, 61)), stack[3, 3:50, 7:61])
        np.testing.assert_array_equal(read(tmp_path / f"{dtype.__name__}.n5"), stack)


def test_a_block_of_blosc_that_states_a_larger_size_is_refused(tmp_path: Path) -> None:
    """Blosc itself would read on behind it, and end the process."""
    compression = {"type": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 1}
    block = write(tmp_path / "a.n5", compression=compression) / "0/0/0"
    content = bytearray(block.read_bytes())
    place = 16 + 12  # behind the header of the block with its three lengths: the size in the header of Blosc
    content[place : place + 4] = struct.pack("<I", 2**31)
    block.write_bytes(content)
    with pytest.raises(InputError, match="a chunk of Blosc that is cut off"):
        read(tmp_path / "a.n5")


def test_the_axes_on_disk_are_x_y_z(tmp_path: Path) -> None:
    """Blocks by hand: a header of 16-bit and 32-bit numbers, then x fastest, high bytes first, cut off at the edge."""
    path = tmp_path / "a.n5"
    stored = {"dimensions": [3, 2, 2], "blockSize": [2, 2, 2], "dataType": "uint16", "compression": {"type": "gzip"}}
    describe(path, **stored, resolution=[0.005, 0.004, 0.03], units=["um", "um", "um"])
    voxels = 1000 * np.arange(12).reshape(2, 2, 3)
    for column, width in ((0, 2), (1, 1)):
        block = voxels[:, :, 2 * column : 2 * column + width].astype(">u2").tobytes()
        (path / f"{column}/0").mkdir(parents=True)
        (path / f"{column}/0/0").write_bytes(struct.pack(">HHIII", 0, 3, width, 2, 2) + gzip.compress(block))
    np.testing.assert_array_equal(read(path), voxels)
    assert open_volume(str(path)).spacing == pytest.approx({"z": 30, "y": 4, "x": 5})


SIZES: list[tuple[dict[str, Any], dict[str, float]]] = [
    ({"pixelResolution": {"dimensions": [5, 4, 30], "unit": "nm"}}, {"z": 30, "y": 4, "x": 5}),
    (
        {"pixelResolution": {"dimensions": [5, 4, 30], "unit": "nm"}, "downsamplingFactors": [2, 2, 1]},
        {"z": 30, "y": 8, "x": 10},
    ),
    ({"resolution": [5, 4, 30], "units": ["nm", "nm", "nm"]}, {"z": 30, "y": 4, "x": 5}),
    (
        {"transform": {"axes": ["z", "y", "x"], "scale": [30, 4, 5], "translate": [0, 0, 0], "units": ["nm"] * 3}},
        {"z": 30, "y": 4, "x": 5},
    ),
    ({"pixelWidth": 0.005, "pixelHeight": 0.004, "pixelDepth": 0.03, "pixelUnit": "um"}, {"z": 30, "y": 4, "x": 5}),
    ({"axes": ["z", "y", "x"], "resolution": [30, 4, 5], "units": ["nm"] * 3}, {"z": 30, "y": 4, "x": 5}),
    ({"axes": ["x", "y", "z"], "resolution": [5, 4, 30], "units": ["nm"] * 3}, {"z": 30, "y": 4, "x": 5}),
    ({"pixelResolution": [1, 1, 1]}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("attributes", "spacing"), SIZES)
def test_voxel_sizes_of_each_program(tmp_path: Path, attributes: dict[str, Any], spacing: dict[str, float]) -> None:
    doubts: list[str] = []
    volume = open_volume(str(write(tmp_path / "a.n5", attributes=attributes)), notify=doubts.append)
    assert volume.spacing == pytest.approx(spacing)
    assert doubts == []


def test_a_size_without_a_unit_is_a_doubt(tmp_path: Path) -> None:
    doubts: list[str] = []
    write(tmp_path / "a.n5", attributes={"resolution": [5, 4, 30]})
    assert open_volume(str(tmp_path / "a.n5"), notify=doubts.append).spacing == {}
    assert "a voxel of x 5.0, y 4.0, z 30.0 without a unit" in doubts[0]


def test_levels_of_one_image(tmp_path: Path) -> None:
    group = tmp_path / "a.n5/em"
    describe(group, **NM, scales=[[1, 1, 1], [2, 2, 1]])
    write(group / "s0", attributes={})
    write(group / "s1", STACK[:, ::2, ::2], attributes={})
    for source in (tmp_path / "a.n5", group, group / "s0"):
        np.testing.assert_array_equal(read(source), STACK)
        assert open_volume(str(source)).spacing == {"z": 30, "y": 4, "x": 5}
    np.testing.assert_array_equal(read(group / "s1"), STACK[:, ::2, ::2])
    assert open_volume(str(group / "s1")).spacing == {"z": 30, "y": 8, "x": 10}
    describe(group, scales=None)
    assert open_volume(str(group / "s1")).spacing == {}, "nobody says how much smaller it is"


def test_a_dataset_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.n5/em")
    write(tmp_path / "a.n5/deep/labels", 255 - STACK)
    with pytest.raises(InputError, match=r"a.n5: found several datasets.* name one: .*a.n5/em, .*a.n5/deep/labels$"):
        open_volume(str(tmp_path / "a.n5"))
    with pytest.raises(InputError, match=r"a.n5/gone: found no such folder"):
        open_volume(str(tmp_path / "a.n5/gone"))
    np.testing.assert_array_equal(read(tmp_path / "a.n5/deep/labels"), 255 - STACK)
    assert volumes.name_of(str(tmp_path / "a.n5/deep/labels")) == "a.n5/deep/labels"
    assert table_of(str(tmp_path / "a.n5/em")) == tmp_path / "a.csv"
    assert find_images(str(tmp_path)) == [tmp_path / "a.n5"]


def test_images_and_masks_are_imported(tmp_path: Path) -> None:
    image = write(tmp_path / "a.n5/em", STACK.astype(np.uint16))
    labels = (STACK > 127).astype(np.uint64) * 70_000
    mask = write(tmp_path / "a.n5/mito", labels)
    (pair,) = find_pairs([str(image)], [str(mask)], ("--images", "--masks")).pairs
    whole([pair])[0].write(tmp_path / "data", lambda _: None)
    written = tmp_path / f"data/images/{pair.name}.tif"
    assert read_tiff_spacing(written) == {"z": 30, "y": 4, "x": 5}
    np.testing.assert_array_equal(pair.image.slice(3), STACK[3])
    np.testing.assert_array_equal(pair.mask.slice(3), labels[3])
    voxels, spacing = read_labels(str(mask))
    np.testing.assert_array_equal(voxels, labels)
    assert spacing == {"z": 30, "y": 4, "x": 5}


def test_a_single_slice(tmp_path: Path) -> None:
    size = {"pixelResolution": {"dimensions": [5, 4], "unit": "nm"}}
    volume = open_volume(str(write(tmp_path / "a.n5", STACK[0], size)))
    assert (volume.axes, volume.shape, volume.spacing) == ("yx", (1, 70, 90), {"y": 4, "x": 5})
    np.testing.assert_array_equal(volume.read(0, WHOLE), STACK[0])


def test_blocks_without_a_file(tmp_path: Path) -> None:
    (write(tmp_path / "a.n5") / "1/0/2").unlink()
    with pytest.raises(InputError, match=r"1 missing chunks, the first 1/0/2.*--fill-missing"):
        open_volume(str(tmp_path / "a.n5"))
    filled = read(tmp_path / "a.n5", fill_missing=True)
    expected = STACK.copy()
    expected[4:, :32, 32:64] = 0
    np.testing.assert_array_equal(filled, expected)
    before = open_volume(str(tmp_path / "a.n5"), fill_missing=True).state()
    write(tmp_path / "a.n5", 255 - STACK)
    assert open_volume(str(tmp_path / "a.n5")).state() != before


@pytest.fixture
def served(tmp_path: Path) -> Iterator[HTTPFolder]:
    with HTTPFolder(tmp_path) as served:
        yield served


@pytest.mark.slow
def test_blocks_are_read_over_http_as_they_are_needed(served: HTTPFolder, tmp_path: Path) -> None:
    write(tmp_path / "a.n5/em/s0")
    volume = open_volume(f"{served.url}/a.n5/em")
    assert (volume.axes, volume.shape, volume.dtype) == ("zyx", STACK.shape, np.uint8)
    assert (volume.spacing, volume.files) == ({"z": 30, "y": 4, "x": 5}, [])
    assert volume.state() == [f"{served.url}/a.n5/em/s0"]
    served.asked.clear()
    np.testing.assert_array_equal(volume.read(1, (0, 32, 0, 32)), STACK[1, :32, :32])
    assert served.asked == ["/a.n5/em/s0/0/0/0"]
    for z in (*range(5), 0):
        np.testing.assert_array_equal(volume.read(z, WHOLE), STACK[z])
    assert len(served.asked) == len({*served.asked}) == 3 * 3 * 3, "each block once"


def test_what_a_server_lacks_is_one_line(served: HTTPFolder, tmp_path: Path) -> None:
    (write(tmp_path / "a.n5") / "1/0/2").unlink()
    volume = open_volume(f"{served.url}/a.n5")
    with pytest.raises(InputError, match=r"1/0/2 is missing, which `predict --fill-missing` takes for empty"):
        volume.read(4, WHOLE)
    filled = open_volume(f"{served.url}/a.n5", fill_missing=True)
    assert not filled.read(4, (0, 32, 32, 64)).any()
    mask = open_volume(f"{served.url}/a.n5", is_mask=True)
    assert mask.absent_chunks() == 0, "nothing was read yet"
    assert not mask.read(4, (0, 32, 32, 64)).any()
    assert mask.absent_chunks() == 1
    with pytest.raises(InputError, match=r"none.n5: found no dataset"):
        open_volume(f"{served.url}/none.n5")
    served.answers["/0/0/0"] = (500, b"")
    with pytest.raises(InputError, match=r"a.n5/0/0/0: found no answer .*500"):
        open_volume(f"{served.url}/a.n5").read(0, WHOLE)


@pytest.mark.slow
def test_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with ObjectStore() as store:
        for name, value in {**store.credentials, "AWS_ENDPOINT_URL": store.uri}.items():
            monkeypatch.setenv(name, value)
        write(store.folder / "objects" / store.bucket / "a.n5/em")
        np.testing.assert_array_equal(read("s3://mitoflow/a.n5/em"), STACK)


def test_blocks_that_lie(tmp_path: Path) -> None:
    large = struct.pack(">HHIII", 0, 3, 32, 32, 2) + gzip.compress(bytes(2**20))
    lies = {
        "unpacks to more than the 2048 bytes of a block": large,
        "2 axes, or a length of its own": struct.pack(">HHII", 0, 2, 32, 32),
        "64 x 32 x 2 voxels": struct.pack(">HHIII", 0, 3, 64, 32, 2) + gzip.compress(bytes(4096)),
        "requires a buffer": b"\0",
        "31 x 32 x 2 voxels": struct.pack(">HHIII", 0, 3, 31, 32, 2) + gzip.compress(bytes(1984)),
        "voxels that cannot be read": struct.pack(">HHIII", 0, 3, 32, 32, 2) + gzip.compress(bytes(2047)),
    }
    for number, (said, block) in enumerate(lies.items()):
        (write(tmp_path / f"{number}.n5") / "0/0/0").write_bytes(block)
        volume = open_volume(str(tmp_path / f"{number}.n5"))
        with pytest.raises(InputError, match=said):
            volume.read(0, WHOLE)


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    lines: dict[str, dict[str, Any]] = {
        "3 axes": {"dimensions": [9, 9, 9, 9]},
        "the length True": {"dimensions": [9, 9, True]},
        "the length 0": {"dimensions": [9, 9, 0]},
        "blocks of 3 axes": {"dimensions": [90, 70]},
        r"blocks of \(32, 32, 2147483647\)": {"blockSize": [32, 32, 2**31 - 1]},
        "packed by xz": {"compression": {"type": "xz"}},
        "string voxels": {"dataType": "string"},
        "KeyError": {"pixelResolution": {}},
        "axes c, y, x, and not x, y, z": {"axes": ["c", "y", "x"], "resolution": [1, 1, 1]},
    }
    for said, attributes in lines.items():
        write(tmp_path / "a.n5", attributes=attributes)
        with pytest.raises(InputError, match=r"a.n5: found no dataset of N5 that can be read .*" + said):
            open_volume(str(tmp_path / "a.n5"))
    (tmp_path / "a.n5/attributes.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        open_volume(str(tmp_path / "a.n5"))
    (tmp_path / "empty.n5").mkdir()
    with pytest.raises(InputError, match="no dataset"):
        open_volume(str(tmp_path / "empty.n5"))


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    block = write(tmp_path / "a.n5") / "0/0/0"
    block.unlink()
    block.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="which is outside of it"):
        open_volume(str(tmp_path / "a.n5"))
