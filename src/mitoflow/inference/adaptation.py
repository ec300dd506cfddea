"""How a volume differs from the training images of a model, and how it is adapted to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mitoflow.data import fingerprint, network_input
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.data.slice_distance import spread
from mitoflow.errors import InputError
from mitoflow.inference import judgement, operating_point
from mitoflow.inference.agreement import Agreement, agreements, for_windows
from mitoflow.inference.operating_point import CLEARLY, THRESHOLDS, OperatingPoint
from mitoflow.inference.request import LARGEST_CHANGE, Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io.derived_volumes import Levels, ResampledVolume
from mitoflow.io.spacing import Notify
from mitoflow.io.volumes import Volume

SAMPLE_SIDE = 256  # pixels of a side of the patches that an input is judged by, where the model does not say
SAMPLES = 16
TAILS = (0.005, 0.995)  # shares of the grey values between which they are mapped
ENOUGH = 0.9  # agreement as usual on a single slice from which no other scale is tried: docs/performance.md
SAME = math.log(1.15)  # change of scale, as a logarithm, below which slices stay as they are

#: What to do next, by verdict.
NEXT = {
    "usable": "",
    "look closely": "; compare the mask with the images, or label four slices and fine-tune (docs/training.md)",
    "do not use": "; try --voxel-size or --rescale, or label four slices and fine-tune (docs/training.md)",
}


def find_levels(
    volume: Volume, request: Request, model: TrainedModel, notify: Notify, blank: Container[int] = ()
) -> Levels | None:
    """Return the map from the grey values of a volume to those of training, if any, and report it.

    There is none where the model takes slices that are stretched between their own percentiles. Slices that are
    `blank` do not count.
    """
    if model.predictor.settings.normalization == "percentiles":
        return None
    known, bit_depth = model.domain, model.predictor.settings.bit_depth
    levels = match_levels(sample(volume, known.size if known else SAMPLE_SIDE, blank), known, bit_depth)
    if levels and not levels.only_clips:
        notify(
            f"note: grey values {levels.low:g} to {levels.high:g} of {request.source} become "
            f"{levels.low_to:.2f} to {levels.high_to:.2f} of the {bit_depth}-bit range that the model knows"
        )
    return levels


def compare(
    volume: Volume,
    request: Request,
    model: TrainedModel,
    notify: Notify,
    blank: Container[int] = (),
    area: float = math.inf,
) -> list[str]:
    """Report and return in what a volume, as the model sees it, differs from the training images.

    Padding at the sides of patches and slices that are `blank` do not count. `area` is that of a slice in its file.
    """
    known = model.domain
    if known is None:
        notify(
            "note: the model does not say what its training images look like, so the input is not compared with them"
        )
    elif min(known.size, *volume.shape[1:]) >= fingerprint.SMALLEST:
        patches = sample(volume, known.size, blank)
        within = [patch for patch in map(without_padding, patches) if min(patch.shape) >= fingerprint.SMALLEST]
        bit_depth = model.predictor.settings.bit_depth
        seen = [network_input.to_unit(patch, bit_depth) for patch in within or patches]
        area = min(area, math.prod(volume.shape[1:]))
        if found := fingerprint.differences(known, fingerprint.measure(seen, volume.spacing), area):
            notify(f"warning: {request.source} looks unlike the training images: {'; '.join(found)}")
            return found
    return []


@dataclass(frozen=True)
class Adaptation:
    """How a stack is predicted, so that the network sees what it knows.

    Attributes
    ----------
    scale
        Factors by which slices are enlarged along y and x; None where they are not resampled.
    threshold
        Probability from which a pixel is mitochondrion.
    agreement
        That of the network with itself there; None where it was not measured.
    """

    scale: tuple[float, float] | None
    threshold: float
    agreement: Agreement | None = None


def adapt(
    volume: Volume,
    request: Request,
    model: TrainedModel,
    notify: Notify,
    advance: Callable[[int], object] | None = None,
) -> Adaptation:
    """Return at which scale and threshold a stack is predicted.

    A model of many tissues, which comes with a calibration, finds both by itself. By default it takes the scale that
    the voxel size suggests, or 1 where that is unknown, and its own threshold, unless the network agrees with itself
    clearly more elsewhere. On a single slice an agreement of `ENOUGH` there ends the search, which would take several
    times as long as the mask. Other models see slices as they are. What the request says is not searched.

    Before each scale that is tried `advance` is called with 0; an exception that it raises ends the search.

    Raises
    ------
    InputError
        Slices are to get the pixels of training, and a pixel size is unknown, or they would change by more than
        `LARGEST_CHANGE`.
    """
    own = model.predictor.settings.threshold if request.threshold is None else request.threshold
    if not isinstance(request.rescale, str):
        return Adaptation((request.rescale, request.rescale), own)
    if request.rescale == "training":
        return Adaptation(_to_training(volume, model), own)
    if request.rescale == "none" or model.calibration is None:
        return Adaptation(None, own)
    trained_on, known = model.domain.spacing if model.domain else {}, volume.spacing
    by_size = {*"yx"} <= trained_on.keys() & known.keys()
    suggested = [known[axis] / trained_on[axis] if by_size else 1.0 for axis in "yx"]
    expected = min(max(math.sqrt(math.prod(suggested)), 1 / LARGEST_CHANGE), LARGEST_CHANGE)
    usual = OperatingPoint(expected, own)

    def at_scale(times: float) -> Volume:
        if advance:
            advance(0)
        return enlarged(volume, _along(suggested, times))

    thresholds = THRESHOLDS if request.threshold is None else ()
    enough = ENOUGH if volume.shape[0] == 1 else 1 - CLEARLY
    found = operating_point.search(for_windows(model.predictor), at_scale, usual, thresholds, enough)
    chosen = found.chosen(usual)
    agreed, otherwise = (found.agreement[point].product for point in (chosen, usual))
    if chosen != usual:
        why = ", which the voxel size suggests," if by_size else ""
        notify(
            f"note: {request.source}: predicted at {chosen.scale:.2g} x its size with threshold "
            f"{chosen.threshold:.2f}, where the network agrees most with itself (agreement {agreed:.2f}, "
            f"{otherwise:.2f} at {expected:.2g} x{why} and {own:.2f}); --rescale and --threshold choose "
            "others"
        )
    elif by_size and abs(math.log(chosen.scale)) >= SAME:
        notify(
            f"note: {request.source}: predicted at {chosen.scale:.2g} x its size, as its voxel size suggests "
            f"(agreement {agreed:.2f})"
        )
    tried = _along(suggested, chosen.scale)
    scale = tried if abs(math.log(chosen.scale)) >= SAME else None
    return Adaptation(scale, chosen.threshold, found.agreement[chosen] if (scale or (1.0, 1.0)) == tried else None)


def _along(suggested: Sequence[float], times: float) -> tuple[float, float]:
    """Return a scale along y and x whose mean is `times`, for pixels as long and as wide as in training."""
    mean = math.sqrt(math.prod(suggested))
    return suggested[0] / mean * times, suggested[1] / mean * times


def _to_training(volume: Volume, model: TrainedModel) -> tuple[float, float]:
    trained_on = model.domain.spacing if model.domain else {}
    for where, spacing, remedy in (
        ("INPUT", volume.spacing, "give --voxel-size, or a ratio such as --rescale 0.5"),
        ("model", trained_on, "give a ratio such as --rescale 0.5, or predict without it"),
    ):
        if not {"y", "x"} <= spacing.keys():
            raise InputError("--rescale", f"no voxel size of the {where}", "one along y and x", remedy)
    for axis in "yx":
        if not 1 / LARGEST_CHANGE <= volume.spacing[axis] / trained_on[axis] <= LARGEST_CHANGE:
            found = f"{volume.spacing[axis]:g} nm along {axis}"
            raise InputError("--rescale", found, f"about {trained_on[axis]:g}, as in training", "give --voxel-size")
    return volume.spacing["y"] / trained_on["y"], volume.spacing["x"] / trained_on["x"]


def enlarged(volume: Volume, times: tuple[float, float] | None) -> Volume:
    """Return a volume with its slices enlarged along y and x; as it is where nothing changes."""
    return ResampledVolume(volume, times) if times and times != (1.0, 1.0) else volume


def judge(volume: Volume, request: Request, model: TrainedModel, adapted: Adaptation, notify: Notify) -> str:
    """Report and return what to expect of a prediction, for models that know how far they can be trusted.

    Parameters
    ----------
    volume
        The stack as the network sees it.
    request, model, notify
        As in `adapt`.
    adapted
        What `adapt` returned.
    """
    if model.calibration is None:
        return ""
    agreed = adapted.agreement
    if agreed is None:
        (agreed,) = agreements(
            for_windows(model.predictor), lambda times: enlarged(volume, (times, times)), 1.0, [adapted.threshold]
        )
    dice = model.calibration.dice(agreed)
    verdict = judgement.verdict(dice)
    said = f"{verdict}: expected Dice about {dice:.2f} (within {model.calibration.error:.2f} on four of five stacks)"
    notify(f"{'note' if verdict == 'usable' else 'warning'}: {request.source}: {said}{NEXT[verdict]}")
    return said


def without_padding(patch: np.ndarray) -> np.ndarray:
    """Return a patch (Y, X) without the rows and columns at its sides that have a single value."""
    rows, columns = (np.flatnonzero(np.ptp(patch, axis=axis)) for axis in (1, 0))
    return patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else patch[:0, :0]


def sample(volume: Volume, size: int, blank: Container[int] = ()) -> list[np.ndarray]:
    """Return patches from all over a stack, (Y, X) as stored, of `size` pixels a side or what there is.

    Slices that are `blank` are left out, where others are not.
    """
    depth, height, width = volume.shape
    held = [z for z in range(depth) if z not in blank] or range(depth)
    slices = [held[place] for place in spread(len(held) - 1, 4)]
    across = math.isqrt(SAMPLES // len(slices))
    tall, wide = min(size, height), min(size, width)
    places = product(slices, spread(height - tall, across), spread(width - wide, across))
    return [volume.read(z, (y, y + tall, x, x + wide)) for z, y, x in places]


def match_levels(patches: Sequence[np.ndarray], known: Fingerprint | None, bit_depth: int) -> Levels | None:
    """Return the linear map that brings the grey values of patches to where those of training are.

    Constant areas do not count: padding and blank slices say nothing about how tissue is stained. None where the
    patches are of the bit depth that the model was trained on. Where a pixel can hold more than that
    depth the map changes nothing but single pixels above it, which are no reason to stop.
    """
    stored, top = np.uint8 if bit_depth == 8 else np.uint16, 2**bit_depth - 1
    values = network_input.varying_values(patches)
    if patches[0].dtype == stored and int(values.max()) <= top:
        return None if top == np.iinfo(stored).max else Levels(0, top, 0.0, 1.0, bit_depth)
    low, high = np.quantile(values, TAILS) if values.size else (0, 1)
    low_to, high_to = (known.quantile(share) for share in TAILS) if known else (0.0, 1.0)
    return Levels(float(low), float(high), low_to, high_to, bit_depth)
