"""Chunks of a Zarr that unpack to no more bytes than their array has room for.

Zarr unpacks a chunk before it looks at the size, and a few kilobytes can unpack to gigabytes. So a chunk is looked at
before that: the size is in the header of most formats, and the others are unpacked up to the size that is allowed.
"""

from __future__ import annotations

import bz2
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

SMALL, LARGE = 2**26, 2**31  # bytes of a chunk that any array may have, and that none may
PARTS = 2**20  # chunks of a shard: an index of 16 MiB
OVERHEAD = 2**10  # bytes that data which cannot be compressed may grow by, beside a hundredth
CHECKSUM = 4  # bytes that may follow the packed data
NO_CHUNK = 2**64 - 1  # in the index of a shard
METADATA = ("zarr.json", ".zarray", ".zattrs")
LENGTHS = {"shape", "chunks", "chunk_shape"}  # keys of metadata
#: Codecs whose output has the size of their input, but for a checksum.
KEEP_SIZE = {"bytes", "transpose", "shuffle", "delta", "bitround", "quantize"}
KEEP_SIZE |= {"crc32c", "crc32", "adler32", "fletcher32"}

# A frame of Zstandard (RFC 8878).
ZSTD_BLOCK = 2**17  # bytes that a block unpacks to at most
RAW, RUN = 0, 1  # kinds of blocks: as they are, and one byte many times


def _blosc(packed: memoryview, _: int) -> int:
    unpacked, size = struct.unpack_from("<I4xI", packed, 4)
    if size > len(packed):  # Blosc would read on behind the chunk
        raise ValueError("a chunk of Blosc that is cut off")
    return int(unpacked)


def _lz4(packed: memoryview, _: int) -> int:
    return int(struct.unpack_from("<I", packed)[0])


def _zstd(packed: memoryview, _: int) -> int:
    """Return the size in the header of the first frame; without one, what its blocks unpack to at most."""
    described = packed[4]
    flag, is_single, has_checksum = described >> 6, described >> 5 & 1, described >> 2 & 1
    place = 5 + (not is_single) + (0, 1, 2, 4)[described & 3]
    if flag or is_single:
        length = (1, 2, 4, 8)[flag]
        return int.from_bytes(packed[place : place + length], "little") + (256 if length == 2 else 0)
    total, is_last = 0, False
    while not is_last:
        block = int.from_bytes(packed[place : place + 3], "little")
        is_last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        total += size if kind in (RAW, RUN) else ZSTD_BLOCK
        place += 3 + (1 if kind == RUN else size)
        if place > len(packed):
            raise ValueError("a frame that is cut off")
    if place + has_checksum * CHECKSUM < len(packed) - CHECKSUM:
        raise ValueError("several frames")
    return total - ZSTD_BLOCK if kind not in (RAW, RUN) else total  # the last block may be small


def _stream(start: Callable[[], Any]) -> Callable[[memoryview, int], int]:
    def unpacked(packed: memoryview, most: int) -> int:
        stream = start()
        size = len(stream.decompress(packed, most + 1))
        if len(stream.unused_data) > CHECKSUM:
            raise ValueError("several streams")
        return size

    return unpacked


