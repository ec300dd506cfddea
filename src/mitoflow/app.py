"""The page of `mitoflow app`: an image or a stack goes in, the mask is looked at, and mask and table are taken home.

Streamlit runs this file from top to bottom whenever a person changes something. The network runs once for each file;
threshold and slice only look at its probabilities in another way.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import streamlit as st
import zarr

from mitoflow import figures, jobs, ome, partial, prediction, scans, spacing, trained
from mitoflow.errors import InputError
from mitoflow.prediction import Request
from mitoflow.scans import Scan
from mitoflow.trained import TrainedModel


@dataclass(frozen=True)
class Answer:
    """What the model says of a file.

    Attributes
    ----------
    folder
        Where the files are, as long as somebody looks at them.
    image
        The slices.
    probability
        (Z, Y, X) float32 in [0, 1].
    notes
        What a person should know besides.
    """

    folder: tempfile.TemporaryDirectory[str]
    image: Scan
    probability: zarr.Array
    notes: list[str]

    @property
    def description(self) -> ome.Description:
        """What outputs say of themselves."""
        lineage = ome.read_lineage(Path(self.folder.name) / "mask.ome.zarr")
        return ome.Description(self.image.axes, self.image.spacing, lineage=lineage)

    def slice(self, z: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (Y, X) and the mask (Y, X) uint8 in {0, 1} of a slice."""
        _, height, width = self.image.shape
        probability = np.asarray(self.probability[z] if self.probability.ndim == 3 else self.probability[:])
        return self.image.read(z, (0, height, 0, width)), (probability >= threshold).astype(np.uint8)

    def mask(self, threshold: float) -> np.ndarray:
        """Return the mask, 255 for mitochondrion, in the shape of the file."""
        mask = np.empty(self.probability.shape, np.uint8)
        for z in range(len(mask)):  # of a single slice these are its rows
            mask[z] = np.where(np.asarray(self.probability[z]) >= threshold, 255, 0)
        return mask

    def tiff(self, threshold: float) -> bytes:
        """Return the mask as an OME-TIFF."""
        told = self.description
        told = replace(told, lineage={**told.lineage, "threshold": f"{threshold:.2f}"})
        path = Path(self.folder.name) / "download.tif"
        ome.write_tiff(path, zarr.array(self.mask(threshold)), told)
        return path.read_bytes()

    def table(self, threshold: float) -> bytes:
        """Return the mitochondria as CSV."""
        mask = self.mask(threshold)
        path = Path(self.folder.name) / "download.csv"
        prediction.tell_apart(mask, np.zeros(mask.shape, np.uint32), self.image.spacing, lambda _: None).write(path)
        return path.read_bytes()


@st.cache_resource
def find_model(wanted: str | None) -> TrainedModel:
    """Load the model once for all who look at the page."""
    model = trained.find(wanted)
    assert model.predictor, "the first to come waits for it, not the first to upload"
    return model


@st.cache_resource
def alone() -> threading.Lock:
    """Return the lock of who predicts: one prediction keeps all cores busy."""
    return threading.Lock()


def ask(model: TrainedModel, name: str, content: bytes, voxel_size: str) -> Answer:
    """Predict an uploaded file, with a bar that shows how far it is; raises `InputError`."""
    folder = tempfile.TemporaryDirectory(prefix="mitoflow-")
    image, output = (Path(folder.name) / each for each in (f"image{Path(name).suffix}", "mask.ome.zarr"))
    image.write_bytes(content)
    known = spacing.parse(voxel_size) if voxel_size.strip() else None
    request = Request(str(image), output, spacing=known, probability=True)
    notes: list[str] = []

    def predict() -> None:
        with alone():
            prediction.predict(request, notes.append, model)

    try:
        scan = scans.open_scan(str(image), spacing=known)
        blocks = sum(len(column) for column in jobs.columns(scan.shape, jobs.SIDE))
        bar = st.progress(0.0)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            predicting = pool.submit(predict)
            while not predicting.done():
                done = len(list((partial.place(output) / "done").glob("*")))
                left = f", {(time.monotonic() - began) * (blocks / done - 1):.0f} s left" if done else ""
                bar.progress(min(1.0, done / blocks), text=f"{done} of {blocks} blocks{left}")
                time.sleep(0.3)
            predicting.result()
        bar.empty()
    except InputError as error:
        told = InputError(str(error.where).replace(str(image), name), error.found, error.expected, error.remedy)
        raise told from None
    probability = ome.open_multiscale(request.images["probability"]).array
    return Answer(folder, scan, probability, [note.replace(str(image), name) for note in notes])


def main() -> None:
    """Draw the page."""
    st.set_page_config("mitoflow", layout="wide")
    st.title("Mitochondria in electron-microscopy slices")
    model = find_model(sys.argv[1] if len(sys.argv) > 1 else None)
    st.caption(f"Model: {model.name}")
    with st.expander("Where this model comes from"):
        st.table(dict(model.lineage))
    left, right = st.columns((3, 1))
    file = left.file_uploader("A TIFF of one slice or of a stack", type=["tif", "tiff"])
    voxel_size = right.text_input("Voxel size in nanometres, where the file does not say", placeholder="z,y,x: 30,4,4")
    if file is None:
        return
    content = file.getvalue()
    key = (file.name, hashlib.sha256(content).hexdigest(), voxel_size)
    if st.session_state.get("asked") != key:
        st.session_state.answer = ask(model, file.name, content, voxel_size)
        st.session_state.asked = key
    show(st.session_state.answer, model, Path(file.name).stem)


def show(answer: Answer, model: TrainedModel, name: str) -> None:
    """Draw what the model says of a file, and what can be done with it."""
    for note in answer.notes:
        (st.warning if note.startswith("warning") else st.info)(note)
    depth = answer.image.shape[0]
    left, right = st.columns(2)
    chosen = min(0.99, max(0.01, round(model.predictor.settings.threshold, 2)))
    threshold = left.slider("Threshold", 0.01, 0.99, chosen, 0.01)
    z = right.slider("Slice", 0, depth - 1, depth // 2) if depth > 1 else 0
    image, mask = answer.slice(z, threshold)
    left.image(figures.contours_png([(image, np.zeros_like(mask))]), caption=f"slice {z}", width="stretch")
    right.image(
        figures.contours_png([(image, mask)]),
        caption=f"{mask.mean():.2%} of slice {z} is mitochondria",
        width="stretch",
    )
    named = f"{name}_mitochondria"
    left.download_button("Mask (OME-TIFF)", lambda: answer.tiff(threshold), f"{named}.tif", "image/tiff")
    right.download_button("Table (CSV)", lambda: answer.table(threshold), f"{named}.csv", "text/csv")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        st.error(str(error))
