"""What the images look like that a model was trained on, and in what others differ from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mitoflow.core import files
from mitoflow.errors import InputError

BINS = 64  # of the histogram of grey values
SMALLEST = 32  # pixels of a side of the smallest patch that is measured
SURE = 192**2  # pixels of a slice from which on it shows enough to tell inverted contrast
DETAILS = (1, 2, 4)  # pixels: from each of these blurs to one twice as strong, detail is looked at
REMEDY = "run `dvc repro evaluate` or `dvc pull`"

# A typical patch that lies further outside of 90 % of the training patches than this is worth a word.
TOLERANCE = 1.25  # as a ratio
DARKER = 0.05  # as a grey value in [0, 1]

#: What `differences` says of images whose grey values are the other way round.
INVERTED = "its contrast is inverted: what is dark in the training images is bright"

#: The 5th, 50th and 95th percentile of a feature over patches.
Spread = list[float]


@dataclass(frozen=True)
class Fingerprint:
    """What patches of images look like; grey values are in [0, 1].

    Attributes
    ----------
    size
        Pixels of a side of the patches.
    histogram
        Share of the pixels in each of 64 equal ranges of grey values, from 0 to 1.
    brightness, contrast
        Mean of the grey values of a patch, and their standard deviation.
    noise
        See `noise_scale`.
    texture
        See `texture_scale`.
    polarity
        See `polarity`; the spread of each feature.
    spacing
        Nanometres of a pixel along ``y`` and ``x``, and from slice to slice along ``z``, where they are known.
    """

    size: int
    histogram: list[float]
    brightness: Spread
    contrast: Spread
    noise: Spread
    texture: Spread
    polarity: list[Spread]
    spacing: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the fingerprint as YAML."""
        files.write_yaml(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """Read what `write` wrote; raises `InputError` where it is missing or not whole."""
        names = [each.name for each in fields(cls)]
        values = files.read_yaml(path, REMEDY, names)
        found = cls(**{name: values[name] for name in names})
        if wrong := found.wrong():
            raise InputError(f"{path}: {wrong}", values[wrong], "what `mitoflow` wrote there", REMEDY)
        return found

    def wrong(self) -> str | None:
        """Return the name of a value that no measurement can give."""
        checks = {
            "size": type(self.size) is int and self.size > 0,
            "histogram": _are_numbers(self.histogram, BINS) and min(self.histogram) >= 0 and sum(self.histogram) > 0,
            **{name: _are_numbers(getattr(self, name), 3) for name in ("brightness", "contrast", "noise", "texture")},
            "polarity": isinstance(self.polarity, list)
            and len(self.polarity) == len(DETAILS) + 1
            and all(_are_numbers(spread, 3) for spread in self.polarity),
            "spacing": isinstance(self.spacing, dict)
            and {*self.spacing} <= {*"zyx"}
            and _are_numbers([*self.spacing.values()], len(self.spacing))
            and all(size > 0 for size in self.spacing.values()),
        }
        return next((name for name, is_right in checks.items() if not is_right), None)

    def quantile(self, share: float) -> float:
        """Return the grey value below which that share of the pixels lies."""
        edges = np.linspace(0, 1, BINS + 1)
        return float(np.interp(share, np.concatenate([[0], np.cumsum(self.histogram)]), edges))


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def measure(patches: Iterable[np.ndarray], spacing: Mapping[str, float]) -> Fingerprint:
    """Return what patches look like.

    Parameters
    ----------
    patches
        (Y, X) float in [0, 1], at least one; those with a side below 32 pixels say little.
    spacing
        See `Fingerprint`.
    """
    histogram, rows, size = np.zeros(BINS), [], 0
    for patch in patches:
        histogram += np.histogram(patch, bins=BINS, range=(0, 1))[0]
        rows.append([patch.mean(), patch.std(), noise_scale(patch), texture_scale(patch), *polarity(patch)])
        size = max(size, *patch.shape)
    spreads = np.percentile(np.array(rows, np.float64), [5, 50, 95], axis=0).T.round(6).tolist()
    shares = (histogram / histogram.sum()).round(6).tolist()
    brightness, contrast, noise, texture, *odd = spreads
    return Fingerprint(size, shares, brightness, contrast, noise, texture, odd, dict(spacing))


def noise_scale(image: np.ndarray) -> float:
    """Return the standard deviation of the noise in an image, (Y, X) float, in its grey values.

    What a mask leaves that is blind to planes and to straight edges. Fine texture counts as noise.

    Source: Immerkær, "Fast Noise Variance Estimation", Computer Vision and Image Understanding 64, 1996.
    """
    mask = np.outer((1, -2, 1), (1, -2, 1))
    left = ndimage.convolve(image.astype(np.float64), mask)[1:-1, 1:-1]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(left).mean()) if left.size else 0.0


