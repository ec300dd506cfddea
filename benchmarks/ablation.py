"""Ablation of the recipe: `python -m benchmarks.ablation`, in a project whose patches/ are cut.

Every row changes one thing in the recipe of `params.yaml`, which here trains without orthogonal planes, on the same
number of patches and with the same random seed. It is scored on the validation slices alone: as they are, and with
other contrast, brightness, sharpness and noise, since validation slices come from the volume of the training slices and
a user's stack does not. The test part is not read. Rows that have results are skipped; `--seed` adds runs with another
random seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from scipy import ndimage

from mitoflow.config import params
from mitoflow.config.params import Evaluate, Recipe
from mitoflow.core import files
from mitoflow.data.conventions import read_conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.network_input import to_unit
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import Patches, PatchStore
from mitoflow.evaluation import protocols
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.models import losses, unet
from mitoflow.stages.paths import BEST_PARAMS, CONVENTIONS, DATA, PATCHES
from mitoflow.training import fitting
from mitoflow.training.batches import TrainPatches

RESULTS = Path(__file__).with_name("results") / "ablation.json"


def group_normalised(x: Any, width: int, name: str) -> Any:
    """Two convolutions with group normalisation (Wu and He, ECCV 2018), groups of 8 feature maps."""
    for i in (1, 2):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_{i}")(
            x
        )
        x = layers.GroupNormalization(max(1, width // 8), name=f"{name}_{i}_norm")(x)
        x = layers.ReLU(name=f"{name}_{i}_relu")(x)
    return x


def residual(x: Any, width: int, name: str) -> Any:
    """The two convolutions of the U-Net with a shortcut around them (He et al., CVPR 2016)."""
    shortcut = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_sum")([shortcut, unet.convolve_twice(x, width, name)])


for block in (group_normalised, residual):
    unet.NETWORKS.register(block.__name__)(partial(unet.build_unet, block=block))


@unet.NETWORKS.register("deeply_supervised")
def build_deeply_supervised(depth: int, base_width: int, channels: int) -> keras.Model:
    """Build the U-Net with the logits of two coarser levels as further channels (Lee et al., AISTATS 2015)."""
    model = unet.build_unet(depth, base_width, channels)
    outputs = [model.output]
    for level in (1, 2):
        x = model.get_layer(f"up{level}_2_relu").output
        x = layers.Conv2D(1, 1, dtype="float32", name=f"logits{level}")(x)
        outputs.append(layers.UpSampling2D(2**level, interpolation="bilinear", dtype="float32")(x))
    return keras.Model(model.input, layers.Concatenate(dtype="float32")(outputs))


@losses.LOSSES.register("bce_dice_of_all_levels")
class OfAllLevels(keras.losses.Loss):
    """Cross-entropy with soft Dice of each level of `build_deeply_supervised`; a coarser level weighs half as much."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = losses.BinaryCrossentropyDice()

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        shares = (4 / 7, 2 / 7, 1 / 7)
        return sum(share * self.loss(y_true, y_pred[..., i : i + 1], sample_weight) for i, share in enumerate(shares))


class Averaging(keras.callbacks.Callback):
    """A moving average of the weights of the last few hundred steps (Polyak and Juditsky, 1992)."""

    decay = 0.99
    average: list[np.ndarray] | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        weights = self.model.get_weights()
        pairs = zip(self.average or weights, weights, strict=True)
        self.average = [self.decay * average + (1 - self.decay) * now for average, now in pairs]


def fit_averaged(store: PatchStore, recipe: Recipe, title: str) -> keras.Model:
    """Fit a model and give it the moving average in place of the weights of the best epoch."""
    averaging = Averaging()
    model = fitting.fit(store, recipe, callbacks=[averaging], title=title).model
    model.set_weights(averaging.average)
    return model


class PartlyMined(TrainPatches):
    """Places a quarter of the crops on false positives, once they are known (Shrivastava et al., CVPR 2016)."""

    mined: TrainPatches | None = None

    def place(
        self, axis: int, rng: np.random.Generator, sides: tuple[int, int] | None = None
    ) -> tuple[int, int, tuple[int, int]]:
        if self.mined is not None and rng.random() < 0.25:
            return self.mined.place(axis, rng, sides)
        return super().place(axis, rng, sides)


