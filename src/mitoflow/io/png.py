"""Slices in PNG files, as annotation tools and many data sets have them; a PNG does not state a voxel size of use."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mitoflow.errors import InputError
from mitoflow.io.tiff import Array, Stack

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3  # kinds of PNG
OTHERS = {2: "colours", 4: "grey values with alpha", 6: "colours with alpha"}
LARGEST_RATIO = 1032  # bytes of pixels for each byte of the file, which is what zlib reaches
REMEDY = "save it as 8- or 16-bit greyscale"
CHECKSUM = 4  # bytes after each chunk
BEGINNING = 4  # bytes of a chunk; of that of an animation the number of images
OVERLAY = ("Software", "mitoflow")  # the text in a picture that mitoflow drew for a person


def is_png(path: Path) -> bool:
    """Return whether a path has the name of a PNG."""
    return path.suffix.lower() == ".png"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `open_png` compares size and file
        with Image.open(path, formats=["PNG"]) as image:
            yield image


def is_overlay(path: Path) -> bool:
    """Return whether a file is a PNG that mitoflow drew for a person, such as the contours over slices."""
    if not (is_png(path) and path.is_file()):  # a pipe would wait
        return False
    try:
        with _opened(path) as image:
            key, value = OVERLAY
            return bool(image.info.get(key) == value)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises where a file is none
        return False


@dataclass(frozen=True)
class _Decoded:
    """The pixels, of which the whole slice is decoded."""

    def read(self, path: Path, z: int, shape: tuple[int, int]) -> Array:
        try:
            with _opened(path) as image:
                return np.asarray(image).reshape(shape)
        except OSError as error:
            if error.errno:  # the machine, and not the file
                raise
            raise ValueError(error) from None


def open_png(path: Path) -> Stack:
    """Open a PNG of one slice: greyscale, uint8 or uint16, or with a palette, of which pixels are the places.

    Bits of 1-bit images are read as 0 and 1, those of 2 and 4 bits as grey values from 0 to 255.

    Raises
    ------
    InputError
        The file is missing, no PNG, has colours, transparency or several images, or says that it is far larger
        than it can be.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(26)
            parts = dict(_read_parts(stream))
    except FileNotFoundError:
        raise InputError(path, "no such file", "a PNG", "check the path") from None
    if len(head) < 26 or not head.startswith(SIGNATURE):
        raise InputError(path, f"no PNG but a file that begins with {head[:4]!r}", "a PNG", "export the slice again")
    width, height, bits, kind = struct.unpack(">IIBB", head[16:])
    if kind not in (GREY, PALETTE):
        raise InputError(path, OTHERS.get(kind, f"pixels of kind {kind}"), "grey values", REMEDY)
    size = path.stat().st_size
    if (frames := int.from_bytes(parts.get(b"acTL", b"")[:4])) > 1:
        raise InputError(
            path, f"an animation of {frames} images", "one slice a file", "save each as a file, or as TIFF"
        )
    if not (b"IEND" in parts and 0 < width * height * bits // 8 <= LARGEST_RATIO * size):
        found = f"a truncated file ({width} x {height} pixels in {size} bytes)"
        raise InputError(path, found, "a whole PNG", "copy or export the file again")
    dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
    return Stack(path, (1, height, width), dtype, _Decoded(), palette=_palette(path) if kind == PALETTE else None)


def _read_parts(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind of each chunk and how it begins; Pillow takes memory for as many bytes as each says it has."""
    stream.seek(len(SIGNATURE))
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        place = stream.tell()
        yield kind, stream.read(min(length, BEGINNING))
        if kind == b"IEND":
            return
        stream.seek(place + length + CHECKSUM)


def _palette(path: Path) -> Array:
    """Return the colours of the values, (256, 3) uint8; values without one are black."""
    try:
        with _opened(path) as image:
            colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(path, f"a PNG that cannot be read ({error})", "an intact PNG", REMEDY) from None
    return np.pad(colours, ((0, 256 - len(colours)), (0, 0)))
