"""The benchmark beside other tools: what each of them is given, how it is measured, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.peers import biapy, environments, nnunet, own, parts, protocol
from benchmarks.peers.commands import CannotRunError, Commands, configuration_lines, epochs_within
from benchmarks.peers.work import Found, Work
from benchmarks.result_lines import Results
from mitoflow.config import presets
from mitoflow.data.datasets import DATASETS
from mitoflow.errors import InputError
from mitoflow.io import tiff

VERSIONS = [(1, "abc", 0.8), (2, "def", 0.7), (3, "abc", 0.9)]  # seed, version and Dice


def write_vnc(folder: Path, slices: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Write slices whose number is their grey value, each with its own mask."""
    images = np.broadcast_to(np.arange(slices, dtype=np.uint8)[:, None, None], (slices, 8, 12)).copy()
    masks = np.random.default_rng(0).random(images.shape) < 0.3
    tiff.write_stack(folder / "images.tif", images)
    tiff.write_stack(folder / "groundtruth.tif", masks.astype(np.uint8) * 255)
    return images, masks


@pytest.fixture
def work(tmp_path: Path) -> Work:
    write_vnc(tmp_path)
    return Work(parts.vnc(tmp_path), tmp_path / "work", tmp_path / "environments", 60, 7)


def test_the_slices_that_test_are_none_of_those_that_train(tmp_path: Path) -> None:
    _, masks = write_vnc(tmp_path)
    vnc = parts.vnc(tmp_path)
    assert vnc.images[:, 0, 0].tolist() == [*range(12)]
    assert vnc.test_images[:, 0, 0].tolist() == [*range(14, 20)]
    assert (vnc.masks == masks[:12]).all() and (vnc.test_masks == masks[14:]).all()
    for name in ("training", "testing"):
        (tmp_path / "images.tif").rename(tmp_path / f"{name}.tif")
        (tmp_path / "groundtruth.tif").rename(tmp_path / f"{name}_groundtruth.tif")
        write_vnc(tmp_path)
    epfl = parts.epfl(tmp_path)
    assert epfl.images[:, 0, 0].tolist() == [0, 8, 16]
    assert len(epfl.test_images) == 20
    write_vnc(tmp_path, slices=19)
    with pytest.raises(InputError, match="19 slices, expected the 20 of vnc"):
        parts.vnc(tmp_path)


def test_masks_with_grey_edges_are_refused(tmp_path: Path) -> None:
    images, _ = write_vnc(tmp_path)
    tiff.write_stack(tmp_path / "groundtruth.tif", images)
    with pytest.raises(InputError, match="more than two values"):
        parts.vnc(tmp_path)


def test_the_score_is_of_the_pixels_of_all_slices_not_a_mean_of_slices() -> None:
    truth = np.zeros((2, 4, 4), bool)
    truth[0, :2] = True
    truth[1, 0, 0] = True
    found = truth.copy()
    found[1] = False
    assert parts.scores(truth, found) == {"dice": round(16 / 17, 4), "iou": round(8 / 9, 4)}
    with pytest.raises(ValueError, match="differ in shape"):
        parts.scores(truth, found[:1])


def test_masks_are_read_in_the_order_of_z_and_anything_but_0_is_mitochondrion(tmp_path: Path) -> None:
    stack = np.zeros((11, 2, 3), np.uint8)
    stack[2], stack[10] = 1, 255
    parts.write_slices(tmp_path / "found", stack, ".png")
    files = [tmp_path / "found" / f"{name}.png" for name in parts.slice_names(11)]
    assert parts.read_slices(files).all(axis=(1, 2)).tolist() == [z in (2, 10) for z in range(11)]
    assert sorted(files) == files


def test_biapy_gets_pairs_of_the_same_names_and_a_configuration_of_its_own_keys(work: Work) -> None:
    biapy.lay_out(work.folder, work.parts)
    text = biapy.configuration(work, 33, trains=True)
    configuration: Any = YAML(typ="safe").load(text)
    images, masks = (Path(configuration["DATA"]["TRAIN"][key]) for key in ("PATH", "GT_PATH"))
    assert [path.name for path in sorted(images.iterdir())] == [path.name for path in sorted(masks.iterdir())]
    assert len([*images.iterdir()]) == 12
    assert (np.asarray(Image.open(masks / "slice_003.tif")) == work.parts.masks[3]).all()
    tested = sorted(Path(configuration["DATA"]["TEST"]["PATH"]).iterdir())
    assert [np.asarray(Image.open(path))[0, 0] for path in tested] == [*range(14, 20)]
    assert configuration["TRAIN"]["EPOCHS"] == 33 and configuration["SYSTEM"]["SEED"] == 7
    predicting: Any = YAML(typ="safe").load(biapy.configuration(work, 33, trains=False))
    assert [predicting["TRAIN"]["ENABLE"], predicting["TEST"]["ENABLE"]] == [False, True]
    assert predicting["MODEL"]["LOAD_CHECKPOINT"] and not configuration["MODEL"]["LOAD_CHECKPOINT"]
    assert configuration_lines(text) == len(text.splitlines())


