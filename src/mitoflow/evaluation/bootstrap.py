"""95 % intervals of scores, by a block bootstrap over slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitoflow.evaluation.metrics import OfCounts


@dataclass(frozen=True)
class Interval:
    """A score and the 95 % confidence interval around it.

    As text it is ``value [low, high]``. A format specification holds for each figure; without one they have four
    decimals.

    Examples
    --------
    >>> interval = Interval(0.91, 0.89, 0.925)
    >>> str(interval)
    '0.9100 [0.8900, 0.9250]'
    >>> f"{interval:+.2f}"
    '+0.91 [+0.89, +0.93]'
    >>> interval.as_dict("dice")
    {'dice': 0.91, 'dice_low': 0.89, 'dice_high': 0.925}
    >>> Interval.from_dict("dice", interval.as_dict("dice")) == interval
    True
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(figure, spec or ".4f") for figure in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)

    def as_dict(self, name: str, separator: str = "_") -> dict[str, float]:
        """Return the figures under the keys ``name``, ``name_low`` and ``name_high``."""
        return dict(zip(_keys(name, separator), (self.value, self.low, self.high), strict=True))

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, float | str], separator: str = "_") -> Interval | None:
        """Return the interval that `as_dict` wrote under ``name``; None where there is none."""
        keys = _keys(name, separator)
        return cls(*(float(values[key]) for key in keys)) if values.keys() >= set(keys) else None


def _keys(name: str, separator: str) -> tuple[str, str, str]:
    return name, f"{name}{separator}low", f"{name}{separator}high"


