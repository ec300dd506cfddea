"""Datasets on their way into data/, with real git and DVC."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import tifffile
import zarr

from mitoflow import cli
from mitoflow.config import params, presets
from mitoflow.data import cutting
from mitoflow.data.datasets import Epfl
from mitoflow.data.installing import Installed, NewSet, install, install_named, install_own
from mitoflow.data.set_descriptions import SetDescription, read_sets
from mitoflow.errors import InputError
from mitoflow.io.tiff import open_stack, write_stack
from tests.services import powerless

COMMITTED = Path(__file__).parents[2] / "params.yaml"
GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
EPFL = Path(__file__).parents[3] / "shared" / "data" / "epfl"


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def blank_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blank")
    shutil.copy(COMMITTED, folder)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    with (folder / ".dvc/config").open("a") as config:
        config.write("[core]\n    analytics = false\n")
    return folder


@pytest.fixture
def project(blank_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without data, which is the current folder; ``lab`` beside it has files."""
    folder = tmp_path / "project"
    shutil.copytree(blank_project, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """``em`` and ``mito``: one stack of 12 slices."""
    write_pair(tmp_path / "lab", "stack", depth=12, seed=1)
    return tmp_path / "lab"


def write_pair(folder: Path, name: str, depth: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(1, 255, (depth, 64, 80), np.uint8)
    mask = np.zeros_like(image)
    mask[:, 20:40, 30:50] = 255
    for kind, array in (("em", image), ("mito", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        write_stack(folder / kind / f"{name}.tif", array)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a project but what DVC and git keep for themselves."""
    own = {".dvc", ".git", ".mitoflow"}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.relative_to(folder).parts[0] not in own}


def own(lab: Path, **options: object) -> Installed:
    return install_own([f"{lab}/em"], [f"{lab}/mito"], **options)  # type: ignore[arg-type]


# --- a lab's own stacks ---


@pytest.mark.slow
def test_import_splits_in_z_versions_and_sets_the_preset(project: Path, lab: Path) -> None:
    installed = own(lab, name="liver", description=SetDescription(mask_rule="nonzero"))
    image = tifffile.imread(lab / "em/stack.tif")
    assert np.array_equal(tifffile.imread("data/train/liver/images/stack.tif"), image[:5])
    assert np.array_equal(tifffile.imread("data/test/liver/images/stack.tif"), image[9:])
    assert read_sets(Path("data")) == {"liver": SetDescription(mask_rule="nonzero")}
    assert installed.notes == ("4 slices between train and test are left out.",)
    assert "md5: " in Path("data.dvc").read_text()
    assert "/data" in Path(".gitignore").read_text().split()
    assert not subprocess.check_output([sys.executable, "-m", "dvc", "status", "--quiet"])

    settings = params.load()
    assert settings.data.name == "liver"
    assert settings.train == presets.load("imported").train
    assert installed.changed["data.name"] == ("phantom", "liver")
    assert installed.replaced is None
    assert sorted(path.name for path in project.iterdir() if path.name.startswith(".data")) == []


@pytest.mark.slow
def test_the_summary_of_an_import(
    project: Path, lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(lab, name="first")
    (lab / "mito/stack.tif").rename(lab / "mito/labels.tif")
    command = ["mitoflow", "data", "import", "--images", f"{lab}/em", "--masks", f"{lab}/mito", "--gap", "3"]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    first, _, train, test, *rest = capsys.readouterr().out.splitlines()
    assert first == "data/ holds imported"
    read = ["unknown", "8", "bits,", "masks", "nonzero", "7.81%"]
    assert train.split() == ["imported", "train", "1", "6", "80", "x", "64", *read]
    assert test.split() == ["imported", "test", "1", "3", "80", "x", "64", *read]
    assert f"  {lab}/em/stack.tif with {lab}/mito/labels.tif" in rest
    assert "3 slices between train and test are left out." in rest
    assert "params.yaml: data.name first -> imported" in rest
    assert any(line.startswith("to go back to the data before: tar xf .mitoflow/replaced/") for line in rest)


@pytest.mark.slow
@pytest.mark.slow
def test_an_import_reports_inverted_masks_and_absent_chunks(project: Path, lab: Path) -> None:
    stored = tifffile.imread(lab / "mito/stack.tif")
    array = zarr.create_array(lab / "m.zarr/0", shape=(12, 64, 80), dtype="u1", chunks=(4, 64, 80), zarr_format=2)
    zarr.open_group(lab / "m.zarr", zarr_format=2).attrs["multiscales"] = [
        {"version": "0.4", "axes": [{"name": axis} for axis in "zyx"], "datasets": [{"path": "0"}]}
    ]
    array[4:] = 255 - stored[4:]  # the first chunk is empty, and left out
    notes = install_own([str(lab / "em")], [str(lab / "m.zarr")], gap=1, test_fraction=0.5).notes
    assert any(note.startswith(f"note: {lab / 'm.zarr'}: 1 chunk is not there and read as empty") for note in notes)
    dense = (
        "warning: --masks: found more than half of the pixels mitochondrion in stack.tif, expected less, as in tissue"
    )
    assert [note.partition(";")[0] for note in notes if note.startswith("warning: --masks")] == [dense]


def test_single_pages_are_one_stack(project: Path, tmp_path: Path) -> None:
    for n in range(1, 13):
        write_pair(tmp_path / "lab", f"p{n}", depth=1, seed=n)
    own(tmp_path / "lab", gap=2)
    assert {path.name for path in Path("data/train/imported/masks").iterdir()} == {f"p{n}.tif" for n in range(1, 8)}
    assert {path.name for path in Path("data/test/imported/images").iterdir()} == {f"p{n}.tif" for n in range(10, 13)}


@pytest.mark.slow
def test_consecutive_pages_become_stacks(project: Path, tmp_path: Path) -> None:
    for n in range(1, 13):
        write_pair(tmp_path / "lab", f"p{n}", depth=1, seed=n)
    assert any("--consecutive" in note for note in own(tmp_path / "lab", gap=2).notes)
    notes = own(tmp_path / "lab", gap=2, consecutive=True).notes
    assert notes[0] == f"note: {tmp_path / 'lab/em'}: 12 slices, p1.tif to p12.tif"
    assert not any("--consecutive" in note for note in notes)
    assert open_stack(Path("data/train/imported/images/p1.tif")).shape == (7, 64, 80)
    assert open_stack(Path("data/test/imported/masks/p1.tif")).shape == (3, 64, 80)


@pytest.mark.slow
def test_the_recipe_for_four_labelled_slices(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        write_pair(tmp_path, f"s{seed}", depth=1, seed=seed)
    (tmp_path / "em").rename("mine")
    (tmp_path / "mito").rename("labels")
    _, recipe = GUIDE.read_text().split("## A few labelled slices\n")
    for line in recipe.split("    dvc repro\n")[0].strip().splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        cli.main()
    assert [len(list(Path("data", part, "imported", "images").iterdir())) for part in ("train", "test")] == [3, 1]
    settings = params.load()
    sides = cutting.split([1, 1, 1], settings.patch.validation_fraction, settings.patch.gap)
    assert {side: len(slices) for side, slices in sides.items()} == {"train": 2, "validation": 1}
    assert settings.train.init_from == "pretrained"


@pytest.mark.slow
def test_test_files_are_taken_as_they_are(project: Path, lab: Path, tmp_path: Path) -> None:
    write_pair(tmp_path / "more", "other", depth=2, seed=9)
    install_own([f"{lab}/em"], [f"{lab}/mito"], [f"{tmp_path}/more/em/*"], [f"{tmp_path}/more/mito/other.tif"])
    for part, folder, name in (("train", lab, "stack"), ("test", tmp_path / "more", "other")):
        for kind, source in (("images", "em"), ("masks", "mito")):
            copied = Path("data") / part / "imported" / kind / f"{name}.tif"
            assert copied.read_bytes() == (folder / source / f"{name}.tif").read_bytes()


@pytest.mark.slow
def test_the_printed_command_brings_the_data_before_back(project: Path, lab: Path, tmp_path: Path) -> None:
    own(lab)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("batch_size: 8", "batch_size: 4"))
    shutil.copy("data/test/imported/images/stack.tif", "data/test/imported/images/extra.tif")  # not under DVC's control
    shutil.copy("data/test/imported/masks/stack.tif", "data/test/imported/masks/extra.tif")
    before = contents(project)

    write_pair(tmp_path / "other", "b", depth=14, seed=2)
    installed = own(tmp_path / "other")
    assert {path.name for path in Path("data").rglob("*.tif")} == {"b.tif"}
    assert installed.replaced

    subprocess.run(["tar", "xf", installed.replaced], check=True)
    dvc("checkout", "data.dvc")
    after = contents(project)
    after.pop("data.dvc"), before.pop("data.dvc")  # extra.tif is in it now
    assert after == before


@pytest.mark.slow
def test_the_same_data_again_replaces_nothing(project: Path, lab: Path) -> None:
    own(lab)
    before = contents(project)
    installed = own(lab)
    assert installed.replaced is None
    assert contents(project) == before


@pytest.mark.slow
def test_data_may_be_made_of_itself(project: Path, lab: Path) -> None:
    own(lab)
    install_own(["data/train/imported/images"], ["data/train/imported/masks"], gap=0)
    assert open_stack(Path("data/train/imported/images/stack.tif")).shape == (4, 64, 80)


# --- several sets ---


def run(arguments: list[str]) -> None:
    cli.mitoflow.main(arguments, standalone_mode=False)


def add(folder: Path, name: str, *options: str, command: str = "add") -> None:
    """Run `mitoflow data add` on the files in ``em`` and ``mito`` of a folder."""
    files = ["--images", f"{folder}/em", "--masks", f"{folder}/mito"]
    run(["data", command, *files, "--name", name, *options])


def names(part: str, kind: str = "images") -> list[str]:
    return sorted(str(path.relative_to(Path("data") / part)) for path in Path("data", part).glob(f"*/{kind}/*"))


@pytest.mark.slow
def test_sets_are_added_described_and_listed(
    project: Path, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(lab, "liver", "--voxel-size", "30,4,4", "--tissue", "liver; SBF-SEM", "--terms", "CC BY 4.0", command="import")
    trained = Path("data/train/liver/images/stack.tif").read_bytes()
    write_pair(tmp_path / "few", "sections", depth=6, seed=5)
    write_pair(tmp_path / "few", "more", depth=1, seed=6)
    add(tmp_path / "few", "heart", "--unrelated")
    write_pair(tmp_path / "third", "x", depth=3, seed=7)
    add(tmp_path / "third", "b10", "--test-fraction", "0")

    assert names("train") == [
        "b10/images/x.tif",
        "heart/images/more.tif",
        *(f"heart/images/sections_{z}.tif" for z in range(4)),
        "liver/images/stack.tif",
    ]
    assert names("test", "masks") == [*(f"heart/masks/sections_{z}.tif" for z in (4, 5)), "liver/masks/stack.tif"]
    assert Path("data/train/liver/images/stack.tif").read_bytes() == trained
    sections = tifffile.imread(tmp_path / "few/em/sections.tif")
    assert np.array_equal(tifffile.imread("data/test/heart/images/sections_5.tif"), sections[5])
    sets = read_sets(Path("data"))
    assert list(sets) == ["b10", "heart", "liver"]
    size = {"z": 30.0, "y": 4.0, "x": 4.0}
    assert sets["liver"] == SetDescription(voxel_size=size, tissue="liver; SBF-SEM", terms="CC BY 4.0")
    assert sets["heart"] == SetDescription(unrelated=True)
    assert params.load().data.name == "b10+heart+liver"
    assert params.load().train == presets.load("general").train
    assert not subprocess.check_output([sys.executable, "-m", "dvc", "status", "--quiet"])

    capsys.readouterr()
    run(["data", "list"])
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:4] for row in rows[:5]] == [
        ["b10", "train", "1", "3"],
        ["heart", "train", "5", "5"],
        ["heart", "test", "2", "2"],
        ["liver", "train", "1", "5"],
        ["liver", "test", "1", "3"],
    ]
    assert "30 x 4 x 4" in rows[3]
    assert rows[5:] == ["heart: unrelated slices", "liver: liver; SBF-SEM; CC BY 4.0"]


@pytest.mark.slow
def test_the_order_in_which_sets_come_changes_nothing(project: Path, lab: Path, tmp_path: Path) -> None:
    write_pair(tmp_path / "other", "b", depth=14, seed=2)
    own(lab, name="s10")
    own(tmp_path / "other", name="s2", add=True)
    first = contents(project)
    own(tmp_path / "other", name="s2")
    own(lab, name="s10", add=True)
    assert contents(project) == first
    assert params.load().data.name == "s2+s10"


@pytest.mark.slow
def test_a_set_that_is_there_is_replaced_on_request_alone(project: Path, lab: Path, tmp_path: Path) -> None:
    own(lab, name="liver")
    write_pair(tmp_path / "heart", "a", depth=2, seed=8)
    own(tmp_path / "heart", name="heart", add=True, test_fraction=0)
    before = contents(project)
    with pytest.raises(InputError, match=r"--name: found heart, a set that is there, .*heart, liver; .*--overwrite"):
        own(tmp_path / "heart", name="heart", add=True, test_fraction=0)
    assert contents(project) == before
    write_pair(tmp_path / "other", "b", depth=14, seed=2)
    own(tmp_path / "other", name="heart", add=True, overwrite=True)
    assert names("train") == ["heart/images/b.tif", "liver/images/stack.tif"]


@pytest.mark.slow
def test_a_set_is_not_added_to_data_that_are_away(project: Path, lab: Path) -> None:
    own(lab)
    shutil.rmtree("data")
    with pytest.raises(InputError, match=r"data: found no files, expected those that data\.dvc names; run `dvc pull`"):
        own(lab, name="other", add=True)


@pytest.mark.slow
def test_a_slice_that_tests_in_another_set_is_refused(project: Path, lab: Path) -> None:
    own(lab, name="liver")
    before = contents(project)
    with pytest.raises(InputError, match=r"data/test/liver/images: found 3 test slices that are also in train"):
        own(lab, name="again", add=True, test_fraction=0)
    assert contents(project) == before


@pytest.mark.slow
def test_a_voxel_size_that_contradicts_the_file_is_refused(project: Path, lab: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 30.0, "unit": "nm"}
    image = tifffile.imread(lab / "em/stack.tif")
    tifffile.imwrite(lab / "em/stack.tif", image, imagej=True, resolution=(1 / 4, 1 / 4), metadata=metadata)
    with pytest.raises(
        InputError, match=r"em/stack\.tif: found voxels of 4 nm along x, expected 5 nm as in --voxel-size"
    ):
        own(lab, description=SetDescription(voxel_size={"z": 30.0, "x": 5.0}))
    mask = lab / "mito/stack.tif"
    tifffile.imwrite(mask, tifffile.imread(mask), imagej=True, resolution=(1 / 40, 1 / 40), metadata=metadata)
    installed = own(lab)
    assert installed.sets["imported"].voxel_size == pytest.approx({"z": 30.0, "y": 4.0, "x": 4.0})
    assert f"{mask}: found a voxel of y 40, x 40 nm, expected a voxel of y 4, x 4 nm as in" in installed.notes[0]


@pytest.mark.slow
def test_a_unit_that_is_unknown_is_reported_unless_the_size_is_given(project: Path, lab: Path) -> None:
    path = lab / "em/stack.tif"
    metadata = {"axes": "ZYX", "spacing": 30, "unit": "furlong"}
    tifffile.imwrite(path, tifffile.imread(path), imagej=True, resolution=(1 / 4, 1 / 4), metadata=metadata)
    assert own(lab).notes[0].startswith(f"warning: {path}: found a voxel size in 'furlong', expected a unit of length")
    size = {"z": 30.0, "y": 4.0, "x": 4.0}
    assert not any("furlong" in note for note in own(lab, description=SetDescription(voxel_size=size)).notes)


def test_unrelated_slices_need_one_for_each_part(project: Path, tmp_path: Path) -> None:
    write_pair(tmp_path, "one", depth=1, seed=0)
    unrelated = SetDescription(unrelated=True)
    with pytest.raises(InputError, match=r"--images: found 1 slices, expected one for each part; .*--test-fraction 0"):
        own(tmp_path, description=unrelated)
    with pytest.raises(InputError, match="--consecutive: found --unrelated too"):
        own(tmp_path, description=unrelated, consecutive=True)


# --- all or nothing ---


def with_a_file_that_dvc_refuses(train: Path, test: Path, lab: Path) -> dict[Path, str]:
    for folder, seed in ((train, 5), (test, 6)):
        write_pair(lab / folder.parent.name, "x", depth=2, seed=seed)
        shutil.copytree(lab / folder.parent.name / "em", folder / "images")
        shutil.copytree(lab / folder.parent.name / "mito", folder / "masks")
    (train / ".dvcignore").write_text("*.txt")
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("with_data", [True, False])
def test_where_dvc_refuses_everything_is_as_before(project: Path, lab: Path, with_data: bool) -> None:
    if with_data:
        own(lab)
    before = contents(project)
    with pytest.raises(InputError, match=r"dvc add data: found .*\.dvcignore"):
        install(NewSet("x", SetDescription(), partial(with_a_file_that_dvc_refuses, lab=lab)))
    assert contents(project) == before
    assert Path("data").exists() == with_data
    if with_data:
        assert not subprocess.check_output([sys.executable, "-m", "dvc", "status", "--quiet"])


def test_where_params_lack_a_key_everything_is_as_before(project: Path, lab: Path) -> None:
    lines = Path("params.yaml").read_text().splitlines(keepends=True)
    Path("params.yaml").write_text("".join(line for line in lines if "batch_size" not in line))
    before = contents(project)
    with pytest.raises(InputError, match=r"params\.yaml: train\.batch_size: found no such key"):
        own(lab)
    assert contents(project) == before


def test_outside_a_project_is_one_line(tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"params\.yaml: found no such file"):
        own(lab)
    shutil.copy(COMMITTED, tmp_path)
    with pytest.raises(InputError, match=r"found no \.dvc folder, .*`dvc init`"):
        own(lab)


# --- bad input ---


def lose_a_mask(lab: Path) -> None:
    write_pair(lab, "second", depth=2, seed=2)
    (lab / "mito/second.tif").unlink()


def change_a_size(lab: Path) -> None:
    write_stack(lab / "mito/stack.tif", np.ones((12, 64, 81), np.uint8))


def empty_a_folder(lab: Path) -> None:
    (lab / "em/stack.tif").unlink()


def write_no_tiff(lab: Path) -> None:
    (lab / "em/stack.tif").write_bytes(b"PNG and more")


def truncate(lab: Path) -> None:
    path = lab / "em/stack.tif"
    path.write_bytes(path.read_bytes()[:-1000])


def write_nan(lab: Path) -> None:
    image = np.ones((12, 64, 80), np.float32)
    image[3, 5, 5] = np.nan
    tifffile.imwrite(lab / "em/stack.tif", image)


def write_rgb(lab: Path) -> None:
    tifffile.imwrite(lab / "em/stack.tif", np.ones((64, 80, 3), np.uint8), photometric="rgb")


def empty_the_masks(lab: Path) -> None:
    write_stack(lab / "mito/stack.tif", np.zeros((12, 64, 80), np.uint8))


def swap_images_and_masks(lab: Path) -> None:
    (lab / "em").rename(lab / "x")
    (lab / "mito").rename(lab / "em")
    (lab / "x").rename(lab / "mito")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_a_mask, "em/second.tif: found an image without mask, expected second.tif in --masks"),
        (change_a_size, "mito/stack.tif: found 12 slices of 81 x 64 beside an image of 12 slices of 80 x 64"),
        (empty_a_folder, "/em: found no TIFF, PNG, MRC, DM3 or DM4 file"),
        (write_no_tiff, "em/stack.tif: found no TIFF"),
        (truncate, "em/stack.tif: found a truncated file"),
        (write_nan, "em/stack.tif: found float32 pixels with NaN"),
        (write_rgb, "em/stack.tif: found 3 colour samples a pixel"),
        (empty_the_masks, "--masks: found no mitochondrion in stack.tif"),
        (swap_images_and_masks, "mito/stack.tif: found the values of a grey image"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    project: Path,
    lab: Path,
    spoil: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(lab)
    before = contents(project)
    monkeypatch.setattr(sys, "argv", ["mitoflow", "data", "import", "--images", f"{lab}/em", "--masks", f"{lab}/mito"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert all(step.startswith("data: ") for step in progress)
    assert line.startswith("mitoflow: ")
    assert message in line
    assert ".new" not in line
    assert contents(project) == before


def test_masks_without_a_number_for_each_mitochondrion_are_no_instances(project: Path, lab: Path) -> None:
    before = contents(project)
    with pytest.raises(InputError, match="--masks: found one value for all mitochondria in every mask"):
        own(lab, description=SetDescription(instances=True))
    assert contents(project) == before
    numbered = np.zeros(tifffile.imread(lab / "mito/stack.tif").shape, np.uint16)
    numbered[:, 20:40, 10:30], numbered[:, 20:40, 30:50] = 700, 3
    write_stack(lab / "mito/stack.tif", numbered)
    add(lab, "lab", "--instances", command="import")
    assert read_sets(Path("data"))["lab"] == SetDescription(instances=True)
    assert np.unique(tifffile.imread("data/train/lab/masks/stack.tif")).tolist() == [0, 3, 700]


@pytest.mark.parametrize("name", ["phantom", "epfl", "", "a b", "../x", "-x"])
def test_a_name_that_misleads_is_refused(project: Path, lab: Path, name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        own(lab, name=name)


def test_test_images_need_test_masks(project: Path, lab: Path) -> None:
    with pytest.raises(InputError, match="--test-images: found no --test-masks"):
        own(lab, test_images=[f"{lab}/em"])


def test_a_slice_in_both_parts_names_the_options(project: Path, lab: Path) -> None:
    with pytest.raises(InputError, match=r"--test-images: found 12 test slices that are also in train"):
        own(lab, test_images=[f"{lab}/em"], test_masks=[f"{lab}/mito"])


@pytest.mark.slow
def test_no_write_permission_is_one_line(project: Path, lab: Path) -> None:
    command = [sys.executable, "-m", "mitoflow.cli", "data", "import", "--images", lab / "em", "--masks", lab / "mito"]
    command = [*powerless(), *command]
    project.chmod(0o555)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    project.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "found no permission" in done.stderr
    assert not Path("data").exists()


# --- the phantom ---


@pytest.mark.slow
def test_the_phantom_leaves_the_committed_parameters(project: Path) -> None:
    installed = install_named("phantom")
    assert installed
    assert installed.changed == {}
    assert Path("params.yaml").read_bytes() == COMMITTED.read_bytes()
    assert Path("data.dvc").exists()


@pytest.mark.slow
def test_if_missing_leaves_any_data_alone(project: Path, lab: Path) -> None:
    own(lab)
    before = contents(project)
    assert install_named("phantom", if_missing=True) is None
    assert contents(project) == before


@pytest.mark.slow
def test_if_missing_does_not_swap_datasets(project: Path, lab: Path) -> None:
    own(lab, name="liver")
    shutil.rmtree("data")
    Path("data").mkdir()
    before = contents(project)
    with pytest.raises(InputError, match=r"data: found no files, expected the dataset liver .* `dvc pull`"):
        install_named("phantom", if_missing=True)
    assert contents(project) == before


def with_what_was_kept(train: Path, test: Path) -> dict[Path, str]:
    shutil.copytree("kept/train/liver", train)
    shutil.copytree("kept/test/liver", test)
    return {}


@pytest.mark.slow
def test_data_as_recorded_has_the_recorded_hash_and_leaves_parameters(project: Path, lab: Path) -> None:
    own(lab, name="liver")
    text = COMMITTED.read_text().replace("epochs: 10", "epochs: 3")
    Path("params.yaml").write_text(text)
    Path("data").rename("kept")
    recorded = NewSet("liver", SetDescription(), with_what_was_kept)
    install(recorded, as_recorded=True)
    assert Path("params.yaml").read_text() == text

    shutil.rmtree("data")
    for kind in ("images", "masks"):
        shutil.copy(f"kept/test/liver/{kind}/stack.tif", f"kept/test/liver/{kind}/more.tif")
    before = contents(project)
    with pytest.raises(InputError, match=r"data\.dvc: found the hash of a dataset other than liver, .*`dvc pull`"):
        install(recorded, as_recorded=True)
    assert contents(project) == before
    assert not Path("data").exists()


# --- EPFL ---


@pytest.mark.slow
@pytest.mark.skipif(not EPFL.is_dir(), reason=f"no EPFL data at {EPFL}")
def test_the_real_epfl_set(project: Path) -> None:
    installed = install_named("epfl", EPFL)
    assert installed
    assert {path.name for path in Path("data").rglob("*.tif")} == {"training.tif", "testing.tif"}
    facts = installed.findings.facts
    assert [round(facts[part]["foreground"], 4) for part in ("train", "test")] == [0.0563, 0.0531]
    assert params.load().data.name == "epfl"


@pytest.fixture
def small_epfl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files of the names and kind of the EPFL set, but 6 slices of 80 x 64."""
    monkeypatch.setattr(Epfl, "shape", (6, 64, 80))
    folder = tmp_path / "files"
    for seed, stack in enumerate(("training", "testing")):
        write_pair(tmp_path / "made", stack, depth=6, seed=seed)
        folder.mkdir(exist_ok=True)
        (tmp_path / f"made/em/{stack}.tif").rename(folder / f"{stack}.tif")
        (tmp_path / f"made/mito/{stack}.tif").rename(folder / f"{stack}_groundtruth.tif")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mitoflow"


@pytest.fixture
def server(small_epfl: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=small_epfl))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(Epfl, "url", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_named_dataset_joins_others(project: Path, tmp_path: Path, small_epfl: Path) -> None:
    write_pair(tmp_path / "liver", "stack", depth=12, seed=40)
    own(tmp_path / "liver", name="liver")
    run(["data", "epfl", "--from", str(small_epfl), "--add"])
    assert names("train") == ["epfl/images/training.tif", "liver/images/stack.tif"]
    assert read_sets(Path("data"))["epfl"].voxel_size == {"z": 5.0, "y": 5.0, "x": 5.0}
    assert params.load().data.name == "epfl+liver"
    with pytest.raises(InputError, match="--add: found --if-missing too"):
        run(["data", "epfl", "--add", "--if-missing"])


@pytest.mark.slow
def test_epfl_is_downloaded_once(project: Path, small_epfl: Path, cache: Path, server: ThreadingHTTPServer) -> None:
    installed = install_named("epfl")
    server.shutdown()
    server.server_close()
    assert installed
    assert "Lucchi" in installed.notes[0]
    assert {path.name for path in cache.iterdir()} == {path.name for path in small_epfl.iterdir()}
    assert (
        Path("data/test/epfl/masks/testing.tif").read_bytes() == (small_epfl / "testing_groundtruth.tif").read_bytes()
    )
    again = install_named("epfl")
    assert again
    assert again.changed == {}


@pytest.mark.usefixtures("server")
def test_a_download_that_is_no_tiff_is_not_kept(project: Path, small_epfl: Path, cache: Path) -> None:
    (small_epfl / "training.tif").write_text("<!DOCTYPE html> we have moved")
    with pytest.raises(InputError, match=r"training\.tif: found no TIFF .*<!DO.*--from"):
        install_named("epfl")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("training.tif", np.ones((5, 64, 80), np.uint8), r"uint8 of \(5, 64, 80\), expected uint8 of \(6, 64, 80\)"),
        ("testing.tif", np.ones((6, 64, 80), np.uint16), r"uint16 of"),
        ("testing_groundtruth.tif", np.ones((6, 64, 80), np.uint8), r"the values \[1\], expected 0 and 255"),
    ],
)
def test_another_file_under_an_epfl_name_is_refused(
    project: Path, small_epfl: Path, file: str, array: np.ndarray, message: str
) -> None:
    write_stack(small_epfl / file, array)
    before = contents(project)
    with pytest.raises(InputError, match=rf"{file}: found {message}"):
        install_named("epfl", small_epfl)
    assert contents(project) == before


def test_a_missing_epfl_file_is_named(project: Path, small_epfl: Path) -> None:
    (small_epfl / "testing_groundtruth.tif").unlink()
    with pytest.raises(InputError, match=r"testing_groundtruth\.tif: found no such file"):
        install_named("epfl", small_epfl)
