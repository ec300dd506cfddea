"""Cut the training part into the patch store, split by blocks of slices."""

from __future__ import annotations

from mitoflow.config import params
from mitoflow.data.patches import PatchStore
from mitoflow.io import tiff
from mitoflow.stages import CONVENTIONS, DATA, PATCHES, as_process
from mitoflow.tracking import runs


def main() -> None:
    settings = params.load().patch
    conventions = tiff.Conventions.read(CONVENTIONS)
    pairs = tiff.read_pairs(DATA / "train")
    with runs.start("patch", "patch") as run:
        run.params({"patch": settings.model_dump()})
        store = PatchStore.write(
            PATCHES, pairs, settings, mask_rule=conventions.mask_rule, bit_depth=conventions.bit_depth
        )
        run.metrics({"patches.train": len(store.train), "patches.validation": len(store.validation)})
        run.artifact(PATCHES / "store.json")
    print(f"{PATCHES}: {len(store.train)} training and {len(store.validation)} validation patches")


if __name__ == "__main__":
    as_process(main)
