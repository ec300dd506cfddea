"""How well boundaries agree: boundary F1 within a tolerance, and how many wrong pixels lie at the true boundary.

Annotators draw the membrane of the same mitochondrion a pixel or two apart. An error inside that distance says
little about a model, and an error beyond it a lot; the scores of pixels do not tell the two apart.

Everything is counted slice by slice, as the masks were drawn, and the counts of slices add up as in
`mitoflow.evaluation.metrics`, which has the scores of them: `boundary_f1`, `error_near_boundary` and
`dice_off_boundary`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mitoflow.evaluation import metrics
from mitoflow.evaluation.metrics import Counts

TOLERANCE = 2  # pixels; annotators of EM stacks agree no better

COLUMNS = (
    "boundary_predicted",
    "boundary_predicted_matched",
    "boundary_true",
    "boundary_true_matched",
    "wrong",
    "wrong_near",
)


def count(
    truth: NDArray[Any],
    prediction: NDArray[Any],
    tolerance: int = TOLERANCE,
    looked_at: NDArray[np.bool_] | None = None,
) -> Counts:
    """Count the boundary pixels of each slice that have a counterpart, and its wrong pixels near the true boundary.

    A boundary pixel is foreground with background among its four neighbours; where a mitochondrion is cut by the frame
    of the slice, or by the edge of what was looked at, there is no boundary. It is matched where a boundary pixel of
    the other mask is at most ``tolerance`` away, in Euclidean distance: the measure of Csurka, Larlus & Perronnin
    (2013, BMVC, "What is a good evaluation measure for semantic segmentation?").

    A wrong pixel is near where truth has a pixel of the other class at most ``tolerance`` away, in a band as wide
    inside as outside: the trimap of Kohli, Ladicky & Torr (2009, IJCV 82:302).

    Parameters
    ----------
    truth, prediction
        ``(Z, Y, X)`` bool or {0, 1}.
    tolerance
        In pixels.
    looked_at
        ``(Z, Y, X)`` bool: what lies outside counts as what lies outside of the frame; None for all.

    Returns
    -------
    counts
        ``(Z, 6)`` int64, pixels by `COLUMNS`: the predicted boundary and what is matched of it, the same of the true
        boundary, and the wrong pixels and how many of them are near.

    Raises
    ------
    ValueError
        ``truth`` and ``prediction`` differ in shape.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    disk = _disk(tolerance)
    seen = _seen(truth, looked_at)
    slices = zip(truth.astype(bool, copy=False), prediction.astype(bool, copy=False), seen, strict=True)
    return np.array([_count_slice(*masks, disk) for masks in slices], np.int64).reshape(-1, len(COLUMNS))


def count_off_boundary(
    truth: NDArray[Any], prediction: NDArray[Any], looked_at: NDArray[np.bool_] | None = None
) -> Counts:
    """Count the pixels of each slice that agree and disagree, without those within `TOLERANCE` of the true boundary.

    Parameters
    ----------
    truth, prediction
        ``(Z, Y, X)`` bool or {0, 1}.
    looked_at
        As for `count`.

    Returns
    -------
    counts
        ``(Z, 4)`` int64, as `mitoflow.evaluation.metrics.count` returns them.

    Raises
    ------
    ValueError
        ``truth`` and ``prediction`` differ in shape.
    """
    disk, seen = _disk(TOLERANCE), _seen(truth, looked_at)
    slices = zip(truth.astype(bool, copy=False), seen, strict=True)
    far = np.array([inside & ~_near(mask, inside, disk) for mask, inside in slices], bool).reshape(truth.shape)
    return metrics.count(truth, prediction, far)


def _seen(truth: NDArray[Any], looked_at: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return np.broadcast_to(np.True_, truth.shape) if looked_at is None else looked_at


def _count_slice(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], seen: NDArray[np.bool_], disk: NDArray[np.bool_]
) -> list[int]:
    true, predicted = _outline(truth, seen), _outline(prediction, seen)
    near = _near(truth, seen, disk)
    wrong = (truth != prediction) & seen
    cells = (
        *(predicted, predicted & ndimage.binary_dilation(true, disk)),
        *(true, true & ndimage.binary_dilation(predicted, disk)),
        *(wrong, wrong & near),
    )
    return [int(np.count_nonzero(cell)) for cell in cells]


def _near(truth: NDArray[np.bool_], seen: NDArray[np.bool_], disk: NDArray[np.bool_]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = ndimage.binary_dilation(truth & seen, disk)
    near &= ~ndimage.binary_erosion(truth | ~seen, disk, border_value=1)
    return near


def _disk(radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk: NDArray[np.bool_] = y**2 + x**2 <= radius**2
    return disk


def _outline(mask: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    outline: NDArray[np.bool_] = mask & seen & ~ndimage.binary_erosion(mask | ~seen, border_value=1)
    return outline
