"""The patch store: the patches of training and validation, memory-mapped, and the slices that they came from."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mitoflow.core import files
from mitoflow.data import network_input, slice_distance
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError

SPLITS = ("train", "validation")
FORMAT = 5

Box = network_input.Box

#: What is stored of each patch.
Stored = Literal["images", "masks", "contacts"]

#: A slice by its place in the list of stacks and its z.
SliceId = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """How one axis of a slice is cut into patches, and which patch owns which pixel.

    Patches start every `step` pixels; the last one may reach past the end of the axis, where the slice is continued by
    reflection. Each pixel of the slice is owned by exactly one patch: neighbours share an overlap half and half, and
    reflected pixels have no owner. Metrics count owned pixels alone, so no pixel counts twice.

    Attributes
    ----------
    length, size, step
        Pixels along the axis, pixels of a patch, pixels from one patch to the next.
    """

    length: int
    size: int
    step: int

    @property
    def starts(self) -> list[int]:
        """First pixel of each patch."""
        count = 1 + max(0, -(-(self.length - self.size) // self.step))
        return [i * self.step for i in range(count)]

    @property
    def padding(self) -> int:
        """Reflected pixels past the end of the axis."""
        return max(0, self.starts[-1] + self.size - self.length)

    @property
    def edges(self) -> list[int]:
        """Where one owner follows another: patch i owns the pixels from edge i up to edge i + 1."""
        return [0, *(start + (self.size - self.step) // 2 for start in self.starts[1:]), self.length]

    @property
    def owned(self) -> list[tuple[int, int]]:
        """First and past-the-end owned pixel of each patch, counted from the start of the patch."""
        edges = self.edges
        return [(edges[i] - start, edges[i + 1] - start) for i, start in enumerate(self.starts)]

    def pieces(self, low: int, high: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield, for the pixels from `low` up to `high`, each owner, where it has them, and where they go."""
        edges = self.edges
        for i, start in enumerate(self.starts):
            first, last = max(low, edges[i]), min(high, edges[i + 1])
            if first < last:
                yield i, slice(first - start, last - start), slice(first - low, last - low)


def layout(rows: Axis, columns: Axis) -> np.ndarray:
    """Return where the patches of a slice are, row by row.

    They are (P, 6) int32: y and x in the slice, then the owned rectangle ``y0, y1, x0, x1`` inside the patch (see
    `Axis`).
    """
    boxes = [
        (y, x, *own_y, *own_x)
        for y, own_y in zip(rows.starts, rows.owned, strict=True)
        for x, own_x in zip(columns.starts, columns.owned, strict=True)
    ]
    return np.array(boxes, dtype=np.int32)


def owned(rectangles: np.ndarray, size: int) -> np.ndarray:
    """Return which pixels of patches are owned, (P, size, size) bool, from (P, 4) rectangles ``y0, y1, x0, x1``."""
    places, box = np.arange(size), rectangles[:, :, None]
    in_y = (places >= box[:, 0]) & (places < box[:, 1])
    in_x = (places >= box[:, 2]) & (places < box[:, 3])
    return in_y[:, :, None] & in_x[:, None, :]


