"""The widget in a real napari with offscreen windows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import npe2
import numpy as np
import pytest
import scipy.ndimage
import tifffile
import zarr
from napari.components import ViewerModel
from napari.errors import MultipleReaderError
from napari.layers import Image, Labels
from napari.plugins import _npe2
from napari.settings import get_settings
from napari.utils.notifications import notification_manager

from mitoflow.config.params import Instances
from mitoflow.inference.prediction import predict
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.instances import separation
from mitoflow.io import gatan, hdf5, mrc, n5, ome
from mitoflow.tracking import model_lookup
from tests.io.test_gatan import write as write_gatan
from tests.io.test_hdf5 import write as write_hdf5
from tests.io.test_mrc import write as write_mrc
from tests.io.test_n5 import write as write_n5
from tests.services import HTTPFolder, find_library
from tests.tiny_model import write_model

try:
    from napari._qt.widgets.qt_extension2reader import Extension2ReaderTable
    from qtpy.QtWidgets import QApplication, QComboBox, QLineEdit, QPushButton

    from mitoflow.apps import napari_widget
    from mitoflow.apps.napari_widget import Segmentation
except ImportError:  # Qt needs libraries that no wheel brings
    find_library("libEGL.so.1", "libegl1")
    find_library("libGL.so.1", "libgl1")
    raise

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1)
SIZE = {
    **{"PhysicalSizeZ": 30.0, "PhysicalSizeY": 4.0, "PhysicalSizeX": 5.0},
    **dict.fromkeys(("PhysicalSizeZUnit", "PhysicalSizeYUnit", "PhysicalSizeXUnit"), "nm"),
}
# Smooth, so that the mask has a few plain mitochondria, which are measured quickly.
SMOOTH = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(10, 64, 80)), (2, 6, 6))
STACK = np.rint(255 * (SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH)).astype(np.uint8)


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


@pytest.fixture
def widget(application: QApplication, folder: Path) -> Iterator[Segmentation]:
    npe2.PluginManager.instance().discover()
    viewer = ViewerModel()
    viewer.add_image(STACK, name="cell", scale=(30, 4, 4), units=("nm", "nm", "nm"))
    widget = Segmentation(viewer)
    widget.file.value = folder / "unet.keras"
    yield widget
    widget.close()


def press(application: QApplication, widget: Segmentation, *, cancel: bool = False) -> list[str]:
    """Press the button and wait until the widget can be used again; returns the messages of errors."""
    before = len(notification_manager.records)
    widget.segment.native.click()
    assert not widget.segment.enabled
    assert not widget.image.enabled
    assert widget.cancel.enabled
    if cancel:
        widget.cancel.native.click()
    for _ in range(3000):
        application.processEvents()
        if widget.segment.enabled:
            break
        application.thread().msleep(20)
    assert not widget.cancel.enabled
    return [str(record.message) for record in [*notification_manager.records][before:] if record.severity == "error"]


def test_napari_knows_the_widget() -> None:
    plugins = npe2.PluginManager.instance()
    plugins.discover()
    (described,) = plugins.get_manifest("mitoflow").contributions.widgets or []
    assert described.display_name == "Segment mitochondria"
    assert described.exec is not None
    assert plugins.commands.get(described.command) is Segmentation


@pytest.mark.slow
def test_a_layer_gets_its_mitochondria(application: QApplication, expected: np.ndarray, widget: Segmentation) -> None:
    shown = []
    widget.progress.changed.connect(shown.append)
    assert press(application, widget) == []
    image, labels = widget._viewer.layers
    assert (labels.name, type(labels)) == ("cell mitochondria", Labels)
    np.testing.assert_array_equal(labels.data, 255 * expected, "the values of the file, to be corrected alike")
    np.testing.assert_array_equal(labels.scale, image.scale)
    assert labels.units == image.units
    assert labels.metadata[ome.LINEAGE]["model"].endswith("unet.keras")
    assert 100 in shown
    assert shown == [*sorted(shown[:-1]), 0]


@pytest.mark.slow
def test_each_mitochondrion_of_a_file_gets_a_label_and_a_row(
    application: QApplication, expected: np.ndarray, folder: Path, widget: Segmentation
) -> None:
    tifffile.imwrite(folder / "file.tif", STACK)
    (image,) = widget._viewer.open(folder / "file.tif", plugin="napari")
    assert napari_widget._file_of(image, folder) == str(folder / "file.tif"), "it is not copied"
    widget.reset_choices()
    widget.image.value, widget.instances.value = image, True
    assert press(application, widget) == []
    labels = widget._viewer.layers[-1]
    np.testing.assert_array_equal(labels.data, separation.separate(expected > 0, Instances()))
    voxels = labels.features["volume_voxels"]
    assert [*labels.features["index"]] == [*range(labels.data.max() + 1)]
    np.testing.assert_array_equal(voxels[1:], np.bincount(labels.data.ravel())[1:])

    widget._viewer.layers.selection.active = labels
    table = widget.table.table
    table.selectRow(2)
    assert labels.selected_label == 2
    labels.selected_label = 1
    assert {index.row() for index in table.selectedIndexes()} == {1}


@pytest.mark.slow
def test_a_stack_on_a_server_is_opened_by_its_address(
    application: QApplication, expected: np.ndarray, folder: Path, widget: Segmentation
) -> None:
    ome.create_multiscale(folder / "far.ome.zarr", STACK.shape, STACK.dtype, 4)[:] = STACK
    ome.finish_multiscale(folder / "far.ome.zarr", ome.Description("zyx", {"z": 30.0, "y": 4.0, "x": 4.0}))
    with HTTPFolder(folder) as served:
        widget.address.value = f"{served.url}/far.ome.zarr"
        widget.open_address.native.click()
        image = widget.image.value
        assert (image.name, [*image.scale]) == ("far", [30, 4, 4])
        served.asked.clear()
        assert napari_widget._file_of(image, folder) == widget.address.value, "it is not copied"
        assert not [path for path in served.asked if path.endswith("/0/0/0")], "it is not read to be compared"
        assert press(application, widget) == []
        np.testing.assert_array_equal(widget._viewer.layers["far mitochondria"].data, 255 * expected)

        before = len(notification_manager.records)
        widget.address.value = f"{served.url}/gone.ome.zarr"
        widget.open_address.native.click()
        (message,) = [str(record.message) for record in [*notification_manager.records][before:]]
        assert "gone.ome.zarr: found no group of Zarr" in message


@pytest.mark.slow
def test_a_prediction_that_is_cancelled_leaves_nothing(application: QApplication, widget: Segmentation) -> None:
    assert press(application, widget, cancel=True) == []
    assert [layer.name for layer in widget._viewer.layers] == ["cell"]


def test_the_models_that_there_are_can_be_chosen(widget: Segmentation) -> None:
    assert [*widget.model.choices] == ["pretrained:general", "pretrained:epfl"]
    assert model_lookup.find(widget.model.value).name == model_lookup.find().name


@pytest.mark.slow
def test_the_network_stays_loaded_for_the_next_layer(folder: Path) -> None:
    found = [napari_widget._find("unet.keras").predictor for _ in range(2)]
    assert found[0] is found[1]
    write_model(folder, replace(SETTINGS, context=0), STACK)
    assert napari_widget._find("unet.keras").predictor.settings.context == 0


@pytest.fixture
def preferred(application: QApplication) -> Iterator[None]:
    """Make the reader the one that napari takes by itself: fill in the form that the page names, with its patterns."""
    npe2.PluginManager.instance().discover()
    page = (Path(__file__).parents[2] / "docs/apps.md").read_text(encoding="utf-8")
    patterns = re.findall(r"`(\*\.[^`]+)`", page.partition("Preferences > Plugins")[2].partition("\n\n")[0])
    form = Extension2ReaderTable()
    pattern, reader, add = (form.findChild(kind) for kind in (QLineEdit, QComboBox, QPushButton))
    for each in patterns:
        pattern.setText(each)
        reader.setCurrentText("mitoflow")
        assert reader.currentText() == "mitoflow", f"napari refuses {each}"
        add.click()
    yield
    get_settings().plugins.extension2reader = {}
    form.close()


@pytest.mark.parametrize("name", ["mask.tif", "mask.ome.zarr"])
def test_napari_asks_for_the_reader_without_a_preference(folder: Path, name: str) -> None:
    """No plugin can prevent it: see the page, which says what to do, and leave that out where this fails."""
    npe2.PluginManager.instance().discover()
    tifffile.imwrite(folder / "mask.tif", STACK)
    ome.create_multiscale(folder / "mask.ome.zarr", STACK.shape, STACK.dtype, 4)
    with pytest.raises(MultipleReaderError):
        ViewerModel().open(folder / name, plugin=None)


def test_every_format_can_be_opened_by_mitoflow() -> None:
    npe2.PluginManager.instance().discover()
    formats = (ome.TIFF_ENDINGS, ome.ZARR_ENDINGS, gatan.ENDINGS, hdf5.ENDINGS, mrc.ENDINGS, (n5.ENDING, ".png"))
    for ending in (ending for endings in formats for ending in endings):
        assert "mitoflow" in _npe2.get_readers(f"cell{ending}"), ending


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
    np.testing.assert_array_equal(labels.data, separation.separate(expected > 0, Instances(smallest_um3=0), (30, 4, 5)))
    assert np.asarray(probability.data).max() <= 1
    assert mask.metadata[ome.LINEAGE]["model"] == "unet.keras"
    if ending == "ome.zarr":
        groups = [zarr.open_group(name, mode="r") for name in ("mask.ome.zarr", "mask_instances.ome.zarr")]
        assert [group.attrs["image-label"] for group in groups] == [{"version": "0.4"}] * 2, "for other programs"
    mask.paint((0, 3, 3), 128)
    assert mask.data[0, 3, 3] == 128


@pytest.mark.parametrize("name", ["a.dm4", "a.n5", "a.mrc", "a.h5"])
@pytest.mark.usefixtures("preferred")
def test_files_of_other_formats_open_at_their_scale(folder: Path, name: str) -> None:
    write_gatan(folder / "a.dm4", STACK, (4, 5, 30))
    write_n5(folder / "a.n5", STACK, {"pixelResolution": {"dimensions": [4, 5, 30], "unit": "nm"}})
    write_mrc(folder / "a.mrc", STACK, (40, 50, 300))
    write_hdf5(folder / "a.h5", STACK, attributes={"element_size_um": [0.03, 0.005, 0.004]})
    (layer,) = ViewerModel().open(folder / name, plugin=None)
    np.testing.assert_array_equal(np.asarray(layer.data), STACK)
    np.testing.assert_allclose(layer.scale, (30, 5, 4), rtol=1e-6)
    assert napari_widget._shows(layer.data, str(folder / name))


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
    application: QApplication, widget: Segmentation, voxels: np.ndarray, said: str
) -> None:
    widget._viewer.layers.clear()
    widget._viewer.add_image(voxels, name="odd", rgb=voxels.shape[-1] == 3)
    widget.reset_choices()
    (line,) = press(application, widget)
    assert [layer.name for layer in widget._viewer.layers] == ["odd"]
    assert said in line
    assert "\n" not in line
