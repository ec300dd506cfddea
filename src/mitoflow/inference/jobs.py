"""The blocks of an output, predicted by this process or by the workers of a Dask cluster, with the same code.

Each block is predicted from its surroundings and written to its own chunks, so the result does not depend on which
process predicts it, when, or how often. Of orthogonal planes, those perpendicular to y and to x come before the blocks,
in slabs (`mitoflow.inference.plane_sums`). Finished slabs and blocks are marked in the folder of the pending output: a
process or a worker that is killed costs the one that it was working on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tqdm import tqdm

from mitoflow.core import cluster
from mitoflow.core.progress import progress_bar
from mitoflow.inference.model_input import normalized
from mitoflow.inference.networks import read_network
from mitoflow.inference.outputs import PendingOutput
from mitoflow.inference.parts import Part
from mitoflow.inference.plane_sums import PlaneSums, Slab
from mitoflow.inference.predictor import CONTACT, OnContacts, PlaneProgress, Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import ome, resampling, volumes
from mitoflow.io.derived_volumes import Levels, RegradedVolume, ResampledVolume
from mitoflow.io.spacing import Spacing
from mitoflow.io.volumes import Volume

DEPTH = 8  # slices of a block
SIDE = 5 * ome.CHUNK  # largest side along y and x, as the model sees it
TOGETHER = 4  # blocks along z that a worker predicts at a time; at both ends the median needs slices of others

#: What can be written, with its dtype. Contacts are a mask of where mitochondria touch, which tells them apart.
PRODUCTS: dict[str, type[np.generic]] = {"mask": np.uint8, "probability": np.float32, "contacts": np.uint8}


def as_mask(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Return a mask as it is written, uint8: 255 from a threshold of the probability on, and else 0."""
    return (probability >= threshold) * np.uint8(255)


def columns(shape: tuple[int, int, int], side: int) -> Iterator[list[Part]]:
    """Yield the blocks of an output of `shape` (Z, Y, X), which cover it, as columns along z.

    A block consists of whole chunks of the file, so no two blocks write to the same chunk. Along y and x it is no
    longer than `side`, or than one chunk.
    """
    rows, across = (_pieces(length, side) for length in shape[1:])
    for (y0, y1), (x0, x1) in product(rows, across):
        layers = (range(z, min(z + DEPTH, shape[0])) for z in range(0, shape[0], DEPTH))
        yield [Part(layer, (y0, y1, x0, x1)) for layer in layers]


