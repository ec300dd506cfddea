"""From a stack in a file to masks in a file, in bounded memory, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mitoflow import __version__
from mitoflow.core.progress import progress_bar
from mitoflow.data.slice_distance import spread
from mitoflow.errors import InputError
from mitoflow.inference import adaptation, jobs, outputs, overlay
from mitoflow.inference.jobs import DEPTH, PRODUCTS, Job, Prediction, Work
from mitoflow.inference.model_input import blank_slices, decide
from mitoflow.inference.outputs import PendingOutput
from mitoflow.inference.parts import Part
from mitoflow.inference.request import Request, parse_roi
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, volumes
from mitoflow.io.spacing import Notify, name_unknown
from mitoflow.io.volumes import Volume

AVERAGED = ("tta", "median", "orthoplanes")  # settings that the lineage states as they were used
DECIDED = ("scale", "decisions", "differs", "judgement")  # keys of the lineage that say how a stack was predicted
SHOWN, LARGEST_SHOWN = 4, 1024  # slices on an overlay, and pixels of a side of them


def predict(
    request: Request, model: TrainedModel, notify: Notify, advance: Callable[[int], object] | None = None
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
        Called with the number of voxels that this process has just predicted, which is 0 while the scale is searched;
        an exception that it raises stops the prediction, which can be continued.

    Raises
    ------
    InputError
        The input, the model or the request cannot be used, or an output exists.
    """
    request.require_valid()
    notes = [model.warning] if model.warning else []  # reported once the request is accepted: an error stands alone
    whole = volumes.open_volume(
        request.source, spacing=request.spacing, fill_missing=request.fill_missing, notify=notes.append
    )
    state = whole.state()
    request.require_outputs(whole.files)
    ome.refuse_outputs(whole.files)
    for line in notes:
        notify(line)
    job, decided = plan(request, model, whole, notify, advance)
    volume = job.seen(whole)
    description = describe(request, model, whole, job, decided)
    asked_for = _asked_for(request, volume, job, description)
    replaced = () if request.overwrite else request.outputs
    with outputs.pending_output(request.output, asked_for, replaced) as pending:
        if pending.is_publishing:
            pending.resume_publishing()
            if request.overlay and not request.overlay.exists():
                notify("note: no overlay was drawn, because all else was done before; --overwrite does it again")
            return
        job = replace(job, folder=pending.folder.absolute())
        for name in job.products:
            _array(pending, name, request, job.part, description)
        work = Work(_prediction(job, model, whole), job.part, job.arrays(), pending)
        if request.dask or request.workers:
            jobs.on_cluster(job, work, address=request.dask, workers=request.workers)
        else:
            jobs.here(work, advance)
        _require_unchanged(whole, state, request, pending)
        mask = ome.open_level(pending.folder / "mask.zarr")
        if request.instances or request.table:
            contacts = ome.open_level(pending.folder / "contacts.zarr") if "contacts" in job.products else None
            _label_instances(mask, request, job.part, description, pending, notify, contacts)
        _finish(mask, request, whole, job.part, description, pending)


def prediction_of(request: Request, model: TrainedModel, whole: Volume, notify: Notify) -> Prediction:
    """Return the maps that `predict` makes of a stack that is open, which the source of the request names.

    Raises
    ------
    InputError
        As in `plan`.
    """
    job, _ = plan(request, model, whole, notify)
    return _prediction(job, model, whole)


def _prediction(job: Job, model: TrainedModel, whole: Volume) -> Prediction:
    return Prediction(job.seen(whole), whole.shape[1:], model.predictor.with_settings(job.settings, job.blank))


def write_outputs(
    request: Request,
    planes: Iterable[np.ndarray],
    whole: Volume,
    description: ome.Description,
    notify: Notify,
    contacts: Iterable[np.ndarray] | None = None,
) -> None:
    """Write a mask that is known, and what belongs to it, as `predict` writes those that it makes.

    Parameters
    ----------
    request
        Where the mask goes, and what else is wanted; instances, tables and overlay are those of this mask.
    planes
        The mask slice by slice, each (Y, X) uint8: 255 for mitochondrion, 0 for background, 128 for not looked at.
    whole
        The stack.
    description
        What the outputs say of themselves.
    notify
        Called with each note for the user, one line each.
    contacts
        Where two mitochondria touch, slice by slice, each (Y, X), 0 elsewhere; None where that is not known. See
        `Request.contacts`.

    Raises
    ------
    InputError
        An output exists, or cannot be written.
    """
    request.require_outputs(whole.files)
    part = parse_roi(None, whole)
    counted = _counted(request, by_contacts=contacts is not None)
    description = replace(description, lineage={**description.lineage, **counted})
    asked_for = {"lineage": dict(description.lineage), "outputs": sorted(map(str, request.outputs))}
    with outputs.pending_output(request.output, asked_for, request.outputs) as pending:
        arrays = {}
        for name, shown in {"mask": planes, "contacts": contacts}.items():
            if shown is not None:
                _array(pending, name, request, part, description)
                arrays[name] = ome.open_level(pending.folder / f"{name}.zarr")
                for z, plane in enumerate(shown):
                    arrays[name][(z, ...) if arrays[name].ndim == 3 else ...] = plane
        mask = arrays["mask"]
        if request.instances or request.table:
            _label_instances(mask, request, part, description, pending, notify, arrays.get("contacts"))
        _finish(mask, request, whole, part, description, pending)


