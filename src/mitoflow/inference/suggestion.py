"""Where to label next: boxes of a stack on which a network disagrees with itself, spread over the stack.

A network that is trained on turned and mirrored crops says the same of a tile and of its mirror image where it knows
what it sees. The eight symmetries of a tile are the members of a committee, and labels teach most where the committee
disagrees. A slice is cut into windows of the size of a training crop. A window is worth the mean disagreement over its
pixels, less what it has in common with the windows that were chosen before it, since neighbouring slices are near
copies. The choice is greedy.

Sources: query by committee, Seung, Opper and Sompolinsky, COLT 1992; the Jensen-Shannon divergence as disagreement,
McCallum and Nigam, "Employing EM and Pool-Based Active Learning for Text Classification", ICML 1998; test-time
augmentation as the committee, Gaillochet, Desrosiers and Lombaert, "TAAL: Test-time Augmentation for Active Learning
in Medical Image Segmentation", MICCAI workshop DALI 2022; regions in place of whole images, Mackowiak et al.,
"CEREALS - Cost-Effective REgion-based Active Learning for Semantic Segmentation", BMVC 2018; a batch that is both
uncertain and diverse, chosen greedily, Brinker, "Incorporating Diversity in Active Learning with Support Vector
Machines", ICML 2003.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.special import entr

from mitoflow.data.slice_distance import spread
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.parts import Part
from mitoflow.inference.predictor import Predictor
from mitoflow.io.volumes import Volume

SIDE = 256  # pixels of a side of a window: those of a training crop, `patch.size`
LOOKED_AT = 16  # slices that are looked at for each window that is wanted; those between them are near copies
MOST_CONSTANT = 0.5  # share of a window in areas of a single grey value, from which on it is not worth labelling
SAME_SLICE = 0.9  # likeness of two places in the same slice
SMALLEST = 1e-6  # disagreement that counts as none: windows on which the committee agrees are spread, too
SUREST = 1 / 256  # distance of a threshold from 0 and from 1


@dataclass(frozen=True)
class Windows:
    """Windows of one size in a stack, and what labels there are worth.

    Attributes
    ----------
    places
        (N, 3) int: slice, first row and first column of each.
    disagreement
        (N,) float in [0, 1]: the mean over the pixels of each; see `disagreement`.
    shape
        (Y, X) of a window.
    """

    places: np.ndarray
    disagreement: np.ndarray
    shape: tuple[int, int]

    def part(self, index: int) -> Part:
        """Return one of the windows as a part of the stack."""
        z, y, x = self.places[index].tolist()
        return Part(range(z, z + 1), (y, y + self.shape[0], x, x + self.shape[1]))


class Committee(Predictor):
    """Maps the disagreement among the symmetries of a tile, in [0, 1], in place of their mean probability."""

    def tile_maps(self, batch: np.ndarray, outputs: int = 1) -> np.ndarray:
        """Return the disagreement of a batch of tiles, (N, Y, X, outputs) float32 in [0, 1]; see `disagreement`."""
        return disagreement(self.views(batch, outputs), self.settings.threshold)


def committee(predictor: Predictor) -> Predictor:
    """Return the committee of a network: all eight symmetries, of slices alone, as a person looks at slices."""
    settings = replace(predictor.settings, tta=8, median=1, orthoplanes=False)
    return Committee(predictor.model, settings).with_settings(settings, predictor.blank)


def disagreement(views: Iterable[np.ndarray], threshold: float) -> np.ndarray:
    """Return the Jensen-Shannon divergence among predictions of the same pixels, in bits.

    It is the entropy of the mean prediction less the mean entropy: 0 where all are the same, also where all are unsure,
    and 1 where one half is sure of mitochondrion and the other half of background. Probabilities are shifted first, so
    that the threshold becomes 0.5: on tissue that is new to a network, 0.2 may be all that it says of a mitochondrion.

    Parameters
    ----------
    views
        Probabilities in [0, 1], at least one array, all of one shape.
    threshold
        Probability from which a pixel is mitochondrion.

    Returns
    -------
    float32 in [0, 1], of the shape of the predictions
    """
    threshold = min(max(threshold, SUREST), 1 - SUREST)
    total = entropies = np.zeros(())
    count = 0
    for probability in views:
        for_it, against = probability * (1 - threshold), (1 - probability) * threshold
        shifted = for_it / (for_it + against)
        total, entropies, count = total + shifted, entropies + _entropy(shifted), count + 1
    return np.asarray(np.clip(_entropy(total / count) - entropies / count, 0, 1), np.float32)


def _entropy(probability: np.ndarray) -> np.ndarray:
    return np.asarray((entr(probability) + entr(1 - probability)) / np.log(2))


def shows_tissue(image: np.ndarray) -> bool:
    """Return whether less than half of a window, (Y, X), lies in areas of a single grey value, as padding does.

    Not-a-number counts as such an area.
    """
    constant = ~(ndimage.minimum_filter(image, 3) < ndimage.maximum_filter(image, 3))
    return float(constant.mean()) < MOST_CONSTANT


def slices_to_look_at(depth: int, blank: frozenset[int], count: int) -> list[int]:
    """Return slices of a stack, evenly, `LOOKED_AT` for each of `count` windows; none of those that are `blank`."""
    held = [z for z in range(depth) if z not in blank]
    most = LOOKED_AT * count
    return held if len(held) <= most else [held[place] for place in spread(len(held) - 1, most)]


def find_windows(
    whole: Volume,
    prediction: Prediction,
    slices: Sequence[int],
    side: int = SIDE,
    advance: Callable[[int], object] = lambda _: None,
) -> Windows:
    """Return the windows of slices that show tissue, with what a committee disagrees there.

    The windows of a slice cover it; the last ones overlap where its sides are no multiples of `side`. A block of
    windows is in memory at a time, and a number for each window.

    Parameters
    ----------
    whole
        The stack as it is stored.
    prediction
        The maps of `committee`, as large as the slices of the stack.
    slices
        Those that are looked at.
    side
        Pixels of a side of a window, or what there is.
    advance
        Called with 1 after each slice; what it raises ends the search.
    """
    tall, wide = (min(side, length) for length in whole.shape[1:])
    together = max(1, prediction.side // side)
    rows, columns = (
        [starts[first : first + together] for first in range(0, len(starts), together)]
        for starts in (window_starts(length, side) for length in whole.shape[1:])
    )
    places, worth = [], []
    for z in slices:
        for ys, xs in product(rows, columns):
            box = (ys[0], ys[-1] + tall, xs[0], xs[-1] + wide)
            image = whole.read(z, box)
            inside = {
                (y, x): np.s_[y - ys[0] : y - ys[0] + tall, x - xs[0] : x - xs[0] + wide] for y, x in product(ys, xs)
            }
            shown = {place: inside[place] for place in inside if shows_tissue(image[inside[place]])}
            if shown:
                (seen,) = prediction.maps(Part(range(z, z + 1), box))
                places += [(z, *place) for place in shown]
                worth += [float(seen[crop].mean(dtype=np.float64)) for crop in shown.values()]
        advance(1)
    return Windows(np.array(places, np.int64).reshape(-1, 3), np.array(worth), (tall, wide))


def window_starts(length: int, side: int = SIDE) -> list[int]:
    """Return the first pixels of the windows that cover an axis; the last window ends where the axis does."""
    return [*range(0, length - side, side), max(0, length - side)]


def choose(windows: Windows, count: int, spacing: float) -> list[int]:
    """Return the indices of windows that are worth most together, the best one first.

    Each time that window is taken whose disagreement is highest after it was multiplied by 1 less its likeness to the
    most alike of those taken. A window is as like another as ``(1 - distance in z / spacing) * (0.9 + 0.1 * overlap)``,
    where `overlap` is the share that they have in common along y and x: 1 for itself, 0.9 for another place in the same
    slice, and 0 from `spacing` slices on. Of equals the first one is taken, by slice, row and column.

    Parameters
    ----------
    windows
        Those to choose from.
    count
        How many are wanted. There are fewer where no other one is unlike those taken.
    spacing
        Slices between two windows from which on they have nothing in common.
    """
    order = np.lexsort(windows.places.T[::-1])
    places, left = windows.places[order], np.ones(len(order))
    worth = np.maximum(windows.disagreement[order], SMALLEST)
    chosen: list[int] = []
    while len(chosen) < count and (left > 0).any():
        best = int(np.argmax(worth * left))
        chosen.append(int(order[best]))
        away = np.abs(places - places[best])
        overlap = np.prod(np.maximum(0, 1 - away[:, 1:] / windows.shape), axis=1)
        left = np.minimum(left, 1 - np.maximum(0, 1 - away[:, 0] / spacing) * (SAME_SLICE + (1 - SAME_SLICE) * overlap))
    return chosen
