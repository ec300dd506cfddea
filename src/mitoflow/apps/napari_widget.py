"""The napari widget: `mitoflow predict` on an image layer; `napari.yaml` declares it."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import napari.layers
import napari.viewer
import npe2
import numpy as np
import pandas as pd
import tifffile
import zarr
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, FloatSpinBox, LineEdit, ProgressBar, PushButton
from napari.qt.threading import FunctionWorker, create_worker
from napari.types import LayerDataTuple
from napari.utils.notifications import show_error, show_info, show_warning
from superqt.utils import ensure_main_thread

from mitoflow.apps.napari_writer import voxel_size
from mitoflow.config import params
from mitoflow.errors import InputError
from mitoflow.inference import prediction
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, remote, volumes
from mitoflow.tracking import model_lookup

FEATURES_TABLE = "napari.widgets.features_table"  # napari's own: a row that is selected selects its label, and back


class CancelledError(Exception):
    """The user pressed Cancel."""


class Segmentation(Container):
    """The widget: what to segment and how, a bar while it runs, and the table of the layer that is selected.

    Parameters
    ----------
    viewer
        The one whose layers can be segmented, and which gets the labels.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self._viewer = viewer
        self._worker: FunctionWorker[LayerDataTuple | None] | None = None
        self.address = LineEdit(name="address", tooltip="Of a stack on a server: https://... or s3://...")
        self.open_address = PushButton(text="Open address")
        self.image = ComboBox(name="image", choices=self._images)
        self.model = ComboBox(name="model", choices=_models)
        self.file = FileEdit(name="file", label="or a file", filter="*.keras", nullable=True, value=None)
        self.threshold = FloatSpinBox(
            name="threshold", max=0.99, step=0.01, tooltip="0 for the one that the model comes with"
        )
        self.instances = CheckBox(name="instances", tooltip="Each mitochondrion with a label of its own, and a table")
        self.segment = PushButton(text="Segment")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(max=100, visible=False)
        self._settings: list[Any] = [
            self.address,
            self.open_address,
            self.image,
            self.model,
            self.file,
            self.threshold,
            self.instances,
            self.segment,
        ]
        super().__init__(widgets=[*self._settings, self.cancel, self.progress])
        self.table = npe2.PluginManager.instance().commands.get(FEATURES_TABLE)(viewer)
        self.native.layout().addWidget(self.table)
        self.open_address.changed.connect(self._open)
        self.segment.changed.connect(self._start)
        self.cancel.changed.connect(self._stop)

    def _images(self, _: object) -> list[napari.layers.Image]:
        return [layer for layer in self._viewer.layers if isinstance(layer, napari.layers.Image)]

    def _open(self) -> None:
        """Show the stack at the address, and take it for the image."""
        address = self.address.value.strip()
        if not remote.is_url(address):
            show_warning("Give an address first: https://... or s3://...")
            return
        try:
            volumes.open_volume(address)  # says in one line why it cannot be read, which the reader leaves to napari
            layers = self._viewer.open(address, plugin="mitoflow")
        except InputError as error:
            show_error(str(error))
            return
        if isinstance(layers[0], napari.layers.Image):
            self.reset_choices()
            self.image.value = layers[0]

    def _start(self) -> None:
        image = self.image.value
        if image is None:
            show_warning("Open an image first.")
            return
        self._show_running(True)
        model = str(self.file.value or self.model.value or "") or None
        self._worker = create_worker(
            self._segment,
            image,
            model,
            self.threshold.value or None,
            self.instances.value,
            _start_thread=False,
            _connect={"returned": self._add, "errored": _tell, "finished": self._end},
        )
        self._worker.start()

    def _segment(
        self, image: napari.layers.Image, model: str | None, threshold: float | None, instances: bool
    ) -> LayerDataTuple | None:
        """Segment in a thread; what a worker returns that was asked to quit is not passed on."""
        total, done = math.prod(_data(image).shape), 0

        def advance(voxels: int) -> None:
            nonlocal done
            done += voxels
            if self._worker is None or self._worker.abort_requested:
                raise CancelledError
            self._show_progress(100 * done // total)

        try:
            return segment(image, model, threshold, instances, advance)
        except CancelledError:
            return None

    def _add(self, made: LayerDataTuple) -> None:
        self._viewer.add_layer(napari.layers.Layer.create(*made))

    def _stop(self) -> None:
        if self._worker:
            self.cancel.enabled = False
            self._worker.quit()

    def _end(self) -> None:
        self._worker = None
        self._show_running(False)

    @ensure_main_thread
    def _show_progress(self, percent: int) -> None:
        self.progress.value = percent

    def _show_running(self, is_running: bool) -> None:
        for each in self._settings:
            each.enabled = not is_running
        self.cancel.enabled = self.progress.visible = is_running
        self.progress.value = 0


def _tell(error: Exception) -> None:
    show_error(str(error))


def _models(_: object) -> list[str]:
    try:
        return model_lookup.names()
    except InputError as error:  # the registry does not answer
        show_warning(str(error))
        return model_lookup.names_of_pretrained()


_last: list[TrainedModel] = []


def _find(wanted: str | None) -> TrainedModel:
    """Find a model; where it is the same as the last time, its network is loaded already."""
    model = model_lookup.find(wanted)
    if _last != [model]:
        _last[:] = [model]
    return _last[0]


def segment(
    image: napari.layers.Image,
    model: str | None,
    threshold: float | None,
    instances: bool,
    advance: Callable[[int], object] | None = None,
) -> LayerDataTuple:
    """Return the mitochondria of an image layer, (Y, X) or (Z, Y, X), as a labels layer at the same place.

    Parameters
    ----------
    image
        uint8 or uint16; the layer's scale is the voxel size where its units are lengths.
    model
        See `mitoflow.tracking.model_lookup.find`.
    threshold
        In place of the one that the model comes with.
    instances
        Whether each mitochondrion gets a label of its own. Then the features of the layer are the table of
        `mitoflow predict --table`, a row for each label from 0 on, as napari counts them.
    advance
        See `mitoflow.inference.prediction.predict`.

    Raises
    ------
    InputError
        The layer or the model cannot be used.
    """
    chosen = _find(model)
    with tempfile.TemporaryDirectory(prefix="mitoflow-") as folder:
        output, table = Path(folder) / "mask.ome.zarr", Path(folder) / "table.csv"
        request = Request(
            _file_of(image, Path(folder)),
            output,
            threshold=threshold,
            instances=instances,
            table=table if instances else None,
            criteria=params.load_instances(),
            spacing=voxel_size(image.scale, image.units) or None,
            name=image.name,
        )
        prediction.predict(request, chosen, show_info, advance)
        voxels = np.asarray(ome.open_multiscale(request.images["instances" if instances else "mask"]).array[:])
        lineage = ome.read_lineage(output)
        features = _features(table) if instances else None
    place = {name: getattr(image, name) for name in ("scale", "translate", "rotate", "shear", "affine", "units")}
    attributes = {
        "name": f"{image.name} mitochondria",
        "metadata": {ome.LINEAGE: lineage},
        "features": features,
        **place,
    }
    return voxels.reshape(_data(image).shape), attributes, "labels"


def _features(table: Path) -> pd.DataFrame:
    """Return a table of mitochondria with a row for each label from 0, the background, on."""
    measured = pd.read_csv(table, index_col="label")
    rows = measured.reindex(range(max(measured.index, default=0) + 1))
    return rows.rename_axis("index").reset_index()


def _file_of(image: napari.layers.Image, folder: Path) -> str:
    """Return the file that a layer shows, or one that its voxels are written to."""
    data = _data(image)
    if data.ndim not in (2, 3) or image.rgb:
        found = f"a layer of shape {tuple(data.shape)}"
        raise InputError(image.name, found, "greyscale of axes (Y, X) or (Z, Y, X)", "select another layer")
    if image.source.path and _shows(data, image.source.path):
        return str(image.source.path)
    path = folder / "layer.tif"
    tifffile.imwrite(path, np.asarray(data), photometric="minisblack")
    return str(path)


def _data(image: napari.layers.Image) -> Any:
    return image.data[0] if image.multiscale else image.data


def _shows(data: Any, path: str) -> bool:
    """Return whether a layer shows a file that can be read: the same voxels, all of them."""
    try:
        volume = volumes.open_volume(path)
    except InputError:
        return False
    if volume.shape != (1, *data.shape)[-3:]:
        return False
    if remote.is_url(path) and isinstance(data, zarr.Array | dask.array.Array):
        return True  # as the reader opened it, to be read alone; a comparison would bring all of it twice
    whole = (0, volume.shape[1], 0, volume.shape[2])
    slices = data if data.ndim == 3 else data[None]
    return all(np.array_equal(volume.read(z, whole), np.asarray(slices[z])) for z in range(volume.shape[0]))
