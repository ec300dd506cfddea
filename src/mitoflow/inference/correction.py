"""Boxes of a stack as files that are ready to be corrected: the image and the predicted mask of each, and a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mitoflow.core import files
from mitoflow.core.progress import progress_bar
from mitoflow.errors import InputError
from mitoflow.inference import overlay, prediction, suggestion
from mitoflow.inference.jobs import Job, Prediction, as_mask
from mitoflow.inference.model_input import StretchedVolume
from mitoflow.inference.parts import Part
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, remote, volumes
from mitoflow.io.spacing import Notify
from mitoflow.io.volumes import Volume

IMAGES, MASKS, PICTURE, TABLE = "images", "masks", "boxes.png", "boxes.csv"  # in the folder of an output


@dataclass(frozen=True)
class SuggestedBox:
    """A box to label, one row of ``boxes.csv``.

    Attributes
    ----------
    slice, y0, y1, x0, x1
        Where it is in the stack; the ends are excluded.
    disagreement
        Mean over its pixels, in [0, 1]; see `mitoflow.inference.suggestion`.
    file
        Its image in ``images`` and its mask in ``masks``.
    """

    slice: int
    y0: int
    y1: int
    x0: int
    x1: int
    disagreement: float
    file: str

    @property
    def part(self) -> Part:
        """The box as a part of the stack."""
        return Part(range(self.slice, self.slice + 1), (self.y0, self.y1, self.x0, self.x1))


def suggest(request: Request, count: int, model: TrainedModel, notify: Notify) -> list[SuggestedBox]:
    """Find the boxes of a stack whose labels would teach most, and write them as files that are ready to be corrected.

    ``images`` and ``masks`` in the folder hold a TIFF for each box, with the voxel size; masks are those of
    `prediction.predict`, with their lineage. ``boxes.csv`` lists the boxes, the best one first, and ``boxes.png`` shows
    them.

    Parameters
    ----------
    request
        The stack and how it is predicted; its output is the folder.
    count
        How many boxes are wanted.
    model
        The model that is to learn from them.
    notify
        Called with each note and warning for the user, one line each.

    Returns
    -------
    boxes
        The best one first; fewer than `count` where the stack has no more that differ, which is noted.

    Raises
    ------
    InputError
        The input, the model or the request cannot be used, the output exists, or no box shows tissue.
    """
    request.require_valid()
    output, notes = request.output, [model.warning] if model.warning else []
    if output.exists():
        remedy = "choose another: masks in it may be corrected already"
        raise InputError(output, "an output that exists", "a new folder", remedy)
    whole = volumes.open_volume(
        request.source, spacing=request.spacing, fill_missing=request.fill_missing, notify=notes.append
    )
    ome.refuse_outputs(whole.files)
    for line in notes:
        notify(line)
    planned = _Planned(request, model, whole, *prediction.plan(request, model, whole, notify))
    with files.replacing(output) as folder:
        for kind in (IMAGES, MASKS):
            (folder / kind).mkdir(parents=True)  # before the work: a disk that refuses it does so now
        boxes = planned.find(count)
        if len(boxes) < count:
            notify(f"note: {request.source}: {len(boxes)} boxes, as there are no more that show other tissue")
        planned.write(boxes, folder)
    return boxes


@dataclass(frozen=True)
class _Planned:
    """A stack with what was decided about its prediction."""

    request: Request
    model: TrainedModel
    whole: Volume
    job: Job
    decided: dict[str, str]

    def find(self, count: int) -> list[SuggestedBox]:
        """Return the suggested boxes, the best one first."""
        depth, source = self.whole.shape[0], self.request.source
        slices = suggestion.slices_to_look_at(depth, self.job.blank, count)
        with progress_bar(desc="suggest", total=len(slices), unit="slice") as bar:
            found = suggestion.find_windows(self.whole, self.disagreement, slices, advance=bar.update)
        if not len(found.places):
            raise InputError(source, "slices of a single grey value", "some that show tissue", "check the stack")
        boxes = []
        for index in suggestion.choose(found, count, spacing=depth / count):
            z, (y0, y1, x0, x1) = found.part(index).slices.start, found.part(index).box
            name = f"{stem_of(source)}_z{z:0{len(str(depth - 1))}}_y{y0}_x{x0}.tif"
            boxes.append(SuggestedBox(z, y0, y1, x0, x1, round(float(found.disagreement[index]), 5), name))
        return boxes

    def write(self, boxes: Sequence[SuggestedBox], folder: Path) -> None:
        """Write the images, the masks, the table and the picture of boxes into a folder."""
        # `mitoflow data` takes images of 8 and 16 bits.
        stored = self.whole if self.whole.dtype in (np.uint8, np.uint16) else StretchedVolume(self.whole)
        shown = []
        for number, box in enumerate(boxes, start=1):
            image = stored.read(box.slice, box.part.box)
            (probability,), (disagreed,) = self.probability.maps(box.part), self.disagreement.maps(box.part)
            mask = as_mask(probability, self.job.settings.threshold)
            lineage = {**self._lineage(box.part), "disagreement": str(box.disagreement)}
            for kind, pixels, made in ((IMAGES, image, {}), (MASKS, mask, lineage)):
                about = ome.Description("yx", self.whole.spacing, lineage=made)
                ome.write_tiff(folder / kind / box.file, pixels, about)
            caption = f"{number}: slice {box.slice}, y {box.y0}, x {box.x0}"
            shown.append((caption, image, (mask > 0).astype(np.uint8), disagreed))
        (folder / PICTURE).write_bytes(overlay.boxes_png(shown))
        rows = ([number, *asdict(box).values()] for number, box in enumerate(boxes, start=1))
        files.write_csv(folder / TABLE, ["box", *(field.name for field in fields(SuggestedBox))], rows)

    @cached_property
    def probability(self) -> Prediction:
        """The probability maps of the stack, as `prediction.predict` makes them."""
        predictor = self.model.predictor.with_settings(self.job.settings, self.job.blank)
        return Prediction(self.job.seen(self.whole), self.whole.shape[1:], predictor)

    @cached_property
    def disagreement(self) -> Prediction:
        """The maps of what the committee disagrees about."""
        return replace(self.probability, predictor=suggestion.committee(self.probability.predictor))

    def _lineage(self, part: Part) -> Mapping[str, str]:
        job = replace(self.job, part=part)
        return prediction.describe(self.request, self.model, self.whole, job, self.decided).lineage


def stem_of(source: str) -> str:
    """Return what the files of a stack are called: its name, with neither endings nor characters that may confuse."""
    name = volumes.name_of(source)
    if remote.is_url(source):
        name = name.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", re.sub(r"(\.ome)?\.\w+(?=/|$)", "", name)).strip("._") or "stack"
