"""A lab's own files: which mask belongs to which image, and which slices become the test part."""

from __future__ import annotations

import math
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import tifffile

from mitoflow.core.progress import progress_bar
from mitoflow.data.cutting import split
from mitoflow.data.pairs import Pair, open_pair
from mitoflow.errors import InputError
from mitoflow.io import file_names, ome
from mitoflow.io.file_names import natural_order
from mitoflow.io.remote import Location, Url, is_url
from mitoflow.io.spacing import as_warnings, ome_metadata
from mitoflow.io.tiff import Array, Stack, joined, needs_bigtiff
from mitoflow.io.volumes import find_files, is_chunked, read_common_spacing, read_spacing


@dataclass(frozen=True)
class Sources:
    """The pairs that were found for one part.

    Attributes
    ----------
    pairs
        In natural order of their names, which are unique: where files of several folders share a name, as many folders
        come before it as it takes.
    by_order
        Whether images and masks were paired by their order, because their names do not match.
    notes
        Which files are the slices of one stack, and where some are missing, if they are consecutive.
    """

    pairs: list[Pair]
    by_order: bool
    notes: tuple[str, ...] = ()


def find_pairs(
    images: Sequence[str], masks: Sequence[str], options: tuple[str, str], *, consecutive: bool = False
) -> Sources:
    """Find the pairs among files, folders and globs.

    A mask belongs to the image with its file name, suffix aside. Where images and masks share no name at all, as in
    ``img_1.tif`` and ``mask_1.tif``, they go together in order: of the options, and naturally within a folder or glob.

    Parameters
    ----------
    images, masks
        Files, folders, globs, or addresses of images on servers.
    options
        What to call the two in errors.
    consecutive
        The files are the slices of one stack, in natural order of their names, and become one pair.

    Raises
    ------
    InputError
        There is no such file, an image has no mask or a mask no image, their sizes differ, a file cannot be used
        (`tiff.open_stack`), or an image is an output of `mitoflow predict`.
    """
    image_files, mask_files = _find_stacks(options[0], images), _find_stacks(options[1], masks)
    ome.refuse_outputs(image_files)
    shared = {path.stem for path in image_files} & {path.stem for path in mask_files}
    match = _match_names if shared else _match_order
    matches = match(image_files, mask_files, options)
    names = _unique_names([image for image, _ in matches])
    pairs = [open_pair(name, image, mask) for name, (image, mask) in zip(names, matches, strict=True)]
    pairs.sort(key=lambda pair: natural_order(pair.name))
    notes: list[str] = []
    if consecutive:
        paths = [pair.image.path for pair in pairs]
        notes = file_names.describe(paths)
        read_common_spacing(paths, as_warnings(notes.append))
        image, mask = (joined([getattr(pair, kind) for pair in pairs]) for kind in ("image", "mask"))
        pairs = [Pair(pairs[0].name, image, mask)]
    return Sources(pairs, by_order=len(shared) < len(matches), notes=tuple(notes))


def _find_stacks(option: str, patterns: Sequence[str]) -> list[Location]:
    """Return the files that are named, as `find_files` finds them, then OME-Zarrs and HDF5 datasets, then addresses."""
    addresses = [Url(pattern) for pattern in patterns if is_url(pattern)]
    local = [pattern for pattern in patterns if not is_url(pattern)]
    chunked = [pattern for pattern in local if is_chunked(Path(pattern))]
    others = [pattern for pattern in local if pattern not in chunked]
    found: list[Location] = [*find_files(option, others)] if others else []
    for pattern in chunked:
        found += sorted(file_names.matching(pattern), key=lambda path: natural_order(str(path))) or [Path(pattern)]
    return [*dict.fromkeys([*found, *addresses])]


def _match_names(
    images: list[Location], masks: list[Location], options: tuple[str, str]
) -> list[tuple[Location, Location]]:
    """Match equal names; where files of several folders share a name, they go together in order."""
    waiting = dict(zip(_occurrences(masks), masks, strict=True))
    matches = []
    for name, image in zip(_occurrences(images), images, strict=True):
        if name not in waiting:
            remedy = "add it, or leave the image out"
            raise InputError(image, "an image without mask", f"{image.name} in {options[1]}", remedy)
        matches.append((image, waiting.pop(name)))
    for mask in waiting.values():
        remedy = "add it, or leave the mask out"
        raise InputError(mask, "a mask without image", f"{mask.name} in {options[0]}", remedy)
    return matches


