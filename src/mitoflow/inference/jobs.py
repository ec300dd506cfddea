"""The blocks of an output, predicted by this process or by the workers of a Dask cluster, with the same code.

Each block is predicted from its surroundings and written to its own chunks, so the result does not depend on which
process predicts it, when, or how often. Finished blocks are marked in the folder of the pending output: a process or a
worker that is killed costs the block that it was working on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tqdm import tqdm

from mitoflow.core import cluster
from mitoflow.core.progress import progress_bar
from mitoflow.inference.model_input import normalized
from mitoflow.inference.outputs import PendingOutput
from mitoflow.inference.predictor import PlaneProgress, Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import ome, resampling, volumes
from mitoflow.io.spacing import Spacing
from mitoflow.io.tiff import Box
from mitoflow.io.volumes import Levels, RegradedVolume, ResampledVolume, Volume
from mitoflow.models import unet

DEPTH = 8  # slices of a block
SIDE = 5 * ome.CHUNK  # largest side along y and x, as the model sees it
TOGETHER = 4  # blocks along z that a worker predicts at a time; at both ends the median needs slices of others

#: For each output its dtype, and the function of probabilities (Y, X) float32 and the threshold that gives its voxels.
PRODUCTS: dict[str, tuple[type[np.generic], Callable[[np.ndarray, float], np.ndarray]]] = {
    "mask": (np.uint8, lambda probability, threshold: (probability >= threshold) * np.uint8(255)),
    "probability": (np.float32, lambda probability, _: probability),
}


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

    @property
    def side(self) -> int:
        """The largest side of a block in output pixels; a resampled volume may have more pixels for the model."""
        return int(SIDE * min(1, self.plane[0] / self.volume.shape[1], self.plane[1] / self.volume.shape[2]))

    def maps(self, part: Part, on_planes: PlaneProgress | None = None) -> Iterator[np.ndarray]:
        """Yield the map of each slice of a part, (Y, X) float32 in [0, 1]; see `Predictor.stream`."""
        if self.plane == self.volume.shape[1:]:
            return self._maps(part, on_planes)
        y0, y1, x0, x1 = part.box
        rows = resampling.weights(self.volume.shape[1], self.plane[0], y0, y1)
        across = resampling.weights(self.volume.shape[2], self.plane[1], x0, x1)
        seen = Part(part.slices, (rows.first, rows.last, across.first, across.last))
        return (np.minimum(resampling.resample(each, rows, across), 1) for each in self._maps(seen, on_planes))

    def _maps(self, part: Part, on_planes: PlaneProgress | None) -> Iterator[np.ndarray]:
        region = self.predictor.region(self.volume.shape[1:], part.box)

        def read(z: int) -> np.ndarray:
            return self.volume.read(z, region.source)

        return self.predictor.stream(read, range(self.volume.shape[0]), part.slices, region, on_planes)


@dataclass(frozen=True)
class Work:
    """Everything that a process needs to predict blocks.

    Attributes
    ----------
    prediction
        The maps.
    part
        The part of the stack that the output shows.
    arrays
        Where each product goes, (Z, Y, X) or (Y, X) of the part.
    output
        Knows which blocks are done.
    """

    prediction: Prediction
    part: Part
    arrays: Mapping[str, zarr.Array[Any]]
    output: PendingOutput

    def missing(self) -> list[list[Part]]:
        """Return the blocks that are not done, as runs along z."""
        cut = columns(self.part.shape, self.prediction.side)
        return [run for column in cut for run in missing_runs(column, self.output.is_done)]

    def do(self, blocks: Sequence[Part], advance: Callable[[int], object]) -> None:
        """Predict those of the blocks of a column that are not done; `advance` is called with voxels."""
        z, (top, _, left, _) = self.part.slices.start, self.part.box
        for run in missing_runs(blocks, self.output.is_done):
            y0, y1, x0, x1 = run[0].box
            slices = range(z + run[0].slices.start, z + run[-1].slices.stop)
            settings = self.prediction.predictor.settings
            planes = 3 if settings.orthoplanes else 1
            progress = RunProgress(sum(math.prod(block.shape) for block in run), planes, advance)
            maps = self.prediction.maps(Part(slices, (top + y0, top + y1, left + x0, left + x1)), progress.planes)
            for block in run:
                _write(self.arrays, block, maps, settings.threshold, progress.slice)
                self.output.mark_done(block.name)


class RunProgress:
    """The progress of a run in voxels; of three orthogonal planes, those along z take two thirds of the work.

    Parameters
    ----------
    voxels, planes
        The number of voxels of the run, and of planes, 1 or 3, in which each is predicted.
    advance
        Called with the number of voxels since the last call; the calls add up to `voxels`.
    """

    def __init__(self, voxels: int, planes: int, advance: Callable[[int], object]) -> None:
        self._voxels, self._planes, self._advance = voxels, planes, advance
        self._share, self._seen, self._reported = 0.0, 0, 0

    def planes(self, share: float) -> None:
        """Report the share of the orthogonal planes that is predicted."""
        self._share = share
        self._report()

    def slice(self, voxels: int) -> None:
        """Report the voxels of a slice."""
        self._seen += voxels
        self._report()

    def _report(self) -> None:
        done = int((self._planes - 1) * self._voxels * self._share + self._seen) // self._planes
        self._advance(done - self._reported)
        self._reported = done


def _write(
    arrays: Mapping[str, zarr.Array[Any]],
    block: Part,
    maps: Iterator[np.ndarray],
    threshold: float,
    advance: Callable[[int], object],
) -> None:
    voxels = {name: np.empty(block.shape, array.dtype) for name, array in arrays.items()}
    for z in range(len(block.slices)):
        probability = next(maps)
        for name, made in voxels.items():
            made[z] = PRODUCTS[name][1](probability, threshold)
        advance(probability.size)
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
    """Predict the missing blocks in this process; `advance` is called with voxels, and stops it by raising."""
    runs = work.missing()
    with _progress(work, runs) as bar:

        def further(voxels: int) -> None:
            bar.update(voxels)
            if advance:
                advance(voxels)

        for run in runs:
            work.do(run, further)


def _progress(work: Work, runs: Sequence[Sequence[Part]]) -> tqdm[Any]:
    total, missing = math.prod(work.part.shape), sum(math.prod(block.shape) for run in runs for block in run)
    return progress_bar(desc="predict", total=total, initial=total - missing, unit="voxel", unit_scale=True)


def on_cluster(job: Job, work: Work, *, address: str | None = None, workers: int | None = None) -> None:
    """Predict the missing blocks on the workers of a Dask cluster, or on that many processes of this machine.

    Raises
    ------
    InputError
        See `cluster.connected` and `cluster.result`; or a worker does not see the files.
    """
    from distributed import as_completed

    runs = work.missing()
    # Orthogonal planes reach through all slices, so these stay together.
    together = max(map(len, runs), default=1) if job.settings.orthoplanes else TOGETHER
    portions = [run[first : first + together] for run in runs for first in range(0, len(run), together)]
    with _progress(work, runs) as bar, cluster.connected(address, workers) as client:
        futures = [client.submit(_do, job, portion, pure=False) for portion in portions]
        for future in as_completed(futures, loop=client.loop):
            bar.update(cluster.result(future))
    for name in job.products:
        ome.sweep(job.folder / f"{name}.zarr")  # of workers that died


_predictors: dict[str, Predictor] = {}  # the last network that a worker loaded, by the digest of its weights


def _load_predictor(job: Job) -> Predictor:
    if job.weights_sha256 not in _predictors:
        _predictors.clear()
        _predictors[job.weights_sha256] = Predictor(unet.load_model(job.weights), job.settings)
    return _predictors[job.weights_sha256].with_settings(job.settings, job.blank)


_at_hand: list[tuple[Job, Work]] = []  # the last job of a worker


def _do(job: Job, blocks: Sequence[Part]) -> int:
    """Predict blocks on a worker, and return how many voxels were missing.

    The folder of a job is named by a digest of the request and of the model, so equal jobs are the same.
    """
    done: list[int] = []
    with cluster.alone:
        if not _at_hand or _at_hand[0][0] != job:
            _at_hand[:] = [(job, job.open())]
        _at_hand[0][1].do(blocks, done.append)
    return sum(done)
