"""The names of files that are slices of a stack: their order, what is missing among them, and copies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from glob import iglob
from itertools import pairwise
from pathlib import Path

from mitoflow.errors import InputError

# A point is part of a number after "=" and before a unit of length; a sign after "=" or "_" and where a name begins.
NUMBER = re.compile(
    r"(?<==)[+-]?\d+\.\d+"
    r"|(?:(?<=_)[+-])?\d+\.\d+(?=[nu\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}m]m)"
    r"|(?:(?<=[=_/])|^)[+-]\d+"
    r"|\d+"
)
COPY = re.compile(r"([ _-]+copy)?([ _-]*\(\d+\)| \d+)?$", re.IGNORECASE)  # "s2 - Copy", "s2 copy 2", "s2 (1)"
NAMED = 3  # files that are named where there are many


#: A name as pairs of a text and the number after it.
Parts = tuple[tuple[str, float], ...]


def matching(pattern: str) -> list[Path]:
    """Return the files and folders that match a glob, ``**`` for folders at any depth; hidden ones are left out."""
    # Path.glob takes no absolute patterns.
    return [Path(path) for path in iglob(pattern, recursive=True)]  # noqa: PTH207


def natural_order(name: str) -> Parts:
    """Order numbers within names by value: ``s2`` before ``s10``, and ``z=0.25um`` before ``z=0.5um``."""
    parts: list[tuple[str, float]] = []
    place = 0
    for number in NUMBER.finditer(name):
        parts.append((name[place : number.start()], float(number[0]) if "." in number[0] else int(number[0])))
        place = number.end()
    return (*parts, (name[place:], float("-inf")))


def refuse_copies(paths: Sequence[Path]) -> None:
    """Raise `InputError` where a folder has two files of one name but for the suffix, or a file and its copy."""
    seen: dict[tuple[Path, str], Path] = {}
    for path in paths:
        other = seen.setdefault((path.parent, path.stem), path)
        if other is not path:
            raise InputError(path, f"the name of {other.name} but for its suffix", "each file once", "take one out")
    for path in paths:
        original = seen.get((path.parent, COPY.sub("", path.stem)), path)
        if original is not path:
            remedy = "take it out, or rename it if it is no copy"
            raise InputError(path, f"what looks like a copy of {original.name}", "each file once", remedy)


def describe(paths: Sequence[Path]) -> list[str]:
    """Return notes on files that are the slices of a stack: first, last and number; warnings of what looks wrong.

    Raises
    ------
    InputError
        Names differ in a sign that may be a hyphen, such as ``z-1`` beside ``z1``.
    """
    first, last = paths[0], paths[-1]
    notes = [f"note: {first.parent}: {len(paths)} slices, {first.name} to {last.name}"]
    parts = [natural_order(path.stem) for path in paths]
    _refuse_unclear_signs(paths, parts)
    kinds: dict[tuple[str, ...], str] = {}
    for path, each in zip(paths, parts, strict=True):
        kinds.setdefault(tuple(text for text, _ in each), path.name)
    if len(kinds) > 1:
        names = ", ".join([*kinds.values()][:NAMED])
        notes.append(f"warning: {first.parent}: names of {len(kinds)} kinds, such as {names}, become one stack")
        return notes
    twice = [places for places, (one, two) in zip(pairwise(paths), pairwise(parts), strict=True) if one == two]
    if twice:
        notes.append(f"warning: {first.parent}: the same numbers in {_named(twice)}")
    if gaps := _gaps(paths, parts):
        notes.append(f"warning: {first.parent}: slices are missing between {_named(gaps)}")
    return notes


def _refuse_unclear_signs(paths: Sequence[Path], parts: Sequence[Parts]) -> None:
    seen: dict[tuple[str, ...], tuple[Path, tuple[str, ...]]] = {}
    for path, each in zip(paths, parts, strict=True):
        texts = tuple(text for text, _ in each)
        unsigned = (*(re.sub(r"[+-]$", "", text) for text in texts[:-1]), texts[-1])
        other, like = seen.setdefault(unsigned, (path, texts))
        if like != texts:
            found = f"a sign or a hyphen before a number, and {other.name} with another one or none"
            expected = "names whose order is clear, such as z_-1, z_0, z_1 or z=-1, z=0, z=1"
            raise InputError(path, found, expected, "rename them, or take those of another stack out")


def _gaps(paths: Sequence[Path], parts: Sequence[Parts]) -> list[tuple[Path, Path]]:
    """Return the files between which numbers are missing; none where names differ in several numbers."""
    numbers = [column for column in zip(*([n for _, n in each] for each in parts), strict=True) if len({*column}) > 1]
    if len(numbers) != 1:
        return []
    steps = [round(after - before, 6) for before, after in pairwise(numbers[0])]
    counts = Counter(steps)
    usual = max(counts, key=lambda step: (counts[step], -step))
    return [places for places, step in zip(pairwise(paths), steps, strict=True) if step > usual]


def _named(places: Sequence[tuple[Path, Path]]) -> str:
    more = f" ({len(places)} in all)" if len(places) > NAMED else ""
    return "; ".join(f"{one.name} and {two.name}" for one, two in places[:NAMED]) + more