@dataclass(frozen=True)
class Patches:
    """One side of the split, memory-mapped; slices come back from it whole, in part, or patch by patch.

    Attributes
    ----------
    images
        (P, size, size) uint8 or uint16: as in the source files, or stretched to uint8.
    masks
        (P, size, size) uint8: 0 background, 1 mitochondrion, 2 where nobody looked (`network_input.UNLABELLED`).
    contacts
        (P, size, size) uint8: 1 where two mitochondria touch, 0 in the rest of them, 2 in the background and in sets
        whose masks do not tell mitochondria apart; see `mitoflow.data.contacts`. None where no set's masks do.
    index
        (P, 8) int32: stack, z, y, x, then the owned rectangle ``y0, y1, x0, x1`` inside the patch (see `Axis`).
    shapes
        (Z, Y, X) of each stack.
    datasets, spacings
        The set of each stack, and the nanometres of its voxels along ``z``, ``y`` and ``x``, as far as they are known.
    step
        Pixels from one patch to the next.
    context_steps
        Slices from one neighbour to the next in those stacks in which it is another number than the recipe's; 0 for
        copies of the slice. See `PatchStore.with_context_steps`.
    """

    images: np.ndarray
    masks: np.ndarray
    contacts: np.ndarray | None
    index: np.ndarray
    shapes: list[tuple[int, int, int]]
    datasets: list[str]
    spacings: list[dict[str, float]]
    step: int
    context_steps: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: of arrays that are mapped from files, the files."""
        return {
            name: Path(value.filename) if isinstance(value, np.memmap) and value.filename else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, Path):
                value = np.load(value, mmap_mode="r", allow_pickle=False)
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def size(self) -> int:
        """Pixels of a patch along y and x."""
        return int(self.images.shape[1])

    @property
    def arrays(self) -> list[np.ndarray]:
        """What is held of each patch: image, mask and, where they are known, contacts."""
        return [self.images, self.masks, *([] if self.contacts is None else [self.contacts])]

    @property
    def sets(self) -> list[str]:
        """The sets of which this side holds patches."""
        return list(dict.fromkeys(self.datasets[stack] for stack in self.ranges))

    def rows_of(self, dataset: str) -> np.ndarray:
        """Return the rows of the patches of a set."""
        return np.flatnonzero(np.array(self.datasets)[self.index[:, 0]] == dataset)

    def digest_of(self, dataset: str) -> str:
        """Return the SHA-256 of the patches of a set, whatever other sets there are."""
        rows = self.rows_of(dataset)
        digest = hashlib.sha256(np.ascontiguousarray(self.index[rows, 1:]).data)
        for row in rows:
            for array in self.arrays:
                digest.update(np.ascontiguousarray(array[row]).data)
        return digest.hexdigest()

    @cached_property
    def ranges(self) -> dict[int, range]:
        """The consecutive slices that this side holds of each stack."""
        held = {int(stack): self.index[self.index[:, 0] == stack, 1] for stack in np.unique(self.index[:, 0])}
        return {stack: range(int(z.min()), int(z.max()) + 1) for stack, z in held.items()}

    def owned(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return which pixels the patches at `rows` own, (n, size, size) bool."""
        return owned(self.index[rows, 4:], self.size)

    def foreground(self) -> np.ndarray:
        """Count the foreground pixels that each patch owns, (P,) int64."""
        counts = (
            np.count_nonzero(mask[y0:y1, x0:x1] == 1)
            for mask, (y0, y1, x0, x1) in zip(self.masks, self.index[:, 4:], strict=True)
        )
        return np.fromiter(counts, np.int64, len(self))

    def labelled(self) -> np.ndarray:
        """Return which patches own a pixel that somebody looked at, (P,) bool."""
        found = (
            (mask[y0:y1, x0:x1] != UNLABELLED).any()
            for mask, (y0, y1, x0, x1) in zip(self.masks, self.index[:, 4:], strict=True)
        )
        return np.fromiter(found, bool, len(self))

    @cached_property
    def is_partial(self) -> bool:
        """Whether there are pixels that nobody looked at."""
        return any((mask == UNLABELLED).any() for mask in self.masks)

    def slice_distance(self, stack: int) -> SliceDistance:
        """Return how far apart the slices of a stack are, by those that this side holds."""
        held = self.ranges[stack]

        def read(z: int, box: Box) -> np.ndarray:
            return self.image(stack, held[z], box)

        _, height, width = self.shapes[stack]
        return slice_distance.measure(read, (len(held), height, width), self.spacings[stack])

    def with_neighbours(self, rows: np.ndarray, context: int, step: int) -> np.ndarray:
        """Return the images at `rows` with those of neighbouring slices, (n, size, size, 2 context + 1) as stored.

        See `network_input.neighbours`; in place of a neighbour that this side does not hold, it is the nearest one.
        """
        places = []
        for row in rows:
            stack, z = (int(value) for value in self.index[row, :2])
            held, in_slice = self.ranges[stack], row - self._first_row[stack, z]
            nearby = network_input.neighbours(z, context, self.context_steps.get(stack, step), held)
            places.append([self._first_row[stack, near] + in_slice for near in nearby])
        return np.moveaxis(self.images[np.array(places)], 1, -1)

    def image(self, stack: int, z: int, box: Box | None = None) -> np.ndarray:
        """Return a slice, or the box ``y0, y1, x0, x1`` of it, (Y, X) as stored."""
        return np.asarray(self._put_together(self.images, stack, range(z, z + 1), box)[0])

    def mask(self, stack: int, z: int, box: Box | None = None) -> np.ndarray:
        """Return the mask of a slice, or of a box of it, (Y, X) uint8 as in `masks`; see `image`."""
        return np.asarray(self._put_together(self.masks, stack, range(z, z + 1), box)[0])

    def plane(self, kind: Stored, stack: int, axis: int, place: int, box: Box) -> np.ndarray:
        """Return a box of a plane through the slices that this side holds of a stack, as stored.

        Parameters
        ----------
        kind
            What is cut.
        stack
            Which stack.
        axis, place
            The axis that the plane is perpendicular to, and its place on it: axis 0 gives (Y, X), 1 gives (Z, X) and 2
            gives (Z, Y). Places along z count from the first slice held.
        box
            First and past-the-end voxel along the two axes of the plane.
        """
        sides = [box[:2], box[2:]]
        sides.insert(axis, (place, place + 1))
        (z0, z1), rows, columns = sides
        slices = self.ranges[stack][z0:z1]
        return np.asarray(self._put_together(getattr(self, kind), stack, slices, (*rows, *columns)).take(0, axis))

    def _put_together(self, patches: np.ndarray, stack: int, slices: range, box: Box | None) -> np.ndarray:
        """Return a box of consecutive slices, (Z, Y, X), from the patches that own its voxels."""
        height, width = self.shapes[stack][1:]
        y0, y1, x0, x1 = box or (0, height, 0, width)
        rows, columns = Axis(height, self.size, self.step), Axis(width, self.size, self.step)
        whole = np.empty((len(slices), y1 - y0, x1 - x0), patches.dtype)
        per_slice = len(rows.starts) * len(columns.starts)
        for i, from_y, to_y in rows.pieces(y0, y1):
            for j, from_x, to_x in columns.pieces(x0, x1):
                first = self._first_row[stack, slices.start] + i * len(columns.starts) + j
                last = first + (len(slices) - 1) * per_slice
                whole[:, to_y, to_x] = patches[first : last + 1 : per_slice, from_y, from_x]
        return whole

    @cached_property
    def _first_row(self) -> dict[SliceId, int]:
        """Where the patches of each slice begin."""
        slices, rows = np.unique(self.index[:, :2], axis=0, return_index=True)
        return {(int(stack), int(z)): int(row) for (stack, z), row in zip(slices, rows, strict=True)}