def _require_unchanged(whole: Volume, state: list[Any], request: Request, pending: PendingOutput) -> None:
    """Raise `InputError`, and discard the output, where the input is not what it was when it was opened."""
    if whole.state() != state:
        pending.discard()
        found, remedy = "a file that changed while it was read", "wait until it is complete, and predict again"
        raise InputError(request.source, found, "the same file from beginning to end", remedy)


def plan(
    request: Request,
    model: TrainedModel,
    whole: Volume,
    notify: Notify,
    advance: Callable[[int], object] | None = None,
) -> tuple[Job, dict[str, str]]:
    """Return the work that a request asks for, without a folder, and what was decided, by the names in `DECIDED`.

    See `predict` for `notify` and `advance`.

    Raises
    ------
    InputError
        The part that is asked for does not lie within the stack, or as in `adaptation.adapt`.
    """
    settings, blank = model.predictor.settings, blank_slices(whole)
    is_blank = len(blank) == whole.shape[0]  # there is nothing to compare with the training images, or to judge
    say = (lambda _: None) if is_blank else notify
    job = Job(
        source=volumes.absolute(request.source),
        spacing=whole.spacing,
        part=parse_roi(request.roi, whole),
        levels=adaptation.find_levels(whole, request, model, say, blank),
        scale=None,
        weights=model.weights.absolute(),
        weights_sha256=model.origin["model_sha256"],
        settings=replace(settings, tta=8 if request.tta else settings.tta),
        products=_products(request, settings),
        folder=Path(),
        blank=blank,
        fill_missing=request.fill_missing,
    )
    adapted = adaptation.adapt(job.seen(whole), request, model, say, advance)
    job = replace(job, scale=adapted.scale, settings=replace(job.settings, threshold=adapted.threshold))
    volume = job.seen(whole)
    area = math.prod(whole.shape[1:])
    differs = [] if is_blank else adaptation.compare(volume, request, model, notify, blank, area)
    decision = decide(job.settings, volume, request.neighbours)
    notes = [*([] if is_blank else decision.notes), *_explain_blank(sorted(blank.intersection(job.part.slices)))]
    for note in notes:
        notify(f"note: {request.source}: {note}")
    decided = {
        "scale": ", ".join(f"{axis} x {times:g}" for axis, times in zip("yx", job.scale or (), strict=False)),
        "decisions": "; ".join(notes),
        "differs": "; ".join(differs),
        "judgement": "" if is_blank else adaptation.judge(volume, request, model, adapted, notify),
    }
    return replace(job, settings=decision.settings), {key: text for key, text in decided.items() if text}


def _products(request: Request, settings: Settings) -> tuple[str, ...]:
    """Return what to write: what is asked for, and what tells its mitochondria apart."""
    counts_them = settings.contacts and bool(request.instances or request.table)
    return tuple(name for name in PRODUCTS if name in request.images or (name == "contacts" and counts_them))


def _explain_blank(slices: Sequence[int]) -> list[str]:
    """Say which slices show nothing, if any."""
    named = ", ".join(map(str, slices[:3])) + (f", ... ({len(slices)} in all)" if len(slices) > 3 else "")
    return [f"no mitochondria in slices that have a single grey value: {named}"] if slices else []


def describe(
    request: Request, model: TrainedModel, whole: Volume, job: Job, decided: Mapping[str, str]
) -> ome.Description:
    """Return what the outputs say of themselves."""
    places = job.part.place[-len(whole.axes) :]
    lineage = {
        **model.lineage,
        "threshold": str(job.settings.threshold),
        "input": request.name or volumes.name_of(request.source),
        "roi": ",".join(f"{place.start}:{place.stop}" for place in places),
        "neighbours": _neighbours(job.settings),
        **{name: str(getattr(job.settings, name)) for name in AVERAGED},
        "mitoflow": __version__,
        **({ome.CONTACTS: "known; they divide instances, and are not in a mask"} if job.settings.contacts else {}),
        **_counted(request, by_contacts=job.settings.contacts),
        **decided,
    }
    begin = tuple(first + place.start for first, place in zip(whole.origin, places, strict=True))
    return ome.Description(whole.axes, whole.spacing, begin, lineage)


