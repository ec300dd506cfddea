"""How well touching mitochondria are told apart: `python -m benchmarks touching MASKS`, the masks of the set heart.

Masks of semantic segmentation do not say where one mitochondrion ends and the next begins. `touching_heart.txt` says it
for sections of heart muscle: each line is a section and a polyline of points ``y,x`` in pixels, drawn by hand along the
membrane between two mitochondria, from background to background or to another line. The true mask is divided by these
lines, and by the rule of `mitoflow predict --instances` at several values of `instances.neck`. Sections without lines
do not count.

With `--images` the contacts of a network are used as well. It is fine-tuned twice from the general model, by the preset
`finetune` with `train.contacts`: on every second section with its lines, and on the others. So each section is divided
by a network that has not seen its lines. The masks are the true ones all the same, so that the figures are those of the
division alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from skimage.draw import line
from skimage.morphology import dilation
from skimage.segmentation import watershed

from benchmarks.leave_one_set_out import quarters
from mitoflow.config import presets
from mitoflow.config.params import Instances
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_set
from mitoflow.errors import InputError, run_as_command
from mitoflow.evaluation import instance_scores, metrics
from mitoflow.inference import model_files
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.predictor import CONTACT, Predictor
from mitoflow.inference.settings import Settings
from mitoflow.instances import components
from mitoflow.instances.separation import fewest_voxels, separate
from mitoflow.io import tiff
from mitoflow.models import unet
from mitoflow.tracking import pretrained
from mitoflow.training import fitting

LINES = Path(__file__).with_name("touching_heart.txt")
NECKS = (0.0, 0.5, 0.6, 0.7, 0.8)
IOUS = (0.5, 0.75)
EPOCHS = 12  # of 240 crops
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


def learned_contacts(images: Mapping[int, np.ndarray], truths: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return where a network finds contacts in each section, (Y, X) bool, by one that was fitted on other sections.

    Parameters
    ----------
    images
        (Y, X) uint8 by section.
    truths
        Their mitochondria, (Y, X) labels.
    """
    sections, found = sorted(images), {}
    for left_out in (sections[::2], sections[1::2]):
        predictor = fitted(
            {section: (images[section], truths[section]) for section in sections if section not in left_out}
        )
        for section in left_out:
            prediction, maps = Prediction.of(predictor, ArrayVolume(images[section][None])), dict[int, np.ndarray]()
            list(prediction.maps(prediction.whole, on_contacts=maps.__setitem__))
            found[section] = maps[0] >= CONTACT
    return found


def fitted(sections: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> Predictor:
    """Return the general model, fine-tuned with contacts on quarters of sections: images and labels, (Y, X)."""
    settings = presets.load("finetune")
    recipe = settings.starting_recipe().replace(contacts=True, epochs=EPOCHS, patience=EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "heart"
        for place, quarter in enumerate(quarter for whole in sections.values() for quarter in quarters(whole)):
            for kind, stack, dtype in zip(("images", "masks"), quarter, (np.uint8, np.uint16), strict=True):
                (data / kind).mkdir(parents=True, exist_ok=True)
                tiff.write_stack(data / kind / f"{place:02d}.tif", stack[None].astype(dtype))
        conventions = {"heart": Conventions(8, "nonzero", unrelated=True, instances=True)}
        store = write_store(Path(folder) / "patches", read_set(data, "heart"), settings.patch, conventions)
        general = unet.load_model(pretrained.find("general").folder / model_files.WEIGHTS)
        model = fitting.fit(store, recipe, initial=general, title=f"without {len(sections)} sections").model
    known = replace(Settings.for_recipe(recipe, settings.evaluate, 8), normalization="percentiles")
    return Predictor(model, known)


def scores(
    masks: Mapping[int, np.ndarray], truths: Mapping[int, np.ndarray], contacts: Mapping[int, np.ndarray] | None = None
) -> list[list[str]]:
    """Return a row for each neck: mitochondria in the truth, those of the rule, and F1 at each IoU of `IOUS`.

    ``masks`` are (Y, X) bool, ``truths`` (Y, X) labels and ``contacts`` (Y, X) bool, by section.
    """
    smallest = {section: fewest_voxels(Instances(), (1, *truth.shape), None) for section, truth in truths.items()}
    counted = {section: without_small(truth, smallest[section]) for section, truth in truths.items()}
    rows = []
    for neck in NECKS:
        criteria, objects = Instances(neck=neck), defaultdict(list)
        for section, truth in counted.items():
            touching = None if contacts is None else contacts[section][None]
            parts = separate(masks[section][None], criteria, contacts=touching)
            found = instance_scores.match(truth.astype(np.uint32)[None], parts)
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
    parser.add_argument(
        "--images", type=Path, help="its images.tif: contacts are learned, in half an hour on two cores"
    )
    options = parser.parse_args(arguments)
    run_as_command(lambda: measure(options.masks, options.images))


def measure(path: Path, path_of_images: Path | None = None) -> None:
    """Measure the masks of a file; raises `InputError` where it has fewer sections than the lines."""
    sections, lines = list(tiff.open_mask(path).slices()), read_lines(LINES)
    if max(lines) >= len(sections):
        found, expected = f"{len(sections)} sections", f"{max(lines) + 1} or more"
        raise InputError(path, found, expected, "give the masks of the set heart")
    masks = {section: sections[section] > 0 for section in lines}
    truths = {section: divided(masks[section], of_section) for section, of_section in lines.items()}
    print(f"{len(lines)} sections, {sum(map(len, lines.values()))} lines\n")
    print_table(scores(masks, truths))
    if path_of_images:
        pages = list(tiff.open_stack(path_of_images).slices())
        contacts = learned_contacts({section: pages[section] for section in lines}, truths)
        print("\nwith contacts that a network learned on other sections\n")
        print_table(scores(masks, truths, contacts))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the rows of `scores` as a table in Markdown."""
    header = ["neck", "true", "found", *(f"F1 at IoU {iou:g}" for iou in IOUS)]
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
