"""Pictures for the reports: arrays in; out come charts as SVG elements and slices as PNG data URIs.

The same input gives the same bytes: no dates, no random ids. Text, axes and series take their colours from the page
(`PAGE_COLOURS`), so that one chart serves a light page, a dark one and paper.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mitoflow.evaluation import metrics
from mitoflow.evaluation.curves import PrecisionRecall, Reliability
from mitoflow.evaluation.metrics import Counts
from mitoflow.inference import overlay

# Matplotlib draws with the colours on the left, the page replaces them by its own.
INK, FAINT, FIRST, SECOND = "#101010", "#c0c0c0", "#0072b2", "#d55e00"
PAGE_COLOURS = {INK: "currentColor", FAINT: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}

# Widths in inches of a chart across half of the page and across all of it.
HALF, FULL = 5.6, 12.0

PANELS = 3  # side by side, of a chart with one for each set
PANEL, GAP = 640, 4  # pixels: the longest side of a panel of `panels_png`, and what is between two
DICE_BAR = 0.01  # width of a bar in the histogram of slices

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mitoflow",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}

# Hues of Okabe & Ito's palette, which the colour-blind tell apart; red, green, blue, alpha.
MASK = ((0, 158, 115, 90), (0, 200, 150, 255))
ERRORS = ((0, 158, 115, 90), (240, 145, 0, 190), (60, 165, 255, 175))


def precision_recall_chart(curve: PrecisionRecall, threshold: float) -> str:
    """Draw precision over recall with lines of equal Dice, and mark the chosen threshold."""
    with matplotlib.rc_context(STYLE):
        return _svg(_precision_recall(curve, threshold))


def precision_recall_png(curve: PrecisionRecall, threshold: float) -> bytes:
    """Return the chart of `precision_recall_chart` as a PNG on white."""
    with matplotlib.rc_context(STYLE):
        return _png(_precision_recall(curve, threshold))


def _precision_recall(curve: PrecisionRecall, threshold: float) -> Figure:
    figure = Figure(figsize=(HALF, 5.2), layout="constrained")
    axes = figure.subplots()
    for dice in (0.5, 0.6, 0.7, 0.8, 0.9):
        recall = np.linspace(dice / (2 - dice), 1, 200)
        axes.plot(recall, dice * recall / (2 * recall - dice), color=FAINT, linewidth=1)
        axes.annotate(f"Dice {dice}", (1, dice / (2 - dice)), (5, 0), textcoords="offset points", va="center", size=9)
    # Between two thresholds nothing is known, so steps: straight lines would promise more than can be had.
    recall, precision = np.append(0, curve.recall[::-1]), np.append(curve.precision[-1], curve.precision[::-1])
    axes.step(recall, precision, where="pre", color=FIRST)
    at = int(np.argmin(np.abs(curve.thresholds - threshold)))
    axes.plot(curve.recall[at], curve.precision[at], "o", color=SECOND, markersize=8, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="Recall: share of the mitochondria that is found")
    axes.set_ylabel("Precision: share of the found that is right")
    return figure


def reliability_chart(reliability: Reliability) -> str:
    """Draw how often a pixel is mitochondrion over what was predicted, and below how many pixels that is about."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(HALF, 5.2), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        axes.plot(reliability.probability, reliability.frequency, "o-", color=FIRST, markersize=5, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="Share that is mitochondrion")
        below.vlines(reliability.probability, 1, reliability.pixels, color=FIRST, linewidth=6, clip_on=False)
        below.set(yscale="log", ylim=(1, None), ylabel="Pixels", xlabel="Predicted probability")
        below.yaxis.set_major_locator(LogLocator(numticks=4))
        below.minorticks_off()
        return _svg(figure)


