"""From the values of a mask to mitochondria: the rule that fits them, recognised or given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mitoflow.data.network_input import UNLABELLED
from mitoflow.errors import InputError
from mitoflow.io.tiff import Array

Rule = Literal["nonzero", "half", "partial"]

NOT_LOOKED_AT = 128  # what a mask under the rule `partial` stores where nobody said what is there
KINDS: dict[Rule, str] = {
    "partial": f"{NOT_LOOKED_AT} for pixels that nobody looked at",
    "half": "antialiased edges",
    "nonzero": "labels",
}
#: What to do with a mask without 0.
SUBTRACT_1 = "where 1 is background, as ilastik exports it, subtract 1 from all values"
BYTE, WORD = 255, 65535  # what masks with antialiased edges store for mitochondrion, in 8 and in 16 bits


class MaskValues:
    """What the values of one mask say about the rule that turns it into mitochondria.

    Four kinds of masks are in use. Masks of two values read alike under `nonzero` and `half`. Instance labels are flat:
    most pixels of a label lie among equal ones. So are masks of the values 0, 128 and 255, where 128 marks what nobody
    looked at. Antialiased edges are thin: 0 and 255, or 65535 in 16 bits, dominate, and
    hardly a pixel between them lies among equal ones. What is none of these is no mask but a grey image, unless only
    a few pixels have such values: then they may be small labels, or the end of an object with antialiased edges.

    Antialiased edges may also end at another value, such as 4095 of 12 bits: see `white`.

    Attributes
    ----------
    path
        The mask.
    values
        The values found, of which at most three are kept.
    """

    FLAT_SHARE = 0.1
    GREY_SHARE = 0.1
    SLOPE_SHARE = 0.5
    FEWEST_BETWEEN = 3

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: set[int] = set()
        self._histogram = np.zeros(2 * BYTE + 1, np.int64)  # values up to 255, then larger ones by their upper byte
        self._between = 0
        self._flat = 0
        self._largest, self._of_largest = 0, 0
        self._marked, self._on_slopes = 0, 0  # these three are numbers of inner pixels

    def add(self, mask: Array) -> None:
        """Count in one slice ``(Y, X)``.

        Raises
        ------
        InputError
            A value is negative.
        """
        low, high = int(mask.min()), int(mask.max())
        if low < 0:
            raise InputError(self.path, f"the value {low}", "0 for background and above for mitochondria", "relabel it")
        if len(self.values) <= 2:
            two_valued = bool(((mask == low) | (mask == high)).all())
            found = {low, high} if two_valued else set(np.unique(mask)[:3].tolist())
            self.values = set(sorted(self.values | found)[:3])
        if high > self._largest:
            self._largest, self._of_largest = high, 0
        coarse = _upper_byte(mask)
        self._histogram += np.bincount(coarse.ravel(), minlength=2 * BYTE + 1)
        between = (coarse > 0) & (coarse != BYTE) & (coarse < 2 * BYTE)
        if between.any():
            self._between += int(between.sum())
            self._flat += int((between[1:-1, 1:-1] & _lies_among_equals(mask)).sum())
            inner = mask[1:-1, 1:-1]
            self._of_largest += int((inner == self._largest).sum())
            self._marked += int((inner > 0).sum())
            self._on_slopes += int(_lies_on_slope(mask).sum())

    @property
    def white(self) -> int | None:
        """What stands for mitochondrion where edges are antialiased and it is neither 255 nor 65535, else None.

        This is the largest value where it and 0 dominate, and most of what is between them lies on a slope: higher on
        one side and lower on the other. Of a label, only pixels that touch a label of a higher number do.
        """
        largest, between = self._largest, self._marked - self._of_largest
        if largest in (0, BYTE) or largest >= WORD or self._on_slopes < self.SLOPE_SHARE * between:
            return None
        each_between = np.delete(self._histogram, [0, int(_upper_byte(np.array(largest)))])
        dominate = self._histogram[0] > between and self._of_largest > each_between.max()
        return largest if dominate and np.count_nonzero(each_between) >= self.FEWEST_BETWEEN else None

    @property
    def rule(self) -> Rule | None:
        """The rule that this mask needs, or None where it reads alike under `nonzero` and `half` or says too little.

        Raises
        ------
        InputError
            The values are those of a grey image.
        """
        if len(self.values) <= 2:
            return "nonzero" if 0 < max(self.values) < _half(max(self.values)) else None
        if self.white:
            return "half"
        if self._flat >= self.FLAT_SHARE * self._between:
            found = np.flatnonzero(self._histogram).tolist()
            return "partial" if found == [0, NOT_LOOKED_AT, BYTE] else "nonzero"
        black, white = self._histogram[0], self._histogram[[BYTE, -1]].max()
        commonest_between = np.delete(self._histogram, [0, BYTE, 2 * BYTE]).max()
        are_few = self._between < self.GREY_SHARE * self._histogram.sum()
        if white and (are_few or min(black, white) > commonest_between):
            return "half"
        if are_few:
            return None
        remedy = "look whether images and masks are swapped, or give --mask-rule"
        raise InputError(self.path, "the values of a grey image", "0/1, 0/255, labels or antialiased edges", remedy)


def _upper_byte(mask: Array) -> Array:
    """Return values up to 255 as they are, and larger ones as 255 and their upper byte: 256 to 510."""
    if mask.dtype == np.uint8:
        return mask
    return np.where(mask > BYTE, BYTE + np.minimum((mask >> 8).astype(np.int64), BYTE), mask).astype(np.uint16)


def _lies_among_equals(mask: Array) -> npt.NDArray[np.bool_]:
    """Return for every inner pixel whether its 3 x 3 neighbourhood has one value."""
    rows = (mask[:, :-2] == mask[:, 1:-1]) & (mask[:, 1:-1] == mask[:, 2:])
    same_above = mask[:-1, 1:-1] == mask[1:, 1:-1]
    flat: npt.NDArray[np.bool_] = rows[:-2] & rows[1:-1] & rows[2:] & same_above[:-1] & same_above[1:]
    return flat


def _lies_on_slope(mask: Array) -> npt.NDArray[np.bool_]:
    """Return for every inner pixel whether it is above 0 and has both lower and higher ones around it."""

    def around(take: np.ufunc) -> Array:
        rows = take(take(mask[:-2], mask[1:-1]), mask[2:])
        return np.asarray(take(take(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))

    inner = mask[1:-1, 1:-1]
    slope: npt.NDArray[np.bool_] = (inner > 0) & (around(np.minimum) < inner) & (inner < around(np.maximum))
    return slope


def agree_on_rule(masks: Iterable[MaskValues]) -> Rule:
    """Return the one rule that reads all ``masks``: ``nonzero`` where every rule does.

    Raises
    ------
    InputError
        Two masks need different rules, or one is a grey image.
    """
    needing: dict[Rule, Path] = {}
    for mask in masks:
        if mask.rule is not None:
            needing.setdefault(mask.rule, mask.path)
    if len(needing) > 1:
        first, second, *_ = (rule for rule in KINDS if rule in needing)
        found = f"{KINDS[first]}, but {KINDS[second]} in {needing[second]}"
        raise InputError(needing[first], found, "masks of one kind", "save them alike or give --mask-rule")
    return next(iter(needing), "nonzero")


def binarise(mask: Array, rule: Rule, white: int | None = None) -> npt.NDArray[np.uint8]:
    """Return 1 for mitochondrion, 0 for background, and under the rule ``partial`` 2 for what nobody looked at.

    Parameters
    ----------
    mask
        ``(Y, X)``, any integer type.
    rule
        ``nonzero``: every value above 0 is mitochondrion, as in 0/1, 0/255 and instance labels. ``half``: values from
        half of 255 or, where there are larger ones, of 65535 on are, as in masks with antialiased edges; 0/1, and
        numbers that need more than 16 bits, have no such edges and read as nonzero. ``partial``: as ``nonzero``, but
        128 marks pixels that nobody looked at.
    white
        What stands for mitochondrion under the rule ``half``, where it is neither 255 nor 65535; see `MaskValues`.

    Returns
    -------
    (Y, X) uint8 in {0, 1}, or in {0, 1, `UNLABELLED`}
    """
    if rule == "partial":
        return np.where(mask == NOT_LOOKED_AT, UNLABELLED, mask > 0).astype(np.uint8)
    lowest = _half(int(mask.max(initial=0)), white) if rule == "half" else 1
    return (mask >= lowest).astype(np.uint8)


def _half(largest: int, white: int | None = None) -> int:
    """Return the smallest value that is mitochondrion under the rule ``half``, in a mask with a largest value."""
    if 1 < largest <= WORD:
        return ((white or (BYTE if largest <= BYTE else WORD)) + 1) // 2
    return 1
