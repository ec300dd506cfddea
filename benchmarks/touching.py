"""How well touching mitochondria are told apart: `python -m benchmarks touching MASKS`, the masks of the set heart.

Masks of semantic segmentation do not say where one mitochondrion ends and the next begins. `touching_heart.txt` says it
for sections of heart muscle: each line is a section and a polyline of points ``y,x`` in pixels, drawn by hand along the
membrane between two mitochondria, from background to background or to another line. The true mask is divided by these
lines, and by the rule of `mitoflow predict --instances` at several values of `instances.neck`. Sections without lines
do not count. No network takes part, so that the figures are those of the rule alone.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from skimage.draw import line
from skimage.morphology import dilation
from skimage.segmentation import watershed

from mitoflow.config.params import Instances
from mitoflow.errors import InputError, run_as_command
from mitoflow.evaluation import instance_scores, metrics
from mitoflow.instances import components
from mitoflow.instances.separation import fewest_voxels, separate
from mitoflow.io import tiff

LINES = Path(__file__).with_name("touching_heart.txt")
NECKS = (0.0, 0.5, 0.6, 0.7, 0.8)
IOUS = (0.5, 0.75)
CRUMB = 30  # pixels: what lies between lines that cross, and is no mitochondrion

Point = tuple[int, int]


def read_lines(path: Path) -> dict[int, list[list[Point]]]:
    """Return the polylines, (y, x) in pixels, of each section."""
    lines: dict[int, list[list[Point]]] = defaultdict(list)
    for text in path.read_text(encoding="utf-8").splitlines():
        section, *points = text.split()
        lines[int(section)].append([(int(y), int(x)) for y, x in (point.split(",") for point in points)])
    return dict(lines)


def divided(mask: np.ndarray, lines: Sequence[Sequence[Point]]) -> np.ndarray:
    """Return the mitochondria of a mask (Y, X) bool, int32 labels, divided along polylines; 0 is background."""
    drawn = np.zeros(mask.shape, bool)
    for points in lines:
        for start, end in pairwise(points):
            y, x = line(*start, *end)
            within = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
            drawn[y[within], x[within]] = True
    parts = components.label((mask & ~dilation(drawn, np.ones((3, 3))))[None], connectivity=6)[0].astype(np.int32)
    parts = without_small(parts, CRUMB)
    grown: np.ndarray = watershed(np.zeros(mask.shape, np.uint8), parts, mask=mask)
    return grown


def without_small(labels: np.ndarray, fewest: int) -> np.ndarray:
    """Return labels without those of fewer than so many pixels."""
    is_small = np.bincount(labels.ravel()) < fewest
    return np.where(is_small[labels], 0, labels)


def scores(masks: Mapping[int, np.ndarray], lines: Mapping[int, Sequence[Sequence[Point]]]) -> list[list[str]]:
    """Return a row for each neck: mitochondria in the truth, those of the rule, and F1 at each IoU of `IOUS`."""
    truths = {}
    for section, of_section in lines.items():
        parts = divided(masks[section], of_section)
        truths[section] = without_small(parts, fewest_voxels(Instances(), (1, *parts.shape), None)).astype(np.uint32)
    rows = []
    for neck in NECKS:
        criteria, objects = Instances(neck=neck), defaultdict(list)
        for section, truth in truths.items():
            found = instance_scores.match(truth[None], separate(masks[section][None], criteria))
            for iou in IOUS:
                objects[iou].append(found.objects(iou).sum(0))
        counts = {iou: np.sum(each, axis=0) for iou, each in objects.items()}
        matched, extra, missed, _ = counts[IOUS[0]]
        f1 = [f"{float(metrics.dice(each)):.3f}" for each in counts.values()]
        rows.append([f"{neck:g}", f"{matched + missed:.0f}", f"{matched + extra:.0f}", *f1])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of `scores`."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks touching", description=described)
    parser.add_argument("masks", type=Path, help="groundtruth.tif of the set heart")
    path: Path = parser.parse_args(arguments).masks
    run_as_command(lambda: measure(path))


def measure(path: Path) -> None:
    """Measure the masks of a file; raises `InputError` where it has fewer sections than the lines."""
    sections, lines = list(tiff.open_mask(path).slices()), read_lines(LINES)
    if max(lines) >= len(sections):
        found, expected = f"{len(sections)} sections", f"{max(lines) + 1} or more"
        raise InputError(path, found, expected, "give the masks of the set heart")
    masks = {section: sections[section] > 0 for section in lines}
    print(f"{len(lines)} sections, {sum(map(len, lines.values()))} lines\n")
    header = ["neck", "true", "found", *(f"F1 at IoU {iou:g}" for iou in IOUS)]
    for row in (header, ["---"] * len(header), *scores(masks, lines)):
        print(f"| {' | '.join(row)} |")
