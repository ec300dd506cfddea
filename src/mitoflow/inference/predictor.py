"""A model and slices in, a blended probability map out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from mitoflow.data import network_input
from mitoflow.errors import InputError
from mitoflow.inference import model_input
from mitoflow.inference.median import median_along_z
from mitoflow.inference.networks import Network, engine, prepared, read_network
from mitoflow.inference.settings import TTA, Settings

if TYPE_CHECKING:
    from mitoflow.io.tiff import Box  # the registered model runs without what reads files
    from mitoflow.io.volumes import Volume

CONTACT = 0.5  # probability from which two mitochondria touch at a pixel
BATCH = 2**19  # pixels that go through the network together: what it needs does not grow with the tiles

#: Called with the share, in [0, 1], of the planes along y and x that is predicted.
PlaneProgress = Callable[[float], object]
#: Called with a slice, z, and the probability that two mitochondria touch at its pixels, (Y, X) float32 in [0, 1].
OnContacts = Callable[[int, np.ndarray], object]
#: Reads slice z of a stack, or of a part of it, (Y, X) uint8 or uint16.
Read = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class TileSpan:
    """The tiles along one axis of a slice that reach into some of its pixels.

    Attributes
    ----------
    low, high
        First and past-the-end pixel that is wanted.
    tile
        Pixels of a tile.
    starts
        First pixel of each tile.
    pixels
        Which pixel of the slice lies at each place from the start of the first tile to the end of the last.
    """

    low: int
    high: int
    tile: int
    starts: list[int]
    pixels: np.ndarray

    @property
    def wanted(self) -> slice:
        """The places that are wanted."""
        return slice(self.low - self.starts[0], self.high - self.starts[0])

    @property
    def places(self) -> list[slice]:
        """The places of each tile."""
        return [slice(start - self.starts[0], start - self.starts[0] + self.tile) for start in self.starts]


@dataclass(frozen=True)
class TileRegion:
    """A box of a slice, by the tiles that reach into it along y and along x; `Predictor.region` makes it.

    Attributes
    ----------
    rows, columns
        The tiles along each axis.
    shape
        (Y, X) of the slice.
    source
        The box of the slice that it is predicted from.
    """

    rows: TileSpan
    columns: TileSpan
    shape: tuple[int, int]
    source: Box


class Predictor:
    """Whole-slice inference with overlapping, blended tiles.

    A slice is cut into as few tiles of at most ``tile`` pixels as will do, and these are no larger than they must be.
    Each starts ``overlap`` pixels before the last one ends, which keeps the U-Net's pooling grid in place, and the
    slice is continued by reflection where the last tile reaches past its end. Across the pixels that two neighbours
    share, the weight of one falls linearly while that of the other rises, so that the map has no seams.

    A box of a slice is predicted from the tiles of the whole slice that reach into it, and from no other pixels. So it
    makes no difference in how many boxes a slice is predicted.

    With orthogonal planes, those perpendicular to y and to x are predicted as slices are, and a voxel gets the mean of
    the three. The network sees each structure from three sides, and errors that depend on the side average out; voxels
    must be about as long as they are wide. See `Settings.uses_orthoplanes`.

    Source: Prasoon et al., "Deep Feature Learning for Knee Cartilage Segmentation Using a Triplanar Convolutional
    Neural Network", MICCAI 2013; Conrad and Narayan, "Instance segmentation of mitochondria in electron microscopy
    images with a generalist deep learning model trained on a diverse dataset", Cell Systems 14(1), 2023.

    Parameters
    ----------
    model
        From (N, Y, X, 2 context + 1) float32 in [0, 1] to (N, Y, X, 1) logits, or to (N, Y, X, 2) with
        `Settings.contacts`: a model of Keras, or what `networks.read_network` returns.
    settings
        See `Settings`.

    Attributes
    ----------
    blank
        The slices of the stack at hand that show nothing; see `model_input.blank_slices`.
    """

    def __init__(self, model: Network, settings: Settings) -> None:
        self.model, self.settings = prepared(model), settings
        self.blank: frozenset[int] = frozenset()

    @classmethod
    def load(cls, model_path: Path, settings_path: Path) -> Predictor:
        """Read a model and its settings.

        Raises
        ------
        InputError
            One of them is missing or broken, or the network is not of the kind that mitoflow trains.
        """
        settings = Settings.read(Path(settings_path))
        return cls(read_network(Path(model_path), settings), settings)

    def with_settings(self, settings: Settings, blank: frozenset[int] = frozenset()) -> Predictor:
        """Return a predictor with other settings and the same network, which is neither folded nor compiled again."""
        other = copy.copy(self)
        other.settings, other.blank = settings, blank
        return other

    def masks(self, images: np.ndarray) -> np.ndarray:
        """Return (Z, Y, X) uint8 in {0, 1} for a stack (Z, Y, X); see `probabilities`."""
        return (self.probabilities(images) >= self.settings.threshold).astype(np.uint8)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of mitochondrion in [0, 1], (Z, Y, X) float32, for consecutive slices (Z, Y, X).

        Whether neighbours are used depends on how far apart the slices are; see `prepared`.

        Raises
        ------
        InputError
            The images are no slices, or their bit depth is not that of the training images.
        """
        predictor, read = self.for_volume(model_input.ArrayVolume(images))
        probabilities = np.empty(images.shape, np.float32)
        for z, probability in enumerate(predictor.stream(read, range(len(images)))):
            probabilities[z] = probability
        return probabilities

    def for_volume(self, volume: Volume) -> tuple[Predictor, Read]:
        """Return the predictor with the settings for a stack, and what reads whole slices of it as the network does.

        See `mitoflow.inference.model_input`.
        """
        seen = model_input.normalized(volume, self.settings)
        whole = (0, volume.shape[1], 0, volume.shape[2])
        settings = model_input.decide(self.settings, seen).settings
        return self.with_settings(settings, model_input.blank_slices(volume)), lambda z: seen.read(z, whole)

    def region(self, shape: tuple[int, ...], box: Box | None = None) -> TileRegion:
        """Return how the box of a slice of `shape` (Y, X), or all of it, is predicted."""
        height, width = shape
        y0, y1, x0, x1 = box or (0, height, 0, width)
        rows, columns = self._span(height, y0, y1), self._span(width, x0, x1)
        # A plane along z sees its neighbours too, which may lie further out than any tile of a slice.
        near = self.settings.context * self.settings.context_step if self.settings.orthoplanes else 0
        source = (
            max(0, min(int(rows.pixels.min()), y0 - near)),
            min(height, max(int(rows.pixels.max()) + 1, y1 + near)),
            max(0, min(int(columns.pixels.min()), x0 - near)),
            min(width, max(int(columns.pixels.max()) + 1, x1 + near)),
        )
        return TileRegion(rows, columns, (height, width), source)

    def slab_region(self, shape: tuple[int, ...], box: Box, axis: int) -> TileRegion:
        """Return how the planes of a box that are perpendicular to y (axis 1) or to x (axis 2) are predicted.

        As `region` does, but for the source, which has no other planes than these and their neighbours.
        """
        region, near = self.region(shape, box), self.settings.context * self.settings.context_step
        y0, y1, x0, x1 = region.source
        if axis == 1:
            y0, y1 = max(0, box[0] - near), min(shape[0], box[1] + near)
        else:
            x0, x1 = max(0, box[2] - near), min(shape[1], box[3] + near)
        return replace(region, source=(y0, y1, x0, x1))

    def needed(self, wanted: range, held: range) -> range:
        """Return the slices of which the median along z needs the maps, for the slices that are wanted."""
        half = self.settings.median // 2
        return range(max(held.start, wanted.start - half), min(held.stop, wanted.stop + half))

    def stream(
        self,
        read: Read,
        held: range,
        wanted: range | None = None,
        region: TileRegion | None = None,
        on_planes: PlaneProgress | None = None,
        sums: Callable[[int], np.ndarray] | None = None,
        on_contacts: OnContacts | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the probability map of each slice of a stack, (Y, X) float32 in [0, 1], in bounded memory.

        Of blank slices the maps are 0. In orthogonal planes, those perpendicular to y and to x are predicted before the
        first map comes, and the stack is held in memory for that, unless `sums` has them already.

        Parameters
        ----------
        read
            Reads slice z of the stack; where a `region` is given, its `source` of that slice.
        held
            The consecutive slices that there are.
        wanted
            The consecutive slices to predict, which see those around them all the same; without it all.
        region
            The box of the slices to predict; without it they are predicted as a whole.
        on_planes
            See `PlaneProgress`.
        sums
            Returns of slice z the sum of the maps of the planes perpendicular to y and to x, (Y, X) float16 in [0, 2].
        on_contacts
            Called for each slice before its map comes, and for those that the median needs; for `Settings.contacts`.
            Contacts are those of the slices: the network learns them there, and no planes and no median are taken.

        Raises
        ------
        ValueError
            Contacts are wanted of a network that does not say them.
        """
        if on_contacts and not self.settings.contacts:
            raise ValueError("this network does not say where mitochondria touch")
        wanted = held if wanted is None else wanted
        near = self.needed(wanted, held)
        unfiltered = self.stream_unfiltered(read, held, near, region, on_planes, sums, on_contacts)
        maps = median_along_z(unfiltered, self.settings.median)
        first = wanted.start - near.start
        for z, probability in zip(wanted, islice(maps, first, first + len(wanted)), strict=True):
            yield np.zeros_like(probability) if z in self.blank else probability

    def stream_unfiltered(
        self,
        read: Read,
        held: range,
        wanted: range | None = None,
        region: TileRegion | None = None,
        on_planes: PlaneProgress | None = None,
        sums: Callable[[int], np.ndarray] | None = None,
        on_contacts: OnContacts | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield what `stream` does, without the median along z."""
        wanted = held if wanted is None else wanted
        if sums is not None:
            for z, probability in zip(wanted, self._slices(read, held, wanted, region, on_contacts), strict=True):
                yield (sums(z) + probability) / 3
            return
        if region is None and wanted and self.settings.orthoplanes:
            region = self.region(_slice(read(held.start)).shape)
        if region is None or not self.settings.uses_orthoplanes((len(held), *region.shape)):
            yield from self._slices(read, held, wanted, region, on_contacts)
            return
        volume = np.stack([self.checked(_slice(read(z))) for z in held])
        planes = self._orthogonal_planes(
            volume, range(wanted.start - held.start, wanted.stop - held.start), region, on_planes
        )
        slices = self._slices(lambda z: volume[z - held.start], held, wanted, region, on_contacts)
        for plane, probability in zip(planes, slices, strict=True):
            yield (plane + probability) / 3

    def _orthogonal_planes(
        self, volume: np.ndarray, wanted: range, region: TileRegion, on_planes: PlaneProgress | None
    ) -> np.ndarray:
        """Return the sum of the maps of the planes perpendicular to y and to x, (Z, Y, X) float16 in [0, 2].

        Parameters
        ----------
        volume
            (Z, Y, X): the source of `region` in every slice of the stack.
        wanted
            The slices that are wanted, counted from the first one.
        region
            The box of these slices.
        on_planes
            See `PlaneProgress`.
        """
        total = np.zeros((len(wanted), *(span.high - span.low for span in (region.rows, region.columns))), np.float16)
        count, done = sum(total.shape[1:]), 0
        for axis in (1, 2):
            maps = self.planes(volume, axis, wanted, region)
            for summed, plane in zip(np.moveaxis(total, axis, 0), maps, strict=True):
                summed += plane
                done += 1
                if on_planes:
                    on_planes(done / count)
        return total

    def planes(self, volume: np.ndarray, axis: int, wanted: range, region: TileRegion) -> Iterator[np.ndarray]:
        """Yield the map of each plane of a region that is perpendicular to an axis, (Z, Y) or (Z, X) float32 in [0, 1].

        Parameters
        ----------
        volume
            (Z, Y, X): the source of `region` in every slice of the stack.
        axis
            1 for y, 2 for x.
        wanted
            The slices that are wanted, counted from the first one.
        region
            The box of these slices.
        """
        spans, starts = (region.rows, region.columns), (region.source[0], region.source[2])
        span, start, length = spans[axis - 1], starts[axis - 1], region.shape[axis - 1]
        along_z = self._span(len(volume), wanted.start, wanted.stop)
        shape, source = (len(volume), region.shape[2 - axis]), (0, len(volume), starts[2 - axis], 0)
        plane = TileRegion(along_z, spans[2 - axis], shape, source)
        seen = np.moveaxis(volume, axis, 0)
        for place in range(span.low, span.high):
            near = network_input.neighbours(place, self.settings.context, self.settings.context_step, range(length))
            yield self._blend([seen[each - start] for each in near], plane)[0]

    def _slices(
        self, read: Read, held: range, wanted: range, region: TileRegion | None, on_contacts: OnContacts | None
    ) -> Iterator[np.ndarray]:
        """Yield the map of each slice by itself; see `stream`."""
        window: dict[int, np.ndarray] = {}
        for z in wanted:
            near = network_input.neighbours(z, self.settings.context, self.settings.context_step, held)
            # Each slice is read once, and stays as long as a later one needs it.
            window = {place: image for place, image in window.items() if place >= near[0]}
            window |= {place: self.checked(_slice(read(place))) for place in sorted({*near} - window.keys())}
            images = [window[place] for place in near]
            maps = self._blend(images, region or self.region(images[0].shape), outputs=2 if on_contacts else 1)
            if on_contacts:
                on_contacts(z, np.zeros_like(maps[1]) if z in self.blank else maps[1])
            yield maps[0]

    def patch_probabilities(self, patches: np.ndarray) -> np.ndarray:
        """Return (N, Y, X) float32 in [0, 1] for patches with their neighbours, (N, Y, X, 2 context + 1).

        Each is predicted by itself, as it is, without tiling. Sides are divisible by `Settings.divisor`; raises like
        `probabilities`.
        """
        units = self._unit(np.stack([self.checked(patch) for patch in patches]))
        count = _batch(*units.shape[1:3])
        firsts = range(0, len(units), count)
        return np.concatenate([self.run_network(units[first : first + count])[..., 0] for first in firsts])

    def _blend(self, images: list[np.ndarray], region: TileRegion, outputs: int = 1) -> np.ndarray:
        """Return the maps of a region, (outputs, Y, X) float32 in [0, 1], from its source in a slice and neighbours."""
        rows, columns = region.rows, region.columns
        top, _, left, _ = region.source
        across, along = self._ramp(rows.tile), self._ramp(columns.tile)
        source = np.stack([image[rows.pixels - top][:, columns.pixels - left] for image in images], axis=-1)
        total = np.zeros((outputs, *source.shape[:2]), np.float32)
        places = [(y, x) for y in rows.places for x in columns.places]
        count = _batch(rows.tile, columns.tile)
        for first in range(0, len(places), count):
            batch = places[first : first + count]
            tiles = np.stack([source[place] for place in batch])
            for (y, x), tile in zip(batch, self.tile_maps(self._unit(tiles), outputs), strict=True):
                total[:, y, x] += np.outer(across, along) * np.moveaxis(tile, -1, 0)
        weight = np.outer(_overlapped(rows, across), _overlapped(columns, along))
        return np.minimum(total[:, rows.wanted, columns.wanted] / weight, 1)  # rounding goes past it

    def tile_maps(self, batch: np.ndarray, outputs: int = 1) -> np.ndarray:
        """Return the mean probabilities over the symmetries of a batch of tiles, (N, Y, X, outputs) float32 in [0, 1].

        A subclass that overrides it maps something else of what the network says for each symmetry.

        Parameters
        ----------
        batch
            (N, Y, X, 2 context + 1) float32 in [0, 1].
        outputs
            Of these outputs of the network: 1 is that of mitochondrion, 2 adds that of contact.
        """
        total = np.zeros((*batch.shape[:3], outputs), np.float32)
        for probabilities in self.views(batch, outputs):
            total += probabilities
        return total / self.settings.tta

    def views(self, batch: np.ndarray, outputs: int = 1) -> Iterator[np.ndarray]:
        """Yield the probabilities by each symmetry of `Settings.tta`, turned back; see `tile_maps`."""
        for turns, flip in TTA[self.settings.tta]:
            seen = self.run_network(np.rot90(batch, turns, axes=(1, 2))[:, :, ::flip], outputs)
            yield np.rot90(seen[:, :, ::flip], -turns, axes=(1, 2))

    def run_network(self, batch: np.ndarray, outputs: int = 1) -> np.ndarray:
        """Return the probabilities of a batch of tiles by one pass of the network; see `tile_maps`.

        A subclass that overrides it runs the network on another engine, or several networks.

        Raises
        ------
        InputError
            The network returns not-a-number, which in a mask would look like tissue without mitochondria.
        """
        logits = np.asarray(self.model.predict_on_batch(batch), np.float32)[..., :outputs]
        if np.isnan(logits).any():
            found = f"not-a-number, computed by {engine(self.model)}"
            remedy = "set KERAS_BACKEND to another backend, or train the model again with train.precision: float32"
            raise InputError("the network's output", found, "numbers", remedy)
        return np.asarray(expit(logits))

    def checked(self, image: np.ndarray) -> np.ndarray:
        """Return grey values as they are; raises `InputError` where their bit depth is not that of training."""
        trained = f"{self.settings.bit_depth}-bit"
        remedy = f"convert the images to {trained}, or train on images like these"
        container = np.uint8 if self.settings.bit_depth == 8 else np.uint16
        if image.dtype != container:
            expected = f"{np.dtype(container)}: the model was trained on {trained}"
            raise InputError("images", image.dtype, expected, remedy)
        if image.max() >= 2**self.settings.bit_depth:
            raise InputError("images", f"grey value {image.max()}", f"{trained}, as the model was trained on", remedy)
        return image

    def _unit(self, image: np.ndarray) -> np.ndarray:
        return network_input.to_unit(image, self.settings.bit_depth)

    def _span(self, length: int, low: int, high: int) -> TileSpan:
        """Return the tiles of an axis that reach into the pixels from `low` up to `high`."""
        starts, tile = self._axis(length)
        pixels = np.pad(np.arange(length), (0, max(0, starts[-1] + tile - length)), mode="reflect")
        starts = [start for start in starts if start < high and start + tile > low]
        return TileSpan(low, high, tile, starts, pixels[starts[0] : starts[-1] + tile])

    def _axis(self, length: int) -> tuple[list[int], int]:
        """Return where tiles start along an axis, and their size."""
        largest, divisor, shared = self.settings.tile, self.settings.divisor, self.settings.overlap
        count = 1 if length <= largest else math.ceil((length - shared) / (largest - shared))
        tile = math.ceil((length + (count - 1) * shared) / (count * divisor)) * divisor
        return [i * (tile - shared) for i in range(count)], tile

    def _ramp(self, tile: int) -> np.ndarray:
        """Return the weights across a tile: two of them, one step apart, add up to 1 where they overlap."""
        places = np.arange(tile) + 0.5
        shared = self.settings.overlap
        ramp = np.minimum(places, tile - places) / shared if shared else np.ones(tile)
        return np.minimum(ramp, 1).astype(np.float32)


def _batch(height: int, width: int) -> int:
    """Return how many tiles of that size go through the network together."""
    return max(1, BATCH // (height * width))


def _overlapped(span: TileSpan, ramp: np.ndarray) -> np.ndarray:
    """Return the weights of all tiles together at the wanted pixels of an axis."""
    weight = np.zeros(len(span.pixels), np.float32)
    for place in span.places:
        weight[place] += ramp
    return weight[span.wanted]


def _slice(image: np.ndarray) -> np.ndarray:
    if image.ndim != 2 or min(image.shape) < 1:
        raise InputError("images", f"a slice of shape {image.shape}", "slices (Y, X)", "pass an array (Z, Y, X)")
    return image