def _occurrences(paths: Iterable[Location]) -> list[tuple[str, int]]:
    """Number the files that share a name."""
    seen: Counter[str] = Counter()
    names = []
    for path in paths:
        names.append((path.stem, seen[path.stem]))
        seen[path.stem] += 1
    return names


def _match_order(
    images: list[Location], masks: list[Location], options: tuple[str, str]
) -> list[tuple[Location, Location]]:
    """Match the first with the first; numbers in the names must not contradict it."""
    if len(images) != len(masks):
        found = f"{len(images)} and {len(masks)} files that share no name"
        raise InputError(" and ".join(options), found, "a mask for each image", "name each mask as its image")
    for image, mask in zip(images, masks, strict=True):
        numbers, others = re.findall(r"\d+", image.stem), re.findall(r"\d+", mask.stem)
        if len(numbers) == len(others) and [*map(int, numbers)] != [*map(int, others)]:
            remedy = "add what is missing, or name each mask as its image"
            raise InputError(image, f"{mask} in the place of its mask", "the same numbers in both names", remedy)
    return list(zip(images, masks, strict=True))


def _unique_names(paths: list[Location]) -> list[str]:
    """Return names for files in one folder, unique also on file systems that ignore case."""
    absolute = [path.path if isinstance(path, Url) else path.absolute() for path in paths]
    parts = [path.with_suffix("").parts for path in absolute]
    for length in range(1, max(map(len, parts))):
        names = ["_".join(p[1:][-length:]) for p in parts]
        if len({name.casefold() for name in names}) == len(names):
            return names
    raise InputError(paths[0], "files that differ in their suffix alone", "names that differ", "rename one of them")


