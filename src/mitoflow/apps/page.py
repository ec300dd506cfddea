"""The page of `mitoflow app`: an image or a stack goes in, the mask is looked at, and mask and table are taken home.

Streamlit runs this file from top to bottom when the user changes the file or the voxel size, and the network predicts.
Threshold and slice only change the view of the probabilities: they run a fragment of the page.
"""

from __future__ import annotations

import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import zarr

from mitoflow.config import params
from mitoflow.core import process
from mitoflow.errors import InputError, as_user_error
from mitoflow.inference import labelling, overlay, prediction
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, spacing, volumes
from mitoflow.io.volumes import Volume
from mitoflow.tracking import model_lookup

LARGEST = 2**31  # voxels of a file
SHOWN = 2048  # pixels of a side of a picture; of larger slices every second or third pixel is shown


@dataclass
class Answer:
    """What the model says of a file.

    Attributes
    ----------
    folder
        The temporary folder of the files; it is deleted with the answer.
    image
        The slices.
    probability
        (Z, Y, X) or (Y, X) float32 in [0, 1].
    description
        What outputs say of themselves.
    notes
        Notes and warnings of the prediction.
    threshold
        From which probability on a voxel is mitochondrion in the downloads: as in the picture that the page shows.
    """

    folder: tempfile.TemporaryDirectory[str]
    image: Volume
    probability: zarr.Array[Any]
    description: ome.Description
    notes: list[str]
    threshold: float

    def slice(self, z: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (Y, X) and the mask (Y, X) uint8 in {0, 1} of a slice."""
        _, height, width = self.image.shape
        return self.image.read(z, (0, height, 0, width)), self._above(z, threshold).astype(np.uint8)

    def tiff(self) -> bytes:
        """Return the mask as an OME-TIFF, 255 for mitochondrion."""
        threshold = self.threshold
        lineage = {**self.description.lineage, "threshold": f"{threshold:g}"}
        with self._place() as place:
            path = place / "mask.tif"
            ome.write_tiff(path, self._mask(place, threshold), replace(self.description, lineage=lineage))
            return path.read_bytes()

    def table(self) -> bytes:
        """Return the mitochondria as CSV."""
        with self._place() as place:
            labels = ome.create_multiscale(place / "labels", self.probability.shape, np.dtype(np.uint32), 1)
            path = place / "table.csv"
            mask = self._mask(place, self.threshold)
            criteria = params.load_instances()
            unsplit = labelling.label_instances(mask, labels, criteria, self.image.spacing, lambda _: None)
            labelling.measure_labels(labels, self.image.spacing, unsplit=unsplit).write(path)
            return path.read_bytes()

    def _above(self, z: int, threshold: float) -> np.ndarray:
        return np.asarray(self.probability[z] if self.probability.ndim == 3 else self.probability[:]) >= threshold

    def _mask(self, place: Path, threshold: float) -> zarr.Array[Any]:
        mask = ome.create_multiscale(place / "mask", self.probability.shape, np.dtype(np.uint8), 1)
        for z in range(self.image.shape[0]):
            mask[(z, ...) if mask.ndim == 3 else ...] = self._above(z, threshold) * np.uint8(255)
        return mask

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """Yield a temporary folder: several downloads may be written at the same time."""
        with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
            yield Path(folder)


@st.cache_resource
def find_model(wanted: str | None) -> TrainedModel:
    """Load the model once for all sessions."""
    model = model_lookup.find(wanted)
    assert model.predictor, "the network is loaded when the page opens, not at the first upload"
    return model


@st.cache_resource
def alone() -> threading.Lock:
    """Return the lock of the prediction: one prediction uses all cores."""
    return threading.Lock()


class PageLeftError(Exception):
    """The page was closed, or another file was dropped."""


def ask(model: TrainedModel, name: str, content: bytes, voxel_size: str) -> Answer:
    """Predict an uploaded file, with a bar that shows how far it is; raises `InputError`."""
    folder = tempfile.TemporaryDirectory(prefix="mitoflow-")
    image, output = (Path(folder.name) / each for each in (f"image{Path(name).suffix}", "mask.ome.zarr"))
    image.write_bytes(content)
    try:
        known = spacing.parse(voxel_size) if voxel_size.strip() else None
        volume = volumes.open_volume(str(image), spacing=known)
        if (voxels := math.prod(volume.shape)) > LARGEST:
            remedy = "use `mitoflow predict`, which takes stacks of any size"
            raise InputError(image, f"{voxels / 1e9:.1f} Gvoxel", f"at most {LARGEST / 1e9:.1f} on this page", remedy)
        notes: list[str] = []
        request = Request(str(image), output, spacing=known, probability=True, name=name)
        wait_for(lambda advance: prediction.predict(request, model, notes.append, advance), voxels)
    except InputError as error:
        where = str(error.where).replace(str(image), name)
        raise InputError(where, error.found, error.expected, error.remedy) from None
    described = ome.Description(volume.axes, volume.spacing, lineage=ome.read_lineage(output))
    probability = ome.open_multiscale(request.images["probability"]).array
    notes = [note.replace(str(image), name) for note in notes]
    threshold = min(0.99, max(0.01, float(described.lineage["threshold"])))
    return Answer(folder, volume, probability, described, notes, threshold)


def wait_for(predict: Callable[[Callable[[int], object]], object], voxels: int) -> None:
    """Predict in a thread while the page shows how far it is, and stop where the page is left."""
    is_left = threading.Event()
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if is_left.is_set():
            raise PageLeftError

    def work() -> None:
        with alone():
            predict(advance)

    bar = st.progress(0.0, text="waiting for others")
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        predicting = pool.submit(work)
        try:
            while not predicting.done():
                if done:
                    left = (time.monotonic() - started) * (voxels / done - 1)
                    bar.progress(min(1.0, done / voxels), text=f"{done / voxels:.0%}, {left:.0f} s left")
                time.sleep(0.3)
        finally:  # Streamlit ends the script of a closed page by an exception
            is_left.set()
        predicting.result()
    bar.empty()


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show what a user can correct as one line on the page, not as a traceback."""
    try:
        yield
    except Exception as error:
        if not (line := as_user_error(error)):
            raise
        st.error(str(line))


@errors_shown()
def main() -> None:
    """Draw the page."""
    st.set_page_config("mitoflow", layout="wide")
    st.title("Mitochondria in electron-microscopy slices")
    model = find_model(sys.argv[1] if len(sys.argv) > 1 else None)
    st.caption(f"Model: {model.name}")
    if model.warning:
        st.error(model.warning)
    with st.expander("Where this model comes from"):
        st.table(dict(model.lineage))
    left, right = st.columns((3, 1))
    file = left.file_uploader("A TIFF of one slice or of a stack", type=["tif", "tiff"])
    voxel_size = right.text_input("Voxel size in nanometres, where the file does not say", placeholder="z,y,x: 30,4,4")
    if file is None:
        return
    key = (file.file_id, voxel_size)
    # The progress bar has a place that stays when the bar is gone. Without it everything below moves up in the next
    # run, Streamlit builds it anew, and the slider in use loses the keyboard focus.
    progress = st.empty()
    if st.session_state.get("asked") != key:
        st.session_state.pop("answer", None)
        with progress:
            st.session_state.answer = ask(model, file.name, file.getvalue(), voxel_size)
        st.session_state.asked = key
    answer = st.session_state.answer
    for note in answer.notes:
        (st.warning if note.startswith("warning") else st.info)(note)
    show(answer)
    offer_downloads(answer, Path(file.name).stem)


@st.fragment
@errors_shown()
def show(answer: Answer) -> None:
    """Draw a slice, without and with the mask, and the sliders that choose slice and threshold."""
    depth = answer.image.shape[0]
    left, right = st.columns(2)
    threshold = left.slider("Threshold", 0.01, 0.99, answer.threshold, 0.01, key="threshold")
    z = right.slider("Slice", 0, depth - 1, depth // 2) if depth > 1 else 0
    image, mask = answer.slice(z, threshold)
    every = math.ceil(max(mask.shape) / SHOWN)
    small, marked = image[::every, ::every], mask[::every, ::every]
    left.image(overlay.contours_png([(small, np.zeros_like(marked))]), caption=f"slice {z}", width="stretch")
    contours = overlay.contours_png([(small, marked)])
    answer.threshold = threshold
    caption = f"{mask.mean():.2%} of slice {z} is mitochondria at threshold {threshold:.2f}"
    right.image(contours, caption=caption, width="stretch")


def offer_downloads(answer: Answer, name: str) -> None:
    """Draw the buttons that make and download mask and table, with the threshold of the picture above them.

    The buttons are outside the fragment, and a click does not run the script again: a full run discards the functions
    that the buttons of the previous run call, and the answers that are on their way to the browser.
    """
    left, right = st.columns(2)
    named = f"{name}_mitochondria"
    left.download_button("Mask (OME-TIFF)", answer.tiff, f"{named}.tif", "image/tiff", on_click="ignore")
    right.download_button("Table (CSV)", answer.table, f"{named}.csv", "text/csv", on_click="ignore")


if __name__ == "__main__":
    process.silence_libraries()
    main()