@dataclass(frozen=True)
class PatchStore:
    """The folder ``patches/``: for each side of the split ``images.npy``, ``masks.npy`` and ``index.npy``.

    There is ``contacts.npy`` too where masks of a set tell mitochondria apart.

    `mitoflow.data.cutting.write_store` writes it, a slice at a time; here it is read as memory-mapped arrays.

    Attributes
    ----------
    train, validation
        The two sides.
    bit_depth
        Bits that the grey values use; they are divided by ``2**bit_depth - 1`` at load time.
    normalization
        What was done to grey values before: ``percentiles`` stretched each slice, ``range`` nothing.
    size
        Pixels of a patch along y and x.
    digest
        SHA-256 over layout and content, which `open` verifies.
    """

    train: Patches
    validation: Patches
    bit_depth: int
    normalization: str
    size: int
    digest: str

    def slices(self) -> SliceDistance | None:
        """Return how far apart the slices are that a network learns which begins anew: those of the thinnest stack.

        A stack of one slice does not count, whatever its voxel size: it has no neighbours.
        """
        stacks = [(side, stack) for side, stack in self._longest() if len(side.ranges[stack]) > 1]
        return slice_distance.closest([side.slice_distance(stack) for side, stack in stacks])

    def with_context_steps(self, context_step: int, learned: SliceDistance | None) -> PatchStore:
        """Return the store with the neighbours of each stack as far away as the network knows them, or copies.

        Parameters
        ----------
        context_step
            Slices from one neighbour to the next in stacks like those that the network learns from.
        learned
            How far apart the slices of these are: `slices`, or what the initial weights know.
        """
        steps = {
            stack: slice_distance.neighbour_step(context_step, learned, side.slice_distance(stack))
            if len(side.ranges[stack]) > 1
            else 0
            for side, stack in self._longest()
        }
        train, validation = (replace(side, context_steps=steps) for side in (self.train, self.validation))
        return replace(self, train=train, validation=validation)

    def _longest(self) -> list[tuple[Patches, int]]:
        """Return the stacks, each with the side that holds more of it."""
        stacks = sorted({*self.train.ranges, *self.validation.ranges})
        sides = (self.train, self.validation)
        return [(max(sides, key=lambda side: len(side.ranges.get(stack, ()))), stack) for stack in stacks]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> PatchStore:
        """Open the store at `folder`.

        Parameters
        ----------
        folder
            Where it was written.
        verify
            Read it once and compare it with the digests that it was written with.

        Raises
        ------
        InputError
            The folder is no complete store of this version, or it is damaged.
        """
        try:
            header = json.loads((folder / "store.json").read_text(encoding="utf-8"))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}")
            digests = header["sha256"]
            if digests.pop("layout") != files.short_digest(header):
                raise ValueError("store.json has changed since it was written")
            shapes = [tuple(stack["shape"]) for stack in header["stacks"]]
            train, validation = (
                Patches(
                    images=np.load(folder / side / "images.npy", mmap_mode="r", allow_pickle=False),
                    masks=np.load(folder / side / "masks.npy", mmap_mode="r", allow_pickle=False),
                    contacts=np.load(folder / side / "contacts.npy", mmap_mode="r", allow_pickle=False)
                    if header["contacts"]
                    else None,
                    index=np.load(folder / side / "index.npy", allow_pickle=False),
                    shapes=shapes,
                    datasets=[stack["dataset"] for stack in header["stacks"]],
                    spacings=[stack["spacing"] for stack in header["stacks"]],
                    step=header["step"],
                )
                for side in SPLITS
            )
            for side, patches in zip(SPLITS, (train, validation), strict=True):
                if verify and digests[side] != _digest(patches):
                    raise ValueError(f"{side} has changed since it was written")
                _check(patches, header)
        except Exception as error:  # numpy raises nearly anything for a broken header
            found = f"{type(error).__name__}: {error}"
            remedy = "run `dvc repro -f patch`"
            raise InputError(folder, found, f"a patch store of format {FORMAT}", remedy) from None
        digest = files.file_digest(folder / "store.json")
        numbers = {key: header[key] for key in ("bit_depth", "normalization", "size")}
        return cls(train, validation, digest=digest, **numbers)


