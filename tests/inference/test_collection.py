"""A folder of unlike images, file by file."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from mitoflow.cli.predict import predict
from mitoflow.errors import InputError
from mitoflow.inference import collection, overlay, prediction
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from mitoflow.tracking import model_lookup
from tests.io.test_mrc import write as write_mrc
from tests.tiny_model import write_model

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, normalization="percentiles")
SLICE = np.random.default_rng(0).integers(0, 256, (70, 90), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of other sizes and types in a folder, and a model."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path, SETTINGS, SLICE[None])
    Path("cells/heart").mkdir(parents=True)
    tifffile.imwrite("cells/s2.tif", SLICE)
    tifffile.imwrite("cells/s10.tif", SLICE[:50].astype(np.float32) / 7)
    tifffile.imwrite("cells/heart/stack.tif", np.stack([SLICE.astype(np.uint16) * 100] * 5))
    volume = ome.create_multiscale(Path("cells/v.ome.zarr"), (4, 64, 64), np.dtype(np.uint8), 4)
    volume[:] = np.stack([SLICE[:64, :64]] * 4)
    ome.finish_multiscale(Path("cells/v.ome.zarr"), ome.Description("zyx", {}))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(predict, [*arguments, "--model", "unet.keras"])


def rows() -> list[dict[str, str]]:
    with Path("masks/summary.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_each_file_gets_a_mask_and_a_row(folder: Path) -> None:
    result = run("cells", "masks", "--overlay", "look.png")
    assert result.exit_code == 0, result.output
    assert "1 of 3: cells/s2.tif" in result.output
    found = rows()
    assert [row["file"] for row in found] == ["cells/s2.tif", "cells/s10.tif", "cells/v.ome.zarr"]
    assert [row["mask"] for row in found] == ["masks/s2.tif", "masks/s10.tif", "masks/v.ome.zarr"]
    assert [(row["slices"], row["height"], row["width"]) for row in found[:2]] == [("1", "70", "90"), ("1", "50", "90")]
    for name in ("s2", "s10"):
        prediction.predict(
            Request(f"cells/{name}.tif", Path(f"{name}.tif")), model_lookup.find("unet.keras"), lambda _: None
        )
        alone = tifffile.imread(f"{name}.tif")
        np.testing.assert_array_equal(tifffile.imread(f"masks/{name}.tif"), alone)
        (row,) = (row for row in found if row["file"] == f"cells/{name}.tif")
        assert float(row["foreground_fraction"]) == pytest.approx((alone > 0).mean(), abs=1e-5)
        assert Path(f"masks/{name}_look.png").is_file()


def test_folders_below_a_glob_are_those_of_the_masks(folder: Path) -> None:
    assert run("cells/**/*.tif", "masks").exit_code == 0
    assert tifffile.imread("masks/heart/stack.tif").shape == (5, 70, 90)
    assert len(rows()) == 3


@pytest.mark.slow
def test_what_is_done_is_skipped(folder: Path) -> None:
    assert run("cells", "masks").exit_code == 0
    first, before = rows(), Path("masks/s2.tif").stat().st_mtime_ns
    Path("masks/s10.tif").unlink()
    result = run("cells", "masks")
    assert "1 of 3: cells/s2.tif, done before" in result.output
    assert "2 of 3: cells/s10.tif\n" in result.output
    assert Path("masks/s2.tif").stat().st_mtime_ns == before
    assert rows() == first
    assert run("cells", "masks", "--overwrite").exit_code == 0
    assert Path("masks/s2.tif").stat().st_mtime_ns != before


def test_masks_of_earlier_runs_are_no_images(folder: Path) -> None:
    array = ome.create_multiscale(folder / "mask.zarr", SLICE.shape, SLICE.dtype, 1)
    ome.write_tiff(folder / "cells/s2_mask.tif", array, ome.Description("yx", lineage={"model": "unet"}))
    (folder / "cells/s10.tif").unlink()
    (folder / "cells/v.ome.zarr").rename("v.ome.zarr")
    assert run("cells", "masks").exit_code == 0
    assert [row["file"] for row in rows()] == ["cells/s2.tif"]


def test_png_and_mrc_files_get_masks(folder: Path) -> None:
    Path("others").mkdir()
    Image.fromarray(SLICE).save("others/a.png")
    write_mrc(Path("others/b.mrc"), np.stack([SLICE.astype(np.uint16)] * 2))
    Path("others/look.png").write_bytes(overlay.contours_png([(SLICE, (SLICE > 127).astype(np.uint8))]))
    assert run("others", "masks").exit_code == 0
    found = [(row["file"], row["mask"], row["slices"]) for row in rows()]
    assert found == [("others/a.png", "masks/a.tif", "1"), ("others/b.mrc", "masks/b.tif", "2")]


def test_a_table_of_somebody_else_is_kept(folder: Path) -> None:
    Path("masks").mkdir()
    Path("masks/summary.csv").write_text("animal,weight\n1,2\n")
    result = run("cells", "masks", "--overwrite")
    assert isinstance(result.exception, InputError)
    assert "masks/summary.csv: found something that mitoflow did not write" in str(result.exception)
    assert [path.name for path in Path("masks").iterdir()] == ["summary.csv"]


def test_a_broken_file_keeps_no_other_from_its_mask(folder: Path) -> None:
    Path("cells/s3.tif").write_text("no TIFF")
    result = run("cells", "masks")
    assert isinstance(result.exception, InputError)
    assert "1 of 4 files without a mask" in str(result.exception)
    broken = rows()[1]
    assert (broken["file"], broken["mask"]) == ("cells/s3.tif", "")
    assert "found no TIFF" in broken["error"]
    assert Path("masks/s10.tif").is_file()


def test_a_file_that_the_machine_does_not_read_keeps_no_other_from_its_mask(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite("cells/s3.tif", SLICE)
    whole = prediction.predict

    def predict(request: Request, *arguments: Any) -> None:
        if request.source.endswith("s3.tif"):
            raise PermissionError(errno.EACCES, "Permission denied", request.source)
        whole(request, *arguments)

    monkeypatch.setattr(prediction, "predict", predict)
    assert "1 of 4 files without a mask" in str(run("cells", "masks").exception)
    assert rows()[1]["error"].startswith("cells/s3.tif: found no permission")
    assert Path("masks/s10.tif").is_file()


def test_a_full_disk_ends_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prediction, "predict", predict)
    error = run("cells", "masks").exception
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC


@pytest.mark.slow
def test_an_interrupted_folder_has_a_summary_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = prediction.predict, iter([False, True])

    def stopped(*asked: object) -> None:
        if next(calls):
            raise KeyboardInterrupt
        whole(*asked)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prediction, "predict", stopped)
        collection.predict_each(Request("cells", Path("masks")), model_lookup.find("unet.keras"), lambda _: None)
    assert [row["file"] for row in rows()] == ["cells/s2.tif"]
    assert run("cells", "masks").exit_code == 0
    assert len(rows()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "output", "said"),
    [
        ("cells", "cells", "found the folder of the images"),
        ("heart", "masks", "found no image"),
        ("cells/*.tif", "mask.tif", "expected .* or predict each by itself, into a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder: Path, source: str, output: str, said: str) -> None:
    result = run(source, output)
    assert isinstance(result.exception, InputError)
    result.exception.args[0].index("found")
    with pytest.raises(InputError, match=said):
        raise result.exception
    assert not os.path.lexists("masks/summary.csv")


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    tifffile.imwrite("cells/s2.tiff", SLICE)
    with pytest.raises(InputError, match=r"s2.tiff: found the name of cells/s2.tif but for its ending"):
        collection.predict_each(Request("cells", Path("masks")), model_lookup.find("unet.keras"), lambda _: None)


@pytest.mark.parametrize(
    ("name", "is_folder"), [("a", True), ("a/", True), ("a.tif", False), ("a.zarr", False), ("a.png", False)]
)
def test_the_name_of_the_output_decides(name: str, is_folder: bool) -> None:
    assert collection.is_folder(Path(name)) == is_folder
