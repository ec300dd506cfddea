"""A part of a stack."""

from __future__ import annotations

from dataclasses import dataclass

from mitoflow.io.tiff import Box


@dataclass(frozen=True)
class Part:
    """A part of a stack: consecutive slices, and the box of each of them."""

    slices: range
    box: Box

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        y0, y1, x0, x1 = self.box
        return len(self.slices), y1 - y0, x1 - x0

    @property
    def name(self) -> str:
        """The name of its first voxel, unique among the blocks of an output."""
        return f"{self.slices.start}-{self.box[0]}-{self.box[2]}"

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """The slices of an array (Z, Y, X) that it covers."""
        y0, y1, x0, x1 = self.box
        return slice(self.slices.start, self.slices.stop), slice(y0, y1), slice(x0, x1)