def begin_digest(shape: tuple[int, ...], *dtypes: np.dtype) -> hashlib._Hash:
    """Begin the SHA-256 of one side: the shape of its images, and the types of images, masks, contacts and index.

    What follows is its content: the images, masks and, if any, contacts of each slice in turn, and then the index.
    """
    return hashlib.sha256(json.dumps([shape, *(dtype.str for dtype in dtypes)]).encode())


def _digest(patches: Patches) -> str:
    """Return the SHA-256 of one side; see `begin_digest`."""
    digest = begin_digest(patches.images.shape, *(array.dtype for array in (*patches.arrays, patches.index)))
    slices = np.flatnonzero(np.any(np.diff(patches.index[:, :2], axis=0, prepend=-1), axis=1))
    for first, last in itertools.pairwise([*slices.tolist(), len(patches)]):
        for array in patches.arrays:
            digest.update(np.ascontiguousarray(array[first:last]).data)
    digest.update(patches.index.data)
    return digest.hexdigest()


def _check(patches: Patches, header: dict[str, Any]) -> None:
    """Raise `ValueError` unless a side holds consecutive slices of its stacks, each as `cut` cuts it."""
    images, index = patches.images, patches.index
    depth, size, step = numbers = [header[key] for key in ("bit_depth", "size", "step")]
    if not all(type(number) is int and number > 0 for number in itertools.chain(numbers, *patches.shapes)):
        raise ValueError("a size that is none")
    kinds = [images.dtype in (np.uint8, np.uint16), index.dtype == np.int32]
    kinds += [array.dtype == np.uint8 for array in patches.arrays[1:]]
    are_patches = all(array.shape == (len(index), size, size) for array in patches.arrays)
    if not all(kinds) or not are_patches or index.shape[1:] != (8,):
        raise ValueError("arrays of other types or shapes")
    if depth > 8 * images.itemsize:
        raise ValueError(f"{depth} bits in {images.dtype}")
    if (index[:, 0] < 0).any() or (index[:, 0] >= len(patches.shapes)).any():
        raise ValueError("an index of stacks that are not there")
    expected = []
    for stack, held in patches.ranges.items():
        slices, *lengths = patches.shapes[stack]
        if held.start < 0 or held.stop > slices or max(lengths) > size + step * len(index):
            raise ValueError("an index of slices that are not there")
        of_a_slice = layout(*(Axis(length, size, step) for length in lengths))
        expected += [np.insert(of_a_slice, 0, [[stack], [z]], axis=1) for z in held]
    if not np.array_equal(index, np.concatenate(expected)):
        raise ValueError("an index that is not that of whole slices")
