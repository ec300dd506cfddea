"""Cut the training part into the patch store, split by blocks of slices."""

from __future__ import annotations

from mitoflow.config import params
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.stages.paths import CONVENTIONS, DATA, PATCHES
from mitoflow.tracking import runs


def main() -> None:
    settings = params.load().patch
    conventions = Conventions.read(CONVENTIONS)
    pairs = read_pairs(DATA / "train")
    with runs.start("patch", "patch") as run:
        run.params({"patch": settings.model_dump()})
        store = write_store(PATCHES, pairs, settings, mask_rule=conventions.mask_rule, bit_depth=conventions.bit_depth)
        run.metrics({"patches.train": len(store.train), "patches.validation": len(store.validation)})
        run.artifact(PATCHES / "store.json")
    print(f"{PATCHES}: {len(store.train)} training and {len(store.validation)} validation patches")
