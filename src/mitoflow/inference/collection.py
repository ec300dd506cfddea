"""A folder of unlike images: each file is predicted by itself, and a table says what came out."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from mitoflow.core import files
from mitoflow.errors import InputError, as_user_error
from mitoflow.inference import prediction
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import file_names, n5, ome, png, remote, volumes
from mitoflow.io.spacing import Notify

SUMMARY = "summary.csv"
FULL = (errno.ENOSPC, errno.EDQUOT)  # what ends all: no other file would fit either


@dataclass(frozen=True)
class Outcome:
    """What became of a file; a row of the summary.

    Attributes
    ----------
    file, mask
        The image, and its mask.
    slices, height, width
        Their size.
    foreground_fraction
        Share of the voxels that are mitochondrion.
    decisions
        What was decided about neighbours, planes and scale, and in what the file differs from the training images.
    error
        Why there is no mask.
    """

    file: str
    mask: str = ""
    slices: int | None = None
    height: int | None = None
    width: int | None = None
    foreground_fraction: float | None = None
    decisions: str = ""
    error: str = ""


COLUMNS = tuple(field.name for field in fields(Outcome))


def is_folder(output: Path) -> bool:
    """Return whether the name of an output is that of a folder of masks and not that of one mask."""
    return not (ome.is_tiff(output) or ome.is_zarr(output)) and (output.is_dir() or not output.suffix)


def predict_each(request: Request, model: TrainedModel, notify: Notify) -> list[Outcome]:
    """Predict each file of a folder or glob by itself, with its own grey values, decisions and messages.

    Files whose outputs exist are left as they are, unless these may be replaced: the same request continues where an
    earlier one stopped. A file that cannot be predicted is reported, and the others are predicted all the same.

    Parameters
    ----------
    request
        What is asked of every file; its output is a folder. The names of table and overlay follow that of each mask.
    model
        The model that predicts.
    notify
        Called with the files, one after the other, and with notes and warnings.

    Returns
    -------
    outcomes
        In the order of the files, as in ``summary.csv`` in the folder, which is written when all is done and when it is
        interrupted.

    Raises
    ------
    InputError
        There is no file, two would have the same mask, or the request or the model cannot be used.
    OSError
        The disk is full.
    """
    request.require_valid()
    asked = _requests(request)
    _refuse_foreign_summary(request.output / SUMMARY)
    assert model.predictor, "a broken model ends the command, not each file"
    outcomes: list[Outcome] = []
    try:
        for number, each in enumerate(asked, start=1):
            is_done = not request.overwrite and all(path.exists() for path in each.outputs)
            notify(f"{number} of {len(asked)}: {each.source}{', done before' if is_done else ''}")
            each.output.parent.mkdir(parents=True, exist_ok=True)
            try:
                if not is_done:
                    prediction.predict(each, model, notify)
                outcomes.append(_outcome(each))
            except Exception as error:
                line = as_user_error(error)
                if line is None or (isinstance(error, OSError) and error.errno in FULL):
                    raise
                notify(f"error: {line}")
                outcomes.append(Outcome(each.source, error=str(line)))
    finally:
        files.write_csv(request.output / SUMMARY, COLUMNS, (asdict(each).values() for each in outcomes))
    return outcomes


def _refuse_foreign_summary(path: Path) -> None:
    """Raise `InputError` where the name of the summary is that of something else."""
    begins = ",".join(COLUMNS[:2]).encode()
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(begins)):
        found = "something that mitoflow did not write"
        raise InputError(path, found, "no file, or an earlier summary", "rename it, or choose another folder")


def _requests(request: Request) -> list[Request]:
    """Return what is asked of each file; folders below a glob are those of the masks, too."""
    output, images = request.output.resolve(), find_images(request.source)
    # A glob may reach earlier masks.
    sources = [path for path in images if output not in path.resolve().parents and not ome.has_lineage(path)]
    if images and not sources:
        raise InputError(request.output, "the folder of the images", "a folder of its own", "choose another output")
    if not sources:
        raise InputError(
            request.source, "no image", "TIFF, PNG, MRC, DM3, DM4, HDF5, OME-Zarr or N5 files", "check the path"
        )
    top = Path(os.path.commonpath([path.absolute().parent for path in sources]))
    asked: dict[Path, Request] = {}
    for path in sources:
        is_zarr = ome.is_zarr(path) or n5.is_n5(path)
        stem = path.name.removesuffix(path.suffix).removesuffix(".ome")
        mask = request.output / path.absolute().parent.relative_to(top) / f"{stem}{'.ome.zarr' if is_zarr else '.tif'}"
        if mask in asked:
            found = f"the name of {asked[mask].source} but for its ending"
            raise InputError(path, found, "a name for each mask", "rename one of them")
        table, overlay = (
            named and mask.with_name(f"{stem}_{named.name}") for named in (request.table, request.overlay)
        )
        asked[mask] = replace(request, source=str(path), output=mask, table=table, overlay=overlay)
    return list(asked.values())


def find_images(source: str) -> list[Path]:
    """Return the images in a folder or of a glob, in natural order, without overlays that mitoflow drew."""
    path = Path(source)
    if remote.is_url(source):
        raise InputError("OUTPUT", "a folder for an image on a server", "one mask", "give a name that ends with .tif")
    if volumes.is_chunked(path) or path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else file_names.matching(source)
    visible = [each for each in found if volumes.is_image(each) and not each.name.startswith(".")]
    images = [each for each in visible if not png.is_overlay(each)]
    return sorted(images, key=lambda image: file_names.natural_order(str(image)))


def _outcome(request: Request) -> Outcome:
    """Return what a mask and its lineage say."""
    mask = volumes.open_volume(str(request.output))
    depth, height, width = mask.shape
    foreground = sum(int(np.count_nonzero(mask.read(z, (0, height, 0, width)))) for z in range(depth))
    lineage = ome.read_lineage(request.output)
    said = [lineage[key] for key in prediction.DECIDED if key in lineage]
    share = round(foreground / (depth * height * width), 6)
    return Outcome(request.source, str(request.output), depth, height, width, share, "; ".join(said))
