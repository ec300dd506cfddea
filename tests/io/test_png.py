from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mitoflow.data.pairs import open_pair
from mitoflow.errors import InputError
from mitoflow.instances.label_files import read_labels
from mitoflow.io.volumes import open_volume

STACK = np.random.default_rng(0).integers(0, 256, (1, 70, 90)).astype(np.uint8)
LUT = np.random.default_rng(1).permutation(256).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_slice(tmp_path: Path, dtype: type) -> None:
    page = STACK[0].astype(dtype) * (1 if dtype is np.uint8 else 200)
    Image.fromarray(page).save(tmp_path / "a.png")
    volume = open_volume(str(tmp_path / "a.png"))
    assert (volume.axes, volume.shape, volume.dtype, volume.spacing) == ("yx", (1, 70, 90), dtype, {})
    np.testing.assert_array_equal(volume.read(0, (3, 50, 7, 61)), page[3:50, 7:61], strict=True)


def test_a_palette_of_grey_values_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(STACK[0], "P")
    image.putpalette(np.repeat(LUT, 3).tobytes())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_volume(str(tmp_path / "a.png")).read(0, (0, 70, 0, 90)), LUT[STACK[0]])


def test_masks_and_labels(tmp_path: Path) -> None:
    Image.fromarray(STACK[0]).save(tmp_path / "image.png")
    Image.fromarray(STACK[0] > 127).save(tmp_path / "mask.png")  # one bit a pixel
    pair = open_pair("a", tmp_path / "image.png", tmp_path / "mask.png")
    np.testing.assert_array_equal(pair.image.slice(0), STACK[0], strict=True)
    np.testing.assert_array_equal(pair.mask.slice(0), (STACK[0] > 127).astype(np.uint8), strict=True)
    values = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((35, 30), np.uint8))
    labels = Image.fromarray(values, "P")
    labels.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 7, 8, 9])  # colours are how labels look
    labels.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_labels(str(tmp_path / "labels.png"))[0][0], values)


@pytest.mark.parametrize(
    ("mode", "said"), [("RGB", "found colours"), ("RGBA", "colours with alpha"), ("LA", "grey values with alpha")]
)
def test_colours_are_refused(tmp_path: Path, mode: str, said: str) -> None:
    Image.fromarray(STACK[0]).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=said):
        open_volume(str(tmp_path / "a.png"))


def test_an_animation_is_refused_and_not_read_as_its_first_image(tmp_path: Path) -> None:
    pages = [Image.fromarray(STACK[0] + z) for z in range(3)]
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="found an animation of 3 images, expected one slice a file"):
        open_volume(str(tmp_path / "a.png"))


def test_a_file_that_says_it_is_larger_than_it_can_be(tmp_path: Path) -> None:
    Image.fromarray(STACK[0]).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 2**30, 2**30)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="truncated"):
        open_volume(str(tmp_path / "a.png"))


def test_a_file_that_ends_early_or_says_that_a_part_is_huge_is_truncated(tmp_path: Path) -> None:
    """Pillow would take 2 GiB for the part."""
    Image.fromarray(STACK[0]).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    place = content.index(b"IDAT") - 4
    for harmed in (content[: len(content) // 2], content[:place] + b"\x7f" + content[place + 1 :]):
        (tmp_path / "a.png").write_bytes(harmed)
        with pytest.raises(InputError, match="found a truncated file"):
            open_volume(str(tmp_path / "a.png"))


def test_damage_is_reported_where_it_is_read(tmp_path: Path) -> None:
    Image.fromarray(STACK[0]).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    volume = open_volume(str(tmp_path / "a.png"))
    with pytest.raises(InputError, match="cannot be decoded"):
        volume.read(0, (0, 70, 0, 90))


def test_other_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no PNG")
    for name, said in {"text.png": "no PNG", "gone.png": "no such file"}.items():
        with pytest.raises(InputError, match=said):
            open_volume(str(tmp_path / name))
