"""A stack as a model takes it: its grey values, and which neighbouring slices are seen.

Files, arrays, requests to the server and the test part of `evaluate` all go through these functions, so that the same
pixels give the same masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mitoflow.data import network_input, slice_distance
from mitoflow.data.network_input import Box
from mitoflow.data.slice_distance import ELONGATED, SliceDistance, is_elongated
from mitoflow.errors import InputError
from mitoflow.inference.settings import Settings

if TYPE_CHECKING:
    from mitoflow.io.volumes import Volume  # the registered model runs without what reads files

#: Which neighbouring slices are used: as the distance of the slices says, none, or as in training in any case.
NEIGHBOURS = ("auto", "none", "all")

TOGETHER = 8  # slices whose grey values are looked at one after the other: those of one chunk of an OME-Zarr


class ArrayVolume:
    """An array (Z, Y, X) as a `Volume` of unknown voxel size.

    Raises
    ------
    InputError
        It is no stack of slices, or holds no numbers.
    """

    def __init__(self, images: np.ndarray) -> None:
        if images.ndim != 3 or (len(images) and 0 in images.shape):
            raise InputError("images", f"an array of shape {images.shape}", "slices (Z, Y, X)", "change its axes")
        if images.dtype.kind not in "uif":
            raise InputError("images", f"{images.dtype}", "grey values", "convert the images")
        self._images, self.axes = images, "zyx"
        self.shape: tuple[int, int, int] = (len(images), images.shape[1], images.shape[2])
        self.origin: tuple[float, ...] = (0.0, 0.0, 0.0)
        self.dtype, self.spacing = images.dtype, dict[str, float]()
        self.files: list[Path] = []

    def read(self, z: int, box: Box) -> np.ndarray:
        """See `Volume`."""
        y0, y1, x0, x1 = box
        return self._images[z, y0:y1, x0:x1]

    def state(self) -> list[Any]:
        """See `Volume`."""
        return []


class StretchedVolume:
    """A volume with each slice stretched to 8 bits by the grey values of all of it; see `network_input.slice_range`.

    A box is the same wherever the volume is cut. Each range is found once and takes 16 bytes.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.axes, self.shape, self.spacing, self.files = volume.axes, volume.shape, volume.spacing, volume.files
        self.origin, self.dtype = volume.origin, np.dtype(np.uint8)
        self._ranges = np.full((self.shape[0], 2), np.nan)

    def read(self, z: int, box: Box) -> np.ndarray:
        """See `Volume`."""
        if np.isnan(self._ranges[z, 0]):
            first = z // TOGETHER * TOGETHER
            for each in range(first, min(first + TOGETHER, self.shape[0])):
                read = partial(self._volume.read, each)
                self._ranges[each] = network_input.slice_range(read, self.shape[1:])
        low, high = self._ranges[z].tolist()
        return network_input.stretched(self._volume.read(z, box), low, high)

    def state(self) -> list[Any]:
        """See `Volume`."""
        return [*self._volume.state(), "percentiles"]


def normalized(volume: Volume, settings: Settings) -> Volume:
    """Return a volume with the grey values that a model takes.

    Resampling comes after it, as in training: there slices are stretched as they are stored, and crops are zoomed
    later. So the range of a slice does not depend on the scale at which it is predicted.
    """
    return StretchedVolume(volume) if settings.normalization == "percentiles" else volume


def blank_slices(volume: Volume) -> frozenset[int]:
    """Return the slices of a volume that show nothing: one grey value in every pixel. Their mask is empty."""
    return frozenset(
        z for z in range(volume.shape[0]) if network_input.is_blank(partial(volume.read, z), volume.shape[1:])
    )


@dataclass(frozen=True)
class Decision:
    """How a stack is predicted.

    Attributes
    ----------
    settings
        Those of the model, with the neighbours, the median along z and the planes that suit the stack.
    notes
        What was decided and why, for the user; nothing where there was nothing to decide.
    """

    settings: Settings
    notes: list[str]


def decide(settings: Settings, volume: Volume, neighbours: str = "auto") -> Decision:
    """Decide which neighbouring slices, which median along z and which planes a stack is predicted with.

    Parameters
    ----------
    settings
        Those of the model.
    volume
        The whole stack as the network sees it, whatever part of it is predicted.
    neighbours
        One of `NEIGHBOURS`. By default `mitoflow.data.slice_distance` decides; with ``none`` each slice is predicted by
        itself, and with ``all`` everything is done as in training.
    """
    by_itself = replace(settings, context_step=0, median=1, orthoplanes=False)
    if volume.shape[0] < 2 or neighbours == "none":
        return Decision(by_itself, [])
    if not (settings.orthoplanes or settings.median > 1 or (settings.context and settings.context_step)):
        return Decision(settings, [])
    if neighbours == "all":
        uses_planes, why = _uses_orthoplanes(settings, volume, SliceDistance())
        return Decision(replace(settings, orthoplanes=uses_planes), why)
    seen = slice_distance.measure(volume.read, volume.shape, volume.spacing)
    if seen.is_unrelated:
        what = "neighbouring slices show different things: each is predicted by itself"
        hint = "; with a folder as OUTPUT each file gets a mask of its own" if len(volume.files) > 1 else ""
        return Decision(by_itself, [what + hint])
    is_close = slice_distance.is_as_close(settings.slices, seen)
    step = slice_distance.neighbour_step(settings.context_step, settings.slices, seen)
    uses_planes, why = _uses_orthoplanes(settings, volume, seen)
    median = settings.median if is_close else 1
    chosen = replace(settings, context_step=step, median=median, orthoplanes=uses_planes)
    return Decision(chosen, [*_explain(settings, chosen, seen), *why])


def _explain(settings: Settings, chosen: Settings, seen: SliceDistance) -> list[str]:
    """Say which neighbours are used, where the model knows how far apart those of training are."""
    if settings.slices is None:
        return []
    said = []
    if settings.context and settings.context_step:
        step = chosen.context_step
        said.append(f"neighbours {step} slices apart" if step else "no neighbouring slices")
    if chosen.median != settings.median:
        said.append("no median along z")
    known = settings.slices
    if not (seen.nm and known.nm):  # compared as they were estimated
        seen, known = replace(seen, nm=None), replace(known, nm=None)
    return [f"{' and '.join(said)}, as slices are {seen}, {known} in training"] if said else []


def _uses_orthoplanes(settings: Settings, volume: Volume, seen: SliceDistance) -> tuple[bool, list[str]]:
    """Return whether a stack is predicted in orthogonal planes, and what there is to say about it."""
    if not settings.orthoplanes:
        return False, []
    is_known = {*"zyx"} <= volume.spacing.keys()
    if is_known and is_elongated(volume.spacing):
        why = "voxels are not about as long as they are wide"
    elif not is_known and seen.pixels and not 1 / ELONGATED <= seen.pixels <= ELONGATED:
        why = f"voxels seem to be {seen.pixels:.1f} times as long as they are wide (--voxel-size says it)"
    elif not settings.uses_orthoplanes(volume.shape):
        why = f"there are fewer than {settings.divisor} slices"
    elif is_known or seen.pixels:
        return True, []
    else:
        return True, ["the voxel size is unknown: voxels count as cubes; if they are not, give --voxel-size"]
    return False, [f"no orthogonal planes, as {why}"]