@dataclass(frozen=True)
class SliceScores:
    """What `dice_along_z_chart` draws of one set.

    Attributes
    ----------
    counts
        ``(slices, 4)`` counts of each slice, in the order of stacks and z.
    stacks
        For each slice the name of its stack.
    worst, median
        The rows that are marked.
    """

    counts: Counts
    stacks: Sequence[str]
    worst: int
    median: int


def dice_along_z_chart(sets: Mapping[str, SliceScores]) -> str:
    """Draw Dice of every slice, stack after stack.

    Of one set, the chart shows beside it how many slices of those with mitochondria have which Dice. Several sets, by
    their names, have a panel each.
    """
    with matplotlib.rc_context(STYLE):
        return _svg(_dice_along_z(sets))


def dice_along_z_png(sets: Mapping[str, SliceScores]) -> bytes:
    """Return the chart of `dice_along_z_chart` as a PNG on white, for where no page gives it colours."""
    with matplotlib.rc_context(STYLE):
        return _png(_dice_along_z(sets))


def _dice_along_z(sets: Mapping[str, SliceScores]) -> Figure:
    if len(sets) == 1:
        return _dice_along_z_of_one(next(iter(sets.values())))
    columns = min(len(sets), PANELS)
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(FULL, 0.5 + 2.9 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, of_set) in zip(panels.flat, sets.items(), strict=False):
        _draw_along_z(axes, of_set)
        axes.set(title=f"{name}: Dice {float(metrics.dice(of_set.counts.sum(0))):.4f}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in panels[:, 1:].flat:
        axes.set(ylabel="")
    for axes in panels.flat[len(sets) :]:
        axes.set_axis_off()
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _draw_along_z(axes: Axes, of_set: SliceScores) -> None:
    counts, stacks = of_set.counts, of_set.stacks
    scores = metrics.dice(counts)
    borders = [0, *(i for i in range(1, len(stacks)) if stacks[i] != stacks[i - 1]), len(stacks)]
    axes.axhline(float(metrics.dice(counts.sum(0))), color=FAINT, zorder=0, label="all slices together")
    for first, last in pairwise(borders):
        axes.plot(np.arange(first, last), scores[first:last], ".-", color=FIRST, markersize=5, linewidth=1.2)
    for border in borders[1:-1]:
        axes.axvline(border - 0.5, color=INK, linewidth=0.7, linestyle=":")
    axes.plot(of_set.median, scores[of_set.median], "D", color=SECOND, markersize=7, label="median slice")
    axes.plot(of_set.worst, scores[of_set.worst], "v", color=SECOND, markersize=9, label="worst slice")
    axes.set(xlim=(-1, len(scores)), ylabel="Dice", xlabel="Slice, stack after stack" if borders[2:] else "Slice")


def _dice_along_z_of_one(of_set: SliceScores) -> Figure:
    counts = of_set.counts
    figure = Figure(figsize=(FULL, 3.2), layout="constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[6, 1])
    _draw_along_z(axes, of_set)
    beside.axhline(float(metrics.dice(counts.sum(0))), color=FAINT, zorder=0)
    bars, slices = np.unique(np.minimum(metrics.slice_dice(counts) // DICE_BAR, 1 / DICE_BAR - 1), return_counts=True)
    beside.barh((bars + 0.5) * DICE_BAR, slices, height=0.85 * DICE_BAR, color=FIRST)
    beside.set(xlabel="Slices")
    for each, intervals in ((axes, 9), (beside, 3)):
        each.xaxis.set_major_locator(MaxNLocator(intervals, integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def learning_chart(history: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    """Draw loss and Dice of training and validation over the epochs, counted from 1, and mark the best one."""
    with matplotlib.rc_context(STYLE):
        return _svg(_learning(history, best_epoch))


def learning_png(history: Sequence[Mapping[str, float]], best_epoch: int) -> bytes:
    """Return the chart of `learning_chart` as a PNG on white."""
    with matplotlib.rc_context(STYLE):
        return _png(_learning(history, best_epoch))


def _learning(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    epochs = np.arange(1, len(history) + 1)
    figure = Figure(figsize=(FULL, 3.8), layout="constrained")
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "dice"), ("Loss", "Dice"), strict=True):
        for key, colour, series in ((name, FIRST, "training"), (f"val_{name}", SECOND, "validation")):
            axes.plot(epochs, [logs[key] for logs in history], ".-", color=colour, label=series, markersize=5)
        axes.axvline(best_epoch + 1, color=INK, linewidth=0.9, linestyle=":", label=f"best epoch, {best_epoch + 1}")
        axes.set(xlabel="Epoch", ylabel=label)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG element with the colours of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # several figures share a page, and these ids nothing refers to
    for drawn, colour in PAGE_COLOURS.items():
        svg = svg.replace(drawn, colour)
    return svg


def grey_png(image: NDArray[np.uint8 | np.uint16]) -> str:
    """Return an image ``(Y, X)`` of any range as a PNG data URI, stretched between its 1st and 99th percentile."""
    return _data_uri(Image.fromarray(overlay.shown(image), "L"))


def mask_png(mask: NDArray[np.uint8]) -> str:
    """Return a mask ``(Y, X)`` in {0, 1} as a transparent PNG data URI: tinted, with its outline."""
    return _overlay_png(_outlined(mask), MASK)


def errors_png(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> str:
    """Return two masks ``(Y, X)`` in {0, 1} as a transparent PNG data URI: what is right, added and missed."""
    return _overlay_png(_errors(truth, prediction), ERRORS)


def panels_png(image: NDArray[Any], truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> bytes:
    """Return a slice ``(Y, X)`` and its masks in {0, 1} as a PNG: image, truth, prediction and errors side by side."""
    grey = np.repeat(overlay.shown(image)[:, :, None], 3, axis=2)
    layers = (_outlined(truth), MASK), (_outlined(prediction), MASK), (_errors(truth, prediction), ERRORS)
    panels = [Image.fromarray(grey, "RGB"), *(Image.fromarray(_tinted(grey, *layer), "RGB") for layer in layers)]
    for panel in panels:
        panel.thumbnail((PANEL, PANEL))
    width, height = panels[0].size
    page = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    for place, panel in enumerate(panels):
        page.paste(panel, (place * (width + GAP), 0))
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _outlined(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the classes of a mask: 1 inside, 2 on its outline."""
    width = max(1, round(max(mask.shape) / 400))
    inner = ndimage.binary_erosion(mask, iterations=width, border_value=1)
    return np.asarray(mask + (mask & ~inner), np.uint8)


def _errors(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the classes of two masks: 1 right, 2 added, 3 missed."""
    return np.array([[0, 2], [3, 1]], np.uint8)[truth, prediction]


def _tinted(
    grey: NDArray[np.uint8], classes: NDArray[np.uint8], colours: Sequence[tuple[int, int, int, int]]
) -> NDArray[np.uint8]:
    """Return a picture ``(Y, X, 3)`` with classes ``(Y, X)`` over it; see `_overlay_png`."""
    table = np.array([(0, 0, 0, 0), *colours], np.float32)[classes]
    share = table[:, :, 3:] / 255
    tinted = np.round(grey * (1 - share) + table[:, :, :3] * share)
    return np.asarray(tinted, np.uint8)


def _overlay_png(classes: NDArray[np.uint8], colours: Sequence[tuple[int, int, int, int]]) -> str:
    """Return classes ``(Y, X)``, 0 for nothing and i for ``colours[i - 1]``, as a transparent PNG data URI."""
    picture = Image.fromarray(classes.astype(np.uint8), "P")
    picture.putpalette(bytes((0, 0, 0, *(part for colour in colours for part in colour[:3]))))
    return _data_uri(picture, transparency=bytes((0, *(colour[3] for colour in colours))))


def _data_uri(picture: Image.Image, **options: bytes) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, **options)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