class Mining(keras.callbacks.Callback):
    """After the first epoch, find the background of the training slices that the network takes for mitochondria."""

    def batches(self, patches: Patches, bit_depth: int, recipe: Recipe, devices: int) -> PartlyMined:
        self.train = PartlyMined(patches, bit_depth, recipe, devices)
        return self.train

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            patches, recipe = self.train.patches, self.train.recipe
            wrong = np.zeros_like(patches.masks)
            for rows in np.array_split(np.arange(len(patches)), -(-len(patches) // recipe.batch_size)):
                images = patches.with_neighbours(rows, recipe.context, recipe.context_step)
                logits = self.model.predict_on_batch(to_unit(images, self.train.bit_depth))[..., 0]
                wrong[rows] = (logits >= 0) & (patches.masks[rows] == 0)
            mined = dataclasses.replace(patches, masks=wrong)
            everywhere = recipe.replace(foreground_fraction=1.0)
            self.train.mined = TrainPatches(mined, self.train.bit_depth, everywhere)


def fit_with_hard_negatives(store: PatchStore, recipe: Recipe, title: str) -> keras.Model:
    mining = Mining()
    return fitting.fit(store, recipe, batches=mining.batches, callbacks=[mining], title=title).model


def fit(store: PatchStore, recipe: Recipe, title: str) -> keras.Model:
    return fitting.fit(store, recipe, title=title).model


class Ensemble(Predictor):
    """The mean probability of several models."""

    def __init__(self, models: list[keras.Model], settings: Settings) -> None:
        super().__init__(models[0], settings)
        self.members = [Predictor(model, settings) for model in models]

    def run_network(self, batch: np.ndarray, outputs: int = 1) -> np.ndarray:
        return np.asarray(np.mean([member.run_network(batch, outputs) for member in self.members], axis=0))


@dataclass(frozen=True)
class Row:
    """A row of the table: what it changes in the recipe.

    Attributes
    ----------
    changes
        Keys of the recipe; the number of patches over all epochs stays the same.
    fit
        Fits a model; called with the patch store, the recipe and a title.
    size
        Pixels of a patch along y and x.
    members
        Number of models, each with another random seed, whose probabilities are averaged.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    fit: Callable[[PatchStore, Recipe, str], keras.Model] = fit
    size: int | None = None
    members: int = 1


ROWS = {
    "the recipe": Row(),
    "orthogonal planes, measured on slices": Row({"orthoplanes": True}),
    "no neighbouring slices": Row({"context": 0}),
    "one neighbour on each side, next to it": Row({"context": 1, "context_step": 1}),
    "no variation of grey values": Row({"intensity_strength": 0.0}),
    "crops anywhere, none placed on foreground": Row({"foreground_fraction": 0.0}),
    "every crop placed on foreground": Row({"foreground_fraction": 1.0}),
    "quarter turns and flips only, nothing resampled": Row({"affine_fraction": 0.0}),
    "every crop resampled, as in the first baseline": Row({"affine_fraction": 1.0, "augment_strength": 1.0}),
    "no geometric augmentation": Row({"augment_strength": 0.0}),
    "cross-entropy without Dice": Row({"loss": "bce"}),
    "half of the width": Row({"base_width": 8}),
    "one and a half of the width": Row({"base_width": 24}),
    "a level less": Row({"depth": 3}),
    "residual blocks": Row({"network": "residual"}),
    "group normalisation": Row({"network": "group_normalised"}),
    "a moving average of the weights": Row(fit=fit_averaged),
    "larger crops, as many pixels": Row(size=384),
    "deep supervision": Row({"network": "deeply_supervised", "loss": "bce_dice_of_all_levels"}),
    "two halves, the second without hard negatives": Row({"epochs": 2}),
    "two halves, the second with hard negatives": Row({"epochs": 2}, fit=fit_with_hard_negatives),
    "three of them averaged": Row(members=3),
}


def altered(patches: Patches) -> Patches:
    """Return validation patches with other contrast, brightness, sharpness and noise; the masks are the same."""
    images = patches.images.astype(np.float32)
    top = np.iinfo(patches.images.dtype).max
    noise = np.random.default_rng(0).normal(0, 0.04 * top, images.shape[1:]).astype(np.float32)
    for i, image in enumerate(images):
        blurred = ndimage.gaussian_filter(image, 0.8) / top
        images[i] = ((blurred**1.2 - 0.5) * 0.75 + 0.55) * top + noise
    return dataclasses.replace(patches, images=np.clip(images, 0, top).astype(patches.images.dtype))


@contextmanager
def store_of(row: Row, store: PatchStore) -> Iterator[PatchStore]:
    """Yield the patches that a row trains on: the project's own, or its data cut to the size of the row."""
    if row.size is None:
        yield store
        return
    settings = params.load().patch.model_copy(update={"size": row.size, "step": row.size})
    with tempfile.TemporaryDirectory() as folder:
        yield write_store(Path(folder, "patches"), read_pairs(DATA / "train"), settings, read_conventions(CONVENTIONS))


def measure(store: PatchStore, recipe: Recipe, row: Row, title: str) -> dict[str, Any]:
    started = time.process_time()
    models = []
    for seed in range(recipe.seed, recipe.seed + row.members):
        fitted = row.fit(store, recipe.replace(seed=seed), f"{title}, seed {seed}")
        models.append(keras.Model(fitted.input, fitted.get_layer("logits").output))
    seconds = time.process_time() - started
    settings = Settings.for_recipe(recipe, Evaluate(tile=1024, overlap=128), store.bit_depth)
    plain, other = (
        protocols.choose(Ensemble(models, settings), patches, [1]).dice
        for patches in (store.validation, altered(store.validation))
    )
    return {
        "validation_dice": round(plain, 4),
        "altered_dice": round(other, 4),
        "cpu_seconds": round(seconds),
        "parameters": sum(model.count_params() for model in models),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("--patches", type=int, default=6400, help="training patches of each row (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--into", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table of what is done")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="some of the rows; all without it")
    options = parser.parse_args()
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(ROWS)}")
    done = json.loads(options.into.read_text(encoding="utf-8")) if options.into.exists() else {}
    if not options.table:
        store = PatchStore.open(PATCHES)
        base = params.load().train.recipe(BEST_PARAMS).replace(orthoplanes=False, epochs=1, seed=options.seed)
        digest = files.short_digest([base.model_dump(exclude={"seed"}), store.digest])[:12]
        for name in options.rows or ROWS:
            row = ROWS[name]
            key = f"{name} / {options.patches} patches / recipe {digest} / seed {options.seed}"
            if key in done:
                continue
            with store_of(row, store) as cut:
                count = round(options.patches * store.size**2 / cut.size**2 / row.changes.get("epochs", 1))
                recipe = base.replace(**row.changes, patches_per_epoch=count)
                done[key] = {"row": name, "patches": options.patches, "recipe": digest, "seed": options.seed}
                done[key] |= measure(cut, recipe, row, name)
            options.into.parent.mkdir(exist_ok=True)
            files.write_json(options.into, done)
            keras.utils.clear_session()
    print(table(list(done.values())))


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: one line for each row, number of patches and recipe, with the Dice of each random seed."""
    lines = [
        "| change | patches | recipe | validation Dice | altered validation Dice | CPU seconds | parameters | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["row"], row["patches"], row.get("recipe", "")), []).append(row)
    for (name, patches, recipe), same in groups.items():
        dice, other = (" / ".join(f"{row[key]:.4f}" for row in same) for key in ("validation_dice", "altered_dice"))
        seconds = round(float(np.mean([row["cpu_seconds"] for row in same])))
        cells = (name, f"{patches:,}", recipe, dice, other, seconds, f"{same[0]['parameters'] / 1e6:.2f} M", len(same))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