#: How many bytes packed ones unpack to, by the name of the codec; where that is more than `most`, any number above it.
UNPACKED: Mapping[str, Callable[[memoryview, int], int]] = {
    "blosc": _blosc,
    "lz4": _lz4,
    "zstd": _zstd,
    "zlib": _stream(zlib.decompressobj),
    "gzip": _stream(lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
    "bz2": _stream(bz2.BZ2Decompressor),
}


class BoundedStore(WrapperStore[Store]):
    """The folder of an array, whose chunks are looked at before they are unpacked; see `open_bounded`.

    Attributes
    ----------
    packing
        The codec of the chunks, or "".
    most
        Bytes of a chunk.
    index
        The bytes of a shard that are its index, where there are shards.
    is_whole
        Whether a chunk that is missing is an error.
    missed
        The names of the chunks, or shards, that were to be read and are missing.
    """

    packing, most, is_whole = "", LARGE, False
    index: slice | None = None

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.missed: set[str] = set()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a file or a part of it.

        Raises
        ------
        ValueError
            A chunk in it unpacks to too many bytes, or is missing. Metadata have true or false for a length, which Zarr
            takes for 1 or 0.
        """
        found = await super().get(key, prototype, byte_range)
        if found is not None and key.endswith(METADATA):
            json.loads(found.to_bytes(), object_pairs_hook=_require_lengths)
        if found is None and not key.endswith(METADATA):
            self.missed.add(key)
        if found is None and self.is_whole and not key.endswith(METADATA):
            raise ValueError(f"{key} is missing, which `predict --fill-missing` takes for empty")
        if found is None or not self.packing or key.endswith(METADATA):
            return found
        if byte_range is None and self.index:
            shard = memoryview(found.to_bytes())
            places = np.frombuffer(shard[self.index], "<u8").reshape(-1, 2)
            chunks = [shard[start : start + size] for start, size in places.tolist() if start != NO_CHUNK]
        elif byte_range is None or isinstance(byte_range, RangeByteRequest):
            chunks = [memoryview(found.to_bytes())]
        else:
            chunks = []  # the index of a shard alone
        for packed in chunks:
            fits = len(packed) <= self.most + self.most // 100 + OVERHEAD
            if not fits or UNPACKED[self.packing](packed, self.most) > self.most:
                raise ValueError(f"{key} unpacks to more than the {self.most} bytes of a chunk")
        return found


def open_bounded(folder: Store, zarr_format: Literal[2, 3] | None, *, is_whole: bool) -> zarr.Array[Any]:
    """Open an array to be read, whose chunks take no more memory than its metadata say; see `BoundedStore`.

    Raises
    ------
    ValueError
        A length is no number. Its chunks have no voxels, are far larger than the array or than any of use, or are
        packed in a way that is not known to keep to a size.
    """
    store = BoundedStore(folder)
    array: zarr.Array[Any] = zarr.open_array(store, mode="r", zarr_format=zarr_format)
    store.is_whole = is_whole
    size, item = math.prod(array.chunks), array.dtype.itemsize
    store.most = size * item
    if size == 0 or store.most > min(LARGE, max(SMALL, 2 * math.prod(array.shape) * item)):
        raise ValueError(f"chunks of {array.chunks} for an array of {array.shape}")
    metadata: dict[str, Any] = dict(array.metadata.to_dict())
    if array.shards:
        store.index = _index(metadata["codecs"][0]["configuration"], math.prod(array.shards) // size)
    codecs = _codecs(metadata)
    packed = [name for name in codecs if name not in KEEP_SIZE]
    if len(packed) > 1 or not {*packed} <= UNPACKED.keys():
        raise ValueError(f"the codecs {', '.join(codecs)}, of which at most one of {', '.join(UNPACKED)} may be")
    store.packing = "".join(packed)
    return array


def _require_lengths(described: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise `ValueError` where a part of metadata has true or false for a length."""
    for key, value in described:
        if key in LENGTHS and isinstance(value, list) and any(isinstance(length, bool) for length in value):
            raise ValueError(f"{key} {value}, where a length is no number")
    return dict(described)


def _index(shards: Mapping[str, Any], parts: int) -> slice:
    """Return the bytes of a shard of that many chunks that are its index: start and size of each, and a checksum."""
    if parts > PARTS or [codec["name"] for codec in shards["index_codecs"]] != ["bytes", "crc32c"]:
        raise ValueError(f"shards of {parts} chunks, indexed by {shards['index_codecs']}")
    return slice(16 * parts) if shards["index_location"] == "start" else slice(-16 * parts - CHECKSUM, -CHECKSUM)


def _codecs(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of the codecs that pack a chunk, in their order."""
    if "codecs" not in metadata:
        each = [*(metadata["filters"] or ()), metadata["compressor"]]
        return [str(codec["id"]) for codec in each if codec]
    names = []
    for codec in metadata["codecs"]:
        is_shard = codec["name"] == "sharding_indexed"
        names += _codecs(codec["configuration"]) if is_shard else [str(codec["name"]).removeprefix("numcodecs.")]
    return names
