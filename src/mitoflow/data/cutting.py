"""From stacks to the patch store: split by blocks of slices, stretched, and cut with patchify."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from patchify import patchify

from mitoflow.config.params import Normalization, Patch
from mitoflow.core import files
from mitoflow.core.progress import progress_bar
from mitoflow.data.contacts import find_contacts
from mitoflow.data.conventions import Conventions, one_bit_depth
from mitoflow.data.masks import binarise
from mitoflow.data.network_input import UNLABELLED, Box, slice_range, stretched
from mitoflow.data.pairs import Pair
from mitoflow.data.patches import FORMAT, SPLITS, Axis, PatchStore, SliceId, begin_digest, layout
from mitoflow.errors import InputError
from mitoflow.io.tiff import Array


def split(depths: list[int], fraction: float, gap: int) -> dict[str, list[SliceId]]:
    """Split stacks into train and validation by blocks of consecutive slices.

    Neighbouring slices are near copies of each other, so the last `fraction` of each stack validates and `gap` slices
    before it are left out. Single pages count together, in their order, as one stack. A stack too short to give a
    slice to both sides trains.

    Parameters
    ----------
    depths
        Slices of each stack.
    fraction
        Share of the slices that validates, above 0 and below 1.
    gap
        Slices left out between the two sides.

    Returns
    -------
    ``{"train": [(stack, z), ...], "validation": [...]}``; validation is empty where every stack is too short.
    """
    series = [[(stack, z) for z in range(depth)] for stack, depth in enumerate(depths) if depth > 1]
    series.append([(stack, 0) for stack, depth in enumerate(depths) if depth == 1])
    sides: dict[str, list[SliceId]] = {name: [] for name in SPLITS}
    for slices in series:
        held_out = max(1, round(fraction * len(slices)))
        training = len(slices) - held_out - gap
        if training < 1:
            sides["train"] += slices
        else:
            sides["train"] += slices[:training]
            sides["validation"] += slices[-held_out:]
    return {name: sorted(slices) for name, slices in sides.items()}


def split_sets(pairs: Sequence[Pair], settings: Patch, sets: Mapping[str, Conventions]) -> dict[str, list[SliceId]]:
    """Split each set by itself, as `split` does; among unrelated slices there is no gap.

    A set that cannot validate trains with all of its slices: it is too small to give slices to both sides, or there are
    no mitochondria in those that would validate. A Dice of these is 0 or 1 whatever else a model finds.

    Raises
    ------
    InputError
        There are too few slices to leave some for validation, or no mitochondria in those of any set.
    """
    sides: dict[str, list[SliceId]] = {name: [] for name in SPLITS}
    empty: list[SliceId] = []
    for name in dict.fromkeys(pair.dataset for pair in pairs):
        stacks = [place for place, pair in enumerate(pairs) if pair.dataset == name]
        depths = [pairs[stack].image.shape[0] for stack in stacks]
        of_set = split(depths, settings.validation_fraction, 0 if sets[name].unrelated else settings.gap)
        train, held_out = ([(stacks[stack], z) for stack, z in of_set[side]] for side in SPLITS)
        if not any((binarise(pairs[stack].mask.slice(z), sets[name].mask_rule) == 1).any() for stack, z in held_out):
            empty += held_out
            train, held_out = [(stack, z) for stack in stacks for z in range(pairs[stack].image.shape[0])], []
        sides["train"] += train
        sides["validation"] += held_out
    if not sides["validation"]:
        raise _cannot_validate(pairs, settings, empty)
    return sides


def _cannot_validate(pairs: Sequence[Pair], settings: Patch, empty: Sequence[SliceId]) -> InputError:
    """Return an error that says why no slice validates; `empty` are those that would, without mitochondria."""
    if not empty:
        return InputError(
            "data/train",
            f"stacks of at most {max(pair.image.shape[0] for pair in pairs)} slices",
            f"one that is long enough for patch.validation_fraction {settings.validation_fraction:g} behind patch.gap "
            f"{settings.gap}",
            "add slices, or lower patch.gap or patch.validation_fraction",
        )
    places = []
    for stack, slices in groupby(empty, key=itemgetter(0)):
        held = [z for _, z in slices]
        places.append(f"{pairs[stack].dataset}/{pairs[stack].name} z {held[0]} to {held[-1]}")
    found = f"no mitochondria in the slices that validate, counted from 0: {', '.join(places)}"
    remedy = "label a slice or a box with mitochondria there, or change patch.validation_fraction"
    return InputError("data/train", found, "some, which choose the epoch and the threshold", remedy)


def cut(image: np.ndarray, size: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut one slice into patches with patchify, reflecting what does not fill a patch.

    Parameters
    ----------
    image
        (Y, X), any dtype.
    size, step
        Pixels of a patch along y and x, and from one patch to the next.

    Returns
    -------
    patches
        (P, size, size), row by row, dtype of `image`.
    boxes
        (P, 6) int32; see `layout`.
    """
    rows, columns = (Axis(length, size, step) for length in image.shape)
    padded = np.pad(image, ((0, rows.padding), (0, columns.padding)), mode="reflect")
    return patchify(padded, (size, size), step=step).reshape(-1, size, size), layout(rows, columns)


