"""From a stack in a file to masks in a file, in bounded memory, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tqdm import tqdm

from mitoflow import __version__
from mitoflow.data import fingerprint, network_input
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.errors import InputError
from mitoflow.inference import jobs, morphometry, outputs, overlay
from mitoflow.inference.blocks import Region, Shape, shape_of
from mitoflow.inference.instances import LARGEST_BOX, Separation
from mitoflow.inference.jobs import DEPTH, PRODUCTS, Job, Part, Prediction, Work
from mitoflow.inference.morphometry import Measurements
from mitoflow.inference.outputs import PendingOutput
from mitoflow.inference.settings import ORTHOPLANE_LIMIT, Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, volumes
from mitoflow.io.spacing import Spacing, is_elongated
from mitoflow.io.volumes import Levels, Volume

SAMPLE_SIDE = 256  # pixels of a side of the patches that an input is judged by, where the model does not say
SAMPLES = 16
TAILS = (0.005, 0.995)  # shares of the grey values between which they are mapped
INSTANCE_BLOCK: Shape = (32, ome.CHUNK, ome.CHUNK)  # voxels of a block in which instances are labelled
Voxels = zarr.Array[Any] | np.ndarray
LARGEST_CHANGE = 8  # of the pixel size, when slices are resampled
ENDINGS = (".ome.tif", ".ome.tiff", ".ome.zarr")
SHOWN, LARGEST_SHOWN = 4, 1024  # slices on an overlay, and pixels of a side of them


@dataclass(frozen=True)
class Request:
    """What to predict, how, and where to.

    Attributes
    ----------
    source
        The stack; see `mitoflow.io.volumes.open_volume`.
    output
        Where the mask goes: 255 for mitochondrion, 0 for background; a TIFF or a Zarr by its ending.
    threshold
        Probability from which a voxel is mitochondrion, in place of the one that the model comes with.
    tta
        Whether the mean over all eight symmetries of a tile is predicted.
    probability
        Whether the probability, float32 in [0, 1], goes to a file beside the mask too, ``NAME_probability``.
    instances
        Whether each mitochondrion gets a label of its own, in a file beside the mask, ``NAME_instances``: uint32, and
        in a TIFF uint16 where that is enough, which Fiji shows. See `mitoflow.inference.instances`.
    table
        A CSV of the mitochondria, with the sums over the stack in ``TABLE_totals`` beside it; see
        `mitoflow.inference.morphometry`.
    overlay
        A picture of a few slices with the contours of the mask.
    roi
        The part to predict, ``z0:z1,y0:y1,x0:x1``, as what it is in the whole.
    rescale
        Whether the slices are resampled to the pixel size that the model was trained on.
    spacing, fill_missing
        See `mitoflow.io.volumes.open_volume`.
    overwrite
        Whether outputs that exist are replaced.
    workers
        Processes of this machine that predict; without it this one does.
    dask
        The address of a Dask scheduler, whose workers predict. They must see the files under the same paths.
    name
        What the lineage calls the input, in place of the name of its file.
    """

    source: str
    output: Path
    threshold: float | None = None
    tta: bool = False
    probability: bool = False
    instances: bool = False
    table: Path | None = None
    overlay: Path | None = None
    roi: str | None = None
    rescale: bool = False
    spacing: Spacing | None = None
    fill_missing: bool = False
    overwrite: bool = False
    workers: int | None = None
    dask: str | None = None
    name: str | None = None

    @property
    def images(self) -> dict[str, Path]:
        """Where each image goes; the mask, which comes last, says that all is there."""
        wanted = {"probability": self.probability, "instances": self.instances}
        return {
            **{name: beside(self.output, name) for name, is_wanted in wanted.items() if is_wanted},
            "mask": self.output,
        }

    @property
    def tables(self) -> dict[str, Path]:
        """Where each table goes."""
        return {"mitochondria": self.table, "totals": beside(self.table, "totals")} if self.table else {}

    @property
    def outputs(self) -> list[Path]:
        """All files that are written."""
        return [*self.images.values(), *self.tables.values(), *([self.overlay] if self.overlay else [])]


def beside(path: Path, what: str) -> Path:
    """Return where something goes that belongs to a file: ``cell_probability.ome.zarr`` beside ``cell.ome.zarr``."""
    endings = next((each for each in ENDINGS if path.name.lower().endswith(each)), path.suffix)
    stem = path.name[: len(path.name) - len(endings)]
    return path.with_name(f"{stem}_{what}{path.name[len(stem) :]}")


def predict(
    request: Request,
    model: TrainedModel,
    notify: Callable[[str], object],
    advance: Callable[[int], object] | None = None,
) -> None:
    """Predict a stack.

    A process that was killed is continued by the same request, at the first block that is missing.

    Parameters
    ----------
    request
        What to predict, and where to.
    model
        The model that predicts.
    notify
        Called with each note and warning for the user, one line each.
    advance
        Called with the number of voxels that this process has just predicted; an exception that it raises stops the
        prediction, which can be continued.

    Raises
    ------
    InputError
        The input, the model or the request cannot be used, or an output exists.
    """
    if request.threshold is not None and not 0 < request.threshold < 1:
        raise InputError("--threshold", request.threshold, "a probability between 0 and 1", "change it")
    if request.dask and request.workers:
        raise InputError("--workers", "--dask too", "one of them", "leave out --workers: the scheduler has its own")
    whole = volumes.open_volume(request.source, spacing=request.spacing, fill_missing=request.fill_missing)
    _require_outputs(request, whole.files)
    part = parse_roi(request.roi, whole)
    settings = model.predictor.settings
    settings = replace(
        settings,
        threshold=settings.threshold if request.threshold is None else request.threshold,
        tta=8 if request.tta else settings.tta,
    )
    job = Job(
        source=str(Path(request.source).absolute()),
        spacing=whole.spacing,
        levels=_levels(whole, request, model, notify),
        rescaled=_trained_spacing(whole, model.domain) if request.rescale else None,
        weights=model.weights.absolute(),
        weights_sha256=model.origin["model_sha256"],
        settings=settings,
        part=part,
        products=tuple(name for name in request.images if name in PRODUCTS),
        folder=Path(),
    )
    volume = job.seen(whole)
    _compare(volume, request, model, notify)
    settings = replace(settings, orthoplanes=_uses_orthoplanes(volume, request, settings, notify))
    job = replace(job, settings=settings)
    places = part.place[-len(whole.axes) :]
    origin = tuple(place.start for place in places)
    lineage = {
        **model.lineage,
        "threshold": str(settings.threshold),
        "input": request.name or Path(request.source).name,
        "roi": ",".join(f"{place.start}:{place.stop}" for place in places),
        "mitoflow": __version__,
    }
    begin = tuple(first + start for first, start in zip(whole.origin, origin, strict=True))
    description = ome.Description(whole.axes, whole.spacing, begin, lineage)
    asked_for = {
        "volume": volume.state(),
        "part": [*part.shape, *origin, *begin],
        "settings": asdict(settings),
        "spacing": whole.spacing,
        "lineage": lineage,
        "outputs": sorted(str(path.absolute()) for path in (*request.images.values(), *request.tables.values())),
    }
    replaced = () if request.overwrite else request.outputs
    with outputs.pending_output(request.output, asked_for, replaced) as pending:
        if pending.is_publishing:
            pending.resume_publishing()
            if request.overlay and not request.overlay.exists():
                notify("note: no overlay was drawn, because all else was done before; --overwrite does it again")
            return
        job = replace(job, folder=pending.folder.absolute())
        for name in job.products:
            _array(pending, name, request, part, description)
        prediction = Prediction(volume, whole.shape[1:], model.predictor.with_settings(settings))
        work = Work(prediction, part, job.arrays(), pending)
        if request.dask or request.workers:
            jobs.on_cluster(job, work, address=request.dask, workers=request.workers)
        else:
            jobs.here(work, advance)
        mask = ome.open_level(pending.folder / "mask.zarr")
        if request.instances or request.table:
            _label_instances(mask, request, part, description, pending, notify)
        _finish(mask, request, whole, part, description, pending)


def _require_outputs(request: Request, inputs: Sequence[Path]) -> None:
    if not (ome.is_tiff(request.output) or ome.is_zarr(request.output)):
        expected = "a name that ends with .tif, .ome.tif or .ome.zarr"
        raise InputError("OUTPUT", request.output, expected, "choose such a name")
    if request.overlay and request.overlay.suffix.lower() != ".png":
        raise InputError("--overlay", request.overlay, "a name that ends with .png", "choose such a name")
    if request.table and request.table.suffix.lower() != ".csv":
        raise InputError("--table", request.table, "a name that ends with .csv", "choose such a name")
    for path in request.outputs:
        if not path.parent.is_dir():
            raise InputError(path, "no such folder", "a place to write to", "make the folder first")
        if any(file == path.resolve() or path.resolve() in file.parents for file in inputs):
            raise InputError(path, "the input", "a name of its own", "choose another output")
    if not request.overwrite:
        outputs.refuse_existing(request.output, request.outputs)


def parse_roi(text: str | None, volume: Volume) -> Part:
    """Return the part of a stack that ``z0:z1,y0:y1,x0:x1`` means, without z for a slice; all of it for None.

    A start or end that is left out is that of the stack.

    Raises
    ------
    InputError
        It is written in another way, or does not lie within the stack.
    """
    lengths = volume.shape[-len(volume.axes) :]
    limits = [(0, length) for length in lengths]
    if text is not None:
        expected = ",".join(f"{axis}0:{axis}1" for axis in volume.axes)
        within = ", ".join(f"{axis} up to {length}" for axis, length in zip(volume.axes, lengths, strict=True))
        try:
            ends = [[end.strip() for end in side.split(":")] for side in text.split(",")]
            limits = [
                (int(start or 0), int(stop or length)) for (start, stop), length in zip(ends, lengths, strict=True)
            ]
        except ValueError:
            raise InputError("--roi", text, expected, f"give voxels: {within}") from None
        if not all(0 <= start < stop <= length for (start, stop), length in zip(limits, lengths, strict=True)):
            raise InputError("--roi", text, f"a part of the stack: {within}", "count from 0, the end excluded")
    (z0, z1), (y0, y1), (x0, x1) = [(0, 1), *limits][-3:]
    return Part(range(z0, z1), (y0, y1, x0, x1))


def _levels(volume: Volume, request: Request, model: TrainedModel, notify: Callable[[str], object]) -> Levels | None:
    """Return the map from the grey values of a volume to those of training, if any, and report it."""
    known, bit_depth = model.domain, model.predictor.settings.bit_depth
    levels = match_levels(sample(volume, known.size if known else SAMPLE_SIDE), known, bit_depth)
    if levels and not levels.only_clips:
        notify(
            f"note: grey values {levels.low:g} to {levels.high:g} of {request.source} become "
            f"{levels.low_to:.2f} to {levels.high_to:.2f} of the {bit_depth}-bit range that the model knows"
        )
    return levels


def _compare(volume: Volume, request: Request, model: TrainedModel, notify: Callable[[str], object]) -> None:
    """Report in what a volume, as the model sees it, differs from the training images."""
    known = model.domain
    if known is None:
        notify(
            "note: the model does not say what its training images look like, so the input is not compared with them"
        )
    elif min(known.size, *volume.shape[1:]) >= fingerprint.SMALLEST:
        seen = [
            network_input.to_unit(patch, model.predictor.settings.bit_depth) for patch in sample(volume, known.size)
        ]
        if found := fingerprint.differences(known, fingerprint.measure(seen, volume.spacing)):
            notify(f"warning: {request.source} looks unlike the training images: {'; '.join(found)}")


def _uses_orthoplanes(volume: Volume, request: Request, settings: Settings, notify: Callable[[str], object]) -> bool:
    """Return whether a volume is predicted in orthogonal planes, and report why not where the model would."""
    if not settings.orthoplanes or volume.shape[0] == 1:
        return False
    if is_elongated(volume.spacing):
        why = "voxels that are not about as long as they are wide"
    elif not settings.uses_orthoplanes(volume.shape):
        why = f"fewer than {settings.divisor} slices or more than {ORTHOPLANE_LIMIT // 10**6} million voxels"
    else:
        if not {*"zyx"} <= volume.spacing.keys():
            notify(
                f"note: {request.source} does not say its voxel size: voxels count as cubes; if not, give --voxel-size"
            )
        return True
    notify(f"note: {request.source} has {why}: predicted from its slices alone, without orthogonal planes")
    return False


def _trained_spacing(volume: Volume, known: Fingerprint | None) -> Spacing:
    trained_on = known.spacing if known else {}
    for where, spacing, remedy in (
        ("INPUT", volume.spacing, "give --voxel-size"),
        ("model", trained_on, "predict without --rescale"),
    ):
        if not {"y", "x"} <= spacing.keys():
            raise InputError("--rescale", f"no voxel size of the {where}", "one along y and x", remedy)
    for axis in "yx":
        if not 1 / LARGEST_CHANGE <= volume.spacing[axis] / trained_on[axis] <= LARGEST_CHANGE:
            found = f"{volume.spacing[axis]:g} nm along {axis}"
            raise InputError("--rescale", found, f"about {trained_on[axis]:g}, as in training", "give --voxel-size")
    return trained_on


def sample(volume: Volume, size: int) -> list[np.ndarray]:
    """Return patches from all over a stack, (Y, X) as stored, of `size` pixels a side or what there is."""
    depth, height, width = volume.shape
    slices = _spread(depth - 1, 4)
    across = math.isqrt(SAMPLES // len(slices))
    tall, wide = min(size, height), min(size, width)
    places = product(slices, _spread(height - tall, across), _spread(width - wide, across))
    return [volume.read(z, (y, y + tall, x, x + wide)) for z, y, x in places]


def _spread(last: int, count: int) -> list[int]:
    """Return at most `count` numbers from 0 to `last`, evenly."""
    return sorted({round(place) for place in np.linspace(0, last, count + 2)[1:-1].tolist()})


def match_levels(patches: Sequence[np.ndarray], known: Fingerprint | None, bit_depth: int) -> Levels | None:
    """Return the linear map that brings the grey values of patches to where those of training are.

    None where the patches are of the bit depth that the model was trained on. Where a pixel can hold more than that
    depth the map changes nothing but single pixels above it, which are no reason to stop.
    """
    stored, top = np.uint8 if bit_depth == 8 else np.uint16, 2**bit_depth - 1
    if patches[0].dtype == stored and max(int(patch.max()) for patch in patches) <= top:
        return None if top == np.iinfo(stored).max else Levels(0, top, 0.0, 1.0, bit_depth)
    low, high = np.quantile(np.concatenate([patch.ravel() for patch in patches]), TAILS)
    low_to, high_to = (known.quantile(share) for share in TAILS) if known else (0.0, 1.0)
    return Levels(float(low), float(high), low_to, high_to, bit_depth)


def _array(pending: PendingOutput, name: str, request: Request, part: Part, description: ome.Description) -> None:
    """Begin the array that a product is written to, or clean up what was left of it."""
    folder = pending.folder / f"{name}.zarr"
    if pending.resumed:
        ome.sweep(folder)
    else:
        depth = 1 if ome.is_tiff(request.output) else DEPTH  # a TIFF is written slice by slice
        shape = part.shape[-len(description.axes) :]
        ome.create_multiscale(folder, shape, np.dtype(PRODUCTS[name][0]), depth)


def _label_instances(
    mask: zarr.Array[Any],
    request: Request,
    part: Part,
    description: ome.Description,
    pending: PendingOutput,
    notify: Callable[[str], object],
) -> None:
    """Label the mitochondria of the mask, and measure them if a table is requested."""
    if not {*"zyx"} <= description.spacing.keys() and len(part.slices) > 1:
        notify("note: the voxel size is unknown, so mitochondria are measured in voxels; --voxel-size gives it")
    depth = 1 if ome.is_tiff(request.output) else DEPTH
    labels = ome.create_multiscale(pending.folder / "instances.zarr", mask.shape, np.dtype(np.uint32), depth)
    with tqdm(desc="instances", total=math.prod(part.shape), unit="voxel", unit_scale=True) as bar:
        measured = label_instances(mask, labels, description.spacing, bar.update)
    if measured.unsplit:
        larger = f"{len(measured.unsplit)} components are larger than a box of {LARGEST_BOX // 10**6} million voxels"
        notify(f"note: {larger}: each keeps one label, as it is, and the table says which")
    if request.table:
        measured.write(pending.folder / "mitochondria.csv")
        measured.write_totals(pending.folder / "totals.csv")
        notify(_summary(measured))


def label_instances(mask: Voxels, labels: Voxels, spacing: Spacing, advance: Callable[[int], object]) -> Measurements:
    """Give each mitochondrion of a mask a label, and measure it, block by block.

    Parameters
    ----------
    mask
        (Z, Y, X) or (Y, X), 0 for background.
    labels
        Of the same shape; they are written here. See `mitoflow.inference.instances.Separation.write`.
    spacing
        See `mitoflow.io.spacing.Spacing`; without one of the axes, voxels are counted.
    advance
        Called with the number of voxels that were just labelled.
    """
    shape: Shape = (1, *mask.shape)[-3:]  # type: ignore[assignment]
    is_known = {*("yx" if shape[0] == 1 else "zyx")} <= spacing.keys()
    voxel_size = (spacing.get("z", 1.0), spacing["y"], spacing["x"]) if is_known else None

    def read(array: Voxels, region: Region) -> np.ndarray:
        return np.asarray(array[region[-array.ndim :]]).reshape(shape_of(region))

    def write(region: Region, named: np.ndarray) -> None:
        labels[region[-labels.ndim :]] = named.reshape(named.shape[-labels.ndim :])
        advance(named.size)

    separation = Separation(lambda region: read(mask, region) > 0, shape, voxel_size=voxel_size, block=INSTANCE_BLOCK)
    unsplit = separation.write(write)
    return morphometry.measure(
        lambda region: read(labels, region), shape, voxel_size=voxel_size, unsplit=unsplit, block=INSTANCE_BLOCK
    )


def _summary(measured: Measurements) -> str:
    totals = measured.totals
    density = f", {totals['density_per_um3']:.3g} per cubic micrometre" if measured.voxel_size else ""
    return f"{totals['mitochondria']} mitochondria{density}; {totals['volume_fraction']:.2%} of the volume"


def _finish(
    mask: zarr.Array[Any],
    request: Request,
    volume: Volume,
    part: Part,
    description: ome.Description,
    pending: PendingOutput,
) -> None:
    """Write the requested files from the arrays, and publish them."""
    names = {}
    if request.overlay:
        names[request.overlay] = "overlay.png"
        (pending.folder / "overlay.png").write_bytes(_overlay(mask, volume, part))
    names |= {path: f"{name}.csv" for name, path in request.tables.items()}
    for name, path in request.images.items():
        folder = pending.folder / f"{name}.zarr"
        if ome.is_tiff(path):
            names[path] = f"{name}.tif"
            ome.write_tiff(pending.folder / names[path], ome.open_level(folder), description)
        else:
            names[path] = folder.name
            ome.finish_multiscale(folder, description)
    pending.publish(names)


def _overlay(mask: zarr.Array[Any], volume: Volume, part: Part) -> bytes:
    """Draw slices from all over a part; of large ones the middle."""
    (top, bottom), (left, right) = (_middle(length) for length in part.shape[1:])
    z0, (y0, _, x0, _) = part.slices.start, part.box
    panels = []
    for z in _spread(len(part.slices) - 1, SHOWN):
        image = volume.read(z0 + z, (y0 + top, y0 + bottom, x0 + left, x0 + right))
        plane = np.asarray(mask[(z, slice(top, bottom), slice(left, right))[-mask.ndim :]])
        panels.append((image, (plane > 0).astype(np.uint8)))
    return overlay.contours_png(panels)


def _middle(length: int) -> tuple[int, int]:
    start = max(0, (length - LARGEST_SHOWN) // 2)
    return start, min(length, start + LARGEST_SHOWN)
