"""`mitoflow suggest` with a real, if tiny, network: what it names, and files that are ready to be corrected."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mitoflow import cli
from mitoflow.data.importing import find_pairs
from mitoflow.data.phantom import make_phantom
from mitoflow.inference.correction import stem_of
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from mitoflow.io.spacing import read_tiff_spacing
from tests.tiny_model import write_model

SETTINGS = Settings(bit_depth=8, divisor=2, tile=256, overlap=16, threshold=0.5)
SIZE = {"PhysicalSizeX": 4.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 5.0, "PhysicalSizeYUnit": "nm"}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mitoflow", *arguments, "--model", "unet.keras"])
    try:
        cli.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.mark.slow
def test_boxes_are_named_and_ready_to_be_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image, _ = make_phantom((6, 256, 400), seed=0)
    image[2] = 7  # a lost slice
    write_model(tmp_path, SETTINGS, image[:1])
    tifffile.imwrite("my cell.ome.tif", image, metadata={"axes": "ZYX", **SIZE})
    assert run(monkeypatch, "suggest", "my cell.ome.tif", "-n", "3") == 0
    out = capfd.readouterr().out
    folder = tmp_path / "my_cell_suggested"
    assert f"mitoflow data add --name NAME --images {folder.name}/images --masks {folder.name}/masks" in out

    with (folder / "boxes.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["box"] for row in rows] == ["1", "2", "3"]
    slices = [int(row["slice"]) for row in rows]
    assert 2 not in slices
    assert min(np.diff(sorted(slices))) >= 1, "spread over the stack"
    assert 0 < float(rows[2]["disagreement"]) <= float(rows[0]["disagreement"]) < 1
    assert run(monkeypatch, "predict", "my cell.ome.tif", "mask.tif") == 0
    predicted = tifffile.imread("mask.tif")
    for row in rows:
        z, y0, y1, x0, x1 = (int(row[key]) for key in ("slice", "y0", "y1", "x0", "x1"))
        assert re.search(rf"{z} +{y0}:{y1} +{x0}:{x1} .*{row['file']}", out)
        assert (y1 - y0, x1 - x0) == (256, 256)
        np.testing.assert_array_equal(tifffile.imread(folder / "images" / row["file"]), image[z, y0:y1, x0:x1])
        mask = folder / "masks" / row["file"]
        np.testing.assert_array_equal(tifffile.imread(mask), predicted[z, y0:y1, x0:x1])
        lineage = ome.read_lineage(mask)
        assert lineage["roi"] == f"{z}:{z + 1},{y0}:{y1},{x0}:{x1}"
        assert lineage["input"] == "my cell.ome.tif"
        assert read_tiff_spacing(mask) == read_tiff_spacing(folder / "images" / row["file"]) == {"y": 5.0, "x": 4.0}
    pairs = find_pairs([str(folder / "images")], [str(folder / "masks")], ("--images", "--masks")).pairs
    assert sorted(f"{pair.name}.tif" for pair in pairs) == sorted(row["file"] for row in rows)
    picture = np.asarray(Image.open(folder / "boxes.png"))
    assert picture.shape == (3 * (256 + 14 + 4), 2 * 260, 3)

    capfd.readouterr()
    (folder / "masks" / rows[0]["file"]).write_bytes(b"corrected")
    assert run(monkeypatch, "suggest", "my cell.ome.tif") == 2
    assert "found an output that exists" in capfd.readouterr().err
    assert (folder / "masks" / rows[0]["file"]).read_bytes() == b"corrected"

    tifffile.imwrite("blank.tif", np.full((3, 300, 300), 7, np.uint8), photometric="minisblack")
    assert run(monkeypatch, "suggest", "blank.tif") == 2
    assert (
        capfd.readouterr().err.splitlines()[-1].startswith("mitoflow: blank.tif: found slices of a single grey value")
    )
    assert not (tmp_path / "blank_suggested").exists()


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("a/my cell.ome.tif", "my_cell"),
        ("a/slices", "slices"),
        ("a/s*.png", "s"),
        ("a/volume.h5/raw/data", "volume_raw_data"),
        ("https://host/folder/cell.ome.zarr", "cell"),
    ],
)
def test_files_are_named_by_the_stack(source: str, stem: str) -> None:
    assert stem_of(source) == stem
