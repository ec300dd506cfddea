"""How a volume differs from the training images of a model, and how it is adapted to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from mitoflow.data import fingerprint, network_input
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.errors import InputError
from mitoflow.inference.request import Request
from mitoflow.inference.settings import ORTHOPLANE_LIMIT, Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io.spacing import Spacing, is_elongated
from mitoflow.io.volumes import Levels, Volume

SAMPLE_SIDE = 256  # pixels of a side of the patches that an input is judged by, where the model does not say
SAMPLES = 16
TAILS = (0.005, 0.995)  # shares of the grey values between which they are mapped
LARGEST_CHANGE = 8  # of the pixel size, when slices are resampled

#: Called with each note and warning for the user, one line each.
Notify = Callable[[str], object]


def find_levels(volume: Volume, request: Request, model: TrainedModel, notify: Notify) -> Levels | None:
    """Return the map from the grey values of a volume to those of training, if any, and report it."""
    known, bit_depth = model.domain, model.predictor.settings.bit_depth
    levels = match_levels(sample(volume, known.size if known else SAMPLE_SIDE), known, bit_depth)
    if levels and not levels.only_clips:
        notify(
            f"note: grey values {levels.low:g} to {levels.high:g} of {request.source} become "
            f"{levels.low_to:.2f} to {levels.high_to:.2f} of the {bit_depth}-bit range that the model knows"
        )
    return levels


def compare(volume: Volume, request: Request, model: TrainedModel, notify: Notify) -> None:
    """Report in what a volume, as the model sees it, differs from the training images."""
    known = model.domain
    if known is None:
        notify(
            "note: the model does not say what its training images look like, so the input is not compared with them"
        )
    elif min(known.size, *volume.shape[1:]) >= fingerprint.SMALLEST:
        seen = [
            network_input.to_unit(patch, model.predictor.settings.bit_depth) for patch in sample(volume, known.size)
        ]
        if found := fingerprint.differences(known, fingerprint.measure(seen, volume.spacing)):
            notify(f"warning: {request.source} looks unlike the training images: {'; '.join(found)}")


def uses_orthoplanes(volume: Volume, request: Request, settings: Settings, notify: Notify) -> bool:
    """Return whether a volume is predicted in orthogonal planes, and report why not where the model would."""
    if not settings.orthoplanes or volume.shape[0] == 1:
        return False
    if is_elongated(volume.spacing):
        why = "voxels that are not about as long as they are wide"
    elif not settings.uses_orthoplanes(volume.shape):
        why = f"fewer than {settings.divisor} slices or more than {ORTHOPLANE_LIMIT // 10**6} million voxels"
    else:
        if not {*"zyx"} <= volume.spacing.keys():
            notify(
                f"note: {request.source} does not say its voxel size: voxels count as cubes; if not, give --voxel-size"
            )
        return True
    notify(f"note: {request.source} has {why}: predicted from its slices alone, without orthogonal planes")
    return False


def trained_spacing(volume: Volume, known: Fingerprint | None) -> Spacing:
    """Return the pixel size of the training images, to which a volume is resampled.

    Raises
    ------
    InputError
        It is not known of both along y and x, or differs by more than `LARGEST_CHANGE`.
    """
    trained_on = known.spacing if known else {}
    for where, spacing, remedy in (
        ("INPUT", volume.spacing, "give --voxel-size"),
        ("model", trained_on, "predict without --rescale"),
    ):
        if not {"y", "x"} <= spacing.keys():
            raise InputError("--rescale", f"no voxel size of the {where}", "one along y and x", remedy)
    for axis in "yx":
        if not 1 / LARGEST_CHANGE <= volume.spacing[axis] / trained_on[axis] <= LARGEST_CHANGE:
            found = f"{volume.spacing[axis]:g} nm along {axis}"
            raise InputError("--rescale", found, f"about {trained_on[axis]:g}, as in training", "give --voxel-size")
    return trained_on


def sample(volume: Volume, size: int) -> list[np.ndarray]:
    """Return patches from all over a stack, (Y, X) as stored, of `size` pixels a side or what there is."""
    depth, height, width = volume.shape
    slices = spread(depth - 1, 4)
    across = math.isqrt(SAMPLES // len(slices))
    tall, wide = min(size, height), min(size, width)
    places = product(slices, spread(height - tall, across), spread(width - wide, across))
    return [volume.read(z, (y, y + tall, x, x + wide)) for z, y, x in places]


def spread(last: int, count: int) -> list[int]:
    """Return at most `count` numbers from 0 to `last`, evenly."""
    return sorted({round(place) for place in np.linspace(0, last, count + 2)[1:-1].tolist()})


def match_levels(patches: Sequence[np.ndarray], known: Fingerprint | None, bit_depth: int) -> Levels | None:
    """Return the linear map that brings the grey values of patches to where those of training are.

    None where the patches are of the bit depth that the model was trained on. Where a pixel can hold more than that
    depth the map changes nothing but single pixels above it, which are no reason to stop.
    """
    stored, top = np.uint8 if bit_depth == 8 else np.uint16, 2**bit_depth - 1
    if patches[0].dtype == stored and max(int(patch.max()) for patch in patches) <= top:
        return None if top == np.iinfo(stored).max else Levels(0, top, 0.0, 1.0, bit_depth)
    low, high = np.quantile(np.concatenate([patch.ravel() for patch in patches]), TAILS)
    low_to, high_to = (known.quantile(share) for share in TAILS) if known else (0.0, 1.0)
    return Levels(float(low), float(high), low_to, high_to, bit_depth)
