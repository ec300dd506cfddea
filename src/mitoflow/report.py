"""Self-contained HTML reports: pictures before numbers, no script and nothing that is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from mitoflow import figures, metrics, workspace
from mitoflow.metrics import Counts, Interval, PrecisionRecall, Reliability

LONGEST_SIDE = 1600
ZOOM_SIDE = 224


@dataclass(frozen=True)
class Protocol:
    """The scores of one way of counting: the threshold, and an interval for each of `metrics.SCORES`."""

    threshold: float
    scores: Mapping[str, Interval]


@dataclass(frozen=True)
class Slice:
    """One slice as pictures.

    Attributes
    ----------
    stack, z
        Where it is from.
    image
        ``(Y, X)`` uint8 or uint16.
    truth
        ``(Y, X)`` uint8 in {0, 1}.
    prediction
        ``(Y, X)`` uint8 in {0, 1}; None where there is none yet.
    """

    stack: str
    z: int
    image: NDArray[Any]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that the evaluation report shows of a model on the test part.

    Attributes
    ----------
    dataset
        Name of the data set.
    patch_wise, whole_slice
        The two protocols.
    stacks, counts
        Each slice of the test part, in the order of stacks and z: the name of its stack, and ``(slices, 4)`` counts of
        the whole-slice protocol.
    curve, reliability
        Of the whole-slice probabilities.
    worst, median
        The slices that `worst_and_median` names.
    history
        The logs of every epoch: loss, dice, val_loss and val_dice.
    lineage
        What the model was made from, by name: commit, data hash and so on.
    params
        The sections of ``params.yaml``.
    """

    dataset: str
    patch_wise: Protocol
    whole_slice: Protocol
    stacks: Sequence[str]
    counts: Counts
    curve: PrecisionRecall
    reliability: Reliability
    worst: Slice
    median: Slice
    history: Sequence[Mapping[str, float]]
    lineage: Mapping[str, str]
    params: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """Whether the registry made this model the champion.

    Attributes
    ----------
    version
        The version of the registered model.
    promoted
        Whether it became the champion.
    reason
        Why or why not, as a sentence.
    champion
        The version it was compared with, and None where there was none.
    difference
        Its Dice minus the champion's on the same slices; None where there was none or the test data differ.
    """

    version: str
    promoted: bool
    reason: str
    champion: str | None = None
    difference: Interval | None = None


def worst_and_median(counts: Counts) -> tuple[int, int]:
    """Return the rows of the slices of lowest and of median Dice among those with mitochondria, true or predicted."""
    rows = np.flatnonzero(counts[:, :3].any(axis=1))
    if not len(rows):
        return 0, 0
    ranked = rows[np.argsort(metrics.dice(counts[rows]), kind="stable")]
    return int(ranked[0]), int(ranked[(len(ranked) - 1) // 2])


def write_evaluation_report(path: Path, evaluation: Evaluation, verdict: Verdict | None = None) -> None:
    """Write the report on a model; the same input gives the same bytes.

    Without ``verdict`` it holds nothing that a tracking server would have to tell.
    """
    best_epoch = int(np.argmax([logs["val_dice"] for logs in evaluation.history]))
    _write(
        path,
        "evaluation.html",
        evaluation=evaluation,
        verdict=verdict,
        pictures={
            "Worst slice": _pictures("worst", evaluation.worst),
            "Median slice": _pictures("median", evaluation.median),
        }.items(),
        colours=[f"rgb{colour[:3]}" for colour in figures.ERRORS],
        along_z=figures.dice_along_z_chart(evaluation.counts, evaluation.stacks, *worst_and_median(evaluation.counts)),
        precision_recall=figures.precision_recall_chart(evaluation.curve, evaluation.whole_slice.threshold),
        reliability=figures.reliability_chart(evaluation.reliability),
        learning=figures.learning_chart(evaluation.history, best_epoch),
        best_epoch=best_epoch,
    )


def _pictures(name: str, shown: Slice) -> dict[str, Any]:
    """Return what the template needs to show a slice and, enlarged, the square of it where the most pixels are wrong."""
    assert shown.prediction is not None
    step = -(-max(shown.image.shape) // LONGEST_SIDE)
    image, truth, prediction = (array[::step, ::step] for array in (shown.image, shown.truth, shown.prediction))
    side = min(ZOOM_SIDE, *image.shape)
    y, x = _busiest_square(truth != prediction, side)
    tp, fp, fn, _ = counts = metrics.count(shown.truth, shown.prediction)
    return {
        "id": name,
        "stack": shown.stack,
        "z": shown.z,
        "dice": float(metrics.dice(counts)),
        "added": int(fp),
        "missed": int(fn),
        "height": image.shape[0],
        "width": image.shape[1],
        "step": step,
        "zoom": (x, y, side, side),
        "grey": figures.grey_png(image),
        "truth": figures.mask_png(truth),
        "prediction": figures.mask_png(prediction),
        "errors": figures.errors_png(truth, prediction),
    }


def _busiest_square(marked: NDArray[np.bool_], side: int) -> tuple[int, int]:
    """Return the first corner, y and x, of the square of ``side`` pixels that holds the most of ``marked``."""
    total = np.pad(marked.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    held = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    y, x = np.unravel_index(int(held.argmax()), held.shape)
    return int(y), int(x)


def _write(path: Path, template: str, **content: Any) -> None:
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("mitoflow"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with workspace.replacing(path) as beside:
        beside.write_text(pages.get_template(template).render(content), encoding="utf-8")