def _pieces(length: int, side: int) -> list[tuple[int, int]]:
    """Cut an axis into pieces of whole chunks and about equal length."""
    whole = max(1, side // ome.CHUNK) * ome.CHUNK
    size = math.ceil(length / math.ceil(length / whole) / ome.CHUNK) * ome.CHUNK
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def missing_runs(column: Sequence[Part], done: Callable[[str], bool]) -> Iterator[list[Part]]:
    """Yield the blocks of a column that are not done, as runs of consecutive blocks."""
    for is_done, blocks in groupby(column, key=lambda block: done(block.name)):
        if not is_done:
            yield list(blocks)


@dataclass(frozen=True)
class Prediction:
    """The probability maps of a stack; a map does not depend on which part of the stack is predicted.

    Attributes
    ----------
    volume
        The slices as the model sees them.
    plane
        (Y, X) of the maps: those of the volume, or of the slices that it was resampled from.
    predictor
        The model.
    """

    volume: Volume
    plane: tuple[int, int]
    predictor: Predictor

    @classmethod
    def of(cls, predictor: Predictor, volume: Volume) -> Prediction:
        """Return the maps of a stack with the scale and the threshold of the model; see `Predictor.for_volume`."""
        fitted, _ = predictor.for_volume(volume)
        return cls(normalized(volume, predictor.settings), volume.shape[1:], fitted)

    @property
    def whole(self) -> Part:
        """All of the output."""
        return Part(range(self.volume.shape[0]), (0, self.plane[0], 0, self.plane[1]))

    @property
    def side(self) -> int:
        """The largest side of a block in output pixels; a resampled volume may have more pixels for the model."""
        return int(SIDE * min(1, self.plane[0] / self.volume.shape[1], self.plane[1] / self.volume.shape[2]))

    def maps(
        self,
        part: Part,
        sums: PlaneSums | None = None,
        on_planes: PlaneProgress | None = None,
        on_contacts: OnContacts | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the map of each slice of a part, (Y, X) float32 in [0, 1]; see `Predictor.stream`.

        Parameters
        ----------
        part
            Of the output.
        sums
            The planes perpendicular to y and to x, where they are predicted already.
        on_planes
            See `PlaneProgress`; where they are not.
        on_contacts
            See `Predictor.stream`; maps of the part, as those that are yielded.
        """
        if self.plane == self.volume.shape[1:]:
            return self._maps(part, sums, on_planes, on_contacts)
        rows, across = self._weights(part)

        def resampled(each: np.ndarray) -> np.ndarray:
            return np.minimum(resampling.resample(each, rows, across), 1)

        keep = on_contacts and (lambda z, contacts: on_contacts(z, resampled(contacts)))
        return map(resampled, self._maps(self.seen(part), sums, on_planes, keep))

    def seen(self, part: Part) -> Part:
        """Return the part of the volume that the maps of a part of the output are made of."""
        if self.plane == self.volume.shape[1:]:
            return part
        rows, across = self._weights(part)
        return Part(part.slices, (rows.first, rows.last, across.first, across.last))

    def _weights(self, part: Part) -> tuple[resampling.Weights, resampling.Weights]:
        y0, y1, x0, x1 = part.box
        rows = resampling.weights(self.volume.shape[1], self.plane[0], y0, y1)
        return rows, resampling.weights(self.volume.shape[2], self.plane[1], x0, x1)

    def _maps(
        self, part: Part, sums: PlaneSums | None, on_planes: PlaneProgress | None, on_contacts: OnContacts | None
    ) -> Iterator[np.ndarray]:
        region = self.predictor.region(self.volume.shape[1:], part.box)

        def read(z: int) -> np.ndarray:
            return self.volume.read(z, region.source)

        held, reader = range(self.volume.shape[0]), sums.reader(part.box) if sums else None
        return self.predictor.stream(read, held, part.slices, region, on_planes, reader, on_contacts)


#: What a process predicts at a time: planes perpendicular to y or to x, or blocks that follow each other along z.
Task = Slab | list[Part]


@dataclass(frozen=True)
class Work:
    """Everything that a process needs to predict slabs and blocks.

    Attributes
    ----------
    prediction
        The maps.
    part
        The part of the stack that the output shows.
    arrays
        Where each product goes, (Z, Y, X) or (Y, X) of the part.
    output
        Knows which slabs and blocks are done.
    """

    prediction: Prediction
    part: Part
    arrays: Mapping[str, zarr.Array[Any]]
    output: PendingOutput

    @cached_property
    def sums(self) -> PlaneSums | None:
        """The planes perpendicular to y and to x, also of slices that only the median needs; None without planes."""
        volume, predictor = self.prediction.volume, self.prediction.predictor
        if not predictor.settings.orthoplanes:
            return None
        needed = predictor.needed(self.part.slices, range(volume.shape[0]))
        return PlaneSums(self.output.folder, volume, predictor, self.prediction.seen(Part(needed, self.part.box)))

    def missing(self) -> list[list[Task]]:
        """Return what is not done, as phases: each needs those before it; its tasks do not need each other."""
        cut = columns(self.part.shape, self.prediction.side)
        blocks: list[Task] = [run for column in cut for run in missing_runs(column, self.output.is_done)]
        if not (self.sums and blocks):
            return [blocks]
        self.sums.create()
        slabs: list[list[Task]] = [
            [slab for slab in self.sums.slabs(axis) if not self.output.is_done(slab.name)] for axis in (1, 2)
        ]
        return [*slabs, blocks]

    def voxels(self, task: Task) -> float:
        """Return how many voxels of the output a task is worth; in three planes each counts a third."""
        if isinstance(task, Slab):
            assert self.sums
            return math.prod(self.part.shape) / 3 * task.planes / self.sums.part.shape[task.axis]
        return sum(math.prod(block.shape) for block in task) / (3 if self.sums else 1)

    def do(self, task: Task, advance: Callable[[float], object]) -> None:
        """Predict the parts of a task that are not done yet; `advance` is called with voxels, see `voxels`."""
        if isinstance(task, Slab):
            self._predict_planes(task, advance)
            return
        z, (top, _, left, _) = self.part.slices.start, self.part.box
        for run in missing_runs(task, self.output.is_done):
            y0, y1, x0, x1 = run[0].box
            slices = range(z + run[0].slices.start, z + run[-1].slices.stop)
            part = Part(slices, (top + y0, top + y1, left + x0, left + x1))
            products = self._products(part)
            for block in run:
                each = self.voxels([block]) / math.prod(block.shape)
                _write(self.arrays, block, products, partial(_in_parts, advance, each))
                self.output.mark_done(block.name)

    def _products(self, part: Part) -> Iterator[dict[str, np.ndarray]]:
        """Yield of each slice of a part what goes into the arrays, (Y, X) by the name of the product."""
        contacts: dict[int, np.ndarray] = {}
        keep = contacts.__setitem__ if "contacts" in self.arrays else None
        threshold = self.prediction.predictor.settings.threshold
        maps = self.prediction.maps(part, self.sums, on_contacts=keep)
        for z, probability in zip(part.slices, maps, strict=True):
            products = {"probability": probability, "mask": as_mask(probability, threshold)}
            yield products | ({"contacts": as_mask(contacts.pop(z), CONTACT)} if keep else {})

    def _predict_planes(self, slab: Slab, advance: Callable[[float], object]) -> None:
        assert self.sums
        if not self.output.is_done(slab.name):
            self.sums.predict(slab, partial(_in_parts, advance, self.voxels(slab) / slab.planes))
            self.output.mark_done(slab.name)


def _in_parts(advance: Callable[[float], object], each: float, count: int) -> None:
    """Report `count` things, of which each is worth so many voxels."""
    advance(each * count)


def in_whole_voxels(advance: Callable[[int], object]) -> Callable[[float], None]:
    """Return a function of parts of voxels that calls `advance` with whole ones, so that the sums agree."""
    done, reported = 0.0, 0

    def further(voxels: float) -> None:
        nonlocal done, reported
        done += voxels
        before, reported = reported, round(done)
        advance(reported - before)

    return further


def _write(
    arrays: Mapping[str, zarr.Array[Any]],
    block: Part,
    products: Iterator[Mapping[str, np.ndarray]],
    advance: Callable[[int], object],
) -> None:
    voxels = {name: np.empty(block.shape, array.dtype) for name, array in arrays.items()}
    for z in range(len(block.slices)):
        product = next(products)
        for name, made in voxels.items():
            made[z] = product[name]
        advance(voxels["mask"][z].size)
    for name, array in arrays.items():
        array[block.place[-array.ndim :]] = voxels[name].reshape(block.shape[-array.ndim :])


@dataclass(frozen=True)
class Job:
    """A description of the work that can be sent to another process.

    Attributes
    ----------
    source
        The stack, as an absolute path or glob, or an address.
    spacing
        Its voxel size.
    levels, scale
        What becomes of its grey values, and by how much its slices are enlarged along y and x; None where they stay.
    weights, weights_sha256, settings
        The model.
    part
        The part of the stack that the output shows.
    products
        What to write, by the names in `PRODUCTS`.
    folder
        The folder of the pending output.
    blank
        The slices that show nothing.
    fill_missing
        Whether chunks that are missing are empty.
    """

    source: str
    spacing: Spacing
    levels: Levels | None
    scale: tuple[float, float] | None
    weights: Path
    weights_sha256: str
    settings: Settings
    part: Part
    products: tuple[str, ...]
    folder: Path
    blank: frozenset[int] = frozenset()
    fill_missing: bool = False

    def seen(self, volume: Volume) -> Volume:
        """Return the stack as the model is to see it."""
        volume = RegradedVolume(volume, self.levels) if self.levels else normalized(volume, self.settings)
        return ResampledVolume(volume, self.scale) if self.scale else volume

    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """Return what the products are written to."""
        return {name: ome.open_level(self.folder / f"{name}.zarr") for name in self.products}

    def open(self) -> Work:
        """Return the work; raises `InputError` where a file cannot be seen from here."""
        cluster.refuse_unseen(self.folder, self.weights)
        whole = volumes.open_volume(self.source, spacing=self.spacing, fill_missing=self.fill_missing)
        prediction = Prediction(self.seen(whole), whole.shape[1:], _load_predictor(self))
        return Work(prediction, self.part, self.arrays(), PendingOutput(self.folder))


def here(work: Work, advance: Callable[[int], object] | None = None) -> None:
    """Predict what is missing in this process; `advance` is called with voxels, and stops it by raising."""
    phases = work.missing()
    with _progress(work, phases) as bar:

        def report(voxels: int) -> None:
            bar.update(voxels)
            if advance:
                advance(voxels)

        further = in_whole_voxels(report)
        for task in chain.from_iterable(phases):
            work.do(task, further)


def _progress(work: Work, phases: Sequence[Sequence[Task]]) -> tqdm[Any]:
    total, missing = math.prod(work.part.shape), sum(map(work.voxels, chain.from_iterable(phases)))
    return progress_bar(desc="predict", total=total, initial=total - round(missing), unit="voxel", unit_scale=True)


def on_cluster(job: Job, work: Work, *, address: str | None = None, workers: int | None = None) -> None:
    """Predict what is missing on the workers of a Dask cluster, or on that many processes of this machine.

    Raises
    ------
    InputError
        See `cluster.connected` and `cluster.result`; or a worker does not see the files.
    """
    from distributed import as_completed

    phases = work.missing()
    with _progress(work, phases) as bar, cluster.connected(address, workers) as client:
        further = in_whole_voxels(bar.update)
        for phase in phases:
            portions = [portion for task in phase for portion in _portions(task)]
            futures = [client.submit(_do, job, portion, pure=False) for portion in portions]
            for future in as_completed(futures, loop=client.loop):
                further(cluster.result(future))
    for name in job.products:
        ome.sweep(job.folder / f"{name}.zarr")  # of workers that died


def _portions(task: Task) -> list[Task]:
    """Cut a task into those that a worker gets."""
    if isinstance(task, Slab):
        return [task]
    return [task[first : first + TOGETHER] for first in range(0, len(task), TOGETHER)]


_predictors: dict[str, Predictor] = {}  # the last network that a worker loaded, by the digest of its weights


def _load_predictor(job: Job) -> Predictor:
    if job.weights_sha256 not in _predictors:
        _predictors.clear()
        _predictors[job.weights_sha256] = Predictor(read_network(job.weights, job.settings), job.settings)
    return _predictors[job.weights_sha256].with_settings(job.settings, job.blank)


_at_hand: list[tuple[Job, Work]] = []  # the last job of a worker


def _do(job: Job, task: Task) -> float:
    """Predict a task on a worker, and return how many voxels were missing.

    The folder of a job is named by a digest of the request and of the model, so equal jobs are the same.
    """
    done: list[float] = []
    with cluster.alone:
        if not _at_hand or _at_hand[0][0] != job:
            _at_hand[:] = [(job, job.open())]
        _at_hand[0][1].do(task, done.append)
    return sum(done)
