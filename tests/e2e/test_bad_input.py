"""Wrong input ends in one line and exit code 2, with nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.services import find_program, powerless

from .conftest import Project

IMAGE, MASK = Path("data/train/phantom/images/phantom.tif"), Path("data/train/phantom/masks/phantom.tif")


def run_as_command(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that the command itself wrote to stderr."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mitoflow: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def stage(project: Project, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return project.run(sys.executable, "-m", "mitoflow.stages", name, check=False, **variables)


def without_mask(folder: Path) -> None:
    shutil.copy(folder / IMAGE, folder / IMAGE.parent / "other.tif")


def of_another_size(folder: Path) -> None:
    tifffile.imwrite(folder / MASK, tifffile.imread(folder / MASK)[:, :-1])


def empty(folder: Path) -> None:
    shutil.rmtree(folder / IMAGE.parent)
    shutil.rmtree(folder / MASK.parent)
    (folder / IMAGE.parent).mkdir()
    (folder / MASK.parent).mkdir()


def no_tiff(folder: Path) -> None:
    (folder / IMAGE).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def truncated(folder: Path) -> None:
    content = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(content[: len(content) // 2])


def not_a_number(folder: Path) -> None:
    image = tifffile.imread(folder / IMAGE).astype(np.float32)
    image[3, 3, 3] = np.nan
    tifffile.imwrite(folder / IMAGE, image)


def in_colour(folder: Path) -> None:
    image = tifffile.imread(folder / IMAGE)
    tifffile.imwrite(folder / IMAGE, np.stack([image] * 3, axis=-1), photometric="rgb")


def mask_all_zero(folder: Path) -> None:
    tifffile.imwrite(folder / MASK, np.zeros_like(tifffile.imread(folder / MASK)))


@pytest.mark.parametrize(
    ("damage", "where", "message"),
    [
        (without_mask, "images/other.tif", "an image without mask"),
        (of_another_size, "phantom.tif", "128 x 95"),
        (empty, "data/train", "expected"),
        (no_tiff, "phantom.tif", "TIFF"),
        (truncated, "phantom.tif", "truncated"),
        (not_a_number, "phantom.tif", "NaN"),
        (in_colour, "phantom.tif", "colour"),
        (mask_all_zero, "data/train", "mitochondri"),
    ],
)
def test_data_that_cannot_be_used_ends_the_pipeline(
    fresh: Project, damage: Callable[[Path], None], where: str, message: str
) -> None:
    damage(fresh.folder)
    line = run_as_command(stage(fresh, "validate"))
    assert where in line
    assert message in line
    assert not (fresh.folder / "reports/validate/conventions.yaml").exists()
    assert (fresh.folder / "reports/validate/report.html").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size: 64", "size: 66", "patch.size 66 is not divisible by 2^depth = 4"),
        ("patience:", "patiense:", "did you mean patience?"),
        ("overlap: 16", "overlap: -16", "evaluate.overlap"),
        ("epochs: 4", "epochs: many", "train.epochs: found 'many', expected integer"),
    ],
)
def test_parameters_are_checked_before_anything_runs(fresh: Project, old: str, new: str, message: str) -> None:
    text = fresh.read("params.yaml")
    assert old in text
    (fresh.folder / "params.yaml").write_text(text.replace(old, new, 1))
    assert message in run_as_command(stage(fresh, "validate"))
    assert not (fresh.folder / "reports").exists()


def test_an_unknown_dataset_is_one_line(fresh: Project) -> None:
    line = run_as_command(fresh.run("mitoflow", "data", "epfi", check=False))
    assert "phantom, phantoms, epfl, import, add, list or verify" in line


def test_a_full_disk_while_patching_leaves_nothing_behind(finished: Project, tmp_path: Path) -> None:
    """On a file system of its own, too small for the patches."""
    shutil.rmtree(finished.folder / "patches")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=1000k none {disk} || exit 77
        mkdir -p {disk}/reports && cp -r {finished.folder}/reports/validate {disk}/reports/validate || exit 1
        rm {disk}/reports/validate/report.html
        cp -r {finished.folder}/data {finished.folder}/params.yaml {disk} && cd {disk} || exit 1
        {sys.executable} -m mitoflow.stages patch; code=$?
        ls -A {disk} >&2; exit $code
    """
    unshare = find_program("unshare", "util-linux")
    done = finished.run(unshare, "--mount", "--map-root-user", "sh", "-c", script, check=False, DVC_ROOT=str(tmp_path))
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("file systems cannot be made on this machine")
    assert "no space left" in run_as_command(done)
    assert done.stderr.splitlines()[-3:] == ["data", "params.yaml", "reports"]


def test_a_place_where_one_may_not_write_is_one_line(finished: Project) -> None:
    """As a user without the rights that root has over files."""
    plain = powerless()
    for path in (finished.folder, *finished.folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    done = finished.run(*plain, sys.executable, "-m", "mitoflow.stages", "patch", check=False)
    for path in (finished.folder, *finished.folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert "no permission" in run_as_command(done)


def test_a_model_of_another_bit_depth_is_refused(finished: Project) -> None:
    """Where grey values count as they are; a model that stretches slices takes any bit depth."""
    facts = finished.folder / "models/unet.yaml"
    facts.write_text(facts.read_text().replace("normalization: percentiles", "normalization: range"))
    image = finished.folder / "data/test/phantom/images/phantom.tif"
    tifffile.imwrite(image, tifffile.imread(image).astype(np.uint16) * 16)
    before = finished.read("reports/evaluate/metrics.json")
    line = run_as_command(stage(finished, "evaluate"))
    assert "uint16" in line
    assert "trained on 8-bit" in line
    assert finished.read("reports/evaluate/metrics.json") == before


@pytest.mark.parametrize("command", [["models"], ["promote", "1"], ["rollback"], ["lineage", "1"]])
def test_a_registry_that_does_not_answer_is_one_line(fresh: Project, command: list[str]) -> None:
    uri = "http://127.0.0.1:9"
    assert uri in run_as_command(fresh.run("mitoflow", *command, check=False, MLFLOW_TRACKING_URI=uri))


def test_missing_results_are_one_line(fresh: Project) -> None:
    for name in ("patch", "tune", "train", "evaluate"):
        assert "dvc repro" in run_as_command(stage(fresh, name))
