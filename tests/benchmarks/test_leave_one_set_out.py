"""The protocol leave-one-set-out, end to end on two small phantoms: what is measured, and what is not done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import leave_one_set_out, leave_one_set_out_report, result_lines
from mitoflow.config import presets
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.phantom import make_phantom
from mitoflow.errors import InputError
from mitoflow.inference import adaptation
from mitoflow.inference.agreement import Agreement
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.operating_point import OperatingPoints
from mitoflow.inference.settings import Settings
from mitoflow.io import tiff
from mitoflow.models import unet

SMALL = ["patch.size=64", "patch.step=64", "train.epochs=1", "train.patches_per_epoch=8", "train.batch_size=4"]
NETWORK = ["train.depth=2", "train.base_width=4", "train.precision=float32", "evaluate.tile=128"]
PATCH = {"size": 64, "step": 64}
FINETUNE = presets.load("finetune").patch
FEW = ["--sets", "flat", "--labels", "1", "--draws", "1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty consecutive slices, and six unrelated ones at half of the pixel size and with inverted contrast."""
    folder = tmp_path_factory.mktemp("project")
    image, mask = make_phantom((20, 128, 192), seed=7)
    write_set(folder / "data/train/deep", image, mask)
    image, mask = make_phantom((6, 256, 256), seed=1)
    write_set(folder / "data/train/flat", 200 - image // 2, mask)
    sets = {
        "deep": Conventions(8, "nonzero", {"z": 5.0, "y": 8.0, "x": 8.0}),
        "flat": Conventions(8, "nonzero", {"y": 4.0, "x": 4.0}, unrelated=True),
    }
    write_conventions(folder / "reports/validate/conventions.yaml", sets)
    return folder


def write_set(folder: Path, image: np.ndarray, mask: np.ndarray) -> None:
    for kind, array in (("images", image), ("masks", (mask > 0).astype(np.uint8))):
        (folder / kind).mkdir(parents=True)
        tiff.write_stack(folder / kind / "stack.tif", array.astype(np.uint8))


def run(project: Path, *options: str, changes: Sequence[str] = ()) -> list[dict[str, Any]]:
    into = project / "rows.jsonl"
    arguments = ["--data", str(project), "--into", str(into), "--figure", str(project / "labels.svg")]
    arguments += ["--set", *SMALL, *NETWORK, "evaluate.overlap=64", *changes, "--set-finetune", *SMALL, *options]
    leave_one_set_out.main(arguments)
    return [json.loads(line) for line in into.read_text().splitlines()]


@pytest.mark.slow
def test_the_protocol_runs_to_its_tables_and_is_not_done_twice(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(project, "--sets", "deep", "--only", "zero-shot")
    *zero_shot, judged = rows
    assert [(row["set"], row["kind"], row["pixel_size"]) for row in zero_shot] == [
        ("deep", "zero-shot", "as published"),
        ("deep", "zero-shot", "unknown"),
        ("deep", "zero-shot", "known"),
    ]
    (scale, own), *_ = zero_shot[0]["points"].values()
    assert scale == 1
    assert own == pytest.approx(presets.load("general").evaluate.fixed_threshold, abs=1 / 256)
    assert not any("threshold" in row for row in zero_shot)  # that of each stack is in its point
    assert all(row["slices"] == 20 and row["dice_low"] <= row["dice"] <= row["dice_high"] for row in zero_shot)
    found, _ = zero_shot[1]["points"]["stack"]
    assert judged["kind"] == "judged"
    scales = [each["scale"] for each in judged["stacks"]]
    assert scales == [pytest.approx(found, abs=1e-4), pytest.approx(found / 2, abs=1e-4), 1.0][: len(scales)]
    rows = run(project, *FEW, "--calibration", str(project / "calibration.yaml"))
    fitted = Calibration.read(project / "calibration.yaml")
    assert fitted.stacks == sum(len(row.get("stacks", [])) for row in rows) > 6
    assert fitted == leave_one_set_out_report.calibration(rows)
    assert [row["kind"] for row in rows[4:8]] == ["zero-shot"] * 3 + ["judged"]
    assert set(rows[5]["points"]) == {f"stack-{z}" for z in range(6)}
    assert [(row["set"], row["kind"], row.get("labels"), row["slices"]) for row in rows[8:]] == [
        ("flat", "fine-tuned", 0, 2),
        ("flat", "fine-tuned", 1, 2),
        ("flat", "from scratch", 1, 2),
    ]
    assert len({row["dice_at_best_threshold"] for row in rows[-3:]}) == 3
    printed = capsys.readouterr().out
    assert "| flat | from scratch |" in printed
    assert (project / "labels.svg").read_text().startswith("<?xml")

    whole, models = (project / "rows.jsonl").read_bytes(), sorted((project / ".leave-one-set-out/models").iterdir())
    assert len(models) == 4  # two, each with its settings
    (project / "rows.jsonl").write_bytes(whole[:-10])  # as after a power cut
    assert {**run(project, *FEW)[-1], "seconds": 0} == {**rows[-1], "seconds": 0}
    again = (project / "rows.jsonl").read_bytes()
    run(project, *FEW)
    assert (project / "rows.jsonl").read_bytes() == again
    assert sorted((project / ".leave-one-set-out/models").iterdir()) == models

    rows = run(project, "--sets", "deep", "--only", "zero-shot", "--without", "scale")
    assert [row["variant"] for row in rows[-4:]] == ["without scale"] * 4
    assert "| without scale |" in capsys.readouterr().out


@pytest.mark.slow
def test_another_threshold_is_measured_with_the_model_that_is_there(project: Path) -> None:
    options = ("--sets", "flat", "--only", "zero-shot")
    run(project, *options)
    models = project / ".leave-one-set-out/models"
    before = {path: path.stat().st_mtime_ns for path in models.glob("*.keras")}
    rows = run(project, *options, changes=["evaluate.threshold=0.25"])
    as_published = rows[-4]["points"].values()
    assert [threshold for _, threshold in as_published] == [pytest.approx(0.25, abs=1 / 256)] * 6
    assert {path: path.stat().st_mtime_ns for path in models.glob("*.keras")} == before


@pytest.mark.slow
def test_fits_go_on_from_the_models_of_an_earlier_run(project: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *NETWORK, "evaluate.overlap=64", "train.learning_rate=1e-7"]
    preset = leave_one_set_out.changed(presets.load("general"), changes)
    sets = leave_one_set_out.read_project(project)
    protocol = leave_one_set_out.Protocol(sets=sets, preset=preset, finetune=preset, work=tmp_path, loaders=0)
    recipe = preset.starting_recipe()
    earlier = protocol.fitted("deep", "earlier", recipe.replace(seed=2))
    (tmp_path / "start").mkdir()
    shutil.copy(earlier.weights, tmp_path / "start/deep.keras")
    further = replace(protocol, start=tmp_path / "start")
    weights = [
        unet.load_model(trained.weights).get_weights()[0]
        for trained in (earlier, further.fitted("deep", "further", recipe), protocol.fitted("deep", "anew", recipe))
    ]
    assert np.abs(weights[1] - weights[0]).max() < 1e-3 < np.abs(weights[2] - weights[0]).max()
    with pytest.raises(InputError, match=r"no flat\.keras"):
        further.fitted("flat", "further", recipe)


def test_patches_and_results_are_found_by_the_content_of_the_sets(project: Path, tmp_path: Path) -> None:
    preset = leave_one_set_out.changed(presets.load("general"), SMALL)
    sets = leave_one_set_out.read_project(project)
    kept = leave_one_set_out.Protocol(sets=sets, preset=preset, finetune=preset, work=tmp_path, loaders=0)
    store = kept._store_without("flat")
    assert kept._store_without("flat").digest == store.digest
    assert len([*tmp_path.iterdir()]) == 1

    shutil.copytree(project, tmp_path / "shorter", ignore=lambda *_: [".leave-one-set-out"])
    for kind in ("images", "masks"):
        path = tmp_path / "shorter/data/train/deep" / kind / "stack.tif"
        tiff.write_stack(path, np.stack([*tiff.open_stack(path).slices()])[:15])
    others = [
        replace(kept, sets=leave_one_set_out.read_project(tmp_path / "shorter")),
        replace(kept, preset=leave_one_set_out.changed(preset, ["patch.gap=1"])),
    ]
    for other in others:
        assert other.digest != kept.digest
        assert other._store_without("flat").digest != store.digest
    (tmp_path / "flat.keras").write_text("a model")
    assert replace(kept, start=tmp_path).digest != kept.digest
    assert replace(others[0], work=tmp_path / "elsewhere").digest == others[0].digest


@pytest.mark.parametrize(("pixel_size", "depth", "scale"), [(4.0, 3, 0.5), (8.8, 3, 1.0), (16.0, 1, 2.0)])
def test_scales_are_found_as_predict_finds_them(
    pixel_size: float, depth: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of less than 1.15 is none, and a single slice is not searched where the network agrees well enough."""
    searched: list[dict[str, Any]] = []

    def search(predictor: Any, at_scale: Any, usual: Any, thresholds: Any, enough: float) -> OperatingPoints:
        searched.append({"usual": usual, "enough": enough})
        return OperatingPoints({usual: Agreement(0.9, 0.9)})

    monkeypatch.setattr(adaptation.operating_point, "search", search)
    trained = leave_one_set_out.Trained("model", Path(), Path(), {"model_sha256": "0"}, {"y": 8.0, "x": 8.0})
    settings = Settings(8, divisor=2, tile=64, overlap=0, threshold=0.4, normalization="percentiles")
    predictor = SimpleNamespace(settings=settings, with_settings=lambda given, _=None: SimpleNamespace(settings=given))
    vars(trained)["predictor"] = predictor
    volume = ArrayVolume(np.zeros((depth, 64, 64), np.uint8))
    found = leave_one_set_out.predicted(trained, volume, {"y": pixel_size, "x": pixel_size})
    assert leave_one_set_out.point_of(found) == pytest.approx((scale, 0.4))
    assert searched[0]["usual"].scale == pytest.approx(pixel_size / 8)
    assert searched[0]["enough"] == (adaptation.ENOUGH if depth == 1 else 1 - adaptation.CLEARLY)
    assert leave_one_set_out.point_of(leave_one_set_out.predicted(trained, volume, {})) == (1.0, 0.4)


def test_pixels_that_nobody_looked_at_are_neither_trained_nor_counted(tmp_path: Path) -> None:
    image, mask = make_phantom((12, 64, 64), seed=0)
    masks = np.where(np.arange(64) >= 32, UNLABELLED, mask > 0).astype(np.uint8)
    pages = {"set": {"stack": [*zip(image, masks, strict=True)]}}
    store = leave_one_set_out.write_patches(tmp_path, pages, presets.load("general").patch.model_copy(update=PATCH))
    assert (np.asarray(store.train.masks) == masks[: len(store.train)]).all()


def test_what_is_labelled_is_not_what_is_measured_nor_beside_it(project: Path) -> None:
    sets = leave_one_set_out.read_project(project)
    deep, flat = sets["deep"], sets["flat"]
    assert deep.sides == {"train": [*range(12)], "validation": [*range(14, 20)]}
    assert flat.sides == {"train": [0, 1, 2, 3], "validation": [4, 5]}
    assert len(set(flat.stacks)) == 6
    (four, one) = deep.labelled(4, 0, FINETUNE), deep.labelled(1, 0, FINETUNE)
    assert [image.shape for image, _ in four] == [(128, 192)] * 4
    assert [image.shape for image, _ in one] == [(64, 96)] * 4
    assert [image.shape for image, _ in flat.labelled(12, 0, FINETUNE)] == [(128, 128)] * 12
    pool = [deep.slices[place][0].tobytes() for place in deep.sides["train"]]
    assert {image.tobytes() for image, _ in four} < set(pool)
    assert {image.tobytes() for image, _ in four} != {image.tobytes() for image, _ in deep.labelled(4, 1, FINETUNE)}
    with pytest.raises(InputError, match="--labels: found 17, expected at most the 16 of flat"):
        flat.labelled(17, 0, FINETUNE)


def test_a_draw_whose_validating_slice_shows_no_mitochondria_is_drawn_again(project: Path) -> None:
    deep = leave_one_set_out.read_project(project)["deep"]
    chosen = next(iter(leave_one_set_out.draws(12, 4, 0)))[-1]  # the last of four validates
    image, mask = deep.slices[chosen]
    deep.slices[chosen] = image, np.zeros_like(mask)
    assert image.tobytes() not in {page.tobytes() for page, _ in deep.labelled(4, 0, FINETUNE)[-1:]}
    deep.slices[:] = [(page, np.zeros_like(mask)) for page, mask in deep.slices]
    with pytest.raises(InputError, match="deep: found no mitochondria in what validates, in 100 draws"):
        deep.labelled(4, 0, FINETUNE)


def test_variants_leave_one_augmentation_out() -> None:
    recipe = presets.load("general").train.recipe(Path("none.yaml"))
    found = leave_one_set_out.variants(recipe, ["scale", "intensity"])
    assert found["without scale"].augmentation.scale.share == 0
    assert found["without scale"].augmentation.inversion == recipe.augmentation.inversion
    assert found["without intensity"].intensity_strength == 0
    assert leave_one_set_out.variants(recipe, []) == {leave_one_set_out_report.PRESET: recipe}
    with pytest.raises(InputError, match="--without: found haste, expected one of scale"):
        leave_one_set_out.variants(recipe, ["haste"])
    with pytest.raises(InputError, match=r"--set: found train\.pace=3"):
        leave_one_set_out.changed(presets.load("general"), ["train.pace=3"])


def test_tables_are_means_over_sets_and_draws() -> None:
    common = {"variant": leave_one_set_out_report.PRESET}
    rows = [
        {**common, "set": name, "kind": kind, "labels": 4, "draw": draw, "dice": dice}
        for name, kind, draw, dice in [
            ("a", "fine-tuned", 0, 0.8),
            ("a", "fine-tuned", 1, 0.9),
            ("b", "fine-tuned", 0, 0.5),
            ("a", "from scratch", 0, 0.4),
            ("a", "from scratch", 0, 0.6),  # measured again: the last one counts
        ]
    ]
    table = leave_one_set_out_report.labels_table(rows)
    assert "| a | fine-tuned | 0.850 (0.800 to 0.900) |" in table
    assert "| mean of sets | fine-tuned | 0.675 |" in table
    assert "| a | from scratch | 0.600 |" in table
    assert "| mean of sets | from scratch |  |" in table  # b is missing


def judged(name: str, dice: float, **about: str) -> dict[str, Any]:
    agreement = {"mirrored": dice, "rescaled": 1.0}
    stacks = [{"stack": "stack", "scale": 1.0, "threshold": 0.5, "agreement": agreement, "dice": dice}] * 2
    return {"set": name, "variant": leave_one_set_out_report.PRESET, "kind": "judged", **about, "stacks": stacks}


def test_tables_and_calibration_are_of_one_protocol() -> None:
    older = [judged("a", 0.1, recipe="1"), judged("a", 0.2, recipe="2"), judged("b", 0.3, recipe="3")]
    labels = {"variant": leave_one_set_out_report.PRESET, "kind": "fine-tuned", "set": "a", "draw": 0}
    older += [{**labels, "labels": 4, "recipe": "4", "dice": 0.7}, {**labels, "labels": 0, "recipe": "2", "dice": 0.5}]
    rows = [*older, judged("a", 0.6, protocol="x"), judged("a", 0.7, protocol="y"), judged("b", 0.8, protocol="x")]
    found = leave_one_set_out_report.protocols(rows)
    assert found == {"": older[1:], "y": [rows[6]], "x": [rows[5], rows[7]]}
    assert leave_one_set_out_report.of_one_protocol(rows, None) == found["x"]
    assert leave_one_set_out_report.of_one_protocol(rows, "y") == found["y"]
    assert leave_one_set_out_report.of_one_protocol([], None) == []
    printed = leave_one_set_out_report.tables(rows)
    assert [line for line in printed.splitlines() if "Protocol" in line] == [
        "Protocol without a name:",
        "Protocol y:",
        "Protocol x:",
    ]
    assert leave_one_set_out_report.calibration(found["x"]).stacks == 4
    line = Calibration(slope=1.0, intercept=-0.25, error=0.01, stacks=20)
    assert leave_one_set_out_report.calibration(found["x"], line) == replace(line, error=pytest.approx(0.25), stacks=4)
    assert "within 0.250, and all within 0.250." in leave_one_set_out_report.tables(found["x"], line)
    assert "Protocol" not in leave_one_set_out_report.tables(older)


def test_results_of_a_project_lie_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published = result_lines.ROOT / "benchmarks/results/leave_one_set_out.jsonl"
    assert published.exists()
    assert result_lines.path_of_results(leave_one_set_out.RESULTS, None) == published
    assert result_lines.path_of_results(leave_one_set_out.RESULTS, result_lines.ROOT) == published
    assert result_lines.path_of_results(leave_one_set_out.RESULTS, tmp_path).is_relative_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    leave_one_set_out.main(["--table", "--figure", "labels.svg"])
    assert "| cdeep3m |" in capsys.readouterr().out
    leave_one_set_out.main(["--table", "--data", "."])
    assert "| cdeep3m |" not in capsys.readouterr().out


def test_a_project_of_one_set_is_one_line(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/deep").symlink_to(project / "data/train/deep")
    write_conventions(tmp_path / "reports/validate/conventions.yaml", {"deep": Conventions(8, "nonzero")})
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path)
    assert stopped.value.code == 2
    assert "found one set, deep, expected two or more" in capsys.readouterr().err
