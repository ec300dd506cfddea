"""Strips and tiles of a TIFF that decode to no more pixels than their page has room for.

Most compressions pack the bytes of a strip or tile, and unpack to the size that the page says. JPEG and JPEG 2000 hold
an image with a size of its own, which is read before it is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tifffile
from tifffile import COMPRESSION

from mitoflow.errors import InputError

#: Compressions whose output has the size that is asked for, whatever is packed.
OF_BYTES = {
    COMPRESSION.NONE,
    COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.LZMA,
    COMPRESSION.ZSTD,
    COMPRESSION.ZSTD_DEPRECATED,
}
NAMES = "none, LZW, Deflate, Zstandard, LZMA, PackBits, JPEG or JPEG 2000"

# Markers of JPEG (ITU-T T.81, annex B). Frames have the size; the tables, applications' data and comments a length.
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SKIPPED = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
SCAN, FILL = 0xDA, 0xFF

# JPEG 2000 (ITU-T T.800): a codestream, or boxes around it.
SIGNATURE, CODESTREAM, BEGIN = b"jP  ", b"jp2c", b"\xff\x4f\xff\x51"


def _jpeg(packed: bytes) -> tuple[int, int, int]:
    """Return rows, columns and samples a pixel, by the one frame that may precede the first scan.

    What is not plain is refused: decoders disagree about it, and one may find another frame than this function.
    """
    frames, place = [], 2
    while packed[place] == FILL and (marker := packed[place + 1]) != SCAN:
        if marker == FILL:
            place += 1
            continue
        if marker in FRAMES:
            frames.append(struct.unpack_from(">HHB", packed, place + 5))
        elif marker not in SKIPPED:
            raise ValueError(f"the marker {marker:02x} in a JPEG")
        place += 2 + max(2, *struct.unpack_from(">H", packed, place + 2))
    if packed[place] != FILL or len(frames) != 1:
        raise ValueError("no header of a JPEG")
    return frames[0]


def _jpeg2000(packed: bytes) -> tuple[int, int, int]:
    """Return rows, columns and samples a pixel, by the header of the first codestream."""
    place = 0
    if packed[4:8] == SIGNATURE:
        while packed[place + 4 : place + 8] != CODESTREAM:
            length, large = struct.unpack_from(">I4xQ", packed, place)
            place += max(8, large if length == 1 else length)
        place += 16 if packed[place : place + 4] == b"\0\0\0\1" else 8
    if packed[place : place + 4] != BEGIN:
        raise ValueError("no header of a JPEG 2000")
    right, bottom, left, top, samples = struct.unpack_from(">4I16xH", packed, place + 8)
    return bottom - top, right - left, samples


#: What reads the size of the image in a strip or tile, by its compression.
OF_IMAGES: Mapping[int, Callable[[bytes], tuple[int, int, int]]] = {
    COMPRESSION.JPEG: _jpeg,
    COMPRESSION.ALT_JPEG: _jpeg,
    COMPRESSION.APERIO_JP2000_YCBC: _jpeg2000,  # also what Bio-Formats writes
    COMPRESSION.JPEG_2000_LOSSY: _jpeg2000,
    COMPRESSION.APERIO_JP2000_RGB: _jpeg2000,
    COMPRESSION.JPEG2000: _jpeg2000,
}


def require_bounded(path: Path, page: tifffile.TiffPage) -> None:
    """Raise `InputError` where pages are compressed in a way that is not known to keep to a size."""
    if page.compression not in OF_BYTES | OF_IMAGES.keys():
        found = f"{getattr(page.compression, 'name', page.compression)} compression"
        raise InputError(path, found, NAMES, "save the image again with LZW or Deflate")


def keep_to_size(page: tifffile.TiffPage) -> None:
    """Let a page raise `ValueError` before it decodes a strip or tile that holds an image of another size.

    Raises
    ------
    ValueError
        The page is one of Hamamatsu's NDPI, whose strip is decoded as a whole.
    """
    if (read_size := OF_IMAGES.get(page.compression)) is None:
        return
    if page.jpegheader is not None:
        raise ValueError("it is of an NDPI")
    decode, (height, width) = page.decode, page.chunks[-2:]

    def require_size(packed: bytes, index: int) -> None:
        rows, columns, samples = read_size(packed)
        _, (_, _, y, x, _), _ = decode(None, index)
        # At the lower and the right edge of the page, programs write all of a tile or the part that is in the page.
        is_high = rows in (height, min(height, page.shape[0] - y))
        is_wide = columns in (width, min(width, page.shape[1] - x))
        if samples != 1 or not (is_high and is_wide):
            raise ValueError(f"{rows} x {columns} pixels of {samples} samples in a strip or tile of {height} x {width}")

    def decode_checked(packed: bytes | None, index: int, **options: Any) -> Any:
        if packed is not None:
            require_size(packed, index)
        pixels, place, shape = decode(packed, index, **options)
        if pixels is not None and pixels.dtype != page.dtype:
            raise ValueError(f"{pixels.dtype} pixels in a page of {page.dtype}")
        return pixels, place, shape

    page.decode = decode_checked
