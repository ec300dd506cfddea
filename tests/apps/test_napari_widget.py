"""The widget in a real napari with offscreen windows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import npe2
import numpy as np
import pytest
import tifffile
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.settings import get_settings
from qtpy.QtWidgets import QApplication

from mitoflow.apps import napari_widget
from mitoflow.config.params import Instances
from mitoflow.inference import instances
from mitoflow.inference.prediction import predict
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from mitoflow.tracking import model_lookup
from tests.parts import write_model

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1)
SIZE = {
    **{"PhysicalSizeZ": 30.0, "PhysicalSizeY": 4.0, "PhysicalSizeX": 5.0},
    **dict.fromkeys(("PhysicalSizeZUnit", "PhysicalSizeYUnit", "PhysicalSizeXUnit"), "nm"),
}
STACK = np.random.default_rng(0).integers(0, 256, (10, 64, 80), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_model(tmp_path, SETTINGS, STACK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expected(folder: Path) -> np.ndarray:
    return Predictor.load(folder / "unet.keras", folder / "inference.yaml").masks(STACK)


@pytest.fixture(scope="module")
def application() -> QApplication:
    return QApplication.instance() or QApplication([])


def press(application: QApplication, **asked: object) -> tuple[list[tuple[np.ndarray, dict[str, Any], str]], list[str]]:
    """Open the widget, choose, press the button and wait; returns the new layers and the errors shown."""
    made: list[tuple[np.ndarray, dict[str, Any], str]] = []
    errors: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(napari_widget, "show_error", errors.append)
        worker = napari_widget.widget()(model="unet.keras", **asked)
        worker.returned.connect(made.extend)
        for _ in range(3000):
            application.processEvents()
            if made or errors:
                break
            application.thread().msleep(20)
    return made, errors


def test_napari_knows_the_widget() -> None:
    plugins = npe2.PluginManager.instance()
    plugins.discover()
    (described,) = plugins.get_manifest("mitoflow").contributions.widgets or []
    assert described.display_name == "Segment mitochondria"
    assert described.exec is not None
    assert plugins.commands.get(described.command) is napari_widget.widget


@pytest.mark.slow
def test_a_layer_gets_its_mitochondria(application: QApplication, expected: np.ndarray) -> None:
    image = Image(STACK, name="cell", scale=(30, 4, 4), units=("nm", "nm", "nm"))
    ((data, about, kind),), _ = press(application, image=image)
    labels = Layer.create(data, about, kind)
    assert (labels.name, type(labels)) == ("cell mitochondria", Labels)
    np.testing.assert_array_equal(labels.data, expected)
    np.testing.assert_array_equal(labels.scale, image.scale)
    assert labels.units == image.units
    assert labels.metadata[ome.LINEAGE]["model"] == "unet.keras"
    assert napari_widget.voxel_size(image) == {"z": 30, "y": 4, "x": 4}
    assert napari_widget.voxel_size(Image(STACK)) == {}


@pytest.mark.slow
def test_each_mitochondrion_of_a_file_gets_a_label(
    application: QApplication, expected: np.ndarray, folder: Path
) -> None:
    tifffile.imwrite(folder / "cell.tif", STACK)
    (image,) = ViewerModel().open(folder / "cell.tif", plugin="napari")
    assert napari_widget._file_of(image, folder) == str(folder / "cell.tif"), "it is not copied"
    ((data, _, _),), _ = press(application, image=image, instances=True)
    np.testing.assert_array_equal(data, instances.separate(expected > 0, Instances()))


@pytest.mark.slow
def test_the_network_stays_loaded_for_the_next_layer(folder: Path) -> None:
    found = [napari_widget._find("unet.keras").predictor for _ in range(2)]
    assert found[0] is found[1]
    write_model(folder, replace(SETTINGS, context=0), STACK)
    assert napari_widget._find("unet.keras").predictor.settings.context == 0


@pytest.fixture
def preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the reader the one that napari takes by itself, as the documentation says."""
    npe2.PluginManager.instance().discover()
    for pattern in ("*.tif", "*.tiff", "*.zarr*"):
        monkeypatch.setitem(get_settings().plugins.extension2reader, pattern, "mitoflow")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["tif", "ome.zarr"])
@pytest.mark.usefixtures("preferred")
def test_outputs_open_as_labels_over_their_image(folder: Path, expected: np.ndarray, ending: str) -> None:
    tifffile.imwrite(folder / "cell.tif", STACK, ome=True, metadata={"axes": "ZYX", **SIZE})
    request = Request("cell.tif", Path(f"mask.{ending}"), instances=True, probability=True)
    predict(replace(request, criteria=Instances(smallest_um3=0)), model_lookup.find("unet.keras"), print)
    viewer = ViewerModel()
    for name in ("cell.tif", f"mask.{ending}", f"mask_instances.{ending}", f"mask_probability.{ending}"):
        viewer.open(name, plugin=None)  # as `napari FILE` and a drop on the window do
    image, mask, labels, probability = viewer.layers
    assert [type(layer) for layer in viewer.layers] == [Image, Labels, Labels, Image]
    for layer in viewer.layers:
        assert layer.scale.tolist() == [30, 4, 5]
        assert [str(unit) for unit in layer.units] == ["nanometer"] * 3
    np.testing.assert_array_equal(image.data, STACK)
    np.testing.assert_array_equal(mask.data, 255 * expected)
    np.testing.assert_array_equal(labels.data, instances.separate(expected > 0, Instances(smallest_um3=0), (30, 4, 5)))
    assert np.asarray(probability.data).max() <= 1
    assert mask.metadata[ome.LINEAGE]["model"] == "unet.keras"
    mask.paint((0, 3, 3), 128)
    assert mask.data[0, 3, 3] == 128


@pytest.mark.usefixtures("preferred")
def test_what_mitoflow_does_not_read_opens_as_napari_opens_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "colours.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    (layer,) = ViewerModel().open(tmp_path / "colours.tif", plugin=None)
    assert layer.rgb


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        (np.zeros((64, 64, 3), np.uint8), "greyscale"),
        (np.zeros((2, 2, 64, 64), np.uint8), "greyscale"),
    ],
)
def test_a_layer_that_cannot_be_used_is_one_error(
    application: QApplication, folder: Path, voxels: np.ndarray, said: str
) -> None:
    made, (line,) = press(application, image=Image(voxels, name="odd", rgb=voxels.shape[-1] == 3))
    assert made == []
    assert said in line
    assert "\n" not in line
