"""A folder or glob of slices, one in each file: TIFF, PNG and MRC files follow the same rules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mitoflow.errors import InputError
from mitoflow.inference import overlay
from mitoflow.instances.label_files import read_labels
from mitoflow.io.ome import has_lineage
from mitoflow.io.volumes import open_any_stack, open_volume

from .test_mrc import write as write_mrc

STACK = np.random.default_rng(0).integers(0, 256, (11, 70, 90)).astype(np.uint16)
WRITE: dict[str, Callable[[Path, np.ndarray], object]] = {
    "tif": tifffile.imwrite,
    "png": lambda path, page: Image.fromarray(page).save(path),
    "mrc": write_mrc,
}
KINDS = pytest.mark.parametrize("kind", WRITE)


def write(folder: Path, kind: str, *names: str) -> None:
    for z, name in enumerate(names):
        WRITE[kind](folder / f"{name}.{kind}", STACK[z])


@KINDS
@pytest.mark.parametrize("source", ["", "s*"])
def test_slices_are_a_stack_in_the_order_of_their_numbers(tmp_path: Path, kind: str, source: str) -> None:
    write(tmp_path, kind, *(f"s{z}" for z in range(11)))
    notes: list[str] = []
    volume = open_volume(str(tmp_path / source), notify=notes.append)
    assert (volume.axes, volume.shape, volume.dtype) == ("zyx", STACK.shape, np.uint16)
    assert volume.spacing == (pytest.approx({"z": 30, "y": 5, "x": 5}) if kind == "mrc" else {})
    np.testing.assert_array_equal(np.stack([volume.read(z, (3, 50, 7, 61)) for z in range(11)]), STACK[:, 3:50, 7:61])
    assert notes == [f"note: {tmp_path}: 11 slices, s0.{kind} to s10.{kind}"]


@KINDS
def test_slices_of_masks_are_a_stack(tmp_path: Path, kind: str) -> None:
    for z in range(11):
        WRITE[kind](tmp_path / f"s{z}.{kind}", (STACK[z] > 127).astype(np.uint16) * 255)
    np.testing.assert_array_equal(read_labels(str(tmp_path))[0] > 0, STACK > 127)


@KINDS
def test_a_gap_is_told(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind, "s1", "s2", "s4")
    notes: list[str] = []
    open_volume(str(tmp_path), notify=notes.append)
    assert notes[1] == f"warning: {tmp_path}: slices are missing between s2.{kind} and s4.{kind}"


@KINDS
def test_a_copy_is_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind, "s1", "s2", "s2 - Copy")
    with pytest.raises(InputError, match=rf"s2 - Copy.{kind}: found what looks like a copy of s2.{kind}"):
        open_volume(str(tmp_path))


@pytest.mark.parametrize("ending", ["tif", "png", "mrc", "dm3", "h5", ""])
@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path, ending: str) -> None:
    os.mkfifo(pipe := tmp_path / f"s3.{ending}")
    line = r"s3\..*: found a pipe or a device, expected a file; save the image in a file first"
    for read in (lambda: open_volume(str(pipe)), lambda: read_labels(str(pipe)), lambda: open_any_stack(pipe)):
        with pytest.raises(InputError, match=line):
            read()
    assert not has_lineage(pipe)


@KINDS
@pytest.mark.timeout(20)
def test_a_pipe_among_slices_is_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind, "s1", "s2")
    os.mkfifo(tmp_path / f"s3.{kind}")
    for source in (tmp_path, tmp_path / "s*"):
        with pytest.raises(InputError, match=rf"s3\.{kind}: found a pipe or a device"):
            open_volume(str(source))


def test_slices_of_another_voxel_size_are_told(tmp_path: Path) -> None:
    for z, nanometres in enumerate([5, 5, 50, 50]):
        resolution = (1 / nanometres, 1 / nanometres)
        tifffile.imwrite(tmp_path / f"s{z}.tif", STACK[z], imagej=True, resolution=resolution, metadata={"unit": "nm"})
    notes: list[str] = []
    volume = open_volume(str(tmp_path), notify=notes.append)
    assert volume.spacing == pytest.approx({"y": 5, "x": 5})
    assert len(notes) == 2
    assert "s2.tif: found a voxel of y 50, x 50 nm, expected a voxel of y 5, x 5 nm as in s0.tif, which" in notes[1]
    size = {"z": 30.0, "y": 5.0, "x": 5.0}
    assert open_volume(str(tmp_path), spacing=size, notify=notes.append).spacing == pytest.approx(size)
    assert len(notes) == 3


@KINDS
def test_slices_of_other_sizes_are_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind, "s1", "s2")
    WRITE[kind](tmp_path / f"s3.{kind}", STACK[2, :, :80])
    with pytest.raises(InputError, match=rf"s3.{kind}: found 80 x 70 pixels of uint16, expected 90 x 70"):
        open_volume(str(tmp_path))


def test_a_stack_among_slices_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "mrc", "s1", "s2")
    write_mrc(tmp_path / "s3.mrc", STACK)
    with pytest.raises(InputError, match=r"s3.mrc: found 11 slices in one of several files"):
        open_volume(str(tmp_path))


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("png", "tif"), "found PNG files, such as s0.png and TIFF files, such as s0.tif"),
        (("mrc", "png"), "found MRC files, such as s0.mrc and PNG files, such as s0.png"),
    ],
)
def test_kinds_are_not_mixed(tmp_path: Path, kinds: tuple[str, ...], said: str) -> None:
    for number, kind in enumerate(kinds):
        write(tmp_path, kind, *(f"s{z}" for z in range(2 + number)))
    remedy = rf"expected slices of one kind; name those that are meant, such as 'FOLDER/\*.{kinds[-1]}'"
    for source in ("", "*"):
        with pytest.raises(InputError, match=f"{said}, {remedy}"):
            open_volume(str(tmp_path / source))
    assert open_volume(str(tmp_path / f"*.{kinds[0]}")).shape[0] == 2


@KINDS
def test_an_overlay_that_mitoflow_drew_is_no_slice(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind, "s1", "s2")
    (tmp_path / "look.png").write_bytes(overlay.contours_png([(STACK[0], (STACK[0] > 127).astype(np.uint8))]))
    assert open_volume(str(tmp_path)).shape[0] == 2