def texture_scale(image: np.ndarray) -> float:
    """Return how large the structures of an image, (Y, X) float, are in pixels.

    The distance at which the autocovariance along y and x has fallen to half of that of direct neighbours. Noise that
    differs from pixel to pixel adds to the variance alone, and so does not count.
    """
    deviation = image - image.mean()
    lags = range(1, max(2, min(64, min(image.shape) // 2)))
    half = _covariance(deviation, lags[0]) / 2
    if half <= 0:
        return float(lags[0])
    before = 2 * half
    for lag in lags[1:]:
        after = _covariance(deviation, lag)
        if after < half:
            return lag - 1 + (before - half) / (before - after)
        before = after
    return float(lags[-1])


def _covariance(deviation: np.ndarray, lag: int) -> float:
    along_y, along_x = deviation[lag:] * deviation[:-lag], deviation[:, lag:] * deviation[:, :-lag]
    return float((along_y.mean() + along_x.mean()) / 2) if along_y.size and along_x.size else 0.0


def polarity(image: np.ndarray) -> list[float]:
    """Return features of an image, (Y, X) float, that change their sign where dark and bright are exchanged.

    The skewness of detail of three sizes, because stained membranes are thin and dark; and the correlation of the local
    mean with the local variance, because what is stained is rich in detail. None depends on brightness or contrast.
    """
    values = image.astype(np.float64)
    blurred = [ndimage.gaussian_filter(values, sigma) for sigma in (*DETAILS, 2 * DETAILS[-1])]
    detail = [_skewness(fine - coarse) for fine, coarse in pairwise(blurred)]
    mean = ndimage.uniform_filter(values, 9)
    variance = ndimage.uniform_filter((values - mean) ** 2, 9)
    together = float(((mean - mean.mean()) * (variance - variance.mean())).mean())
    spread = float(mean.std() * variance.std())
    return [*detail, together / spread if spread > 0 else 0.0]


def _skewness(values: np.ndarray) -> float:
    deviation = values - values.mean()
    spread = deviation.std()
    # NumPy takes ten times as long for a third power as for two products.
    return float((deviation * deviation * deviation).mean() / spread**3) if spread > 0 else 0.0


def differences(trained: Fingerprint, seen: Fingerprint, area: float = math.inf) -> list[str]:
    """Say in plain words in what images differ from those of training; nothing where they look alike.

    The typical patch is compared with 90 % of the training patches. `area` is that of a slice, in pixels: on small ones
    nothing is said of inverted contrast.
    """
    found = []
    if area >= SURE and _inverted(trained, seen):
        found.append(INVERTED)
    found += _pixel_size(trained, seen)
    low, _, high = trained.brightness
    typical = seen.brightness[1]
    if not low - DARKER <= typical <= high + DARKER:
        kind = "darker" if typical < low else "brighter"
        found.append(f"it is {kind}: a mean grey of {typical:.2f}, {low:.2f} to {high:.2f} in the training images")
    if change := _beyond(trained.contrast, seen.contrast):
        found.append(
            f"it has {'less' if change < 1 else 'more'} contrast: {_ratio(change)} that of the training images"
        )
    if change := _beyond(trained.noise, seen.noise):
        found.append(f"it is {'smoother' if change < 1 else 'noisier'}: {_ratio(change)} the noise")
    return found


def _pixel_size(trained: Fingerprint, seen: Fingerprint) -> list[str]:
    """Compare the pixels by their size where it is known, and else by that of the structures."""
    if "x" in trained.spacing and "x" in seen.spacing:
        wide, usual = seen.spacing["x"], trained.spacing["x"]
        change, known = wide / usual, f"{wide:g} nm, {usual:g} nm in the training images"
        if 1 / TOLERANCE <= change <= TOLERANCE:
            return []
        known += "; --rescale training resamples it"
    else:
        change = 1 / (_beyond(trained.texture, seen.texture) or 1)
        if change == 1:
            return []
        known = f"structures of {seen.texture[1]:.1f} pixels, {trained.texture[1]:.1f} in the training images"
    times, kind = (change, "coarser") if change > 1 else (1 / change, "finer")
    return [f"its pixels are about {times:.1f} x {kind} ({known})"]


def _beyond(trained: Spread, seen: Spread) -> float | None:
    """Return the ratio of the typical values where it lies outside of what is usual in training."""
    low, typical, high = trained
    if low / TOLERANCE <= seen[1] <= high * TOLERANCE:
        return None
    return max(seen[1], 1e-6) / max(typical, 1e-6)


def _ratio(change: float) -> str:
    return f"{change:.1f} x" if change >= 0.1 else "less than 0.1 x"


def _inverted(trained: Fingerprint, seen: Fingerprint) -> bool:
    """Return whether the features of `polarity` are far from those of training, and near when their sign is changed."""
    low, usual, high = np.array(trained.polarity).T
    width = np.maximum(high - low, 0.1) / 2
    typical = np.array(seen.polarity)[:, 1]
    as_it_is, mirrored = (_squares((sign * typical - usual) / width) for sign in (1, -1))
    return as_it_is > len(usual) and mirrored < as_it_is / 2


def _squares(values: NDArray[Any]) -> float:
    return float((values**2).sum())
