"""Predictions of the page, one after the other: each uses all cores."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mitoflow.apps.page.results import Result
from mitoflow.data.phantom import make_phantom
from mitoflow.errors import InputError, as_user_error
from mitoflow.inference import prediction
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, tiff, volumes
from mitoflow.io.volumes import Volume

LARGEST = 2**31  # voxels of a stack
EXAMPLE, SEED = (8, 320, 448), 1  # shape (Z, Y, X) of the stack that is drawn; a piece of the phantom's test part

_log = logging.getLogger("uvicorn.error")


class CancelledError(Exception):
    """The user cancelled the prediction, or left."""


class Worker:
    """Predicts the stacks that are handed to it, in their order.

    Parameters
    ----------
    model
        The model.
    """

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1)

    def predict(self, result: Result) -> None:
        """Predict a stack when those before it are done."""
        result.state = "waiting"
        self._thread.submit(self._predict, result)

    def close(self) -> None:
        """Start nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _predict(self, result: Result) -> None:
        try:
            if result.state == "waiting":
                self._run(result)
        except CancelledError:
            _log.info("a prediction was cancelled")
        except Exception as error:
            if result.state == "cancelled":  # its folder may be gone
                return
            if line := as_user_error(error):
                result.error = result.plain(str(line))
            else:
                _log.exception("a prediction failed")
                result.error = f"{result.name}: the prediction failed; the log of `mitoflow app` says why"
            result.state = "failed"

    def _run(self, result: Result) -> None:
        result.state, result.began = "predicting", time.monotonic()
        volume = _open(result)
        if (voxels := math.prod(volume.shape)) > LARGEST:
            remedy = "use `mitoflow predict`, which takes stacks of any size"
            raise InputError(result.name, f"{voxels / 1e9:.1f} Gvoxel", f"at most {LARGEST / 1e9:.1f}", remedy)
        result.voxels = voxels

        def go_on() -> None:
            if result.state == "cancelled":
                raise CancelledError

        def notify(line: str) -> None:
            go_on()
            result.notes = [*result.notes, result.plain(line)]

        def advance(done: int) -> None:
            go_on()
            if not result.voxels_done:
                result.began = time.monotonic()  # what came before says nothing about what is left
            result.voxels_done += done

        request = Request(
            str(result.source),
            result.folder / "mask.ome.zarr",
            probability=True,
            contacts=self._model.predictor.settings.contacts,
            spacing=result.spacing,
            name=result.name,
            rescale="none" if result.origin == "drawn" else "auto",  # the search takes longer than the prediction
        )
        prediction.predict(request, self._model, notify, advance)
        go_on()
        result.complete(volume, request.images)


def _open(result: Result) -> Volume:
    """Return the stack of a result, which is drawn or inverted first where it is to be."""
    if result.origin == "drawn":
        image, _ = make_phantom(EXAMPLE, SEED)
        tiff.write_stack(result.source, image, "Synthetic EM stack, drawn by mitoflow")
    if result.origin == "inverted":
        source = result.input / result.uploads[0].name if len(result.uploads) == 1 else result.input
        _write_inverted(volumes.open_volume(str(source), spacing=result.spacing), result)
    return volumes.open_volume(str(result.source), spacing=result.spacing)


def _write_inverted(volume: Volume, result: Result) -> None:
    """Write a copy with grey values the other way round: within 8 bits, and else within the range that they have."""
    depth, height, width = volume.shape
    whole = (0, height, 0, width)
    low, high = np.uint8(0), np.uint8(255)
    if volume.dtype != np.uint8:
        ends = [(plane.min(), plane.max()) for plane in (volume.read(z, whole) for z in range(depth))]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
    shape = volume.shape[-len(volume.axes) :]
    inverted = ome.create_multiscale(result.source, shape, volume.dtype, 1)
    for z in range(depth):
        plane = volume.read(z, whole)
        inverted[(z, ...) if inverted.ndim == 3 else ...] = np.asarray(high - plane + low, volume.dtype)
    ome.finish_multiscale(result.source, ome.Description(volume.axes, volume.spacing))
