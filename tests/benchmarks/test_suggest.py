"""The benchmark of `mitoflow suggest`, end to end on a small phantom: what is measured, and what is not done again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import leave_one_set_out, suggest
from benchmarks.result_lines import Results
from mitoflow.config import presets
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.masks import Rule
from mitoflow.data.phantom import make_phantom
from mitoflow.errors import InputError
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import tiff
from tests.tiny_model import write_model

NETWORK = ["train.depth=1", "train.base_width=2", "train.context=0", "train.precision=float32", "evaluate.tile=256"]
SHORT = ["train.epochs=1", "train.patches_per_epoch=4", "train.batch_size=4"]


@pytest.mark.slow
def test_suggested_boxes_are_compared_with_random_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = make_phantom((12, 256, 320), seed=0)
    write_project(tmp_path, image, (mask > 0).astype(np.uint8))
    write_model(tmp_path, Settings(8, divisor=2, tile=256, overlap=32, threshold=0.5), image[:1])
    into = tmp_path / "rows.jsonl"
    arguments = ["--data", str(tmp_path), "--sets", "target", "--model", str(tmp_path / "unet.keras")]
    arguments += ["--into", str(into), "--boxes", "4", "--seeds", "1", "--set", *NETWORK, *SHORT]
    suggest.main(arguments)
    untouched, boxes, *fits = map(json.loads, into.read_text().splitlines())
    assert (untouched["kind"], boxes["kind"]) == ("untouched", "boxes")
    assert [(row["kind"], row["boxes"], row["seed"]) for row in fits] == [("suggested", 4, 1), ("random", 4, 1)]
    assert fits[0]["places"] == boxes["places"] != fits[1]["places"]
    assert all(len({*map(tuple, row["places"])}) == 4 for row in fits)
    # Of 12 slices the last 4 are measured, and the two before them are in no box.
    assert max(z for row in fits for z, _, _ in row["places"]) < 6
    assert fits[0]["dice"] != fits[1]["dice"]
    printed = capsys.readouterr().out
    expected = f"| target | {untouched['dice']:.3f} | 4 | {fits[0]['dice']:.3f} ({fits[0]['dice']:.3f}) |"
    assert expected in printed

    whole = into.read_bytes()
    suggest.main(arguments)
    assert into.read_bytes() == whole


def write_project(folder: Path, images: np.ndarray, masks: np.ndarray, rule: Rule = "nonzero") -> suggest.Target:
    for name in ("target", "other"):
        for kind, array in (("images", images), ("masks", masks)):
            (folder / "data/train" / name / kind).mkdir(parents=True)
            tiff.write_stack(folder / "data/train" / name / kind / "stack.tif", array)
    sets = {name: Conventions(8, rule) for name in ("target", "other")}
    write_conventions(folder / "reports/validate/conventions.yaml", sets)
    return suggest.Target(leave_one_set_out.read_project(folder)["target"])


def options() -> argparse.Namespace:
    return suggest.parse(["--boxes", "4", "--seeds", "1"])


class Counted:
    """Stands for a protocol and counts what it is asked for."""

    def __init__(self, folder: Path) -> None:
        (folder / "unet.keras").write_text("weights")
        (folder / "inference.yaml").write_text("threshold: 0.5")
        self.model = TrainedModel("model", folder / "unet.keras", folder, {})
        self.finetune, self.fits = presets.load("finetune"), 0

    def untouched(self, target: suggest.Target) -> dict[str, float]:
        return {"dice": 0.5}

    def fine_tuned(self, target: suggest.Target, boxes: list[suggest.Place], seed: int) -> dict[str, float]:
        self.fits += 1
        return {"dice": 0.6}


def test_results_are_those_of_the_content_of_a_set_and_of_the_settings_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = make_phantom((12, 256, 320), seed=0)
    masks = (mask > 0).astype(np.uint8)
    targets = [write_project(tmp_path / str(depth), image[:depth], masks[:depth]) for depth in (12, 9)]
    monkeypatch.setattr(suggest.Target, "suggested", lambda *_: [(0, 0, 0)] * 4)
    results = Results(tmp_path / "rows.jsonl")
    protocol: Any = Counted(tmp_path)
    for expected, target in zip((2, 4, 4), (*targets, targets[0]), strict=True):
        suggest.run([target], protocol, results, options())
        assert protocol.fits == expected
    (tmp_path / "inference.yaml").write_text("threshold: 0.4")
    suggest.run(targets[:1], protocol, results, options())
    assert protocol.fits == 6
    old = [{key: each for key, each in row.items() if key != "content"} for row in results.rows[:4]]
    assert suggest.table(old).endswith("| target | 0.500 | 4 | 0.600 (0.600) | 0.600 (0.600) | +0.000 |")


def test_boxes_in_slices_that_are_measured_are_refused(tmp_path: Path) -> None:
    image, mask = make_phantom((12, 256, 256), seed=0)
    target = write_project(tmp_path, image, (mask > 0).astype(np.uint8))
    assert len(target.crops([(5, 0, 0)])) == 1
    with pytest.raises(InputError, match="target: found a box in slice 6, expected boxes in its first 6 slices"):
        target.crops([(5, 0, 0), (6, 0, 0)])


def test_pixels_that_nobody_looked_at_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = make_phantom((12, 256, 256), seed=0)
    masks = np.where(mask > 0, 255, 0).astype(np.uint8)
    masks[:, :128] = 128
    target = write_project(tmp_path, image, masks, "partial")

    def predict(request: Request, *_: Any) -> None:
        tiff.write_stack(request.output, np.where(masks[-4:] > 0, 255, 0).astype(np.uint8))

    monkeypatch.setattr(suggest.prediction, "predict", predict)
    protocol = suggest.Protocol(TrainedModel("model", Path(), Path(), {}), presets.load("finetune"))
    assert protocol.untouched(target) == {"dice": 1.0}
