"""What the boxes that `mitoflow suggest` names are worth: `python -m benchmarks suggest --data PROJECT`.

A model that has not seen a set is fine-tuned by the preset `finetune` on a few boxes of it: those that the command
names in the first slices of its stack, and as many of the same size drawn at random from the same slices. Both are
measured on the last 30 % of the stack, behind a gap of two slices, each slice by itself, with the threshold of the
preset. The seed decides the random boxes and the fit; the suggested boxes are the same for every seed.

Only the training part of the project is used. Results are lines of JSON in the project, and what is there is not done
again; another content of the set, another model or other parameters are another result.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tifffile
from tqdm import tqdm

from benchmarks.leave_one_set_out import STORED, TissueSet, can_validate, changed, draws, no_mitochondria, read_project
from benchmarks.result_lines import Results, path_of_results
from mitoflow.config import presets
from mitoflow.config.params import Params, Patch
from mitoflow.core import files
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.masks import binarise
from mitoflow.data.pairs import read_set
from mitoflow.errors import InputError, run_as_command
from mitoflow.evaluation import metrics
from mitoflow.evaluation.curves import ProbabilityHistogram
from mitoflow.inference import correction, model_files, prediction, suggestion
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.tracking import model_lookup
from mitoflow.training import fitting

RESULTS = "suggest"
SETS, COUNTS, SEEDS = ("vnc", "cdeep3m"), (4, 8, 12), 3
MODEL = "pretrained:epfl"  # has seen neither set; pretrained:general has seen both
#: The network of that model, in place of the one that the preset fine-tunes.
NETWORK = ("train.network=unet", "train.base_width=16", "train.context=2", "train.context_step=2")
UNTOUCHED, SUGGESTED, RANDOM = "untouched", "suggested", "random"

#: Slice, first row and first column of a box.
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Target:
    """The one stack of a set: slices that boxes come from, and slices that are measured."""

    tissue: TissueSet

    @cached_property
    def stack(self) -> tuple[np.ndarray, np.ndarray]:
        """The images as stored and their masks as `binarise` returns them, (Z, Y, X) both."""
        if len(self.tissue.pairs) != 1:
            found = f"{len(self.tissue.pairs)} stacks in {self.tissue.name}"
            raise InputError("--sets", found, "sets of one stack", "leave it out")
        (pair,) = self.tissue.pairs
        masks = [binarise(mask, self.tissue.conventions.mask_rule) for mask in pair.mask.slices()]
        return np.stack([*pair.image.slices()]), np.stack(masks)

    @property
    def offered(self) -> np.ndarray:
        """The images that boxes may come from: the first slices."""
        return self.stack[0][self.tissue.sides["train"]]

    def drawn(self, count: int, seed: int, settings: Patch, side: int = suggestion.SIDE) -> list[Place]:
        """Draw boxes at random from the windows that `mitoflow suggest` chooses from.

        A draw is made again where there are no mitochondria in what validates, as a person would draw others then.

        Raises
        ------
        InputError
            There are no mitochondria.
        """
        depth, height, width = self.offered.shape
        windows = [
            (z, y, x)
            for z in range(depth)
            for y in suggestion.window_starts(height, side)
            for x in suggestion.window_starts(width, side)
            if suggestion.shows_tissue(self.offered[z, y : y + side, x : x + side])
        ]
        for places in draws(len(windows), count, seed):
            boxes = [windows[place] for place in places]
            if can_validate([mask for _, mask in self.crops(boxes, side)], settings):
                return boxes
        raise no_mitochondria(self.tissue.name)

    def suggested(self, count: int, model: TrainedModel) -> list[Place]:
        """Return the boxes that `mitoflow suggest` names."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"{self.tissue.name}.tif"
            tiff.write_stack(source, self.offered)
            spacing = self.tissue.conventions.spacing or None
            request = Request(str(source), Path(folder) / "boxes", spacing=spacing)
            return [(box.slice, box.y0, box.x0) for box in correction.suggest(request, count, model, tqdm.write)]

    def crops(self, boxes: Sequence[Place], side: int = suggestion.SIDE) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return images and masks of boxes, in their order in the stack, as files are ordered by their names.

        Raises
        ------
        InputError
            A box lies in a slice that is measured, or in the gap before it.
        """
        slices = self.tissue.sides["train"]
        if strays := {z for z, _, _ in boxes} - {*slices}:
            expected = f"boxes in its first {len(slices)} slices"
            raise InputError(self.tissue.name, f"a box in slice {min(strays)}", expected, "remove the row of its boxes")
        return [
            (image[y : y + side, x : x + side], mask[y : y + side, x : x + side])
            for z, y, x in sorted(boxes)
            for image, mask in [(self.stack[0][z], self.stack[1][z])]
        ]


@dataclass(frozen=True)
class Protocol:
    """What all measurements of a run have in common: the model, and the parameters of the fits."""

    model: TrainedModel
    finetune: Params

    def untouched(self, target: Target) -> dict[str, Any]:
        """Measure the model as `mitoflow predict` uses it."""
        with tempfile.TemporaryDirectory() as folder:
            source, mask = Path(folder) / "stack.tif", Path(folder) / "mask.tif"
            tiff.write_stack(source, target.stack[0][target.tissue.sides["validation"]])
            spacing = target.tissue.conventions.spacing or None
            prediction.predict(Request(str(source), mask, spacing=spacing), self.model, tqdm.write)
            predicted = tifffile.imread(mask) > 0
        counts = metrics.count(target.stack[1][target.tissue.sides["validation"]], predicted)
        return {"dice": round(float(metrics.dice(counts.sum(0))), 4)}

    def fine_tuned(self, target: Target, boxes: Sequence[Place], seed: int) -> dict[str, Any]:
        """Measure the model after it was fine-tuned on boxes."""
        started, known = time.perf_counter(), self.model.predictor.settings
        recipe = self.finetune.starting_recipe().replace(seed=seed)
        crops = target.crops(boxes)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for number, crop in enumerate(crops):
                for kind, pixels in (("images", crop[0]), ("masks", STORED[crop[1]])):
                    (folder / kind).mkdir(exist_ok=True)
                    tiff.write_stack(folder / kind / f"{number:02d}.tif", pixels)
            settings = self.finetune.patch.model_copy(update={"normalization": known.normalization})
            of_set = {target.tissue.name: Conventions(8, "partial", unrelated=True)}
            store = write_store(folder / "patches", read_set(folder, target.tissue.name), settings, of_set)
            initial, title = unet.load_model(self.model.weights), f"{target.tissue.name}, {len(boxes)}, seed {seed}"
            fitted = fitting.fit(store, recipe, initial=initial, learned=known.slices, title=title)
        settings = Settings.for_recipe(recipe, self.finetune.evaluate, known.bit_depth)
        threshold = self.finetune.evaluate.fixed_threshold or settings.threshold
        predictor = Predictor(fitted.model, replace(settings, normalization=known.normalization, threshold=threshold))
        histogram = ProbabilityHistogram()
        for z in target.tissue.sides["validation"]:
            histogram.add(target.stack[1][z], predictor.probabilities(target.stack[0][z][None])[0])
        dice = float(metrics.dice(histogram.counts_at(threshold).sum(0)))
        share = float(np.mean([mask == 1 for _, mask in crops]))
        return {
            "dice": round(dice, 4),
            "mitochondria": round(share, 4),  # share of the pixels of the boxes
            "seconds": round(time.perf_counter() - started),
        }


def run(targets: Sequence[Target], protocol: Protocol, results: Results, options: argparse.Namespace) -> None:
    """Measure what is not there yet."""
    settings = protocol.model.folder / model_files.SETTINGS
    model = files.short_digest([], protocol.model.weights, settings)[:12]
    recipe = files.short_digest(protocol.finetune.model_dump())[:12]
    for target in targets:
        key = {"set": target.tissue.name, "content": target.tissue.digest[:12], "model": model}
        if results.lacks({**key, "kind": UNTOUCHED}):
            results.add({**key, "kind": UNTOUCHED}, protocol.untouched(target))
        for count in options.boxes:
            for seed in range(1, options.seeds + 1):
                for kind in (SUGGESTED, RANDOM):
                    about = {**key, "recipe": recipe, "kind": kind, "boxes": count, "seed": seed}
                    if results.lacks(about):
                        if kind == RANDOM:
                            boxes = target.drawn(count, seed, protocol.finetune.patch)
                        else:
                            boxes = _suggested(target, count, key, protocol, results)
                        results.add(about, {"places": boxes, **protocol.fine_tuned(target, boxes, seed)})


def _suggested(
    target: Target, count: int, key: dict[str, Any], protocol: Protocol, results: Results
) -> Sequence[Place]:
    """Return the suggested boxes, which are found once, whatever the seed and the fit."""
    key = {**key, "kind": "boxes", "boxes": count}
    if results.lacks(key):
        results.add(key, {"places": target.suggested(count, protocol.model)})
    return next(row["places"] for row in results.rows if key.items() <= row.items())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown: the mean over the seeds, and each of them."""
    untouched = {_of(row): f"{row['dice']:.3f}" for row in rows if row["kind"] == UNTOUCHED}
    measured: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        if row["kind"] in (SUGGESTED, RANDOM):
            of_kind = measured.setdefault((_of(row), row["recipe"], row["boxes"]), {})
            of_kind.setdefault(row["kind"], []).append(row["dice"])
    lines = ["| set | untouched | boxes | suggested | random | difference |", "|---|---|---|---|---|---|"]
    for (of, _, count), of_kind in measured.items():
        suggested, drawn = (of_kind.get(kind, []) for kind in (SUGGESTED, RANDOM))
        difference = f"{np.mean(suggested) - np.mean(drawn):+.3f}" if suggested and drawn else ""
        cells = [of[0], untouched.get(of, ""), str(count), _mean(suggested), _mean(drawn), difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return the set of a row, its content, which older rows do not say, and the model."""
    return row["set"], row.get("content", ""), row["model"]


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{each:.3f}' for each in values)})" if values else ""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks suggest", description=described)
    parser.add_argument("--data", type=Path, help="folder of a project with the sets (default: this one)")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="SET", help="default: %(default)s")
    parser.add_argument("--boxes", nargs="+", type=int, default=COUNTS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    parser.add_argument("--model", default=MODEL, help="one that has not seen the sets (default %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the preset finetune")
    parser.add_argument("--into", type=Path, help="the results (default: .mitoflow/benchmarks in the project)")
    parser.add_argument("--table", action="store_true", help="only the table; without --data the published one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the protocol and print its table; errors of the user are one line."""
    options = parse(arguments)
    run_as_command(lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Run the protocol with these options."""
    project = options.data or Path()
    results = Results(options.into or path_of_results(RESULTS, options.data if options.table else project))
    if not options.table:
        sets = read_project(project)
        if unknown := set(options.sets) - sets.keys():
            raise InputError("--sets", min(unknown), f"some of {', '.join(sets)}", "change it")
        finetune = changed(presets.load("finetune"), [*NETWORK, *options.set])
        protocol = Protocol(model_lookup.find(options.model), finetune)
        run([Target(sets[name]) for name in options.sets], protocol, results, options)
    print(table(results.rows))


if __name__ == "__main__":
    main()
