"""`mitoflow predict` with a real, if tiny, network."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from scipy import ndimage

from mitoflow import cli
from mitoflow.config.params import Instances
from mitoflow.data import fingerprint, network_input
from mitoflow.errors import InputError
from mitoflow.inference import adaptation, jobs, model_input, plane_sums, prediction
from mitoflow.inference.parts import Part
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.request import beside as output_beside
from mitoflow.inference.settings import Settings
from mitoflow.instances import labelling, separation
from mitoflow.instances.label_files import read_mitochondria
from mitoflow.io import ome
from mitoflow.io.derived_volumes import Levels
from mitoflow.models import unet
from mitoflow.tracking import model_lookup
from tests.io.test_volumes import write_zarr
from tests.services import HTTPFolder, open_in_imagej
from tests.tiny_model import network_of_brightness, ship_model, two_that_touch, write_model

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1, median=3)
STACK = np.random.default_rng(0).integers(0, 256, (26, 80, 100), np.uint8)
KNOWN = {
    "axes": "ZYX",
    "PhysicalSizeX": 5.0,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 4.0,
    "PhysicalSizeYUnit": "nm",
}

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stack, a network, its settings and the fingerprint of its training images."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text("{}\n")
    (folder / "model").mkdir()
    write_model(folder / "model", SETTINGS, STACK[:3])
    seen = fingerprint.measure([network_input.to_unit(page[:64, :64], 8) for page in STACK], {"y": 4.0, "x": 5.0})
    seen.write(folder / "model/domain.yaml")
    tifffile.imwrite(folder / "cell.ome.tif", STACK, metadata=KNOWN)
    return folder


@pytest.fixture(scope="module")
def probabilities(project: Path) -> np.ndarray:
    return Predictor.load(project / "model/unet.keras", project / "model/inference.yaml").probabilities(STACK)


@pytest.fixture(scope="module")
def threshold(project: Path) -> float:
    return Settings.read(project / "model/inference.yaml").threshold


def read(path: str) -> np.ndarray:
    return ome.open_multiscale(Path(path)).array[:] if path.endswith(".zarr") else tifffile.imread(path)


@pytest.fixture
def say(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Say:
    """Run `mitoflow predict` in a copy of the project; gives exit code, stdout and stderr without the progress."""
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def say(*arguments: str, command: str = "predict", model: str = "model/unet.keras") -> tuple[int, str, str]:
        chosen = ["--model", model] if command == "predict" and "--model" not in arguments else []
        monkeypatch.setattr(sys, "argv", ["mitoflow", command, *arguments, *chosen])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return (
            code,
            out,
            "".join(line for line in err.splitlines(True) if not line.startswith(("predict:", "instances:", "\r"))),
        )

    return say


@pytest.mark.slow
@pytest.mark.parametrize("roi", ["", "3:21,10:75,7:90"])
@pytest.mark.parametrize("ending", ["tif", "ome.tif", "ome.zarr"])
def test_outputs_are_what_the_model_says(
    say: Say, probabilities: np.ndarray, threshold: float, ending: str, roi: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a part, which is predicted as in the whole, and where a slice is cut into several blocks."""
    monkeypatch.setattr(ome, "CHUNK", 32)
    monkeypatch.setattr(jobs, "SIDE", 64)
    monkeypatch.setattr(ome, "TILE", 16)
    part = np.s_[3:21, 10:75, 7:90] if roi else np.s_[:]
    asked = ["--probability", *(["--roi", roi] if roi else [])]
    code, out, err = say("cell.ome.tif", f"mask.{ending}", *asked)
    assert (code, err) == (0, "")
    assert out.startswith(f"mask.{ending}: mask by unet;")
    if ending == "ome.zarr":
        image = ome.open_multiscale(Path("mask.ome.zarr"))
        assert image.spacing == {"y": 4, "x": 5}
        mask, probability = image.array[:], ome.open_multiscale(Path("mask_probability.ome.zarr")).array[:]
    else:
        mask, probability = tifffile.imread(f"mask.{ending}"), tifffile.imread(f"mask_probability.{ending}")
        with tifffile.TiffFile(f"mask.{ending}") as file:
            assert 'PhysicalSizeX="5.0" PhysicalSizeXUnit="nm"' in str(file.ome_metadata)
    np.testing.assert_allclose(probability, probabilities[part], atol=1e-5)
    np.testing.assert_array_equal(mask, np.where(probability >= threshold, 255, 0))
    assert mask.dtype == np.uint8
    assert not [path for path in Path().iterdir() if path.name.startswith(".")], "nothing of the making is left"