@dataclass(frozen=True)
class Excerpt:
    """Slices ``start`` to ``stop`` of a pair, on their way into ``data/`` under a name."""

    pair: Pair
    start: int
    stop: int
    name: str

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Bytes that image and mask need, written."""
        return sum(
            stack.path.stat().st_size
            if self._is_copied(stack)
            else self.depth * math.prod(stack.shape[1:]) * stack.dtype.itemsize
            for stack in (self.pair.image, self.pair.mask)
        )

    def _is_copied(self, stack: Stack) -> bool:
        """Return whether all of a file is taken."""
        return stack.is_file and self.depth == stack.shape[0]

    def write(self, folder: Path, done: Callable[[int], object]) -> None:
        """Write the slices to ``folder``/images and ``folder``/masks, and report to ``done`` how many, as it goes.

        A whole file is copied byte for byte; otherwise a slice at a time is in memory, and of what else the file of an
        image says its voxel size is kept, as OME-XML.
        """
        for stack, kind in ((self.pair.image, "images"), (self.pair.mask, "masks")):
            target = folder / kind / f"{self.name}.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._is_copied(stack):
                shutil.copyfile(stack.path, target)
                done(self.depth)
            else:
                self._write_slices(stack, target, done)

    def _write_slices(self, stack: Stack, target: Path, done: Callable[[int], object]) -> None:
        def slices() -> Iterator[Array]:
            for z in range(self.start, self.stop):
                yield stack.slice(z)
                done(1)

        shape, metadata = (self.depth, *stack.shape[1:]), None
        if stack is self.pair.image and (spacing := read_spacing(stack.location)):
            # tifffile would draw an identity at random, and the same import would not give the same bytes.
            identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{target.name} {self.start} {self.stop}")
            metadata = {**ome_metadata("zyx", spacing), "UUID": identity.urn}
        large = needs_bigtiff(shape, stack.dtype)
        with tifffile.TiffWriter(target, bigtiff=large, ome=metadata is not None) as file:
            file.write(
                slices(), shape=shape, dtype=stack.dtype, photometric="minisblack", metadata=metadata, software=False
            )


def whole(pairs: Sequence[Pair]) -> list[Excerpt]:
    """Return every pair from its first to its last slice."""
    return [Excerpt(pair, 0, pair.image.shape[0], pair.name) for pair in pairs]


def single_slices(pairs: Sequence[Pair]) -> list[Excerpt]:
    """Return every slice by itself, named by its stack and its z: what slices are that are no neighbours.

    Raises
    ------
    InputError
        Two slices get one name, as the second one of ``cell.tif`` and the only one of ``cell_1.tif``.
    """
    slices: dict[str, Excerpt] = {}
    for pair in pairs:
        for z in range(pair.image.shape[0]):
            name = f"{pair.name}_{z}" if pair.image.shape[0] > 1 else pair.name
            other = slices.setdefault(name.casefold(), Excerpt(pair, z, z + 1, name))
            if other.pair is not pair:
                found = f"slice {z}, which gets the name {name} as slice {other.start} of {other.pair.image.location}"
                raise InputError(pair.image.location, found, "names that differ", "rename one of the files")
    return [*slices.values()]


def hold_out_slices(slices: Sequence[Excerpt], fraction: float) -> tuple[list[Excerpt], list[Excerpt]]:
    """Take the last of slices that are no neighbours for testing, at least one; see `hold_out`.

    Raises
    ------
    InputError
        There is a single slice.
    """
    held_out = max(1, round(fraction * len(slices)))
    if held_out >= len(slices):
        expected = "one for each part"
        raise InputError("--images", f"{len(slices)} slices", expected, "add some, or give --test-fraction 0")
    return list(slices[:-held_out]), list(slices[-held_out:])


def hold_out(pairs: Sequence[Pair], fraction: float, gap: int) -> tuple[list[Excerpt], list[Excerpt]]:
    """Take the last part of each stack in z for testing, and leave out slices before it, as `cutting.split` does.

    Parameters
    ----------
    pairs
        Single pages count together, in their order, as one stack.
    fraction
        Share of the slices that tests, above 0 and below 1.
    gap
        Slices left out between the two parts.

    Returns
    -------
    The excerpts to train on, and those to test on.

    Raises
    ------
    InputError
        No stack is long enough.
    """
    depths = [pair.image.shape[0] for pair in pairs]
    sides = split(depths, fraction, gap)
    if not sides["validation"]:
        found = f"at most {max(*depths, depths.count(1))} consecutive slices"
        expected = f"enough for --test-fraction {fraction:g} behind --gap {gap}, and for training before it"
        remedy = "lower one of them, give --test-images and --test-masks, or --test-fraction 0 to train alone"
        raise InputError("--images", found, expected, remedy)
    return _excerpts(pairs, sides["train"]), _excerpts(pairs, sides["validation"])


def _excerpts(pairs: Sequence[Pair], slices: list[tuple[int, int]]) -> list[Excerpt]:
    by_stack = ((pairs[stack], [z for _, z in group]) for stack, group in groupby(slices, key=lambda place: place[0]))
    return [Excerpt(pair, places[0], places[-1] + 1, pair.name) for pair, places in by_stack]


def _require_room(excerpts_by_folder: Mapping[Path, Sequence[Excerpt]]) -> None:
    """Raise `InputError` where the disk has less room than the excerpts need, before hours of copying."""
    folder = next(iter(excerpts_by_folder)).absolute()
    needed = sum(excerpt.size for excerpts in excerpts_by_folder.values() for excerpt in excerpts)
    free = shutil.disk_usage(next(place for place in folder.parents if place.exists())).free
    if needed > free:
        found, expected = f"{free / 1e9:.1f} GB of free disk", f"{needed / 1e9:.1f} GB for images and masks"
        raise InputError(Path.cwd(), found, expected, "make room, or import a part of the stacks")


def write_excerpts(excerpts_by_folder: Mapping[Path, Sequence[Excerpt]]) -> dict[Path, str]:
    """Write excerpts into ``images`` and ``masks`` of their folders, with a progress bar.

    Returns
    -------
    The file that each written file comes from.

    Raises
    ------
    InputError
        The disk has no room for them, or as for `Stack.slice`.
    """
    _require_room(excerpts_by_folder)
    slices = 2 * sum(excerpt.depth for excerpts in excerpts_by_folder.values() for excerpt in excerpts)
    with progress_bar(desc="data", total=slices, unit="slice") as bar:
        for folder, excerpts in excerpts_by_folder.items():
            for excerpt in excerpts:
                excerpt.write(folder, bar.update)
    return {
        folder / kind / f"{excerpt.name}.tif": str(stack.location)
        for folder, excerpts in excerpts_by_folder.items()
        for excerpt in excerpts
        for kind, stack in (("images", excerpt.pair.image), ("masks", excerpt.pair.mask))
    }