def test_nnunet_gets_its_names_labels_and_the_number_of_its_cases(work: Work) -> None:
    text = nnunet.lay_out(work.folder, work.parts)
    raw = work.folder / "raw" / nnunet.DATASET
    described = json.loads((raw / "dataset.json").read_text())
    assert described == json.loads(text)
    assert described["numTraining"] == 12 == len([*(raw / "imagesTr").iterdir()])
    labels = np.asarray(Image.open(raw / "labelsTr/slice_011.png"))
    assert (labels == work.parts.masks[11]).all() and set(np.unique(labels)) == set(described["labels"].values())
    assert np.asarray(Image.open(raw / "imagesTr/slice_011_0000.png"))[0, 0] == 11
    assert len([*(raw / "imagesTs").iterdir()]) == 6


def test_the_configuration_of_mitoflow_is_of_known_keys_and_leaves_no_study(tmp_path: Path) -> None:
    for name, preset in own.PRESETS.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text((own.ROOT / "params.yaml").read_text())
        presets.apply(path, preset)
        presets.change(path, own.configuration(name, 40, 2))
        train = YAML(typ="safe").load(path.read_text())["train"]
        assert "tuned" not in train.values()
        assert (train["epochs"], train["patience"], train["seed"]) == (40, 40, 2)


def test_mitoflow_gets_stacks_and_epfl_as_unrelated_slices(work: Work) -> None:
    work.folder.mkdir()
    options = own.lay_out(work.folder, work.parts)
    assert "--unrelated" not in options
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert tiff.open_grey(Path(given["--images"])).shape[0] == 12
    assert tiff.open_mask(Path(given["--test-masks"])).shape[0] == 6
    epfl = parts.Parts("epfl", *(getattr(work.parts, key) for key in ("images", "masks", "test_images", "test_masks")))
    options = own.lay_out(work.folder, epfl)
    assert "--unrelated" in options
    assert options[options.index("--name") + 1] not in DATASETS  # these names are taken


def test_epochs_fit_the_budget_with_the_start_of_the_command() -> None:
    assert epochs_within(100, [30, 40, 50]) == 8  # 30 s to the end of the first, 10 s for each of 7 more
    assert epochs_within(99, [30, 40, 50]) == 7
    assert epochs_within(5, [30, 40]) == 1
    with pytest.raises(CannotRunError, match="1 epochs were seen"):
        epochs_within(100, [30])


def test_memory_is_that_of_all_processes_and_steps_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.commands.MEMORY_INTERVAL", 0)
    child = "import time; held = bytearray(60 << 20); open('done', 'w').close(); time.sleep(1)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    commands = Commands(tmp_path, {})
    done, ended = commands.run(sys.executable, "-c", program, progress=lambda: int((tmp_path / "done").exists()))
    assert commands.peak_mib > 60
    assert done < ended


def test_a_tool_that_fails_is_a_row_with_the_reason_and_is_not_run_again(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(given: Work) -> Found:
        Commands(given.folder, {}).run(sys.executable, "-c", "raise SystemExit('no such layer')")
        raise AssertionError

    def perfect(given: Work) -> Found:
        return Found(given.parts.test_masks, "1.0", f"seed {given.seed}", 90, 30, 512, 3)

    monkeypatch.setattr(protocol, "TOOLS", {"broken": fails, "perfect": perfect})
    monkeypatch.setattr(protocol.os, "sched_setaffinity", lambda *_: None)
    into = tmp_path / "rows.jsonl"
    arguments = ["--vnc", str(tmp_path), "--seeds", "1", "2", "--into", str(into), "--work", str(tmp_path / "work")]
    protocol.main(arguments)
    rows = Results(into).rows
    assert [(row["tool"], row["seed"]) for row in rows] == [
        ("broken", 1),
        ("perfect", 1),
        ("broken", 2),
        ("perfect", 2),
    ]
    assert rows[0]["reason"].endswith("ended with 1: no such layer")
    assert rows[1]["dice"] == 1.0
    table = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    (scored,) = (line for line in table if line.startswith("| vnc | perfect |"))
    assert "1.0000, 1.0000 | 1.0000 | 1.0000 | 1.5 | 0.5 | 512 | 3 |" in scored
    written = into.read_bytes()
    protocol.main(arguments)
    assert into.read_bytes() == written


def test_seeds_of_different_versions_are_not_averaged() -> None:
    times = {"training_minutes": 20, "prediction_minutes": 1, "peak_mib": 512, "lines": 6, "length": "9 epochs"}
    about = {"set": "vnc", "tool": "mitoflow", "minutes": 20.0, "iou": 0.8, **times}
    rows = [{**about, "seed": seed, "version": version, "dice": dice} for seed, version, dice in VERSIONS]
    lines = protocol.table(rows).splitlines()[2:]
    assert [line.split(" | ")[2:5] for line in lines] == [
        ["abc, 20 minutes: 9 epochs; 9 epochs", "0.8000, 0.9000", "0.8500"],
        ["def, 20 minutes: 9 epochs", "0.7000", "0.7000"],
    ]


def test_environments_are_pinned_and_one_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    for tool, package in (("biapy", "biapy"), ("nnunet", "nnunetv2")):
        text = Path(environments.__file__).with_name(f"{tool}.txt").read_text()
        assert all("==" in line for line in text.splitlines() if not line.startswith("#"))
        assert environments.pinned(tool, package)
        (tmp_path / tool).mkdir()
        (tmp_path / tool / environments.MARK).write_text(text)
        assert environments.programs(tmp_path, tool) == tmp_path / tool / "bin"
        assert [*(tmp_path / tool).iterdir()] == [tmp_path / tool / environments.MARK]
