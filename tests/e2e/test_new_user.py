"""The way of a new user: a clone, a mask, ImageJ and napari, corrections, measurements, and a model that learned them.

What the commands print is compared with what NumPy makes of the same files.
"""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import npe2
import numpy as np
import pytest
import tifffile
from napari.components import ViewerModel
from napari.layers import Image, Labels

from mitoflow.data.phantom import make_phantom
from mitoflow.io import ome, volumes
from tests.e2e.conftest import QUICK, REPOSITORY, Project, dice
from tests.services import open_in_imagej

SIZE = {"z": 30.0, "y": 5.0, "x": 5.0}  # nanometres
LOOKED_AT, TEST = [4, 12, 20], 18  # the slices that are corrected, and the first one that tests
NEW = np.s_[1:4, 2:42, 2:62]  # where a mitochondrion is added


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A clone of the last commit, whose code the commands run."""
    folder = tmp_path / "mitoflow"
    subprocess.run(["git", "clone", "-q", REPOSITORY, folder], check=True)
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    project = Project(folder)
    project.run("git", "checkout", "-q", "-B", "main")
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@localhost")
    return project


@pytest.fixture
def work(tmp_path: Path) -> Project:
    """An empty folder, which is no checkout."""
    (tmp_path / "work").mkdir()
    return Project(tmp_path / "work")


@pytest.mark.timeout(2400)  # a training of the network that ships, if a short one
def test_from_a_stack_to_a_model_that_learned_its_corrections(
    clone: Project, work: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, drawn = make_phantom((24, 160, 224), seed=3)
    ome.write_tiff(work.folder / "stack.tif", image, ome.Description("zyx", SIZE))
    monkeypatch.chdir(work.folder)
    predict(work)
    for name in ("mask.tif", "mask_instances.tif"):
        open_in_fiji(Path(name))
    correct(drawn)
    score(work)
    measure(work)
    import_corrections(clone)
    learn_and_compare(clone, work)


def predict(work: Project) -> None:
    """The mask is where the probability reaches the threshold that the lineage names, and instances lie in it."""
    work.run("mitoflow", "predict", "stack.tif", "mask.tif", "--instances", "--probability")
    printed = work.run("mitoflow", "lineage", "mask.tif").stdout
    (threshold,) = re.findall(r"^threshold +(\S+)$", printed, re.MULTILINE)
    mask, instances, probability = (tifffile.imread(f"mask{end}.tif") for end in ("", "_instances", "_probability"))
    np.testing.assert_array_equal(mask, np.where(probability >= float(threshold), 255, 0))
    assert instances.max() > 5
    assert dice(instances > 0, mask > 0) > 0.95, "specks are left out, and holes are filled"


def open_in_fiji(path: Path) -> None:
    """ImageJ shows a stack at its voxel size, with the voxels of the file."""
    opened, voxels = open_in_imagej(path), tifffile.imread(path)
    assert (opened.shape, opened.unit) == ((1, len(voxels), 1, *voxels.shape[1:]), "nm")
    assert opened.voxel_size == pytest.approx((30, 5, 5))
    np.testing.assert_array_equal(opened.pixels.reshape(voxels.shape), voxels)


def correct(drawn: np.ndarray) -> None:
    """Do in napari what a hand does: erase and draw a mitochondrion, and correct three slices of the mask."""
    npe2.PluginManager.instance().discover()
    viewer = ViewerModel()
    for name in ("stack.tif", "mask.tif", "mask_instances.tif"):
        viewer.open(name, plugin="mitoflow")
    assert [type(layer) for layer in viewer.layers] == [Image, Labels, Labels]
    for layer in viewer.layers:
        assert layer.scale.tolist() == [30, 5, 5]
    _, mask, instances = viewer.layers
    instances.data[instances.data == 2] = 0
    instances.data[NEW] = instances.data.max() + 1
    instances.save("cells.tif", plugin="mitoflow")
    mask.data[LOOKED_AT] = drawn[LOOKED_AT]
    mask.data[[z for z in range(len(drawn)) if z not in LOOKED_AT]] = 128  # nobody looked there
    mask.save("corrected.tif", plugin="mitoflow")
    assert volumes.read_spacing(Path("corrected.tif")) == SIZE
    assert ome.read_lineage(Path("corrected.tif"))["corrected"].startswith("by hand, in napari ")


def score(work: Project) -> None:
    """The score is that of the slices that were corrected."""
    printed = work.run("mitoflow", "score", "mask.tif", "corrected.tif").stdout
    mask, corrected = (tifffile.imread(name)[LOOKED_AT] > 0 for name in ("mask.tif", "corrected.tif"))
    assert re.search(rf"^dice +{dice(mask, corrected):.4f}$", printed, re.MULTILINE)
    assert re.search(rf"^volume_fraction +{mask.mean():.4f}$", printed, re.MULTILINE)
    assert re.search(rf"^true_volume_fraction +{corrected.mean():.4f}$", printed, re.MULTILINE)


def measure(work: Project) -> None:
    """Volumes, count, share and density are those of the labels."""
    printed = work.run("mitoflow", "measure", "cells.tif").stdout
    labels = tifffile.imread("cells.tif")
    voxels = {label: count for label, count in enumerate(np.bincount(labels.ravel())) if label and count}
    with Path("cells.csv").open(newline="") as stream:
        rows = {int(row["label"]): row for row in csv.DictReader(stream)}
    assert {label: int(row["volume_voxels"]) for label, row in rows.items()} == voxels
    um3 = 30 * 5 * 5 / 1e9
    for label, row in rows.items():
        assert float(row["volume_um3"]) == pytest.approx(voxels[label] * um3, rel=5e-6)  # six significant digits
    at_the_end = {*labels[-1].ravel(), *labels[:, -1].ravel(), *labels[:, :, -1].ravel()}
    density = len(voxels.keys() - at_the_end) / (labels.size * um3)
    share = (labels > 0).mean()
    assert f"{len(voxels)} mitochondria, {density:.3g} per cubic micrometre; {share:.2%} of the volume" in printed


def import_corrections(clone: Project) -> None:
    """What nobody looked at does not count; the last quarter of the stack tests, and a gap is left before it."""
    image, mask = (str(Path(name).absolute()) for name in ("stack.tif", "corrected.tif"))
    printed = clone.run("mitoflow", "data", "import", "--name", "mine", "--images", image, "--masks", mask).stdout
    corrected = tifffile.imread(mask)
    for part, among in (("train", corrected[: TEST - 4]), ("test", corrected[TEST:])):
        share = (among[among != 128] == 255).mean()
        row = rf"^mine +{part} +1 +{len(among)} +224 x 160 +30 x 5 x 5 +8 bits, masks partial +{share:.2%}$"
        assert re.search(row, printed, re.MULTILINE), printed


def learn_and_compare(clone: Project, work: Project) -> None:
    """The Dice of both models is that of the masks that they predict of the test slices."""
    clone.run("mitoflow", "preset", "finetune")
    clone.set(**QUICK)
    learned = clone.run("dvc", "repro").stdout
    compared = clone.run("mitoflow", "compare", "pretrained", "champion").stdout
    truth, found = tifffile.imread("corrected.tif")[TEST:], []
    for name in ("pretrained", "champion"):
        mask = work.folder / f"{name}.tif"
        tested = "data/test/mine/images/stack.tif"
        clone.run("mitoflow", "predict", tested, str(mask), "--model", name)
        found.append(dice(tifffile.imread(mask)[truth != 128] > 0, truth[truth != 128] > 0))
    before, after = found
    assert f"test: whole-slice Dice {after:.4f} [" in learned
    row = rf"^dice +{before:.4f} \[.*\] +{after:.4f} \[.*\] +{re.escape(f'{after - before:+.4f}')} \["
    assert re.search(row, compared, re.MULTILINE), compared
