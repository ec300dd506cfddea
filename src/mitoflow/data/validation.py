"""Checks of a whole data set, before anything is computed from it."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mitoflow.config.params import MaskRule
from mitoflow.data.masks import MaskValues, Rule, agree_on_rule, binarise
from mitoflow.data.network_input import camera_depth
from mitoflow.data.pairs import Pair, read_set, require_one_dtype, set_names
from mitoflow.errors import InputError
from mitoflow.io.spacing import is_elongated, read_tiff_spacing
from mitoflow.io.tiff import Array

PARTS = ("train", "test")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or worth a look, worded as an `InputError`."""

    where: str
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return str(InputError(self.where, self.found, self.expected, self.remedy))


@dataclass
class Findings:
    """What `check_dataset` found.

    Attributes
    ----------
    errors
        What makes training or evaluation impossible.
    warnings
        What the user should look at.
    facts
        For ``train`` and ``test``: what every stack is like, and the part as a whole. Empty where errors keep the
        slices from being read or understood.
    mask_rule, bit_depth
        The conventions of the data set; None where errors hide them.
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    mask_rule: Rule | None = None
    bit_depth: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return asdict(self)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Take an `InputError` of the block for one of the errors."""
        try:
            yield
        except InputError as error:
            self.errors.append(Finding(error.where, error.found, error.expected, error.remedy))


def check_dataset(data: Path, mask_rule: MaskRule, near_duplicate: float, *, orthoplanes: bool = False) -> Findings:
    """Read every slice below ``data`` once and report everything that is wrong.

    Parameters
    ----------
    data
        The folder of ``train`` and ``test``.
    mask_rule
        How the masks are to be read; ``auto`` finds out.
    near_duplicate
        The Pearson correlation, in [0, 1], from which successive slices count as near-duplicates.
    orthoplanes
        Whether planes along z are to be learned, which needs voxels about as long as they are wide.
    """
    findings = Findings()
    summaries: dict[str, list[_StackSummary]] = {part: [] for part in PARTS}
    for part in PARTS:
        with findings.collecting():
            for dataset in set_names(data / part):
                summaries[part] += _read_set(findings, data / part / dataset, dataset)
    if findings.errors:
        return findings

    both = summaries["train"] + summaries["test"]
    with findings.collecting():
        eight_bit = require_one_dtype([summary.pair for summary in both]) == np.uint8
        findings.bit_depth = 8 if eight_bit else camera_depth(max(summary.maximum for summary in summaries["train"]))
        for summary in summaries["test"]:
            if summary.maximum >= 1 << findings.bit_depth:
                found = f"grey values up to {summary.maximum}"
                expected = f"at most {findings.bit_depth} bits, as in the training images"
                findings.errors.append(Finding(str(summary.pair.image.path), found, expected, "scale both parts alike"))
    with findings.collecting():
        findings.mask_rule = (
            agree_on_rule(summary.mask_values for summary in both) if mask_rule == "auto" else mask_rule
        )
    for part in PARTS:
        if orthoplanes:
            _check_voxels(findings, summaries[part])
        for dataset, of_set in groupby(summaries[part], lambda summary: summary.pair.dataset):
            folder, stacks = data / part / dataset, list(of_set)
            _check_images(findings, folder / "images", stacks, near_duplicate)
            if findings.mask_rule:
                _check_masks(findings, folder / "masks", stacks, findings.mask_rule)
        if findings.mask_rule:
            findings.facts[part] = _facts(summaries[part], findings.mask_rule, near_duplicate)
    for dataset, of_set in groupby(summaries["test"], lambda summary: summary.pair.dataset):
        _check_leak(findings, data / "test" / dataset / "images", summaries["train"], list(of_set))
    return findings


def _read_set(findings: Findings, folder: Path, dataset: str) -> list[_StackSummary]:
    """Read one part of a set; what is wrong with it joins the findings."""
    summaries: list[_StackSummary] = []
    last: Array | None = None
    with findings.collecting():
        for pair in read_set(folder, dataset):
            summaries.append(_StackSummary(pair))
            with findings.collecting():
                last = summaries[-1].read(after=last)
    return summaries


