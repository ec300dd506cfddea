"""The names of files that are slices of a stack: their order, what is missing among them, and copies."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from glob import iglob
from itertools import pairwise
from pathlib import Path

from mitoflow.errors import InputError

# A point, a comma and an exponent are part of a number after "=" and before a unit of length; a sign is one after "="
# or "_", and where a name begins.
DECIMAL = r"\d+(?:[.,]\d+(?:e[+-]?\d+)?|e[+-]?\d+)"
UNIT = r"[nu\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}m]m"
NUMBER = re.compile(
    rf"(?<==)[+-]?{DECIMAL}|(?:(?<=_)[+-])?{DECIMAL}(?={UNIT})|(?:(?<=[=_/])|^)[+-]\d+|\d+", re.IGNORECASE
)
# What Windows, macOS and GNOME call a copy in several languages: "s2 - Copy", "s2 Kopie 2", "s2 (1)", "Copy of s2".
# An accent is a character of its own in names of macOS.
WORD = "copy|kopie|copie|copia|c\u00f3pia|co\u0301pia|kopia|kopi|kopio"
COPY = re.compile(
    rf"^(?:{WORD})(?: \(\d+\))?(?: (?:of|von|van|de|di|av|af))? "
    rf"|(?:[ _-]+\(?(?:{WORD})\)?)?(?:[ _-]*\(\d+\)| \d+)?$",
    re.IGNORECASE,
)
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
        parts.append((name[place : number.start()], _value(number[0])))
        place = number.end()
    return (*parts, (name[place:], float("-inf")))


def _value(number: str) -> float:
    return int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number.replace(",", "."))


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
        Names differ in a sign that may be a hyphen, such as ``z-1`` beside ``z1``, or in several numbers whose
        combinations all occur, such as those of slice and channel.
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
    return [*notes, *_describe_numbers(paths, parts)]


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


def _describe_numbers(paths: Sequence[Path], parts: Sequence[Parts]) -> list[str]:
    """Return warnings of numbers that are missing, and of several numbers none of which counts the slices."""
    columns = list(zip(*([number for _, number in each] for each in parts), strict=True))
    varying = {place: len({*column}) for place, column in enumerate(columns) if len({*column}) > 1}
    where = f"warning: {paths[0].parent}"
    if len(varying) == 1:
        gaps = _gaps(paths, columns[next(iter(varying))])
        return [f"{where}: slices are missing between {_named(gaps)}"] if gaps else []
    if not varying or max(varying.values()) == len(paths):
        return []
    found = f"names that differ in {len(varying)} numbers, such as {paths[0].name} and {paths[-1].name}"
    if math.prod(varying.values()) != len({*parts}):
        return [f"{where}: {found}, become one stack"]
    counting = max(varying, key=lambda place: varying[place])
    places = itertools.count()
    one = NUMBER.sub(lambda number: "*" if next(places) == counting else number[0], paths[0].stem)
    remedy = f"if they are channels, tiles or several stacks, name one by a glob, such as '{one}{paths[0].suffix}'"
    raise InputError(paths[0].parent, found, "one number, which counts the slices of one stack", remedy)


def _gaps(paths: Sequence[Path], numbers: Sequence[float]) -> list[tuple[Path, Path]]:
    """Return the files between which numbers are missing."""
    steps = [round(after - before, 6) for before, after in pairwise(numbers)]
    counts = Counter(steps)
    usual = max(counts, key=lambda step: (counts[step], -step))
    return [places for places, step in zip(pairwise(paths), steps, strict=True) if step > usual]


def _named(places: Sequence[tuple[Path, Path]]) -> str:
    more = f" ({len(places)} in all)" if len(places) > NAMED else ""
    return "; ".join(f"{one.name} and {two.name}" for one, two in places[:NAMED]) + more
