"""From which distance on do neighbours harm? `python -m benchmarks neighbour-distance --data PROJECT`.

A 2.5-D model predicts the validation slices of a stack, slice by slice, with neighbours from further and further away,
and with copies of the slice in their place. `mitoflow.data.slice_distance.FARTHEST` was chosen by this table, on EPFL
with the model in `pretrained/epfl`. The test part is not read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from tqdm import tqdm

from mitoflow.data.conventions import read_conventions
from mitoflow.data.masks import binarise
from mitoflow.data.pairs import read_pairs
from mitoflow.errors import InputError, run_as_command
from mitoflow.evaluation import metrics
from mitoflow.inference import model_input
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.stages.paths import CONVENTIONS, DATA
from mitoflow.tracking import model_lookup

STEPS = (0, 1, 2, 3, 4, 6, 8)  # slices from one neighbour to the next; 0: copies


def measure(options: argparse.Namespace) -> None:
    """Print the Dice of each distance."""
    predictor = model_lookup.find(options.model).predictor
    pairs = {pair.dataset: pair for pair in read_pairs(options.data / DATA / "train")}
    if options.set not in pairs:
        raise InputError("--set", options.set, f"one of {', '.join(pairs)}", "change it")
    pair, rule = pairs[options.set], read_conventions(options.data / CONVENTIONS)[options.set].mask_rule
    first = pair.image.shape[0] - options.slices
    if not predictor.settings.context or first < 1:
        found = f"{predictor.settings.context} neighbours, {pair.image.shape[0]} slices"
        expected = f"a 2.5-D model and more than {options.slices} slices"
        raise InputError("neighbour-distance", found, expected, "change --model, --set or --slices")
    volume = model_input.normalized(ArrayVolume(np.stack(list(pair.image.slices()))), predictor.settings)
    box = (0, volume.shape[1], 0, volume.shape[2])
    held = range(volume.shape[0])
    truth = [binarise(mask, rule) for mask in list(pair.mask.slices())[first:]]
    print("| slices from one neighbour to the next | Dice |\n|---|---|")
    for step in STEPS:
        settings = replace(predictor.settings, context_step=step, orthoplanes=False, median=1)
        maps = predictor.with_settings(settings).stream(lambda z: volume.read(z, box), held, held[first:])
        shown = tqdm(zip(truth, maps, strict=True), desc=f"step {step}", total=len(truth), unit="slice", leave=False)
        counts = [metrics.count(mask[None], probability[None] >= settings.threshold)[0] for mask, probability in shown]
        print(f"| {step or 'copies'} | {metrics.dice(np.sum(counts, axis=0)):.4f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; errors of the user are one line."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks neighbour-distance", description=described)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of a project whose stage validate has run")
    parser.add_argument("--set", default="epfl", help="a set of its training part (default %(default)s)")
    parser.add_argument("--model", default="pretrained:epfl", help="as of mitoflow predict (default %(default)s)")
    parser.add_argument("--slices", type=int, default=20, help="the last slices of the stack (default %(default)s)")
    options = parser.parse_args(arguments)
    run_as_command(lambda: measure(options))


if __name__ == "__main__":
    main()