class _StackSummary:
    """A few numbers for each slice of a pair, from one pass that holds two slices in memory."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.minimum, self.maximum, self.total = 1 << 16, 0, 0
        self.constant: list[int] = []
        self.digests: list[bytes] = []
        self.correlations: list[float | None] = []
        self.mask_values = MaskValues(pair.mask.path)
        self.foreground: dict[Rule, list[int]] = {"nonzero": [], "half": []}

    def read(self, after: Array | None) -> Array | None:
        """Pass over the slices and return the last one.

        ``after`` is the last slice of the pair before: in a folder of single slices the neighbour is in another file.
        """
        last = after
        for z, (image, mask) in enumerate(zip(self.pair.image.slices(), self.pair.mask.slices(), strict=True)):
            low, high = int(image.min()), int(image.max())
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
            self.total += int(image.sum(dtype=np.int64))
            if low == high:
                self.constant.append(z)
            self.digests.append(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
            self.correlations.append(None if last is None else correlation(last, image))
            self.mask_values.add(mask)
            for rule, counts in self.foreground.items():
                counts.append(int(binarise(mask, rule).sum(dtype=np.int64)))
            last = image
        return last

    @property
    def name(self) -> str:
        return self.pair.image.path.name

    @property
    def pixels(self) -> int:
        return math.prod(self.pair.image.shape)

    def near_duplicates(self, from_correlation: float) -> list[int]:
        """Return the slices that are near-duplicates of the one before."""
        return [z for z, r in enumerate(self.correlations) if r is not None and r >= from_correlation]


def correlation(one: Array, other: Array) -> float | None:
    """Return the Pearson correlation of two slices, or None where they differ in shape or one is constant.

    The sums are exact integers: the value is the same on every machine.
    """
    if one.shape != other.shape:
        return None

    def covary(a: Array, b: Array) -> int:
        products = int(np.einsum("yx,yx->", a, b, dtype=np.int64))
        return a.size * products - int(a.sum(dtype=np.int64)) * int(b.sum(dtype=np.int64))

    covariance, variance_one, variance_other = covary(one, other), covary(one, one), covary(other, other)
    return covariance / math.sqrt(variance_one * variance_other) if variance_one and variance_other else None


def _check_images(findings: Findings, folder: Path, summaries: Sequence[_StackSummary], near_duplicate: float) -> None:
    constant = [_named(summary, z) for summary in summaries for z in summary.constant]
    if constant:
        found, expected = f"one value in every pixel of {_counted(constant)}", "an EM image in every slice"
        remedy = "take the slices out, with their masks"
        everything = len(constant) == sum(len(summary.digests) for summary in summaries)
        kind = findings.errors if everything else findings.warnings
        kind.append(Finding(str(folder), found, expected, remedy))
    alike = [_named(summary, z) for summary in summaries for z in summary.near_duplicates(near_duplicate)]
    if alike:
        found = f"near-duplicates of the slice before them: {_counted(alike)}"
        remedy = "look whether slices were doubled or interpolated"
        findings.warnings.append(Finding(str(folder), found, f"a correlation below {near_duplicate}", remedy))


def _check_voxels(findings: Findings, summaries: Sequence[_StackSummary]) -> None:
    for summary in summaries:
        if is_elongated(known := read_tiff_spacing(summary.pair.image.path)):
            found = f"voxels of {known['z']:g} x {known['y']:g} x {known['x']:g} nm (z, y, x)"
            expected, remedy = "about as long as they are wide, as train.orthoplanes needs", "set it to false"
            findings.errors.append(Finding(str(summary.pair.image.path), found, expected, remedy))


def _check_leak(
    findings: Findings, folder: Path, train: Sequence[_StackSummary], test: Sequence[_StackSummary]
) -> None:
    """Find test slices that are training slices too; constant ones, as padding is, do not count."""
    seen = {digest: _named(summary, z) for summary in train for z, digest in enumerate(summary.digests)}
    for summary in train:
        for z in summary.constant:
            seen.pop(summary.digests[z], None)
    shared = [
        f"{_named(summary, z)} is {seen[digest]} of train"
        for summary in test
        for z, digest in enumerate(summary.digests)
        if digest in seen
    ]
    if shared:
        found = f"{len(shared)} test slices that are also in train: {', '.join(shared[:3])}"
        expected, remedy = "slices that training never sees", "take them out of one of the two parts"
        findings.errors.append(Finding(str(folder), found, expected, remedy))


def _check_masks(findings: Findings, folder: Path, summaries: Sequence[_StackSummary], rule: Rule) -> None:
    many = [summary.name for summary in summaries if len(summary.mask_values.values) > 2]
    if many:
        reading = "above 0" if rule == "nonzero" else "from half range on"
        found, remedy = f"more than two values in {_counted(many)}", "give --mask-rule if that is not so"
        expected = f"masks that mean mitochondrion {reading}"
        findings.warnings.append(Finding(str(folder), found, expected, remedy))
    remedy = "look at the masks, or give --mask-rule"
    full = [summary.name for summary in summaries if sum(summary.foreground[rule]) == summary.pixels]
    if full:
        findings.errors.append(Finding(str(folder), f"no background in {_counted(full)}", "0 somewhere", remedy))
    empty = [summary.name for summary in summaries if not any(summary.foreground[rule])]
    if empty:
        kind = findings.errors if len(empty) == len(summaries) else findings.warnings
        kind.append(Finding(str(folder), f"no mitochondrion in {_counted(empty)}", "some foreground", remedy))


def _named(summary: _StackSummary, z: int) -> str:
    return f"slice {z} of {summary.name}" if len(summary.digests) > 1 else summary.name


def _counted(names: Sequence[str]) -> str:
    """Name the first few and count them all."""
    return f"{', '.join(names[:3])}, ... ({len(names)} in all)" if len(names) > 3 else ", ".join(names)


def _facts(summaries: Sequence[_StackSummary], rule: Rule, near_duplicate: float) -> dict[str, Any]:
    foreground, pixels = (
        sum(sum(summary.foreground[rule]) for summary in summaries),
        sum(summary.pixels for summary in summaries),
    )
    return {
        "slices": sum(len(summary.digests) for summary in summaries),
        "foreground": foreground / pixels,
        "stacks": [
            {
                "name": summary.pair.name,
                "shape": list(summary.pair.image.shape),
                "dtype": str(summary.pair.image.dtype),
                "mask_dtype": str(summary.pair.mask.dtype),
                "mask_values": sorted(summary.mask_values.values) if len(summary.mask_values.values) <= 2 else "many",
                "minimum": summary.minimum,
                "maximum": summary.maximum,
                "mean": summary.total / summary.pixels,
                "constant_slices": summary.constant,
                "near_duplicates": summary.near_duplicates(near_duplicate),
                "median_correlation": _median(summary.correlations),
                "foreground": sum(summary.foreground[rule]) / summary.pixels,
                "slices_without_foreground": [z for z, count in enumerate(summary.foreground[rule]) if not count],
            }
            for summary in summaries
        ],
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
