"""Labels that were corrected in napari, saved, and read by the commands."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import npe2
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from napari.components import ViewerModel
from napari.layers import Labels
from napari.plugins import _npe2

from mitoflow.apps.napari_writer import write_labels
from mitoflow.cli import mitoflow
from mitoflow.errors import InputError
from mitoflow.io import ome, volumes

SIZE = {"z": 30.0, "y": 4.0, "x": 5.0}
MADE = {"model": "unet.keras", "threshold": "0.5"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGNAME", "anna")
    npe2.PluginManager.instance().discover()
    return tmp_path


@pytest.fixture
def mask() -> np.ndarray:
    """One mitochondrion of 6 x 30 x 30 voxels."""
    mask = np.zeros((10, 64, 80), np.uint8)
    mask[2:8, 10:40, 10:40] = 255
    return mask


def run(*arguments: str) -> str:
    done = CliRunner().invoke(mitoflow, arguments, prog_name="mitoflow")
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["corrected.tif", "corrected.ome.zarr"])
def test_corrections_keep_voxel_size_and_lineage(folder: Path, mask: np.ndarray, name: str) -> None:
    ome.write_tiff(folder / "mask.tif", mask, ome.Description("zyx", SIZE, lineage=MADE))
    (layer,) = ViewerModel().open("mask.tif", plugin="mitoflow")
    layer.data[2:8, 10:40, 40:50] = 255  # what the brush does
    assert layer.save(name, plugin="mitoflow") == [name]

    expected = mask.copy()
    expected[2:8, 10:40, 40:50] = 255
    volume = volumes.open_volume(name)
    assert (volume.axes, volume.spacing, volume.dtype) == ("zyx", SIZE, np.uint8)
    np.testing.assert_array_equal([volume.read(z, (0, 64, 0, 80)) for z in range(10)], expected)
    lineage = ome.read_lineage(Path(name))
    corrected = lineage.pop("corrected")
    assert lineage == MADE
    assert corrected.startswith(f"by hand, in napari {napari.__version__}, run by anna, 20")
    assert f"corrected  {corrected}" in run("lineage", name)
    (again,) = ViewerModel().open(name, plugin="mitoflow")
    assert isinstance(again, Labels)
    assert again.scale.tolist() == [30, 4, 5]

    run("measure", name, "--table", "table.csv")
    with Path("table.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert int(row["volume_voxels"]) == 6 * 30 * 40
    assert float(row["volume_um3"]) == pytest.approx(6 * 30 * 40 * 30 * 4 * 5 / 1e9)
    dice = 2 * 6 * 30 * 30 / (6 * 30 * 30 + 6 * 30 * 40)
    assert f"{dice:.4f}" in run("score", "mask.tif", name).split()


def test_where_a_part_begins_is_kept(folder: Path, mask: np.ndarray) -> None:
    layer = Labels(mask, scale=(0.03, 0.004, 0.005), units=("um",) * 3, translate=(0.06, 0, 0.05))
    layer.save("part.ome.zarr", plugin="mitoflow")
    image = ome.open_multiscale(folder / "part.ome.zarr")
    assert image.spacing == pytest.approx(SIZE)
    assert image.origin == pytest.approx((2, 0, 10))


def test_labels_that_were_drawn_in_napari_are_saved(folder: Path, mask: np.ndarray) -> None:
    """A new layer has labels of 32 bits with a sign in older versions, and no units."""
    layer = Labels(mask.astype(np.int32) * 2)
    assert layer.save("drawn", plugin="mitoflow") == ["drawn.tif"]
    written = tifffile.imread(folder / "drawn.tif")
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, mask.astype(int) * 2)
    assert volumes.open_volume("drawn.tif").spacing == {}
    assert ome.read_lineage(folder / "drawn.tif").keys() == {"drawn"}
    layer.save("drawn.tif", plugin="mitoflow")  # mitoflow wrote it, so it may be replaced
    Labels([mask[0], mask[0, ::2, ::2]], multiscale=True).save("slice.ome.zarr", plugin="mitoflow")
    assert volumes.open_volume("slice.ome.zarr").shape == (1, 64, 80)


def test_napari_offers_it_for_labels_and_takes_it_by_name(folder: Path, mask: np.ndarray) -> None:
    offered, _ = _npe2.file_extensions_string_for_layers([Labels(mask)])
    assert "mitoflow labels (*.tif *.tiff *.ome.tif *.ome.tiff *.zarr *.ome.zarr)" in str(offered)
    for name in ("mask.ome.tif", "mask.ome.zarr"):
        with warnings.catch_warnings(action="error"):
            Labels(mask).save(name)
        assert ome.has_lineage(folder / name)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("mask.png", lambda mask: mask, "mask.png: found the ending .png, expected a name that ends with .tif"),
        ("stack.tif", lambda mask: mask, "stack.tif: found something that mitoflow did not write"),
        ("mask.tif", lambda mask: mask[None], "Labels: found a layer of shape (1, 10, 64, 80)"),
        ("mask.tif", lambda mask: mask.astype(int) - 1, "Labels: found labels from -1 to 254, expected labels from 0"),
    ],
)
def test_what_cannot_be_saved_is_one_line(
    folder: Path, mask: np.ndarray, name: str, change: Callable[[np.ndarray], Any], said: str
) -> None:
    tifffile.imwrite("stack.tif", mask)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    data, attributes, _ = Labels(change(mask)).as_layer_data_tuple()
    with pytest.raises(InputError) as error:
        write_labels(name, data, attributes)
    assert str(error.value).startswith(said)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