@pytest.mark.slow
def test_an_image_on_a_server_has_the_mask_of_the_file(say: Say) -> None:
    write_zarr(Path("cell.zarr"), STACK)
    assert say("cell.zarr", "here.tif", "--table", "here.csv")[0] == 0
    with HTTPFolder(Path()) as served:
        code, out, err = say(f"{served.url}/cell.zarr", "there.tif", "--table", "there.csv")
        assert code == 0, err
        assert "Unclosed" not in err + out
        assert ome.read_lineage(Path("there.tif"))["input"] == f"{served.url}/cell.zarr"
        served.answers["/cell.zarr/0/1/0/0"] = (503, b"")
        code, _, err = say(f"{served.url}/cell.zarr", "gone.tif")
        assert (code, err.count("\n")) == (2, 1)
        assert "found no answer that can be used" in err
    assert not Path("gone.tif").exists()
    np.testing.assert_array_equal(tifffile.imread("there.tif"), tifffile.imread("here.tif"))
    assert Path("there.csv").read_text() == Path("here.csv").read_text()


@pytest.mark.slow
def test_masks_and_instances_open_in_imagej(say: Say) -> None:
    asked = ("--instances", "--smallest-um3", "0", "--voxel-size", "30,4,5", "--roi", "2:6,:,:")
    code, _, err = say("cell.ome.tif", "mask.tif", *asked)
    assert code == 0, err
    for name in ("mask.tif", "mask_instances.tif"):
        opened, written = open_in_imagej(Path(name)), tifffile.imread(name)
        assert opened.shape == (1, 4, 1, 80, 100)
        assert (opened.voxel_size, opened.unit) == (pytest.approx((30, 4, 5)), "nm")
        assert written.any()
        np.testing.assert_array_equal(opened.pixels.reshape(written.shape), written)


