"""Slices in the body of a request in JSON, read in memory that is a bounded multiple of its size."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from mitoflow.errors import InputError
from mitoflow.inference.settings import Settings

SEND = "send images as they are stored"
ROW = 64  # bytes of a row on average, so that lists take little memory beside the numbers in them
FEW = 2**17  # lists, groups and texts that any body may have


def read_slices(body: bytes, settings: Settings) -> NDArray[np.generic]:
    """Return the slices (N, Y, X) of a request in JSON, as grey values of a model.

    Python takes 80 bytes for an empty list, of which three characters are enough. So a body is refused before it is
    parsed where it has more lists than slices with rows of a length that is of use.

    Raises
    ------
    InputError
        There are none, or their values are no grey values of the model: numbers where it stretches slices between their
        percentiles, and else whole numbers of its bit depth.
    """
    values = _read_inputs(body)
    if values.size == 0:
        raise InputError("inputs", "nothing", "slices (N, Y, X)", SEND)
    if values.ndim != 3:
        found = f"rows of different lengths, or an array of shape {values.shape}"
        raise InputError("inputs", found, "slices (N, Y, X)", SEND)
    is_stretched = settings.normalization == "percentiles"
    expected = "numbers" if is_stretched else f"whole numbers from 0 to {2**settings.bit_depth - 1}"
    kinds = set(map(type, values.flat))
    if not kinds <= {int, float}:
        names = " and ".join(sorted(kind.__name__ for kind in kinds - {int, float}))
        raise InputError("inputs", f"{names} values", expected, SEND)
    try:
        numbers = values.astype(np.float64)
    except OverflowError:
        raise InputError("inputs", "numbers of hundreds of digits", expected, SEND) from None
    low, high = numbers.min(), numbers.max()
    is_whole, is_finite = kinds == {int} and low >= 0, bool(np.isfinite(numbers).all())
    if is_finite and is_stretched:
        return numbers.astype(np.min_scalar_type(int(high)) if is_whole and high < 2**16 else np.float32)
    if is_whole and high < 2**settings.bit_depth:
        return numbers.astype(np.uint8 if settings.bit_depth == 8 else np.uint16)
    kind = "fractions" if float in kinds else "grey values"
    raise InputError("inputs", f"{kind} from {low:g} to {high:g}" if is_finite else kind, expected, SEND)


def _read_inputs(body: bytes) -> NDArray[np.object_]:
    """Return what is under the key of the slices, with an axis for each level of lists of one length.

    The values stay objects: an array of texts would give each of them the length of the longest one.
    """
    marks = sum(body.count(mark) for mark in (b"[", b"{", b'"'))
    if marks > max(FEW, len(body) // ROW):
        found = f"{marks} lists, groups and texts in {len(body)} bytes"
        raise InputError("body", found, f"rows of {ROW} bytes or more on average", "send larger slices, or a TIFF")
    try:
        sent = json.loads(body)
        return np.asarray(sent["inputs"] if "inputs" in sent else sent["instances"], np.object_)
    except (RecursionError, ValueError) as error:  # also numbers of thousands of digits
        raise InputError("body", f"JSON that cannot be read ({error})", '{"inputs": slices}', SEND) from None
    except (LookupError, TypeError):
        raise InputError("body", "no inputs", '{"inputs": slices}', SEND) from None
