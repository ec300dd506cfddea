"""What `--overwrite` may replace."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from mitoflow.core import files
from mitoflow.errors import InputError
from mitoflow.inference import overlay
from mitoflow.inference.request import refuse_foreign
from mitoflow.instances import morphometry
from mitoflow.io import ome

SLICE = np.zeros((64, 64), np.uint8)


def write_ours(folder: Path) -> list[Path]:
    """Write one of each kind of output, as `mitoflow predict` does."""
    image = ome.create_multiscale(folder / "mask.ome.zarr", SLICE.shape, SLICE.dtype, 1)
    image[:] = SLICE
    description = ome.Description("yx", lineage={"model": "unet"})
    ome.write_tiff(folder / "mask.tif", image, description)
    ome.finish_multiscale(folder / "mask.ome.zarr", description)
    labels = np.ones((2, 8, 8), np.uint32)
    measured = morphometry.measure(labels.__getitem__, labels.shape, block=(2, 8, 8), read_regions=labels.__getitem__)
    measured.write(folder / "table.csv")
    measured.write_totals(folder / "table_totals.csv")
    measured.write_regions(folder / "table_regions.csv")
    (folder / "look.png").write_bytes(overlay.contours_png([(SLICE, SLICE)]))
    return list(folder.iterdir())


def test_what_mitoflow_wrote_may_be_replaced(tmp_path: Path) -> None:
    ours = write_ours(tmp_path)
    assert len(ours) == 6
    refuse_foreign([*ours, tmp_path / "new.tif", tmp_path / "new.csv"])


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("chapter 1")


def an_image_of_another_program(path: Path) -> None:
    image = ome.create_multiscale(path, SLICE.shape, SLICE.dtype, 1)
    image[:] = 1
    ome.finish_multiscale(path, ome.Description("yx"))


FOREIGN = {
    "a folder": ("important.zarr", a_folder),
    "a folder with the name of a TIFF": ("important.tif", a_folder),
    "a folder with the name of a table": ("important.csv", a_folder),
    "a folder with the name of a picture": ("important.png", a_folder),
    "an image": ("important.ome.zarr", an_image_of_another_program),
    "a micrograph": ("important.tif", lambda path: tifffile.imwrite(path, SLICE)),
    "an OME-TIFF": ("important.ome.tif", lambda path: tifffile.imwrite(path, SLICE, metadata={"axes": "YX"})),
    "an empty file": ("important.tif", lambda path: path.touch()),
    "a picture": ("important.png", lambda path: Image.fromarray(SLICE).save(path)),
    "a table with labels": ("important.csv", lambda path: files.write_csv(path, ["label", "age"], [[1, 2]])),
    "a table": ("important.csv", lambda path: files.write_csv(path, ["animal", "weight"], [[1, 2]])),
}


def test_what_others_put_into_an_output_is_kept(tmp_path: Path) -> None:
    write_ours(tmp_path)
    (tmp_path / "mask.ome.zarr/notes.txt").write_text("looks good")
    with pytest.raises(InputError, match=r"mask.ome.zarr: found notes.txt in it, which mitoflow did not write"):
        refuse_foreign([tmp_path / "mask.ome.zarr"])


def paint(level: str) -> None:
    """Correct a voxel of an OME-Zarr in place, as `docs/learning-loop.md` does."""
    zarr.open_array(level, mode="r+")[5, 7] = 255


def test_what_was_corrected_in_place_is_kept(tmp_path: Path) -> None:
    write_ours(tmp_path)
    shutil.copytree(tmp_path / "mask.ome.zarr", tmp_path / "copy.ome.zarr", copy_function=shutil.copyfile)
    (tmp_path / "copy.ome.zarr/0/.DS_Store").touch()  # macOS adds it where somebody looks into a folder
    paint(f"{tmp_path}/mask.ome.zarr/0")
    refuse_foreign([tmp_path / "copy.ome.zarr"])
    with pytest.raises(InputError) as error:
        refuse_foreign([tmp_path / "mask.ome.zarr"])
    assert str(error.value) == (
        f"{tmp_path}/mask.ome.zarr: found what is or may be corrected by hand, expected an earlier output that nobody "
        "changed; choose another name, or move it away yourself"
    )


@pytest.mark.parametrize("name", ["0/0/0", "0"])
def test_what_lost_voxels_is_kept(tmp_path: Path, name: str) -> None:
    write_ours(tmp_path)
    lost = tmp_path / "mask.ome.zarr" / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(InputError, match="mask.ome.zarr: found what is or may be corrected"):
        refuse_foreign([tmp_path / "mask.ome.zarr"])


def test_an_image_of_an_older_version_may_be_corrected(tmp_path: Path) -> None:
    write_ours(tmp_path)
    del zarr.open_group(tmp_path / "mask.ome.zarr", mode="r+").attrs[ome.VOXELS]
    with pytest.raises(InputError, match="mask.ome.zarr: found what is or may be corrected"):
        refuse_foreign([tmp_path / "mask.ome.zarr"])


def test_what_was_corrected_on_the_page_is_kept(tmp_path: Path) -> None:
    ome.write_tiff(
        tmp_path / "m.tif", SLICE, ome.Description("yx", lineage={"model": "unet", ome.CORRECTED: "by hand"})
    )
    with pytest.raises(InputError, match="m.tif: found what is or may be corrected by hand"):
        refuse_foreign([tmp_path / "m.tif"])


def test_a_tiff_that_another_program_saved_is_kept(tmp_path: Path) -> None:
    """tifffile, as napari uses it, and ImageJ write a description of their own."""
    write_ours(tmp_path)
    tifffile.imwrite(tmp_path / "mask.tif", tifffile.imread(tmp_path / "mask.tif"), imagej=True)
    with pytest.raises(InputError, match="mask.tif: found something that mitoflow did not write"):
        refuse_foreign([tmp_path / "mask.tif"])


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_others_wrote_is_never_replaced(tmp_path: Path, kind: str) -> None:
    name, make = FOREIGN[kind]
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: found something that mitoflow did not write"):
        refuse_foreign([tmp_path / name])
    assert (tmp_path / name).exists()
