"""Cut the training part into the patch store, split by blocks of slices."""

from __future__ import annotations

from mitoflow.config import params
from mitoflow.data.conventions import read_conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs
from mitoflow.stages.paths import CONVENTIONS, DATA, PATCHES
from mitoflow.tracking import runs
from mitoflow.tracking.naming import run_name


def main() -> None:
    settings = params.load()
    conventions = read_conventions(CONVENTIONS)
    pairs = read_pairs(DATA / "train")
    with runs.start("patch", run_name("patch", settings.data.name)) as run:
        run.params({"patch": settings.patch.model_dump()})
        store = write_store(PATCHES, pairs, settings.patch, conventions)
        made = f"{len(store.train)} training and {len(store.validation)} validation patches"
        run.describe(made)
        run.metrics({"patches/train": len(store.train), "patches/validation": len(store.validation)})
        run.artifact(PATCHES / "store.json")
    for name in dict.fromkeys(pair.dataset for pair in pairs):
        if name not in store.validation.sets:
            print(f"{name}: too few slices to leave out some with mitochondria for validation; all of them train")
    print(f"{PATCHES}: {made}")
