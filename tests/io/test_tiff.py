from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy import ndimage

from mitoflow.data.masks import MaskValues, agree_on_rule, binarise
from mitoflow.data.network_input import camera_depth, to_unit
from mitoflow.data.pairs import Pair, open_pair, read_pairs, read_set, require_one_dtype
from mitoflow.errors import InputError
from mitoflow.io.tiff import Stack, open_mask, open_stack, write_stack
from mitoflow.io.volumes import open_volume
from tests.io.test_chunks import little_memory

EPFL = Path(__file__).parents[2] / "../shared/data/epfl"
RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (5, 64, 80), np.uint8)
NAMED = {"axes": "ZYX"}

Write = Callable[[Path, np.ndarray], Any]
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one directory a page": ("s.tif", {"metadata": None}),
    "tifffile's own": ("s.tif", {}),
    "tifffile's own, one directory": ("s.tif", {"truncate": True}),
    "lzw": ("s.tif", {"compression": "lzw"}),
    "zlib with predictor": ("s.tif", {"compression": "zlib", "predictor": True}),
    "tiles": ("s.tif", {"tile": (32, 32)}),
    "big-endian": ("s.tif", {"byteorder": ">"}),
    "BigTIFF": ("s.tif", {"bigtiff": True}),
    "ImageJ": ("s.tif", {"imagej": True, "metadata": NAMED}),
    "ImageJ above 4 GB, one directory": ("s.tif", {"imagej": True, "metadata": NAMED, "truncate": True}),
    "OME": ("s.ome.tif", {"metadata": NAMED}),
    "OME, compressed": ("s.ome.tif", {"metadata": NAMED, "compression": "zlib"}),
}


def whole(stack: Stack) -> np.ndarray:
    return np.stack([*stack.slices()])


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, settings = LAYOUTS[request.param]
    tifffile.imwrite(tmp_path / name, STACK, photometric="minisblack", **settings)
    return tmp_path / name


def test_every_layout_reads_alike(layout: Path) -> None:
    stack = open_stack(layout)
    assert (stack.shape, stack.dtype) == (STACK.shape, np.uint8)
    assert np.array_equal(whole(stack), STACK)
    assert np.array_equal(stack.slice(3), STACK[3])


def read_by_volume(path: Path) -> np.ndarray:
    volume = open_volume(str(path))
    depth, height, width = volume.shape
    return np.stack([volume.read(z, (0, height, 0, width)) for z in range(depth)])


@pytest.mark.parametrize("compression", ["lzw", "zlib", 32946, "packbits", "lzma", "zstd", "jpeg", "jpeg2000", 33004])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 10}, {"tile": (48, 32)}], ids=["page", "strips", "tiles"])
def test_each_compression_of_em_images_is_read(
    tmp_path: Path, compression: str | int, dtype: type, layout: dict[str, Any]
) -> None:
    """Strips and tiles at the edge of the image are smaller, or reach beyond it."""
    path, stored = tmp_path / "s.tif", STACK[:, :50, :70].astype(dtype)
    tifffile.imwrite(path, stored, compression=compression, photometric="minisblack", **layout)
    is_lossy = compression == "jpeg"
    expected = tifffile.imread(path) if is_lossy else stored
    for read in (whole(open_stack(path)), read_by_volume(path)):
        np.testing.assert_array_equal(read, expected)


def test_strips_of_jpeg_may_share_their_tables(tmp_path: Path) -> None:
    """As libtiff writes them; the size is in each strip."""
    path = tmp_path / "s.tif"
    Image.fromarray(STACK[0]).save(path, compression="jpeg")
    with Image.open(path) as saved:
        np.testing.assert_allclose(open_stack(path).slice(0), np.asarray(saved), atol=2)


ENCODE: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": imagecodecs.jpeg_encode,
    "jpeg2000": imagecodecs.jpeg2k_encode,
    "codestream": lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k"),
}


