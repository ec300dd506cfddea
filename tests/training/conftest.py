import shutil
from pathlib import Path

import numpy as np
import pytest

from mitoflow.config.params import Patch, Recipe
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.io import tiff

RECIPE = Recipe(
    learning_rate=0.01,
    depth=2,
    augment_strength=0.5,
    affine_fraction=0.5,
    intensity_strength=0.5,
    foreground_fraction=0.5,
    orthoplanes=False,
    context=1,
    context_step=2,
    context_dropout=0.0,
    base_width=4,
    loss="bce",
    precision="float32",
    batch_size=4,
    epochs=3,
    patches_per_epoch=24,
    patience=3,
    seed=1,
)


@pytest.fixture(scope="module")
def store(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    pairs = read_pairs(small_dataset / "train")
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2, normalization="range")
    folder = tmp_path_factory.mktemp("store") / "patches"
    return write_store(folder, pairs, settings, {"phantom": Conventions(8, "nonzero")})


@pytest.fixture(scope="module")
def touching(tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    """Slices with two bright mitochondria of their own numbers side by side, and a membrane between them."""
    data, rng = tmp_path_factory.mktemp("touching"), np.random.default_rng(0)
    labels = np.zeros((16, 64, 64), np.uint16)
    labels[:, 16:44, 8:32], labels[:, 16:44, 32:56] = 1, 2
    images = (rng.integers(0, 80, labels.shape) + 100 * (labels > 0)).astype(np.uint8)
    images[:, 16:44, 31:33] = 250
    tiff.write_stack(data / "train/cells/images/c.tif", images)
    tiff.write_stack(data / "train/cells/masks/c.tif", labels)
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2, normalization="range")
    conventions = {"cells": Conventions(8, "nonzero", instances=True)}
    return write_store(data / "patches", read_pairs(data / "train"), settings, conventions)


@pytest.fixture(scope="module")
def unequal_sets(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    """The phantom, and a small set that is its inverted beginning."""
    data = tmp_path_factory.mktemp("two_sets")
    shutil.copytree(small_dataset / "train/phantom", data / "train/phantom")
    (pair,) = read_pairs(data / "train")
    images, masks = (np.stack([*stack.slices()])[:8, :64, :64] for stack in (pair.image, pair.mask))
    tiff.write_stack(data / "train/small/images/s.tif", 255 - images)
    tiff.write_stack(data / "train/small/masks/s.tif", masks)
    sets = dict.fromkeys(("phantom", "small"), Conventions(8, "nonzero"))
    settings = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    return write_store(data / "patches", read_pairs(data / "train"), settings, sets)
