"""The grey values and the neighbours that a model sees: the same for files, arrays, parts and workers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from mitoflow.config.params import Instances, Patch
from mitoflow.data import network_input, slice_distance
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.evaluation import metrics, protocols
from mitoflow.inference import jobs, prediction
from mitoflow.inference.model_input import ArrayVolume, StretchedVolume, decide
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.io import ome, tiff
from mitoflow.tracking import model_comparison, model_lookup
from tests.tiny_model import write_model

pytestmark = pytest.mark.slow

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1, median=3)
PERCENTILES = replace(SETTINGS, normalization="percentiles")


def tissue(depth: int, apart: int) -> np.ndarray:
    """Return slices (Z, Y, X) uint8 of an isotropic texture, that many pixels apart."""
    volume = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(depth * apart, 90, 110)), 2)[::apart]
    return np.asarray(np.clip(128 + 40 * volume / volume.std(), 0, 255), np.uint8)


STACKS = {"thin": tissue(12, 1), "thick": tissue(12, 6), "unrelated": tissue(12, 40), "single": tissue(1, 1)}
THIN = slice_distance.measure(ArrayVolume(STACKS["thin"]).read, STACKS["thin"].shape, {})  # type: ignore[arg-type]
PRESETS = {
    "epfl": replace(SETTINGS, context=2, context_step=2, median=1, orthoplanes=True, slices=THIN),
    "imported": replace(SETTINGS, context=1, context_step=1, slices=THIN),
    "finetune": replace(SETTINGS, context=2, context_step=2, slices=THIN),
    "finetune on single slices": replace(SETTINGS, context=2, context_step=0, median=1),
    "general": replace(PERCENTILES, context=0, median=1),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ome, "CHUNK", 32)
    monkeypatch.setattr(ome, "TILE", 16)
    monkeypatch.setattr(jobs, "SIDE", 64)
    return tmp_path


def predicted(**asked: object) -> np.ndarray:
    request = Request("cell.tif", Path("mask.tif"), overwrite=True, **asked)  # type: ignore[arg-type]
    prediction.predict(request, model_lookup.find("unet.keras"), print)
    return np.asarray(tifffile.imread("mask.tif") > 0)


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_what_evaluate_measures_is_what_predict_gives(folder: Path, preset: str, kind: str) -> None:
    """Of arrays, too; and of a part of the stack."""
    stack = STACKS[kind]
    write_model(folder, PRESETS[preset], STACKS["thin"])
    tifffile.imwrite("cell.tif", stack)
    tifffile.imwrite("truth.tif", (stack > 140).astype(np.uint8))
    predictor = model_lookup.find("unet.keras").predictor
    image, truth = tiff.open_stack(Path("cell.tif")), tiff.open_mask(Path("truth.tif"))
    pair = Pair("cell", image, truth, dataset="cells")
    sets = {"cells": Conventions(8, "nonzero")}
    (evaluated,) = protocols.measure(predictor, [pair], sets, 32, Instances())["cells"].stacks
    mask = predicted().reshape(stack.shape)
    assert 0.02 < mask.mean() < 0.98
    np.testing.assert_array_equal(mask, evaluated.mask)
    np.testing.assert_array_equal(predictor.masks(stack), evaluated.mask)
    roi = "3:9,10:70,:" if len(stack) > 1 else "10:70,:"
    part = np.s_[3:9, 10:70] if len(stack) > 1 else np.s_[:, 10:70]
    np.testing.assert_array_equal(predicted(roi=roi), mask[part].squeeze())


def test_evaluate_takes_the_voxel_size_of_the_set_as_predict_takes_the_one_it_is_given(folder: Path) -> None:
    """Slices are 30 nm apart by data/sets.yaml alone, and 5 nm in training: each is predicted by itself."""
    stack, spacing = STACKS["thin"], {"z": 30.0, "y": 5.0, "x": 5.0}
    write_model(folder, replace(PRESETS["finetune"], slices=SliceDistance(5.0, 1.0, 5.0)), stack)
    for kind, voxels in (("images", stack), ("masks", (stack > 140).astype(np.uint8))):
        tiff.write_stack(folder / "train/cells" / kind / "cell.tif", voxels)
    tiff.write_stack(folder / "cell.tif", stack)
    pairs, sets = read_pairs(folder / "train"), {"cells": Conventions(8, "nonzero", spacing)}
    model = model_lookup.find("unet.keras")
    predictor = model.predictor
    alone = predictor.with_settings(replace(predictor.settings, context_step=0, median=1))
    mask = predicted(spacing=spacing)
    assert np.any(mask != predicted())

    (evaluated,) = protocols.measure(predictor, pairs, sets, 32, Instances())["cells"].stacks
    np.testing.assert_array_equal(evaluated.mask, mask)
    _, counts = protocols.count(partial(jobs.Prediction.of, predictor), pairs, {"cells": "nonzero"}, spacing)
    np.testing.assert_array_equal(counts, metrics.count(stack > 140, mask))
    cut = Patch(size=32, step=32, validation_fraction=0.5, gap=2, normalization="range")
    validation = write_store(folder / "patches", pairs, cut, sets).validation
    stacks = [pair.image for pair in pairs]
    assert protocols.choose(predictor, validation, [3], stacks) == protocols.choose(alone, validation, [3], stacks)
    shown = dict(model_comparison._predict(model, stacks[0], spacing, [1, 4]))
    assert all(np.array_equal(shown[z], mask[z]) for z in (1, 4))


def test_neighbours_are_used_where_they_are_as_far_away_as_in_training() -> None:
    for kind, (step, median, planes) in {
        "thin": (2, 3, True),
        "thick": (0, 1, False),
        "unrelated": (0, 1, False),
        "single": (0, 1, False),
    }.items():
        settings = replace(SETTINGS, context=2, context_step=2, orthoplanes=True, slices=THIN)
        decision = decide(settings, ArrayVolume(STACKS[kind]))
        found = decision.settings
        assert (found.context_step, found.median, found.orthoplanes) == (step, median, planes), kind
        assert bool(decision.notes) == (kind != "single")
        assert decide(settings, ArrayVolume(STACKS[kind]), "none").settings.context_step == 0
        if kind != "single":
            assert decide(settings, ArrayVolume(STACKS[kind]), "all").settings.context_step == 2


def test_a_stated_distance_counts_more_than_an_estimated_one() -> None:
    volume = ArrayVolume(STACKS["thin"])
    volume.spacing = {"z": 2.5, "y": 5.0, "x": 5.0}
    settings = replace(SETTINGS, context_step=2, slices=SliceDistance(nm=5, pixels=1, pixel_nm=5))
    assert decide(settings, volume).settings.context_step == 4
    assert "neighbours 4 slices apart" in decide(settings, volume).notes[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_grey_values_of_any_type_and_gain_give_the_same_mask(folder: Path, dtype: type) -> None:
    """In blocks, of a part, by workers, and as an array."""
    write_model(folder, PERCENTILES, STACKS["thin"])
    tifffile.imwrite("cell.tif", STACKS["thin"])
    expected = predicted()
    gain, offset = (1, 0) if dtype is np.uint8 else (50, -3000 if dtype is not np.uint16 else 10)
    stack = (STACKS["thin"].astype(np.float64) * gain + offset).astype(dtype)
    tifffile.imwrite("cell.tif", stack)
    np.testing.assert_array_equal(predicted(), expected)
    np.testing.assert_array_equal(model_lookup.find("unet.keras").predictor.masks(stack), expected)
    np.testing.assert_array_equal(predicted(roi="2:9,20:70,:90"), expected[2:9, 20:70, :90])
    if dtype is np.float32:
        np.testing.assert_array_equal(predicted(workers=2), expected)


def test_each_slice_is_stretched_by_all_of_it_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = STACKS["thin"] // np.arange(1, 13, dtype=np.uint8)[:, None, None]
    calls: list[tuple[int, int]] = []
    measure = network_input.slice_range

    def counted(*asked: object) -> tuple[float, float]:
        calls.append((0, 0))
        return measure(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr(network_input, "slice_range", counted)
    volume = StretchedVolume(ArrayVolume(stack))
    for z in (0, 11, 5, 0):
        whole = network_input.stretched(stack[z], *network_input.grey_range(stack[z]))
        np.testing.assert_array_equal(volume.read(z, (5, 40, 0, 33)), whole[5:40, :33])
    assert len(calls) == 12
    assert volume.dtype == np.uint8


def test_a_large_slice_is_stretched_by_patches_all_over_it() -> None:
    random = np.random.default_rng(0)
    slices = random.normal(100, 10, (2200, 2300)).astype(np.float32)
    slices[:, 1200:] += 50
    read: list[int] = []

    def box(place: tuple[int, int, int, int]) -> np.ndarray:
        y0, y1, x0, x1 = place
        read.append((y1 - y0) * (x1 - x0))
        return slices[y0:y1, x0:x1]

    found = network_input.slice_range(box, (2200, 2300))
    assert sum(read) < slices.size / 4
    assert found == pytest.approx(network_input.grey_range(slices), abs=2)
    assert found == network_input.slice_range(box, (2200, 2300))


def test_resampling_comes_after_the_stretch(folder: Path) -> None:
    """The range is that of the pixels as they are stored, whatever the scale."""
    write_model(folder, PERCENTILES, STACKS["thin"])
    tifffile.imwrite("cell.tif", STACKS["thin"])
    whole = predicted(rescale=0.5)
    assert whole.shape == STACKS["thin"].shape
    assert (whole != predicted()).any()
    np.testing.assert_array_equal(predicted(rescale=0.5, roi="2:9,20:70,:90"), whole[2:9, 20:70, :90])