def write_packed(path: Path, packed: bytes, compression: str, shape: tuple[int, int] = (64, 64), **layout: Any) -> Path:
    """Write a page whose only strip or tile holds these bytes."""
    compression = "jpeg2000" if compression == "codestream" else compression
    tifffile.imwrite(path, iter([packed]), shape=shape, dtype=np.uint8, compression=compression, **layout)
    return path


@pytest.mark.parametrize("layout", [{}, {"tile": (64, 64)}], ids=["strip", "tile"])
@pytest.mark.parametrize("kind", ENCODE)
@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((5000, 5000), np.uint8), "5000 x 5000 pixels of 1 samples in a strip or tile of 64 x 64"),
        (np.zeros((65, 64), np.uint8), "65 x 64 pixels"),
        (np.zeros((64, 128), np.uint8), "64 x 128 pixels"),
        (np.zeros((128, 32), np.uint8), "128 x 32 pixels"),
        (np.zeros((64, 64, 3), np.uint8), "64 x 64 pixels of 3 samples"),
        (np.zeros((64, 64), np.uint16), "uint16 pixels in a page of uint8"),
    ],
    ids=["far larger", "higher", "wider", "as many pixels", "colours", "deeper"],
)
def test_an_image_of_another_size_in_a_strip_or_tile_is_not_decoded(
    tmp_path: Path, kind: str, image: np.ndarray, found: str, layout: dict[str, Any]
) -> None:
    """Decoders return all of it, whatever the page says, and a few bytes may hold gigabytes."""
    path = write_packed(tmp_path / "s.tif", bytes(ENCODE[kind](image)), kind, **layout)
    stack, volume = open_stack(path), open_volume(str(path))
    for read in (lambda: stack.slice(0), lambda: volume.read(0, (0, 64, 0, 64))):
        with little_memory(), pytest.raises(InputError, match=rf"slice 0 that cannot be decoded \({found}"):
            read()


def test_a_jpeg_with_two_sizes_is_refused(tmp_path: Path) -> None:
    """Where one decoder refuses the first frame, imagecodecs asks another one, which takes the second."""
    small, large = (bytes(imagecodecs.jpeg_encode(np.zeros((side,) * 2, np.uint8))) for side in (64, 5000))
    frame, tables = small.index(b"\xff\xc0"), small.index(b"\xff\xdb")
    refused = small[frame : frame + 4] + b"\7" + small[frame + 5 : frame + 13]
    path = write_packed(tmp_path / "s.tif", large[:tables] + refused + large[tables:], "jpeg")
    with little_memory(), pytest.raises(InputError, match="no header of a JPEG"):
        open_stack(path).slice(0)


@pytest.mark.parametrize(
    ("compression", "name"), [("lerc", "LERC"), ("png", "PNG"), ("jpegxl", "JPEGXL"), ("jpegxr", "JPEGXR")]
)
def test_a_compression_that_may_unpack_to_any_size_is_refused_with_its_remedy(
    tmp_path: Path, compression: str, name: str
) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], compression=compression, photometric="minisblack")
    with pytest.raises(InputError, match=f"found {name} compression, expected none, LZW, .*; save .* LZW or Deflate"):
        open_stack(tmp_path / "s.tif")


def test_a_mask_in_the_compression_of_faxes_is_refused_with_its_remedy(tmp_path: Path) -> None:
    Image.fromarray(STACK[0] > 99).save(tmp_path / "s.tif", compression="group4")
    with pytest.raises(InputError, match="found CCITTFAX4 compression, expected none, LZW"):
        open_mask(tmp_path / "s.tif")


def test_truncated_file_is_named_so_or_still_whole(layout: Path) -> None:
    content = layout.read_bytes()
    for length in np.linspace(4, len(content) - 1, 60, dtype=int):
        layout.write_bytes(content[:length])
        try:
            stack = open_stack(layout)
        except InputError as error:
            assert "truncated" in error.found
        else:
            assert np.array_equal(whole(stack), STACK), f"{length} of {len(content)} bytes"
            assert length > 0.9 * len(content)


