"""Fine-tuning on a few annotated slices: `python -m benchmarks.finetune MODEL_FOLDER`, in a project with the EPFL data.

Four annotated slices of a target: a phantom, and EPFL with inverted contrast, at half of the resolution, and with
strong noise. For each target three contenders are measured on slices that none of them was trained on: the model
untouched, the same U-Net from scratch, and the model fine-tuned, the last two on the same patches and for the same
time, with the recipe of the preset `finetune`. The EPFL slices are those that validated the model, so its epoch was
chosen on them, undegraded; the phantom is wholly new to it. The test part is not read. Targets
that have results are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from mitoflow.config import presets
from mitoflow.config.params import Patch
from mitoflow.core import files
from mitoflow.data import phantom
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.masks import binarise
from mitoflow.data.pairs import read_pairs, read_set
from mitoflow.data.patches import PatchStore
from mitoflow.evaluation import metrics, protocols
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.stages.paths import BEST_PARAMS
from mitoflow.training import fitting

RESULTS = Path(__file__).with_name("results") / "finetune.json"
LABELLED = 4

Volume = tuple[np.ndarray, np.ndarray]


def inverted(image: np.ndarray, mask: np.ndarray) -> Volume:
    return 255 - image, mask


def halved(image: np.ndarray, mask: np.ndarray) -> Volume:
    """Return images and masks at half of the resolution; a pixel is foreground where half of it is."""
    depth, height, width = (length // 2 * 2 for length in image.shape)

    def mean(array: np.ndarray) -> np.ndarray:
        return array[:depth, :height, :width].reshape(depth, height // 2, 2, width // 2, 2).mean(axis=(2, 4))

    return np.round(mean(image)).astype(np.uint8), (mean(mask) >= 0.5).astype(np.uint8)


def noisy(image: np.ndarray, mask: np.ndarray) -> Volume:
    noise = np.random.default_rng(0).normal(0, 40, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


EPFL: dict[str, Callable[[np.ndarray, np.ndarray], Volume]] = {
    "EPFL, contrast inverted": inverted,
    "EPFL, half of the resolution": halved,
    "EPFL, noise of 40 grey values": noisy,
}


def targets(data: Path) -> dict[str, Callable[[], tuple[Volume, Volume]]]:
    """Return for each target the function that makes its annotated slices and the consecutive slices to score."""

    def of_phantom() -> tuple[Volume, Volume]:
        image, mask = phantom.make_phantom((40, 320, 448), seed=5)
        return _spread(image[:24], mask[:24]), (image[30:], mask[30:])

    def of_epfl(change: Callable[[np.ndarray, np.ndarray], Volume]) -> tuple[Volume, Volume]:
        (pair,) = read_pairs(data / "train")
        image = np.stack([*pair.image.slices()])
        mask = np.stack([binarise(each, "nonzero") for each in pair.mask.slices()])
        # The model was not trained on the last 20 slices: some are annotated, and others, behind a gap, are scored.
        return _spread(*change(image[-20:-12], mask[-20:-12])), change(image[-8:], mask[-8:])

    degraded = {name: lambda change=change: of_epfl(change) for name, change in EPFL.items()}
    return {"phantom": of_phantom, **degraded}


def _spread(image: np.ndarray, mask: np.ndarray) -> Volume:
    places = np.linspace(0, len(image) - 1, LABELLED + 2).astype(int)[1:-1]
    return image[places], mask[places]


def store_of(labelled: Volume, folder: Path, settings: Patch) -> PatchStore:
    """Cut the annotated slices, each a page of its own, as a lab imports them."""
    for place, (image, mask) in enumerate(zip(*labelled, strict=True)):
        for kind, array in (("images", image), ("masks", (mask > 0).astype(np.uint8))):
            tiff.write_stack(folder / "data" / kind / f"{place}.tif", array)
    pairs = read_set(folder / "data", "labelled")
    return write_store(folder / "patches", pairs, settings, {"labelled": Conventions(8, "nonzero")})


def measure(labelled: Volume, judged: Volume, model_folder: Path) -> dict[str, Any]:
    preset, settings = presets.load("finetune"), Settings.read(model_folder / "inference.yaml")
    untouched = unet.load_model(model_folder / "unet.keras")
    recipe = preset.train.recipe(BEST_PARAMS)
    found: dict[str, Any] = {"untouched": score(Predictor(untouched, settings), judged)}
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(labelled, Path(folder), preset.patch)
        for name, initial in (("from scratch", None), ("fine-tuned", untouched)):
            started = time.perf_counter()
            fitted = fitting.fit(store, recipe, initial=initial, title=name)
            seconds = time.perf_counter() - started
            predictor = Predictor(fitted.model, settings)
            chosen = protocols.choose(predictor, store.validation, [settings.median]).threshold
            found[name] = score(predictor.with_settings(replace(settings, threshold=chosen)), judged)
            found[f"{name}, seconds"] = round(seconds)
    return found


def score(predictor: Predictor, judged: Volume) -> float:
    image, mask = judged
    counts = metrics.count(mask > 0, predictor.masks(image))
    return round(float(metrics.dice(counts.sum(0))), 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder with unet.keras and inference.yaml, such as pretrained/epfl")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--into", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = json.loads(options.into.read_text(encoding="utf-8")) if options.into.exists() else {}
    for name, make in targets(options.data).items():
        if name in found:
            continue
        found[name] = measure(*make(), options.model)
        options.into.parent.mkdir(exist_ok=True)
        files.write_json(options.into, found)
    names = ("untouched", "from scratch", "fine-tuned")
    print(f"| target | {' | '.join(names)} | seconds |\n|---|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(f'{row[each]:.4f}' for each in names)} | {row['fine-tuned, seconds']} |")


if __name__ == "__main__":
    main()