@pytest.mark.slow
def test_three_planes_are_taken_where_the_stack_allows_it(
    say: Say, probabilities: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same from one process and from several, of a part and of the whole; and a line where it is not possible."""
    monkeypatch.setattr(ome, "CHUNK", 32)
    monkeypatch.setattr(jobs, "SIDE", 64)
    monkeypatch.setattr(ome, "TILE", 16)
    monkeypatch.setattr(plane_sums, "SIDE", 32)
    settings = replace(Settings.read(Path("model/inference.yaml")), orthoplanes=True)
    settings.write(Path("model/inference.yaml"))
    wanted = Predictor.load(Path("model/unet.keras"), Path("model/inference.yaml")).probabilities(STACK)
    assert np.abs(wanted - probabilities).max() > 0.01
    for asked, part in (
        ((), np.s_[:]),
        (("--workers", "2"), np.s_[:]),
        (("--roi", "3:21,10:75,7:90"), np.s_[3:21, 10:75, 7:90]),
    ):
        code, _, err = say("cell.ome.tif", "mask.tif", "--probability", "--overwrite", *asked)
        assert (code, "sections" in err) == (0, False)
        assert "note: cell.ome.tif: the voxel size is unknown: voxels count as cubes" in err
        np.testing.assert_allclose(tifffile.imread("mask_probability.tif"), wanted[part], atol=1e-3)
    assert "voxel size" not in say("cell.ome.tif", "mask.tif", "--overwrite", "--voxel-size", "4,4,5")[2]
    code, _, err = say("cell.ome.tif", "mask.tif", "--probability", "--overwrite", "--voxel-size", "30,4,5")
    assert code == 0
    assert "note: cell.ome.tif: no orthogonal planes, as voxels are not about as long as they are wide" in err
    np.testing.assert_allclose(tifffile.imread("mask_probability.tif"), probabilities, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rescale", ["none", 0.8])
def test_orthogonal_planes_that_were_interrupted_go_on_at_the_first_missing_ones(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescale: Literal["none"] | float
) -> None:
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plane_sums, "SIDE", 32)
    replace(SETTINGS, orthoplanes=True).write(Path("model/inference.yaml"))
    model = model_lookup.find("model/unet.keras")

    def predict(output: str, advance: Callable[[int], object]) -> np.ndarray:
        request = Request("cell.ome.tif", Path(output), probability=True, rescale=rescale, neighbours="all")
        prediction.predict(request, model, lambda _: None, advance)
        return tifffile.imread(Path(output).with_name(f"{Path(output).stem}_probability.tif"))

    undisturbed: list[int] = []
    expected = predict("whole.tif", undisturbed.append)
    assert sum(undisturbed) == STACK.size

    first: list[int] = []

    def stop(voxels: int) -> None:
        first.append(voxels)
        if sum(first) > 0.5 * STACK.size:  # all planes perpendicular to y are done, and some of those to x
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict("mask.tif", stop)
    done = {path.name for path in Path().glob(".mask.tif.partial/*/done/*")}
    assert {"planes-y-0", "planes-y-32", "planes-x-0"} <= done
    assert "0-0-0" not in done
    again: list[int] = []
    np.testing.assert_array_equal(predict("mask.tif", again.append), expected)
    assert 0.4 * STACK.size < sum(again) < 0.6 * STACK.size
    assert not list(Path().glob(".*.partial"))


@pytest.mark.slow
def test_lineage_comes_with_every_output(say: Say, threshold: float) -> None:
    for name in ("mask.tif", "mask.ome.zarr"):
        assert say("cell.ome.tif", name, "--roi", ":8,:,:", "--threshold", "0.25")[0] == 0
        code, out, _ = say(name, command="lineage")
        assert code == 0
        told = dict(re.split("  +", line, maxsplit=1) for line in out.splitlines())
        assert told["model"] == "model/unet.keras"
        assert len(told["model_sha256"]) == 64
        assert (told["threshold"], told["input"], told["roi"]) == ("0.25", "cell.ome.tif", "0:8,0:80,0:100")
        assert told["mitoflow"]
        assert (told["tta"], told["orthoplanes"]) == ("1", "False")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask.tif", "mask.ome.zarr"])
def test_a_mask_is_no_image(say: Say, name: str) -> None:
    assert say("cell.ome.tif", name)[0] == 0
    code, _, error = say(name, "again.tif")
    assert code == 2
    assert f"{name}: found an output of `mitoflow predict` among the input, expected images" in error
    assert not Path("again.tif").exists()


@pytest.mark.slow
def test_lineage_says_which_predictions_were_averaged(say: Say) -> None:
    assert say("cell.ome.tif", "plain.tif")[0] == 0
    assert say("cell.ome.tif", "averaged.tif", "--tta", "--neighbours", "none")[0] == 0
    plain, averaged = (ome.read_lineage(Path(name)) for name in ("plain.tif", "averaged.tif"))
    assert (plain["tta"], averaged["tta"]) == ("1", "8")
    assert (plain["neighbours"], averaged["neighbours"]) == ("1 on each side, 1 apart", "none")


@pytest.mark.slow
def test_a_slice_gives_a_slice(say: Say) -> None:
    tifffile.imwrite("slice.tif", STACK[0])
    assert say("slice.tif", "mask.tif", "--overlay", "o.png")[0] == 0
    assert say("slice.tif", "mask.ome.zarr", "--tta")[0] == 0
    assert tifffile.imread("mask.tif").shape == zarr.open_array("mask.ome.zarr/0").shape == (80, 100)
    assert Image.open("o.png").size == (104, 84)


@pytest.mark.parametrize("size", [(1, 1), (5, 40)])
def test_slices_of_any_size(say: Say, size: tuple[int, int]) -> None:
    tifffile.imwrite("small.tif", STACK[0, : size[0], : size[1]])
    code, _, stderr = say("small.tif", "mask.tif", "--instances", "--overlay", "o.png")
    assert code == 0, stderr
    assert read("mask.tif").shape == size


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["tif", "ome.zarr"])
def test_mitochondria_are_told_apart_and_measured(say: Say, ending: str) -> None:
    size = (50.0, 40.0, 5.0)
    asked = ("--instances", "--table", "t.csv", "--voxel-size", "50,40,5", "--roi", "2:,:,:90")
    asked += ("--smallest-um3", "0.0005")
    code, _, err = say("cell.ome.tif", f"mask.{ending}", *asked)
    assert code == 0
    mask, labels = (read(f"{name}.{ending}") for name in ("mask", "mask_instances"))
    assert labels.dtype == (np.uint16 if ending == "tif" else np.uint32)
    apart = separation.separate(mask > 0, Instances(smallest_um3=0.0005), size)
    np.testing.assert_array_equal(labels, apart)

    with Path("t.csv").open() as table, Path("t_totals.csv").open() as beside:
        rows, (totals,) = list(csv.DictReader(table)), csv.DictReader(beside)
    assert [int(row["volume_voxels"]) for row in rows] == np.bincount(labels.ravel())[1:].tolist() != []
    assert float(rows[0]["volume_um3"]) == pytest.approx(int(rows[0]["volume_voxels"]) * 1e-5, rel=1e-5)
    assert float(totals["volume_fraction"]) == pytest.approx((labels > 0).mean(), rel=1e-5)
    assert f"{len(rows)} mitochondria" in err


@pytest.mark.slow
def test_a_part_of_a_part_lies_where_it_is(say: Say) -> None:
    part = STACK[4:20, 10:74, 6:90]
    ome.create_multiscale(Path("a.ome.zarr"), part.shape, part.dtype, len(part))[:] = part
    spacing = {"z": 30.0, "y": 4.0, "x": 5.0}
    ome.finish_multiscale(Path("a.ome.zarr"), ome.Description("zyx", spacing, (4, 10, 6)))
    assert say("a.ome.zarr", "b.ome.zarr", "--roi", "2:9,1:60,3:70")[0] == 0
    assert ome.open_multiscale(Path("b.ome.zarr")).origin == (6, 11, 9)


def test_what_is_separated_on_a_coarser_grid_is_told(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "Separation", partial(separation.Separation, largest=1000))
    code, _, err = say("cell.ome.tif", "mask.tif", "--instances", "--threshold", "0.01")
    assert code == 0
    assert re.search("note: [1-9][0-9]* mitochondria were separated on a coarser grid: .* 12 million voxels", err)


@pytest.mark.slow
def test_without_a_voxel_size_mitochondria_are_measured_in_voxels(say: Say) -> None:
    _, _, err = say("cell.ome.tif", "mask.tif", "--table", "t.csv")
    assert "note: the distance between slices is unknown, so mitochondria are measured in voxels" in err
    with Path("t.csv").open() as table:
        assert {row["volume_um3"] for row in csv.DictReader(table)} == {""}
    assert not Path("mask_instances.tif").exists()


def test_an_overlay_shows_the_contours(say: Say) -> None:
    assert say("cell.ome.tif", "mask.tif", "--overlay", "o.png", "--roi", "0:9,:,:")[0] == 0
    picture = np.asarray(Image.open("o.png"))
    assert picture.shape == (2 * 84, 2 * 104, 3)
    assert (picture == (0, 200, 150)).all(axis=2).any()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["tif", "ome.zarr"])
def test_a_killed_process_is_continued_at_the_first_missing_block(
    say: Say, probabilities: np.ndarray, threshold: float, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"mask.{ending}"
    code = f"""
import os, pathlib, signal, sys
from mitoflow import cli
from mitoflow.io import volumes
read = volumes.StackVolume.read
def read_or_die(volume, z, box):
    if z == 22 and [*pathlib.Path().glob(".*.partial/*/done/8-0-0")]:  # when the third block is read
        os.kill(os.getpid(), signal.SIGKILL)
    return read(volume, z, box)
volumes.StackVolume.read = read_or_die
sys.argv = ["mitoflow", "predict", "cell.ome.tif", "{output}", "--model", "model/unet.keras"]
cli.main()
"""
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not Path(output).exists()
    assert sorted(path.name for path in Path(f".{output}.partial").glob("*/done/*")) == ["0-0-0", "8-0-0"]

    predicted: list[Part] = []
    maps = jobs.Prediction.maps

    def recorded(self: jobs.Prediction, part: Part, *rest: Any, **options: Any) -> Iterator[np.ndarray]:
        predicted.append(part)
        return maps(self, part, *rest, **options)

    monkeypatch.setattr(jobs.Prediction, "maps", recorded)
    assert say("cell.ome.tif", output)[0] == 0
    assert [part.slices for part in predicted] == [range(16, 26)]
    mask = zarr.open_array(f"{output}/0")[:] if ending == "ome.zarr" else tifffile.imread(output)
    np.testing.assert_array_equal(mask, np.where(probabilities >= threshold, 255, 0))
    assert not Path(f".{output}.partial").exists()


@pytest.mark.slow
def test_another_request_does_not_continue_what_was_begun(say: Say) -> None:
    with pytest.MonkeyPatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(prediction, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prediction.predict(Request("cell.ome.tif", Path("mask.tif")), model_lookup.find("model/unet.keras"), print)
    assert list(Path(".mask.tif.partial").glob("*/done/24-0-0"))
    assert say("cell.ome.tif", "mask.tif", "--threshold", "0.999")[0] == 0
    assert not tifffile.imread("mask.tif").any()


def test_images_of_another_bit_depth_are_brought_to_that_of_training(
    say: Say, probabilities: np.ndarray, threshold: float
) -> None:
    tifffile.imwrite("wide.tif", STACK.astype(np.uint16) * 200 + 1000)
    code, _, err = say("wide.tif", "mask.tif")
    assert code == 0
    assert re.search(
        r"^note: grey values 1\d{3} to 5\d{4} of wide.tif become 0.0\d to (0.9\d|1.00) of the 8-bit range", err
    )
    mask = tifffile.imread("mask.tif")
    assert ((mask > 0) == (probabilities >= threshold)).mean() > 0.9


def blank_slices(wide: np.ndarray) -> np.ndarray:
    wide[5], wide[10], wide[15] = 0, 65535, 65535
    return wide


def constant_border(wide: np.ndarray) -> np.ndarray:
    return np.pad(wide, ((0, 0), (60, 0), (50, 0)))


def turned(wide: np.ndarray) -> np.ndarray:
    return ndimage.rotate(wide, 20, axes=(1, 2), order=0, cval=0)


@pytest.mark.parametrize("bit_depth", [8, 12])
@pytest.mark.parametrize("harm", [blank_slices, constant_border, turned])
def test_constant_pixels_and_blank_slices_do_not_move_the_grey_values(
    tmp_path: Path, harm: Callable[[np.ndarray], np.ndarray], bit_depth: int
) -> None:
    """Their percentiles would: black becomes white for all tissue, and the mask is another one."""
    wide = np.random.default_rng(0).normal(9000, 1500, (26, 200, 220)).clip(0, 65535).astype(np.uint16)

    def levels(stack: np.ndarray) -> Levels | None:
        volume = model_input.ArrayVolume(stack)
        return adaptation.match_levels(adaptation.sample(volume, 128), None, bit_depth)

    plain, harmed = levels(wide), levels(harm(wide.copy()))
    assert plain is not None
    assert harmed is not None
    assert (harmed.low, harmed.high) == pytest.approx((plain.low, plain.high), rel=0.03)


def test_white_padding_is_no_reason_to_change_grey_values_of_the_right_depth() -> None:
    patch = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    levels = adaptation.match_levels([np.pad(patch, 20, constant_values=65535)], None, 12)
    assert levels is not None
    assert levels.only_clips


def test_patches_come_from_slices_that_show_something() -> None:
    stack = STACK.copy()
    stack[:20] = 0
    volume = model_input.ArrayVolume(stack)
    blank = model_input.blank_slices(volume)
    assert blank == {*range(20)}
    assert all(patch.any() for patch in adaptation.sample(volume, 64, blank))
    assert len(adaptation.sample(volume, 64, {*range(26)})) == 16


@pytest.mark.slow
def test_blank_slices_and_padding_are_told_and_stay_empty(say: Say) -> None:
    """Neither makes the rest look unlike the training images."""
    padded = np.pad(STACK, ((0, 0), (60, 0), (50, 0)))
    padded[3], padded[9] = 0, 255
    tifffile.imwrite("padded.tif", padded)
    code, _, err = say("padded.tif", "mask.tif", "--neighbours", "all")
    assert (code, err) == (0, "note: padded.tif: no mitochondria in slices that have a single grey value: 3, 9\n")
    mask = tifffile.imread("mask.tif")
    assert not mask[[3, 9]].any()
    assert all(mask[z].any() for z in range(26) if z not in (3, 9))
    assert "single grey value: 3, 9" in ome.read_lineage(Path("mask.tif"))["decisions"]
    predictor = Predictor.load(Path("model/unet.keras"), Path("model/inference.yaml"))
    assert not predictor.masks(padded)[[3, 9]].any()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["tif", "ome.zarr"])
def test_an_input_that_changes_while_it_is_read_gives_no_mask(say: Say, ending: str) -> None:
    def write(stack: np.ndarray) -> None:
        if ending == "tif":
            tifffile.imwrite("cell.tif", stack)
            return
        volume = ome.create_multiscale(Path("cell.ome.zarr"), stack.shape, stack.dtype, 8)
        volume[:] = stack
        ome.finish_multiscale(Path("cell.ome.zarr"), ome.Description("zyx"))

    write(STACK)
    model, before = model_lookup.find("model/unet.keras"), sorted(Path().iterdir())
    with pytest.raises(InputError, match=f"cell.{ending}: found a file that changed while it was read"):
        prediction.predict(
            Request(f"cell.{ending}", Path("mask.tif")), model, print, lambda _: write(STACK[::-1].copy())
        )
    assert sorted(Path().iterdir()) == before


def test_single_pixels_above_the_range_are_clipped() -> None:
    """Of a camera with 12 bits, where one pixel has more: no reason to stop at its block, again and again."""
    patches = [np.full((64, 64), 4095, np.uint16)]
    levels = adaptation.match_levels(patches, None, 12)
    assert levels is not None
    assert levels.only_clips
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(levels.apply(every), np.minimum(every, 4095))
    assert adaptation.match_levels([np.zeros((4, 4), np.uint16)], None, 16) is None
    assert adaptation.match_levels([np.zeros((4, 4), np.uint8)], None, 8) is None


def test_outputs_beside_keep_the_name(tmp_path: Path) -> None:
    names = {"cell.tif": "cell_x.tif", "cell_v1.2.ome.zarr": "cell_v1.2_x.ome.zarr", "a.b.tif": "a.b_x.tif"}
    for name, beside in names.items():
        assert output_beside(tmp_path / name, "x").name == beside


@pytest.mark.slow
def test_what_was_filled_in_is_not_kept_when_it_comes_back(say: Say) -> None:
    """Blocks that were predicted while a chunk was lost are predicted again once it is there."""
    array = ome.create_multiscale(Path("cell.ome.zarr"), STACK.shape, STACK.dtype, 8)
    array[:] = STACK
    ome.finish_multiscale(Path("cell.ome.zarr"), ome.Description("zyx", {"y": 4.0, "x": 5.0}))
    lost = Path("cell.ome.zarr/0/0/0/0")
    chunk = lost.read_bytes()
    lost.unlink()
    with pytest.MonkeyPatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(prediction, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        request = Request("cell.ome.zarr", Path("mask.tif"), fill_missing=True)
        prediction.predict(request, model_lookup.find("model/unet.keras"), print)
    lost.write_bytes(chunk)
    assert say("cell.ome.zarr", "mask.tif", "--fill-missing")[0] == 0
    assert say("cell.ome.tif", "expected.tif")[0] == 0
    np.testing.assert_array_equal(tifffile.imread("mask.tif"), tifffile.imread("expected.tif"))


@pytest.mark.parametrize("pixels", [np.full((26, 80, 90), 90, np.uint8), np.full((26, 80, 90), np.nan, np.float32)])
def test_of_a_blank_stack_nothing_is_said_but_that_it_is_blank(say: Say, pixels: np.ndarray) -> None:
    tifffile.imwrite("blank.tif", pixels, photometric="minisblack")
    code, _, err = say("blank.tif", "mask.tif")
    line = "note: blank.tif: no mitochondria in slices that have a single grey value: 0, 1, 2, ... (26 in all)\n"
    assert (code, err) == (0, line)
    assert not tifffile.imread("mask.tif").any()
    assert not {"differs", "judgement"} & ome.read_lineage(Path("mask.tif")).keys()


def test_images_unlike_those_of_training_are_told(say: Say) -> None:
    tifffile.imwrite("dark.tif", STACK // 4)
    code, _, err = say("dark.tif", "mask.tif")
    assert code == 0
    assert err.startswith("warning: dark.tif looks unlike the training images: it is darker: a mean grey of 0.12")


@pytest.mark.slow
@pytest.mark.parametrize(("sets", "drawn"), [("phantom", True), ("phantoms+phantom", True), ("phantom+epfl", False)])
def test_a_model_of_drawn_images_says_so_first(say: Say, sets: str, drawn: bool) -> None:
    shutil.copytree("model", "pretrained/own")
    ship_model(Path("pretrained/own"), sets)
    code, _, err = say("cell.ome.tif", "mask.tif", "--model", "pretrained:own")
    assert code == 0
    first = f"warning: pretrained:own WAS TRAINED ON DRAWN IMAGES ALONE ({sets}), NOT ON REAL TISSUE."
    assert err.startswith(first) is drawn
    assert ("DRAWN" in err) is drawn


@pytest.mark.slow
def test_pixels_of_another_size_are_resampled_on_request(say: Say, probabilities: np.ndarray) -> None:
    smooth = np.repeat(np.repeat(STACK, 2, axis=1), 2, axis=2)
    tifffile.imwrite("fine.tif", smooth)
    assert say("fine.tif", "mask.tif", "--voxel-size", "2,2.5")[2].startswith(
        "warning: fine.tif looks unlike the training images: its pixels are about 2.0 x finer (2.5 nm, 5 nm in the"
    )
    code, _, err = say(
        "fine.tif", "mask.tif", "--voxel-size", "2,2.5", "--rescale", "training", "--probability", "--overwrite"
    )
    assert code == 0
    assert "pixels" not in err
    found = tifffile.imread("mask_probability.tif")
    assert found.shape == (26, 160, 200)
    # Up and down again is a blur, and noise predicts as noise: they agree, but not to the last digit.
    agreement = np.corrcoef(found.reshape(26, 80, 2, 100, 2).mean((2, 4)).ravel(), probabilities.ravel())[0, 1]
    assert agreement > 0.5


def lambda_model(folder: Path) -> None:
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x[..., :1])(inputs)).save(folder / "model/unet.keras")


def classifier(folder: Path) -> None:
    inputs = keras.Input((8,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(folder / "model/unet.keras")


def pickled(folder: Path) -> None:
    (folder / "model/unet.keras").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def without_settings(folder: Path) -> None:
    (folder / "model/inference.yaml").unlink()


def other_suffix(folder: Path) -> None:
    (folder / "model.h5").write_bytes(b"")


def existing(folder: Path) -> None:
    (folder / "mask.tif").write_text("precious")


def a_mask_among_slices(folder: Path) -> None:
    for z in range(2):
        tifffile.imwrite(folder / f"s{z}.tif", STACK[z])
    array = ome.create_multiscale(folder / "model/mask.zarr", STACK[0].shape, STACK.dtype, 1)
    ome.write_tiff(folder / "s1_mask.tif", array, ome.Description("yx", lineage={"model": "unet"}))


def nothing(folder: Path) -> None:
    pass


BAD: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no input": (nothing, ["no.tif", "mask.tif"], "no.tif: found no such file, expected a TIFF, a folder or"),
    "ending": (nothing, ["cell.ome.tif", "mask.png"], "OUTPUT: found mask.png, expected a name that ends with .tif"),
    "no folder": (nothing, ["cell.ome.tif", "no/mask.tif"], "no/mask.tif: found no such folder"),
    "overlay": (nothing, ["cell.ome.tif", "mask.tif", "--overlay", "o.gif"], "--overlay: found o.gif, expected a name"),
    "table": (nothing, ["cell.ome.tif", "mask.tif", "--table", "t.xls"], "--table: found t.xls, expected a name that"),
    "table exists": (
        lambda folder: (folder / "t_totals.csv").touch(),
        ["cell.ome.tif", "mask.tif", "--table", "t.csv"],
        "t_totals.csv: found an output that exists, expected a new name",
    ),
    "exists": (existing, ["cell.ome.tif", "mask.tif"], "mask.tif: found an output that exists, expected a new name"),
    "itself": (nothing, ["cell.ome.tif", "cell.ome.tif", "--overwrite"], "cell.ome.tif: found the input, expected"),
    "one of the inputs": (
        lambda folder: [tifffile.imwrite(folder / f"s{z}.tif", STACK[z]) for z in range(2)],
        ["s*.tif", "s0.tif", "--overwrite"],
        "s0.tif: found the input, expected a name of its own",
    ),
    "not ours": (
        lambda folder: (folder / "important.zarr").mkdir(),
        ["cell.ome.tif", "important.zarr", "--overwrite"],
        "important.zarr: found something that mitoflow did not write, expected an earlier output",
    ),
    "a mask among the slices": (
        a_mask_among_slices,
        ["s*.tif", "mask.tif"],
        "s1_mask.tif: found an output of `mitoflow predict` among the input, expected images; name the images alone",
    ),
    "no size": (nothing, ["cell.ome.tif", "mask.tif", "--smallest-um3", "inf"], "--smallest-um3': inf is no number"),
    "no ratio": (nothing, ["cell.ome.tif", "mask.tif", "--neck", "nan"], "--neck': nan is no number"),
    "no number": (nothing, ["cell.ome.tif", "mask.tif", "--threshold", "nan"], "--threshold: found nan, expected"),
    "rescale far": (
        lambda folder: tifffile.imwrite(folder / "plain.tif", STACK),
        ["plain.tif", "mask.tif", "--rescale", "training", "--voxel-size", "4000"],
        "--rescale: found 4000 nm along y, expected about 4",
    ),
    "roi": (nothing, ["cell.ome.tif", "mask.tif", "--roi", "1:2"], "--roi: found 1:2, expected z0:z1,y0:y1,x0:x1"),
    "roi beyond": (
        nothing,
        ["cell.ome.tif", "mask.tif", "--roi", "0:99,:,:"],
        "expected a part of the stack: z up to 26",
    ),
    "voxel size": (nothing, ["cell.ome.tif", "mask.tif", "--voxel-size", "big"], "--voxel-size: found big, expected"),
    "threshold": (nothing, ["cell.ome.tif", "mask.tif", "--threshold", "2"], "2.0 is not in the range 0<x<1"),
    "rescale": (
        lambda folder: tifffile.imwrite(folder / "plain.tif", STACK),
        ["plain.tif", "mask.tif", "--rescale", "training"],
        "--rescale: found no voxel size of the INPUT, expected one along y and x; give --voxel-size",
    ),
    "no model": (
        nothing,
        ["cell.ome.tif", "mask.tif", "--model", "no.keras"],
        "--model: found no.keras, which is no file, expected",
    ),
    "model of another kind": (
        other_suffix,
        ["cell.ome.tif", "mask.tif", "--model", "model.h5"],
        "--model: found model.h5",
    ),
    "lambda": (
        lambda_model,
        ["cell.ome.tif", "mask.tif"],
        "model/unet.keras: found .*Lambda.*, expected a U-Net saved by",
    ),
    "pickle": (pickled, ["cell.ome.tif", "mask.tif"], "model/unet.keras: found .*, expected a U-Net saved by mitoflow"),
    "another network": (classifier, ["cell.ome.tif", "mask.tif"], r"found a network from \(None, 8\) to \(None, 2\)"),
    "no settings": (
        without_settings,
        ["cell.ome.tif", "mask.tif"],
        "found no inference.yaml beside it, expected a model",
    ),
    "no lineage": (
        nothing,
        ["cell.ome.tif"],
        "cell.ome.tif: found no lineage, expected an output of `mitoflow predict`",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line(say: Say, tmp_path: Path, kind: str) -> None:
    make, arguments, said = BAD[kind]
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = say(*arguments, command="predict" if len(arguments) > 1 else "lineage")
    assert code == 2, (out, err)
    assert err.startswith("mitoflow: ")
    assert err.count("\n") == 1, err
    assert re.search(said, err), err
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written"


def test_a_registry_that_does_not_answer_is_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, _, err = say("cell.ome.tif", "mask.tif", "--model", "models:/mitoflow@champion")
    assert code == 2
    assert err.startswith("mitoflow: http://127.0.0.1:9: found ")
    assert err.count("\n") == 1
    assert "an MLflow registry that answers" in err


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_rest_is_continued(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    write = jobs._write
    full = iter([False, True, False, False, False])

    def write_until_full(*arguments: object) -> None:
        if next(full):
            raise OSError(28, "No space left on device")
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "_write", write_until_full)
    code, _, err = say("cell.ome.tif", "mask.tif")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("mitoflow: mask.tif: found no space left on the disk")
    assert not Path("mask.tif").exists()
    assert say("cell.ome.tif", "mask.tif")[0] == 0
    assert tifffile.imread("mask.tif").shape == STACK.shape


@pytest.mark.parametrize("ending", ["tif", "ome.zarr"])
def test_instances_are_taken_apart_where_the_network_finds_contacts(
    say: Say, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block, and in several of which the line is in one."""
    if ending == "ome.zarr":
        monkeypatch.setattr(ome, "CHUNK", 32)
        monkeypatch.setattr(jobs, "SIDE", 32)
    unet.save_model(network_of_brightness(), Path("model/unet.keras"))
    replace(SETTINGS, divisor=1, context=0, median=1, contacts=True).write(Path("model/inference.yaml"))
    tifffile.imwrite("touching.tif", two_that_touch(9), photometric="minisblack", metadata={"axes": "ZYX"})
    code, _, err = say("touching.tif", f"mask.{ending}", "--instances", "--table", "t.csv", "--smallest-voxels", "10")
    assert code == 0, err
    assert np.array_equal(read(f"mask.{ending}") > 0, two_that_touch(9) > 0)
    labels = read(f"mask_instances.{ending}")
    assert np.bincount(labels[labels > 0]).tolist() == [0, 9 * 200, 9 * 200]
    assert labels[4, 35, 35] != labels[4, 35, 65]
    assert len(Path("t.csv").read_text().splitlines()) == 3
    assert ome.read_lineage(Path(f"mask_instances.{ending}"))["instances"].endswith("; contacts by the network")
    assert not Path("mask_contacts.tif").exists()
    notes: list[str] = []
    read_mitochondria(f"mask_instances.{ending}", notes.append)
    assert notes == []
    read_mitochondria(f"mask.{ending}", notes.append)
    assert notes == [
        f"note: mask.{ending}: divided at necks alone, without the contacts that its model knows; "
        "name its instances, which `predict --instances` writes, to use them"
    ]
    replace(SETTINGS, divisor=1, context=0, median=1).write(Path("model/inference.yaml"))
    code, _, err = say("touching.tif", f"other.{ending}", "--instances")
    assert (code, "(slices, y, x, 1), as its settings say" in err) == (2, True)


@pytest.mark.slow
def test_workers_find_the_same_contacts(say: Say) -> None:
    unet.save_model(network_of_brightness(), Path("model/unet.keras"))
    replace(SETTINGS, divisor=1, context=0, median=1, contacts=True).write(Path("model/inference.yaml"))
    tifffile.imwrite("touching.tif", two_that_touch(9), photometric="minisblack", metadata={"axes": "ZYX"})
    code, _, err = say("touching.tif", "mask.tif", "--instances", "--smallest-voxels", "10", "--workers", "2")
    assert code == 0, err
    assert np.bincount(read("mask_instances.tif").ravel())[1:].tolist() == [9 * 200, 9 * 200]
