"""From the values of a mask to mitochondria: the rule that fits them, recognised or given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mitoflow.errors import InputError
from mitoflow.io.tiff import Array

Rule = Literal["nonzero", "half"]


class MaskValues:
    """What the values of one mask say about the rule that turns it into mitochondria.

    Three kinds of masks are in use. Masks of two values read alike under both rules. Instance labels are flat: most
    pixels of a label lie among equal ones. Antialiased edges are thin: 0 and 255 dominate, and hardly a pixel between
    them lies among equal ones. What is neither flat nor dominated by 0 and 255 is no mask but a grey image.

    Attributes
    ----------
    path
        The mask.
    values
        The values found, of which at most three are kept.
    """

    FLAT_SHARE = 0.1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: set[int] = set()
        self._histogram = np.zeros(256, np.int64)
        self._between = 0
        self._flat = 0

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
        between = mask > 0
        if mask.dtype == np.uint8:
            self._histogram += np.bincount(mask.ravel(), minlength=256)
            between &= mask < 255
        if between.any():
            self._between += int(between.sum())
            self._flat += int((between[1:-1, 1:-1] & _lies_among_equals(mask)).sum())

    @property
    def rule(self) -> Rule | None:
        """The rule that this mask needs, or None where it reads alike under both.

        Raises
        ------
        InputError
            The values are those of a grey image.
        """
        commonest_between = self._histogram[1:255].max()
        if len(self.values) <= 2:
            lost_by_half = commonest_between > 0 and 1 < max(self.values) < 128
            return "nonzero" if lost_by_half else None
        if self._flat >= self.FLAT_SHARE * self._between:
            return "nonzero"
        if min(self._histogram[0], self._histogram[255]) > commonest_between:
            return "half"
        remedy = "look whether images and masks are swapped, or give --mask-rule"
        raise InputError(self.path, "the values of a grey image", "0/1, 0/255, labels or antialiased edges", remedy)


def _lies_among_equals(mask: Array) -> npt.NDArray[np.bool_]:
    """Return for every inner pixel whether its 3 x 3 neighbourhood has one value."""
    rows = (mask[:, :-2] == mask[:, 1:-1]) & (mask[:, 1:-1] == mask[:, 2:])
    same_above = mask[:-1, 1:-1] == mask[1:, 1:-1]
    flat: npt.NDArray[np.bool_] = rows[:-2] & rows[1:-1] & rows[2:] & same_above[:-1] & same_above[1:]
    return flat


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
    if len(needing) == 2:
        found = f"antialiased edges, but labels in {needing['nonzero']}"
        raise InputError(needing["half"], found, "masks of one kind", "save them alike or give --mask-rule")
    return next(iter(needing), "nonzero")


def binarise(mask: Array, rule: Rule) -> npt.NDArray[np.uint8]:
    """Return 1 for mitochondrion and 0 for background.

    Parameters
    ----------
    mask
        ``(Y, X)``, any integer type.
    rule
        ``nonzero``: every value above 0 is mitochondrion, as in 0/1, 0/255 and instance labels. ``half``: 8-bit values
        from 128 on are, as in masks with antialiased edges; 0/1 and wider types have no such edges and read as nonzero.

    Returns
    -------
    (Y, X) uint8 in {0, 1}
    """
    if rule == "half" and mask.dtype == np.uint8 and mask.max(initial=0) > 1:
        return (mask > 127).astype(np.uint8)
    return (mask > 0).astype(np.uint8)