@pytest.mark.parametrize("count", [1, 63])
def test_fewer_places_than_strips_are_damage(tmp_path: Path, count: int) -> None:
    """Read in one go such a slice would have other pixels than strip by strip."""
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, STACK[0], rowsperstrip=1, metadata=None)
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags["StripOffsets"].offset
    content = bytearray(path.read_bytes())
    content[entry + 4 : entry + 8] = count.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not say where the pixels are"):
        open_stack(path)


def test_pages_appended_one_by_one_are_one_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        for image in STACK:
            file.write(image)
    assert np.array_equal(whole(open_stack(tmp_path / "s.tif")), STACK)


def test_pyramid_reads_at_full_resolution(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.ome.tif") as file:
        file.write(STACK, subifds=1, tile=(32, 32), metadata=NAMED)
        file.write(STACK[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    assert np.array_equal(whole(open_stack(tmp_path / "s.ome.tif")), STACK)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_byte_order_of_the_file_is_kept_to_itself(tmp_path: Path, compression: str | None) -> None:
    deep = STACK.astype(np.uint16) * 256 + STACK[::-1]
    tifffile.imwrite(tmp_path / "s.tif", deep, byteorder=">", compression=compression, photometric="minisblack")
    stack = open_stack(tmp_path / "s.tif")
    assert stack.dtype.isnative
    assert stack.slice(0).dtype.isnative
    assert np.array_equal(whole(stack), deep)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_0_is_white_images_are_read_inverted_and_masks_as_they_are(
    tmp_path: Path, dtype: type, compression: str | None
) -> None:
    shown = np.random.default_rng(0).integers(0, 200, (3, 64, 64)).astype(dtype)
    stored = np.iinfo(dtype).max - shown
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal([*open_stack(tmp_path / "a.tif").slices()], shown, strict=True)
    np.testing.assert_array_equal([*open_mask(tmp_path / "a.tif").slices()], stored, strict=True)


def palette(colours: np.ndarray) -> np.ndarray:
    """Return a palette as a TIFF stores it, (3, 256) uint16, of colours (256,) or (256, 3) uint8."""
    return np.broadcast_to(colours.reshape(256, -1), (256, 3)).T.astype(np.uint16) * 256


RAMP = np.arange(256)
SCRAMBLED = np.random.default_rng(0).permutation(256)
COLOURS = np.random.default_rng(0).integers(1, 256, (256, 3))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("grey", [RAMP, 255 - RAMP, SCRAMBLED])
def test_a_palette_of_grey_values_is_looked_up(tmp_path: Path, grey: np.ndarray, compression: str | None) -> None:
    path, colours = tmp_path / "s.tif", palette(grey)
    tifffile.imwrite(path, STACK, photometric="palette", colormap=colours, compression=compression)
    np.testing.assert_array_equal(whole(open_stack(path)), grey[STACK])
    volume = open_volume(str(path))
    np.testing.assert_array_equal(volume.read(3, (5, 30, 7, 40)), grey[STACK[3, 5:30, 7:40]])
    assert volume.dtype == whole(open_stack(path)).dtype == np.uint8


def test_an_image_with_colours_in_its_palette_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK, photometric="palette", colormap=palette(COLOURS))
    with pytest.raises(InputError, match="found a palette of colours, expected grey values; convert"):
        open_stack(tmp_path / "s.tif")


def test_masks_are_what_their_palette_shows(tmp_path: Path) -> None:
    """Where 0 is white a program drew mitochondria with it; labels keep their numbers whatever their colours are."""
    path, binary = tmp_path / "s.tif", (STACK > 99).astype(np.uint8)

    def stored(values: np.ndarray, colours: np.ndarray) -> np.ndarray:
        tifffile.imwrite(path, values, photometric="palette", colormap=palette(colours))
        return whole(open_mask(path))

    white_first = np.where(RAMP == 0, 255, 0)
    np.testing.assert_array_equal(stored(binary, white_first), 255 * (1 - binary))
    np.testing.assert_array_equal(stored(binary * 255, 255 - RAMP), binary * 255)  # ImageJ's inverted lookup table
    np.testing.assert_array_equal(stored(STACK, COLOURS * (RAMP > 0)[:, None]), STACK)
    with pytest.raises(InputError, match=r"a palette of colours with \(\d+, \d+, \d+\) for 0, expected black for 0"):
        stored(STACK, COLOURS)


XML = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{identity}>{content}</OME>"""
PIXELS = """<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="80" SizeY="64"
SizeZ="5" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="5">
<UUID FileName="{name}">{uuid}</UUID></TiffData></Pixels></Image>"""
COMPANION = '<BinaryOnly MetadataFile="x.companion.ome" UUID="urn:uuid:b"/>'
OURS, THEIRS = PIXELS.format(name="old.ome.tif", uuid="urn:uuid:a"), PIXELS.format(name="pipe", uuid="urn:uuid:b")


@pytest.mark.parametrize(("content", "named"), [(COMPANION, r"x\.companion\.ome"), (THEIRS, "pipe")])
def test_a_part_of_an_image_of_several_files_is_refused(tmp_path: Path, content: str, named: str) -> None:
    """Only the metadata say which page is which; and what they name, such as a pipe, is never opened."""
    os.mkfifo(tmp_path / "pipe")
    description = XML.format(identity=' UUID="urn:uuid:a"', content=content)
    tifffile.imwrite(tmp_path / "s.ome.tif", STACK, description=description, metadata=None)
    for read in (open_stack, open_mask, lambda path: open_volume(str(path))):
        with pytest.raises(
            InputError, match=f"a part of an OME-TIFF of several files, with {named}, expected an image"
        ):
            read(tmp_path / "s.ome.tif")


@pytest.mark.parametrize("identity", [' UUID="urn:uuid:a"', ""])
def test_a_file_that_names_itself_may_be_renamed(tmp_path: Path, identity: str) -> None:
    name = "new.ome.tif" if identity else "old.ome.tif"  # only the identity says that it is the same file
    description = XML.format(identity=identity, content=OURS)
    tifffile.imwrite(tmp_path / name, STACK, description=description, metadata=None)
    assert np.array_equal(whole(open_stack(tmp_path / name)), STACK)


def test_single_page_is_a_stack_of_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK[0])
    assert open_stack(tmp_path / "s.tif").shape == (1, 64, 80)


def test_slice_reads_only_its_page(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, STACK, compression="zlib", photometric="minisblack")
    stack = open_stack(path)
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        start, length = page.dataoffsets[0], page.databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    assert np.array_equal(stack.slice(2), STACK[2])
    with pytest.raises(InputError, match=r"slice 1 that cannot be decoded"):
        stack.slice(1)


def test_slice_outside_is_refused(layout: Path) -> None:
    stack = open_stack(layout)
    for z in (-1, 5):
        with pytest.raises(IndexError):
            stack.slice(z)


@pytest.mark.parametrize(
    ("array", "settings", "found"),
    [
        (STACK[..., None].repeat(3, -1), {"photometric": "rgb"}, r"3 colour samples a pixel, as RGB has .*YXS"),
        (STACK, {"imagej": True, "metadata": {"axes": "CYX"}}, r"5 channels \(axes CYX of \(5, 64, 80\)\)"),
        (STACK, {"imagej": True, "metadata": {"axes": "TYX"}}, r"5 time points.*; if they are slices, say so in Fiji"),
        (STACK[:, None].repeat(2, 1), {"imagej": True, "metadata": {"axes": "ZCYX"}}, r"2 channels"),
        (STACK.astype(np.float32), {"photometric": "minisblack"}, r"float32 pixels,"),
        (
            np.where(STACK == 7, np.nan, STACK),
            {"photometric": "minisblack"},
            r"float64 pixels with NaN \(first in slice",
        ),
        (STACK.astype(np.complex64), {"photometric": "minisblack"}, r"no plain numbers"),
        (STACK.astype(np.uint32), {"photometric": "minisblack"}, r"uint32 pixels, expected uint8 or uint16"),
        (
            STACK.astype(np.int16),
            {"photometric": "minisblack"},
            r"int16 pixels, expected uint8 or uint16, which have no",
        ),
        (STACK[..., None].repeat(2, -1), {"extrasamples": ["unassalpha"]}, r"found grey values with alpha .*; save it"),
    ],
)
def test_other_images_are_refused(tmp_path: Path, array: np.ndarray, settings: dict[str, Any], found: str) -> None:
    tifffile.imwrite(tmp_path / "s.tif", array, **settings)
    with pytest.raises(InputError, match=found):
        open_stack(tmp_path / "s.tif")


def test_small_slices_are_opened_but_not_learned_from(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK[:, :63], photometric="minisblack")
    assert open_stack(tmp_path / "s.tif").shape == (5, 63, 80)
    with pytest.raises(InputError, match=r"s\.tif: found 80 x 63 pixels, expected at least 64 on each side"):
        open_pair("s", tmp_path / "s.tif", tmp_path / "s.tif")


def test_pages_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[0, :, :70], metadata=None)
    with pytest.raises(InputError, match="2 images of shapes"):
        open_stack(tmp_path / "s.tif")


@pytest.mark.parametrize(
    ("second", "ways"),
    [
        ({"compression": "zlib"}, "compression NONE and ADOBE_DEFLATE"),
        ({"photometric": "miniswhite"}, "photometric interpretation MINISBLACK and MINISWHITE"),
        ({"rowsperstrip": 8}, "strips or tiles 64 x 80 and 8 x 80"),
    ],
)
def test_pages_that_are_stored_in_two_ways_are_refused_with_what_differs(
    tmp_path: Path, second: dict[str, Any], ways: str
) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[1], metadata=None, **second)
    with pytest.raises(InputError, match=rf"pages that are stored in different ways \({ways}\)"):
        open_stack(tmp_path / "s.tif")


@pytest.mark.parametrize(
    ("shape", "metadata"),
    [((2, 3, 64, 80), {}), ((2, 3, 64, 80), {"axes": "ZQYX"}), ((5, 64, 80), {"axes": "YZX"})],
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_slices_are_never_taken_from_two_axes_nor_from_another_than_the_first(
    tmp_path: Path, shape: tuple[int, ...], metadata: dict[str, str], compression: str | None
) -> None:
    """Of two unnamed axes one is that of channels, of detectors or of time, as likely as not."""
    array = np.zeros(shape, np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", array, photometric="minisblack", metadata=metadata, compression=compression)
    with pytest.raises(InputError, match=rf"found axes {metadata.get('axes', 'QQYX')} of .*, expected axes YX or ZYX"):
        open_stack(tmp_path / "s.tif")


def test_an_unnamed_axis_of_one_is_none(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK[None], photometric="minisblack")
    assert np.array_equal(whole(open_stack(tmp_path / "s.tif")), STACK)


PIXELS_OF_3 = PIXELS.replace('SizeZ="5"', 'SizeZ="3"').replace('IFD="0" PlaneCount="5"', "")
OME_OF_3 = XML.format(identity=' UUID="urn:uuid:a"', content=PIXELS_OF_3.format(name="s.tif", uuid="urn:uuid:a"))
IMAGEJ_OF_3 = "ImageJ=1.53t\nimages=3\nslices=3\n"


@pytest.mark.parametrize("description", [IMAGEJ_OF_3, OME_OF_3], ids=["ImageJ", "OME"])
def test_no_slice_is_lost_to_a_description_of_fewer(tmp_path: Path, description: str) -> None:
    """Programs that join files keep the description of the first."""
    tifffile.imwrite(tmp_path / "s.tif", STACK, photometric="minisblack", metadata=None, description=description)
    with pytest.raises(InputError, match=r"5 pages with a description of 3 slices, expected as many pages"):
        open_stack(tmp_path / "s.tif")


def test_a_reduced_copy_among_the_pages_is_no_slice(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[0, ::2, ::2], subfiletype=1, metadata=None)
    assert np.array_equal(whole(open_stack(tmp_path / "s.tif")), STACK[:1])


def test_pages_with_palettes_of_their_own_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        for page, grey in zip(STACK, (RAMP, RAMP, 255 - RAMP), strict=False):
            file.write(page, photometric="palette", colormap=palette(grey), metadata=None, contiguous=False)
    for read in (open_stack, open_mask):
        with pytest.raises(InputError, match="found another palette in page 3 than in the first"):
            read(tmp_path / "s.tif")


def test_slices_that_were_saved_as_colours_have_their_remedy(tmp_path: Path) -> None:
    """tifffile takes three or four 8-bit slices for the colours of one unless it is told otherwise."""
    with pytest.warns(DeprecationWarning, match="photometric"):
        tifffile.imwrite(tmp_path / "s.tif", STACK[:3])
    with pytest.raises(InputError, match=r"3 colour samples .*if these are slices, save .* photometric='minisblack'"):
        open_stack(tmp_path / "s.tif")


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"\x89PNG\r\n\x1a\n" + bytes(99), "no TIFF but a file that begins with b'.x89PNG'"), (b"", "an empty file")],
)
def test_what_is_no_tiff_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "s.tif").write_bytes(content)
    with pytest.raises(InputError, match=found):
        open_stack(tmp_path / "s.tif")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_stack(tmp_path / "s.tif")
    with pytest.raises(InputError, match="a folder"):
        open_stack(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
def test_masks_may_be_of_any_integer_type(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK.astype(dtype), photometric="minisblack")
    mask = open_mask(tmp_path / "s.tif")
    assert mask.dtype == dtype
    assert np.array_equal(mask.slice(4), STACK[4])


def test_bilevel_mask_reads_as_0_and_1(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", STACK > 99)
    assert np.array_equal(whole(open_mask(tmp_path / "s.tif")), (STACK > 99).astype(np.uint8))


@given(arrays(st.sampled_from([np.uint8, np.uint16, np.int32]), array_shapes(min_dims=2, max_dims=3, max_side=4)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, tile: np.ndarray) -> None:
    array = np.tile(tile, (64, 64))
    path = tmp_path_factory.mktemp("write") / "s.tif"
    write_stack(path, array, "synthetic")
    first = hashlib.sha256(path.read_bytes()).digest()
    assert np.array_equal(whole(open_mask(path)), array.reshape(-1, *array.shape[-2:]))
    write_stack(path, array, "synthetic")
    assert hashlib.sha256(path.read_bytes()).digest() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["s.tif"]


def test_written_file_says_nothing_about_when_and_with_what(tmp_path: Path) -> None:
    write_stack(tmp_path / "s.tif", STACK)
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        names = {tag.name for page in file.pages for tag in page.tags.values()}
    assert not names & {"Software", "DateTime", "ImageDescription", "HostComputer"}


@pytest.fixture
def part(tmp_path: Path) -> Path:
    for name in ("s10", "s2", "S1"):
        write_stack(tmp_path / "images" / f"{name}.tif", STACK)
        write_stack(tmp_path / "masks" / f"{name}.tif", (STACK > 200).astype(np.uint8))
    return tmp_path


def test_sets_come_in_natural_order_and_their_pairs_know_them(part: Path, tmp_path: Path) -> None:
    for name in ("b10", "b2"):
        for kind in ("images", "masks"):
            shutil.copytree(part / kind, tmp_path / "train" / name / kind)
    pairs = read_pairs(tmp_path / "train")
    assert [(pair.dataset, pair.name) for pair in pairs] == [(s, n) for s in ("b2", "b10") for n in ("S1", "s2", "s10")]
    shutil.rmtree(tmp_path / "train/b2/masks")
    with pytest.raises(InputError, match=r"b2/masks: found no such folder"):
        read_pairs(tmp_path / "train")


def test_the_layout_of_0_1_is_refused_with_the_command_that_helps(part: Path) -> None:
    with pytest.raises(InputError, match=r"images: found the layout of mitoflow 0\.1, .*mitoflow data import --images"):
        read_pairs(part)


def test_pairs_come_in_natural_order(part: Path) -> None:
    (part / "images" / ".hidden.tif").touch()
    (part / "images" / "notes.txt").touch()
    pairs = read_set(part, "lab")
    assert [pair.name for pair in pairs] == ["S1", "s2", "s10"]
    assert np.array_equal(pairs[0].mask.slice(2), STACK[2] > 200)


def test_suffixes_may_differ(part: Path) -> None:
    (part / "masks/s2.tif").rename(part / "masks/s2.TIFF")
    assert read_set(part, "lab")[1].mask.path.name == "s2.TIFF"


def remove(path: Path) -> None:
    path.unlink()


def shrink(path: Path) -> None:
    write_stack(path, STACK[:3])


def double(path: Path) -> None:
    write_stack(path.with_suffix(".tiff"), STACK)


def empty(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def take_folder(path: Path) -> None:
    empty(path)
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("harm", "file", "message"),
    [
        (remove, "masks/s2.tif", r"images/s2.tif: found an image without mask, expected .*masks/s2.tif"),
        (remove, "images/s10.tif", r"masks/s10.tif: found a mask without image"),
        (shrink, "masks/s2.tif", r"masks/s2.tif: found 3 slices of 80 x 64 beside an image of 5 slices of 80 x 64"),
        (double, "images/s2.tif", r"images/s2.tiff: found the name of s2.tif"),
        (empty, "images/s2.tif", r"images: found an empty folder"),
        (take_folder, "masks/s2.tif", r"masks: found no such folder"),
    ],
)
def test_what_does_not_pair_is_refused(part: Path, harm: Callable[[Path], None], file: str, message: str) -> None:
    harm(part / file)
    with pytest.raises(InputError, match=message):
        read_set(part, "lab")


def blobs() -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(6, 128, 128)), (1, 6, 6))
    return smooth > np.quantile(smooth, 0.9)


def antialiased() -> np.ndarray:
    return np.stack([ndimage.gaussian_filter(255.0 * mask, 1) for mask in blobs()]).round().astype(np.uint8)


def labels(dtype: type) -> np.ndarray:
    return ndimage.label(blobs())[0].astype(dtype)


@pytest.fixture
def pairing(tmp_path: Path) -> Iterator[Callable[..., list[Pair]]]:
    def pairs(*masks: np.ndarray) -> list[Pair]:
        for k, mask in enumerate(masks):
            write_stack(tmp_path / "images" / f"{k}.tif", np.zeros(mask.shape, np.uint8))
            write_stack(tmp_path / "masks" / f"{k}.tif", mask)
        return read_set(tmp_path, "lab")

    yield pairs


BINARY, ONE = blobs().astype(np.uint8) * 255, blobs().astype(np.uint8)
ONE_BLURRED = np.concatenate([BINARY, antialiased()[:1]])
STRAY = BINARY.copy()
STRAY[::2, 5::40, 7::40] = 90
RULES = {
    "0/255": ([BINARY], "nonzero"),
    "0/1": ([ONE], "nonzero"),
    "uint16 0/65535": ([BINARY.astype(np.uint16) * 257], "nonzero"),
    "8-bit labels": ([labels(np.uint8)], "nonzero"),
    "labels a slice": ([np.stack([mask * (k + 1) for k, mask in enumerate(ONE)])], "nonzero"),
    "16-bit labels": ([labels(np.uint16)], "nonzero"),
    "32-bit labels": ([labels(np.int32) * 70_000], "nonzero"),
    "antialiased": ([antialiased()], "half"),
    "one antialiased slice": ([ONE_BLURRED], "half"),
    "antialiased beside 0/255 and 0/1": ([BINARY, antialiased(), ONE], "half"),
    "antialiased in 16 bits": ([antialiased().astype(np.uint16) * 257], "half"),
    "antialiased in 16 bits, up to 255": ([antialiased().astype(np.uint16)], "half"),
    "antialiased in 16 bits beside 0/255 and 0/1": ([antialiased().astype(np.uint16) * 257, BINARY, ONE], "half"),
    "0/255 with single grey pixels": ([STRAY], "half"),
    "0/1 beside 0/255": ([ONE, BINARY], "nonzero"),
    "labels beside 0/255": ([labels(np.uint8), BINARY], "nonzero"),
    "nothing marked": ([np.zeros_like(BINARY)], "nonzero"),
}


def recognise_mask_rule(pairs: list[Pair]) -> str:
    masks = [MaskValues(pair.mask.path) for pair in pairs]
    for pair, values in zip(pairs, masks, strict=True):
        for mask in pair.mask.slices():
            values.add(mask)
    return agree_on_rule(masks)


@pytest.mark.parametrize("case", RULES)
def test_mask_rule_is_recognised(case: str, pairing: Callable[..., list[Pair]]) -> None:
    masks, rule = RULES[case]
    pairs = pairing(*masks)
    assert recognise_mask_rule(pairs) == rule
    for pair in pairs:
        read = np.stack([binarise(mask, rule) for mask in pair.mask.slices()])
        truth = blobs()[[0, 1, 2, 3, 4, 5, 0][: len(read)]] if pair.mask.slice(0).any() else np.zeros(read.shape)
        assert np.mean(read != truth) < 0.01


@pytest.mark.parametrize("other", [labels(np.uint8), labels(np.int32), ONE * 100])
def test_masks_of_two_kinds_are_refused(pairing: Callable[..., list[Pair]], other: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"1\.tif: found antialiased edges, but labels in .*0\.tif.*--mask-rule"):
        recognise_mask_rule(pairing(other, antialiased()))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_image_as_mask_is_refused(pairing: Callable[..., list[Pair]], dtype: type) -> None:
    with pytest.raises(InputError, match="the values of a grey image.*swapped"):
        recognise_mask_rule(pairing(STACK.astype(dtype)))


def test_negative_labels_are_refused(pairing: Callable[..., list[Pair]]) -> None:
    with pytest.raises(InputError, match="the value -1"):
        recognise_mask_rule(pairing(labels(np.int32) - 1))


def test_half_cuts_8_and_16_bits_at_half_range() -> None:
    mask = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert binarise(mask, "half").tolist() == [[0, 0, 0, 1, 1]]
    assert binarise(mask, "nonzero").tolist() == [[0, 1, 1, 1, 1]]
    assert binarise(np.array([[0, 1]], np.uint8), "half").tolist() == [[0, 1]]
    assert binarise(mask.astype(np.uint16), "half").tolist() == [[0, 0, 0, 1, 1]]
    wide = np.array([[0, 1, 255, 32767, 32768, 65535]])
    for dtype in (np.uint16, np.int32, np.uint64):
        assert binarise(wide.astype(dtype), "half").tolist() == [[0, 0, 0, 0, 1, 1]]
    assert binarise(np.array([[0, 1, 70_000]]), "half").tolist() == [[0, 1, 1]]


def write_images(part: Path, *images: np.ndarray) -> list[Pair]:
    for k, image in enumerate(images):
        write_stack(part / "images" / f"{k}.tif", image)
        write_stack(part / "masks" / f"{k}.tif", np.zeros(image.shape, np.uint8))
    return read_set(part, "lab")


@pytest.mark.parametrize(
    ("brightest", "bits"), [(255, 10), (1023, 10), (1024, 12), (4095, 12), (16383, 14), (16384, 16)]
)
def test_bit_depth_holds_the_brightest_pixel(brightest: int, bits: int) -> None:
    image = STACK.astype(np.uint16) % 200
    image[3, 5, 7] = brightest
    assert camera_depth(int(image.max())) == bits
    unit = to_unit(image, bits)
    assert unit.dtype == np.float32
    assert 0 <= unit.min() <= unit.max() == np.float32(brightest) / np.float32(2**bits - 1) <= 1


def test_mixed_bit_depths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1\.tif: found uint16 pixels, but uint8 in .*0\.tif"):
        require_one_dtype(write_images(tmp_path, STACK, STACK.astype(np.uint16)))


@pytest.mark.skipif(not EPFL.is_dir(), reason="the EPFL volumes are not beside the repository")
def test_epfl_volumes_open() -> None:
    image, mask = open_stack(EPFL / "training.tif"), open_mask(EPFL / "training_groundtruth.tif")
    assert image.shape == mask.shape == (165, 768, 1024)
    assert set(np.unique(mask.slice(80))) == {0, 255}
