"""The napari widget: `mitoflow predict` on the selected layer; `napari.yaml` declares it."""

import tempfile
from pathlib import Path
from typing import Any

import napari.layers
import napari.types
import numpy as np
import tifffile
from magicgui import magic_factory
from napari.qt.threading import FunctionWorker, thread_worker
from napari.utils.notifications import show_error, show_info

from mitoflow.config import params
from mitoflow.errors import InputError
from mitoflow.inference import prediction
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import ome, volumes
from mitoflow.io.spacing import Spacing
from mitoflow.tracking import model_lookup


@magic_factory(
    call_button="Segment",
    model={"tooltip": "A version, an alias, a run, a .keras file or pretrained; empty for the champion"},
    threshold={"max": 0.99, "step": 0.01, "tooltip": "0 for the one that the model comes with"},
    instances={"tooltip": "Each mitochondrion with a label of its own"},
)
def widget(
    image: napari.layers.Image, model: str = "", threshold: float = 0.0, instances: bool = False
) -> FunctionWorker[list[napari.types.LayerDataTuple]]:
    """The widget; napari makes it from the parameters, whose annotations it reads at run time."""

    @thread_worker(connect={"errored": _tell})  # type: ignore[untyped-decorator]
    def work() -> list[napari.types.LayerDataTuple]:
        return segment(image, model or None, threshold or None, instances)

    return work()


def _tell(error: Exception) -> None:
    show_error(str(error))


_last: list[TrainedModel] = []


def _find(wanted: str | None) -> TrainedModel:
    """Find a model; where it is the same as the last time, its network is loaded already."""
    model = model_lookup.find(wanted)
    if _last != [model]:
        _last[:] = [model]
    return _last[0]


def segment(
    image: napari.layers.Image, model: str | None, threshold: float | None, instances: bool
) -> list[napari.types.LayerDataTuple]:
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
        Whether each mitochondrion gets a label of its own.

    Raises
    ------
    InputError
        The layer or the model cannot be used.
    """
    chosen = _find(model)
    with tempfile.TemporaryDirectory(prefix="mitoflow-") as folder:
        output = Path(folder) / "mask.ome.zarr"
        request = Request(
            _file_of(image, Path(folder)),
            output,
            threshold=threshold,
            instances=instances,
            criteria=params.load_instances(),
            spacing=voxel_size(image) or None,
            name=image.name,
        )
        prediction.predict(request, chosen, show_info)
        voxels = np.asarray(ome.open_multiscale(request.images["instances" if instances else "mask"]).array[:])
        lineage = ome.read_lineage(output)
    labels = (voxels if instances else (voxels > 0).astype(np.uint8)).reshape(_data(image).shape)
    place = {name: getattr(image, name) for name in ("scale", "translate", "rotate", "shear", "affine", "units")}
    attributes = {"name": f"{image.name} mitochondria", "metadata": {ome.LINEAGE: lineage}, **place}
    return [(labels, attributes, "labels")]


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
    whole = (0, volume.shape[1], 0, volume.shape[2])
    slices = data if data.ndim == 3 else data[None]
    return all(np.array_equal(volume.read(z, whole), np.asarray(slices[z])) for z in range(volume.shape[0]))


def voxel_size(image: napari.layers.Image) -> Spacing:
    """Return nanometres of a voxel along the axes of which the layer has units of length."""
    sizes = zip("zyx"[-image.ndim :], image.scale, image.units, strict=True)
    return {
        axis: float((scale * unit).to("nanometer").magnitude)
        for axis, scale, unit in sizes
        if unit.is_compatible_with("nanometer")
    }
