"""Chunks of a Zarr from elsewhere: what takes more memory than its metadata say is refused before it is unpacked."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from mitoflow.errors import InputError
from mitoflow.io import volumes

VOXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8)
CODECS: dict[str, Any] = {
    "blosc": numcodecs.Blosc("zstd"),
    "zstd": numcodecs.Zstd(1),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(1),
    "gzip": numcodecs.GZip(1),
    "bz2": numcodecs.BZ2(1),
}
NEW_CODECS: dict[str, Any] = {"zstd": ZstdCodec(), "gzip": GzipCodec(), "blosc": BloscCodec(typesize=1)}


@contextmanager
def little_memory(most: int = 2**24) -> Iterator[None]:
    """Check that no more memory is taken at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def write_image(path: Path, voxels: np.ndarray, **options: Any) -> Path:
    """Write an OME-Zarr image (Z, Y, X), and return the folder of its array."""
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group = zarr.open_group(path, mode="w", zarr_format=options.pop("zarr_format", 2))
    options.setdefault("chunks", voxels.shape)
    array = group.create_array("0", shape=voxels.shape, dtype=voxels.dtype, **options)
    array[:] = voxels
    multiscales = [{"version": "0.4", "axes": axes, "datasets": levels}]
    group.attrs.update({"multiscales": multiscales, "ome": {"version": "0.5", "multiscales": multiscales}})
    return path / "0"


def read(path: Path) -> np.ndarray:
    volume = volumes.open_volume(str(path))
    depth, height, width = volume.shape
    return np.stack([volume.read(z, (0, height, 0, width)) for z in range(depth)])


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "voxels", [VOXELS, np.ones_like(VOXELS), VOXELS[:1, :1, :1]], ids=["noise", "ones", "one voxel"]
)
def test_chunks_of_each_codec_are_read(tmp_path: Path, name: str, voxels: np.ndarray) -> None:
    write_image(tmp_path / "i.zarr", voxels, compressors=CODECS[name])
    np.testing.assert_array_equal(read(tmp_path / "i.zarr"), voxels)


@pytest.mark.parametrize("name", NEW_CODECS)
@pytest.mark.parametrize("shards", [None, (2, 64, 64)])
def test_chunks_of_version_3_are_read(tmp_path: Path, name: str, shards: tuple[int, ...] | None) -> None:
    options = {"zarr_format": 3, "chunks": (1, 32, 32), "shards": shards, "compressors": NEW_CODECS[name]}
    write_image(tmp_path / "i.zarr", VOXELS, **options)
    np.testing.assert_array_equal(read(tmp_path / "i.zarr"), VOXELS)


@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_that_unpacks_to_more_is_not_unpacked(tmp_path: Path, name: str) -> None:
    array = write_image(tmp_path / "i.zarr", VOXELS, compressors=CODECS[name])
    (array / "0.0.0").write_bytes(CODECS[name].encode(np.zeros(2**26, np.uint8)))
    with little_memory(), pytest.raises(InputError, match="unpacks to more than the 8192 bytes of a chunk"):
        read(tmp_path / "i.zarr")


def test_a_chunk_of_blosc_that_is_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    """Blosc itself would read on behind it, and may end the process."""
    array = write_image(tmp_path / "i.zarr", VOXELS, compressors=CODECS["blosc"])
    (array / "0.0.0").write_bytes((array / "0.0.0").read_bytes()[:-1])
    with pytest.raises(InputError, match="a chunk of Blosc that is cut off"):
        read(tmp_path / "i.zarr")


def test_a_frame_of_unknown_size_is_measured_by_its_blocks(tmp_path: Path) -> None:
    """Zstandard, RFC 8878: a header without a size and two blocks of one byte, 2048 times and 128 KiB times."""
    head, run = bytes.fromhex("28b52ffd 00 58"), lambda count, last: (count << 3 | 1 << 1 | last).to_bytes(3, "little")
    array = write_image(tmp_path / "i.zarr", VOXELS, compressors=CODECS["zstd"])
    (array / "0.0.0").write_bytes(head + run(4096, 0) + b"a" + run(4096, 1) + b"b")
    assert read(tmp_path / "i.zarr").tobytes() == b"a" * 4096 + b"b" * 4096
    (array / "0.0.0").write_bytes(head + (run(2**17, 0) + b"a") * 500 + run(4096, 1) + b"b")
    with little_memory(), pytest.raises(InputError, match="unpacks to more"):
        read(tmp_path / "i.zarr")


@pytest.mark.parametrize("box", [(0, 64, 0, 64), (0, 32, 0, 32)], ids=["whole shard", "part of a shard"])
def test_a_chunk_in_a_shard_that_unpacks_to_more_is_not_unpacked(
    tmp_path: Path, box: tuple[int, int, int, int]
) -> None:
    small, large = (
        write_image(
            tmp_path / f"{side}.zarr",
            np.ones((2, 2 * side, 2 * side), np.uint8),
            zarr_format=3,
            chunks=(1, side, side),
            shards=(2, 2 * side, 2 * side),
            compressors=ZstdCodec(),
        )
        for side in (32, 2048)
    )
    (large / "c/0/0/0").replace(small / "c/0/0/0")
    volume = volumes.open_volume(str(tmp_path / "32.zarr"))
    with little_memory(), pytest.raises(InputError, match="unpacks to more than the 1024 bytes of a chunk"):
        volume.read(0, box)


def changed(array: Path, **values: Any) -> None:
    metadata = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps(metadata | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunks": [1, 2**15, 2**15]}, "chunks of (1, 32768, 32768) for an array of (2, 64, 64)"),
        ({"shape": [2**20] * 3, "chunks": [1, 2**16, 2**16]}, "chunks of (1, 65536, 65536)"),
        ({"shape": [1000] * 3, "chunks": [1, 1, 1]}, "1000 or more missing chunks, the first 0.0.1"),
        ({"compressor": {"id": "lzma"}}, "the codecs lzma"),
        ({"filters": [{"id": "gzip"}]}, "the codecs gzip, zlib"),
        ({"filters": [{"id": "pickle"}]}, "no image of OME-Zarr"),
    ],
    ids=["chunk larger than the array", "enormous chunk", "a billion chunks", "codec", "packed twice", "pickle"],
)
def test_metadata_that_would_take_memory_or_time_are_refused(tmp_path: Path, values: Any, message: str) -> None:
    array = write_image(tmp_path / "i.zarr", VOXELS, compressors=CODECS["zlib"])
    changed(array, **values)
    with little_memory(), pytest.raises(InputError) as error:
        read(tmp_path / "i.zarr")
    assert message in str(error.value)