def _neighbours(settings: Settings) -> str:
    """Say which neighbouring slices the network saw, for the lineage."""
    if not (settings.context and settings.context_step):
        return "none"
    return f"{settings.context} on each side, {settings.context_step} apart"


def _counted(request: Request, *, by_contacts: bool) -> dict[str, str]:
    """Return what counts as a mitochondrion, for the lineage of outputs that count them."""
    if not (request.instances or request.table):
        return {}
    criteria = request.criteria
    sizes = f"smallest {criteria.smallest_um3:g} cubic micrometres, {criteria.smallest_voxels} voxels where unknown"
    return {"instances": f"{sizes}; neck {criteria.neck:g}{'; contacts by the network' if by_contacts else ''}"}


def _asked_for(request: Request, volume: Volume, job: Job, description: ome.Description) -> dict[str, Any]:
    """Return all that decides the outputs, as JSON can hold it: an equal request continues a prediction."""
    start = [place.start for place in job.part.place[-len(description.axes) :]]
    return {
        "volume": volume.state(),
        "part": [*job.part.shape, *start, *description.origin],
        "settings": asdict(job.settings),
        "spacing": description.spacing,
        "lineage": description.lineage,
        "outputs": sorted(str(path.absolute()) for path in (*request.images.values(), *request.tables.values())),
    }


def _array(pending: PendingOutput, name: str, request: Request, part: Part, description: ome.Description) -> None:
    """Begin the array that a product is written to, or clean up what was left of it."""
    folder = pending.folder / f"{name}.zarr"
    if pending.resumed:
        ome.sweep(folder)
    else:
        depth = 1 if ome.is_tiff(request.output) else DEPTH  # a TIFF is written slice by slice
        shape = part.shape[-len(description.axes) :]
        ome.create_multiscale(folder, shape, np.dtype(PRODUCTS[name]), depth)


def _label_instances(
    mask: zarr.Array[Any],
    request: Request,
    part: Part,
    description: ome.Description,
    pending: PendingOutput,
    notify: Notify,
    contacts: zarr.Array[Any] | None = None,
) -> None:
    """Label the mitochondria of the mask, and measure them if a table is requested."""
    # These import much of SciPy, which a mask does not need.
    from mitoflow.instances.labelling import label_instances, measure_labels
    from mitoflow.instances.separation import LARGEST_BOX

    if not {*"zyx"} <= description.spacing.keys() and len(part.slices) > 1:
        unknown = name_unknown(description.spacing)
        notify(f"note: {unknown} is unknown, so mitochondria are measured in voxels; --voxel-size gives it")
    depth = 1 if ome.is_tiff(request.output) else DEPTH
    labels = ome.create_multiscale(pending.folder / "instances.zarr", mask.shape, np.dtype(np.uint32), depth)
    with progress_bar(desc="instances", total=math.prod(part.shape), unit="voxel", unit_scale=True) as bar:
        coarse = label_instances(mask, labels, request.criteria, description.spacing, bar.update, contacts)
    if coarse:
        reason = f"what they are part of is larger than a box of {LARGEST_BOX // 10**6} million voxels"
        notify(f"note: {len(coarse)} mitochondria were separated on a coarser grid: {reason}; the table says which")
    if request.table:
        with progress_bar(desc="measure", unit="mitochondrion") as bar:
            measured = measure_labels(labels, description.spacing, coarse=coarse, advance=bar.update)
        measured.write(pending.folder / "mitochondria.csv")
        measured.write_totals(pending.folder / "totals.csv", description.lineage.get("judgement", ""))
        notify(measured.summary)


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
    for z in spread(len(part.slices) - 1, SHOWN):
        image = volume.read(z0 + z, (y0 + top, y0 + bottom, x0 + left, x0 + right))
        plane = np.asarray(mask[(z, slice(top, bottom), slice(left, right))[-mask.ndim :]])
        panels.append((image, (plane > 0).astype(np.uint8)))
    return overlay.contours_png(panels)


def _middle(length: int) -> tuple[int, int]:
    start = max(0, (length - LARGEST_SHOWN) // 2)
    return start, min(length, start + LARGEST_SHOWN)