def write_store(folder: Path, pairs: list[Pair], settings: Patch, sets: Mapping[str, Conventions]) -> PatchStore:
    """Cut pairs into a patch store and open it; one slice at a time is in memory.

    Parameters
    ----------
    folder
        Where the store goes; what is there is replaced once the new one is whole.
    pairs
        Images and masks.
    settings
        The section ``patch`` of ``params.yaml``.
    sets
        How the images and masks of each set are read.

    Raises
    ------
    InputError
        No slice can validate (`split_sets`), nobody looked at any pixel of a set that trains, or the sets differ in
        bit depth (`one_bit_depth`).
    OSError
        The disk is full; what was there before stays.
    """
    sides = split_sets(pairs, settings, sets)
    is_stretched = settings.normalization == "percentiles"
    digests = {}
    with files.replacing(folder) as beside:
        for side, slices in sides.items():
            digests[side] = _write_side(beside / side, pairs, slices, settings, sets)
        header: dict[str, Any] = {
            "format": FORMAT,
            "bit_depth": 8 if is_stretched else one_bit_depth(sets),
            "normalization": settings.normalization,
            "size": settings.size,
            "step": settings.step,
            "contacts": any(conventions.instances for conventions in sets.values()),
            "stacks": [_stack_facts(pair, sets[pair.dataset]) for pair in pairs],
            "sha256": digests,
        }
        header["sha256"]["layout"] = files.short_digest(header)
        (beside / "store.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    return PatchStore.open(folder, verify=False)


def _stack_facts(pair: Pair, conventions: Conventions) -> dict[str, Any]:
    shape = list(pair.image.shape)
    return {"dataset": pair.dataset, "name": pair.name, "shape": shape, "spacing": conventions.spacing}


def _grey_values(pair: Pair, z: int, normalization: Normalization) -> Array:
    """Return a slice as the store holds it, (Y, X); stretched as prediction stretches it."""
    image = pair.image.slice(z)
    if normalization == "range":
        return image

    def read(box: Box) -> Array:
        y0, y1, x0, x1 = box
        return image[y0:y1, x0:x1]

    return stretched(image, *slice_range(read, pair.image.shape[1:]))


def _write_side(
    folder: Path, pairs: list[Pair], slices: list[SliceId], settings: Patch, sets: Mapping[str, Conventions]
) -> str:
    """Write one side and return the SHA-256 of its content."""
    folder.mkdir(parents=True)
    per_stack = [
        len(Axis(pair.image.shape[1], settings.size, settings.step).starts)
        * len(Axis(pair.image.shape[2], settings.size, settings.step).starts)
        for pair in pairs
    ]
    shape = (sum(per_stack[stack] for stack, _ in slices), settings.size, settings.size)
    dtype = np.dtype(np.uint8) if settings.normalization == "percentiles" else pairs[0].image.dtype
    labelled: set[str] = set()
    knows_contacts = any(conventions.instances for conventions in sets.values())
    dtypes = {
        "images": dtype,
        "masks": np.dtype(np.uint8),
        **({"contacts": np.dtype(np.uint8)} if knows_contacts else {}),
    }
    index, digest = [], begin_digest(shape, *dtypes.values(), np.dtype(np.int32))
    with ExitStack() as files_open:
        # Plain writes, not a writable memory map: a full disk then raises OSError and is no bus error.
        streams = {name: files_open.enter_context((folder / f"{name}.npy").open("wb")) for name in dtypes}
        for name, stream in streams.items():
            _write_header(stream, shape, dtypes[name])
        for stack, z in progress_bar(slices, desc=f"patch: {folder.name}", unit="slice"):
            pair, conventions = pairs[stack], sets[pairs[stack].dataset]
            stored = pair.mask.slice(z)
            mask = binarise(stored, conventions.mask_rule)
            labelled |= {pair.dataset} if (mask != UNLABELLED).any() else set()
            arrays = {"images": _grey_values(pair, z, settings.normalization), "masks": mask}
            if knows_contacts:
                known = find_contacts(stored) if conventions.instances else np.full_like(mask, UNLABELLED)
                arrays["contacts"] = known
            for name, stream in streams.items():
                patches, boxes = cut(arrays[name], settings.size, settings.step)
                content = np.ascontiguousarray(patches).data
                stream.write(content)
                digest.update(content)
            index.append(np.insert(boxes, 0, [[stack], [z]], axis=1))
    for dataset in dict.fromkeys(pairs[stack].dataset for stack, _ in slices):
        if dataset not in labelled:
            found = f"no pixel that was looked at in the slices for {folder.name}"
            remedy = "label slices on both sides: the last ones of each stack validate, the others train"
            raise InputError(f"data/train/{dataset}/masks", found, "some labels on both sides of the split", remedy)
    rows = np.concatenate(index).astype(np.int32)
    np.save(folder / "index.npy", rows)
    digest.update(rows.data)
    return digest.hexdigest()


def _write_header(stream: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)  # type: ignore[no-untyped-call]
