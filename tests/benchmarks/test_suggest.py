"""The benchmark of `mitoflow suggest`, end to end on a small phantom: what is measured, and what is not done again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import suggest
from mitoflow.data.conventions import Conventions, write_conventions
from mitoflow.data.phantom import make_phantom
from mitoflow.inference.settings import Settings
from mitoflow.io import tiff
from tests.tiny_model import write_model

NETWORK = ["train.depth=1", "train.base_width=2", "train.context=0", "train.precision=float32", "evaluate.tile=256"]
SHORT = ["train.epochs=1", "train.patches_per_epoch=4", "train.batch_size=4"]


@pytest.mark.slow
def test_suggested_boxes_are_compared_with_random_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = make_phantom((12, 256, 320), seed=0)
    for name in ("target", "other"):
        for kind, array in (("images", image), ("masks", (mask > 0).astype(np.uint8))):
            (tmp_path / "data/train" / name / kind).mkdir(parents=True)
            tiff.write_stack(tmp_path / "data/train" / name / kind / "stack.tif", array)
    sets = {name: Conventions(8, "nonzero") for name in ("target", "other")}
    write_conventions(tmp_path / "reports/validate/conventions.yaml", sets)
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
