"""Images and their masks, opened in pairs, set by set: ``data/train/SET/images`` and ``data/train/SET/masks``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mitoflow.errors import InputError
from mitoflow.io.file_names import natural_order
from mitoflow.io.remote import Location
from mitoflow.io.tiff import Stack
from mitoflow.io.volumes import open_any_stack

SMALLEST_SIDE = 64  # pixels of what is learned or measured from


@dataclass(frozen=True)
class Pair:
    """An image and its mask of equal shape.

    Attributes
    ----------
    name
        Their file name without suffix, which is unique within a set.
    image, mask
        The two stacks.
    dataset
        The name of their set; empty before they belong to one.
    """

    name: str
    image: Stack
    mask: Stack
    dataset: str = ""


def read_pairs(part: Path) -> list[Pair]:
    """Open the pairs of all sets of a part, in natural order of set and name (``s2`` before ``s10``).

    Parameters
    ----------
    part
        ``data/train`` or ``data/test``, which has a folder for each set.

    Raises
    ------
    InputError
        There is no set, the folder has the layout of mitoflow 0.1, or as in `read_set`.
    """
    return [pair for name in set_names(part) for pair in read_set(part / name, name)]


def set_names(part: Path) -> list[str]:
    """Return the names of the sets of a part, ``data/train`` or ``data/test``, in natural order.

    Raises
    ------
    InputError
        There is none, or the folder has the layout of mitoflow 0.1.
    """
    if not part.is_dir():
        raise InputError(part, "no such folder", "a folder for each set", "run `mitoflow data --help`")
    if (part / "images").is_dir():
        options = f"--images {part / 'images'} --masks {part / 'masks'}"
        remedy = f"import the files again: `mitoflow data import {options} ...`"
        raise InputError(part / "images", "the layout of mitoflow 0.1", f"{part / 'SET' / 'images'}", remedy)
    names = [path.name for path in part.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not names:
        raise InputError(part, "an empty folder", "a folder for each set", "run `mitoflow data --help`")
    return sorted(names, key=natural_order)


def read_set(folder: Path, dataset: str) -> list[Pair]:
    """Open the pairs in ``folder``/images and ``folder``/masks, in natural order of their names.

    Parameters
    ----------
    folder
        Where the two folders are, such as ``data/train/epfl``.
    dataset
        The name of the set.

    Raises
    ------
    InputError
        A folder is missing or holds no TIFF, an image has no mask or a mask no image, their sizes differ, two files
        have the same name but for the suffix, or a file cannot be used (`open_any_stack`).
    """
    images, masks = _tiffs_by_name(folder / "images"), _tiffs_by_name(folder / "masks")
    for name in sorted(images.keys() ^ masks.keys(), key=natural_order):
        if name in images:
            raise InputError(images[name], "an image without mask", f"{folder / 'masks' / images[name].name}", "add it")
        raise InputError(masks[name], "a mask without image", f"{folder / 'images' / masks[name].name}", "add it")
    return [open_pair(name, images[name], masks[name], dataset) for name in sorted(images, key=natural_order)]


def _tiffs_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder of TIFF files", "run `mitoflow data --help`")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".tif", ".tiff") or path.name.startswith("."):
            continue
        if path.stem in files:
            raise InputError(path, f"the name of {files[path.stem].name}", "one file a name", "rename one of them")
        files[path.stem] = path
    if not files:
        raise InputError(folder, "an empty folder", "TIFF files", "run `mitoflow data --help`")
    return files


def open_pair(name: str, image_path: Location, mask_path: Location, dataset: str = "") -> Pair:
    """Open an image and its mask, of any format, on this machine or a server, to learn or to measure from.

    Raises
    ------
    InputError
        One of them cannot be used (`open_any_stack`), they differ in size, or are smaller than 64 x 64 pixels.
    """
    image, mask = open_any_stack(image_path), open_any_stack(mask_path, is_mask=True)
    if min(image.shape[1:]) < SMALLEST_SIDE:
        found = f"{image.shape[2]} x {image.shape[1]} pixels"
        remedy = "leave the file out or crop it less"
        raise InputError(image_path, found, f"at least {SMALLEST_SIDE} on each side", remedy)
    if image.shape != mask.shape:
        found = f"{_size(mask)} beside an image of {_size(image)}"
        raise InputError(mask_path, found, "the size of its image", "export image and mask of the same region")
    return Pair(name, image, mask, dataset)


def _size(stack: Stack) -> str:
    depth, height, width = stack.shape
    return f"{depth} slices of {width} x {height}"


def require_one_dtype(pairs: Sequence[Pair]) -> np.dtype[Any]:
    """Return the pixel type that all images have.

    Raises
    ------
    InputError
        Some images are uint8 and others uint16.
    """
    first = pairs[0].image
    for pair in pairs:
        if pair.image.dtype != first.dtype:
            found = f"{pair.image.dtype} pixels, but {first.dtype} in {first.path}"
            raise InputError(pair.image.path, found, "one bit depth", "convert the images to one of them")
    return first.dtype