def bootstrap_interval(
    counts: NDArray[Any],
    score: OfCounts,
    block: int,
    resamples: int,
    seed: int,
    stacks: Sequence[Any] | None = None,
    datasets: Sequence[Any] | None = None,
    looked_at: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Interval:
    """Return a score of all slices together, with its 95 % interval from a circular block bootstrap over slices.

    Neighbouring slices are near copies, so slices drawn one by one would promise too narrow an interval. Blocks of
    consecutive slices keep the dependence (Kuensch 1989, Ann. Stat. 17:1217). They are drawn from each stack bent to a
    ring, so that the slices at its ends count as often as the others (Politis & Romano 1992). Each resample has as many
    slices of each stack as the stack; the interval is that of the percentiles 2.5 and 97.5. It shows how far the score
    depends on which slices of these stacks were seen, not what other animals or microscopes would give.

    For a short stack even this is narrow: in simulated stacks of 165 slices whose neighbours correlate by 0.6 and 0.8,
    blocks of 10 held the truth in 88 and 82 % of the stacks, and slices drawn one by one in 64 and 46 %.

    Of several sets, the score is the mean of the sets' scores, so that each set counts alike, however many pixels it
    has. A resample draws blocks within each set, scores each set, and takes the mean: the bootstrap of a stratified
    sample (Bickel & Freedman 1984, Ann. Stat. 12:470), whose strata, here the sets, are not drawn.

    Slices in which nobody looked at a pixel are left out before anything is drawn. A block is then of slices that
    follow each other among those that are left; where there are gaps between them they depend less on each other, so
    that a block is rather too long than too short.

    Parameters
    ----------
    counts
        ``(slices, 4)`` int64, the slices of a stack in the order of z; or ``(rows, columns)`` of anything else that
        adds up: boundary pixels by slice, or objects, with ``block`` 1.
    score
        Any of `mitoflow.evaluation.metrics.SCORES`, or another function of the summed counts.
    block
        Consecutive slices in a block, at most half of the stack: a short stack has its blocks shortened, because a
        block as long as the ring is the same one wherever it starts.
    resamples, seed
        How often to draw, and the seed of the draws: the same seed, block and stacks draw the same slices again.
    stacks
        ``(slices,)`` labels: to which stack each slice belongs; None for one stack. Slices that are alone in their
        stack count together, in their order, as one stack: most often they are pages of one volume.
    datasets
        ``(slices,)`` labels: to which set each slice belongs; None for one set. Stacks of two sets are two stacks, also
        where they have the same label.
    looked_at
        ``(slices,)``: whether anybody looked at a pixel of each slice; None for the rows that are not all 0. Counts of
        boundaries may all be 0 in a slice that counts.

    Returns
    -------
    interval
        [0, 1] where one slice at most was looked at: nothing else can be drawn, so nothing is known. A set of one slice
        adds the same doubt to the mean of several.
    """
    return _interval(counts, score, (0.0, 1.0), block, resamples, seed, stacks, datasets, looked_at)


def paired_difference(
    counts_a: NDArray[Any],
    counts_b: NDArray[Any],
    score: OfCounts,
    block: int,
    resamples: int,
    seed: int,
    stacks: Sequence[Any] | None = None,
    datasets: Sequence[Any] | None = None,
    comparisons: int = 1,
    looked_at: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Interval:
    """Return the score of a minus that of b on the same slices, with its 95 % interval; `bootstrap_interval` says how.

    Both are scored on the same draws. What makes a slice hard for both cancels, so the interval is narrower than the
    intervals of a and b suggest. It is [-1, 1] where one slice at most was looked at. Of several sets it is the mean of
    their differences.

    Of several ``comparisons`` on the same slices, the best looks better than it is. Each interval therefore holds at
    `simultaneous_level`, so that all of them hold together with at least 95 % (Bonferroni; Dunn 1961, J. Am. Stat.
    Assoc. 56:52). That needs no assumption about how they depend on each other, and these share their slices. As many
    times more draws are made, so that each tail has as many of them as that of one interval.

    Raises
    ------
    ValueError
        The counts are not of the same number of slices.
    """
    if counts_a.shape != counts_b.shape:
        raise ValueError(f"counts of {len(counts_a)} and of {len(counts_b)} slices cannot be paired")
    columns = counts_a.shape[-1]

    def difference(counts: NDArray[Any]) -> NDArray[np.float64]:
        return score(counts[..., :columns]) - score(counts[..., columns:])

    both = np.concatenate([counts_a, counts_b], axis=-1)
    resamples *= comparisons
    return _interval(both, difference, (-1.0, 1.0), block, resamples, seed, stacks, datasets, looked_at, comparisons)


def simultaneous_level(comparisons: int) -> float:
    """Return the level of each interval of several that hold together with at least 95 %.

    Examples
    --------
    >>> simultaneous_level(1), simultaneous_level(10)
    (0.95, 0.995)
    """
    return 1 - 0.05 / comparisons


def _interval(
    counts: NDArray[Any],
    score: OfCounts,
    bounds: tuple[float, float],
    block: int,
    resamples: int,
    seed: int,
    stacks: Sequence[Any] | None,
    datasets: Sequence[Any] | None,
    looked_at: Sequence[bool] | NDArray[np.bool_] | None,
    comparisons: int = 1,
) -> Interval:
    """Return the mean of the sets' scores; of a score of which nothing is known, the interval is `bounds`."""
    rng = np.random.default_rng(seed)
    values, lows, highs = [], [], []
    seen = counts.any(axis=-1) if looked_at is None else np.asarray(looked_at, bool)
    for of_all in _rows_of_sets(len(counts), datasets):
        rows = of_all[seen[of_all]]
        of_set, labels = counts[rows], None if stacks is None else np.asarray(stacks)[rows]
        values.append(float(score(of_set.sum(0))))
        if len(rows) < 2:
            drawn = [np.full(resamples, bound) for bound in bounds]
        else:
            drawn = [score(_resample(of_set, block, resamples, rng, labels))] * 2
        lows.append(drawn[0])
        highs.append(drawn[1])
    tail = 0.025 / comparisons
    low, high = np.quantile(np.mean(lows, axis=0), tail), np.quantile(np.mean(highs, axis=0), 1 - tail)
    return Interval(float(np.mean(values)), float(low), float(high))


def _rows_of_sets(slices: int, datasets: Sequence[Any] | None) -> list[NDArray[np.intp]]:
    """Return the rows of each set, in the order in which the sets come."""
    if datasets is None:
        return [np.arange(slices)]
    labels = np.asarray(datasets)
    return [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]


def _resample(
    counts: NDArray[Any], block: int, resamples: int, rng: np.random.Generator, stacks: NDArray[Any] | None
) -> NDArray[Any]:
    """Return the summed counts of each draw, ``(resamples, columns)``, from counts ``(slices, columns)`` of a set."""
    drawn = np.zeros((resamples, counts.shape[-1]), counts.dtype)
    for rows in _rings(len(counts), stacks):
        ring = counts[rows]
        full = min(block, max(1, len(ring) // 2))
        blocks, rest = divmod(len(ring), full)
        for length in [full] * blocks + [rest] * (rest > 0):
            drawn += _block_sums(ring, length)[rng.integers(len(ring), size=resamples)]
    return drawn


def _rings(slices: int, stacks: NDArray[Any] | None) -> list[NDArray[np.intp]]:
    """Return the rows of each stack; those that are alone come together as the last one."""
    if stacks is None:
        return [np.arange(slices)]
    _, label, size = np.unique(stacks, return_inverse=True, return_counts=True)
    alone = np.flatnonzero(size[label] == 1)
    rings = [np.flatnonzero(label == i) for i in np.flatnonzero(size > 1)]
    return [*rings, alone] if len(alone) else rings


def _block_sums(ring: NDArray[Any], length: int) -> NDArray[Any]:
    """Return the sum of ``length`` consecutive rows from each row on, the first row following the last."""
    running = np.cumsum(np.concatenate([np.zeros_like(ring[:1]), ring, ring[: length - 1]]), axis=0)
    sums: NDArray[Any] = running[length:] - running[:-length]
    return sums
