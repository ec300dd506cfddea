"""Checks of a whole data set, before anything is computed from it."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mitoflow.config.params import Normalization
from mitoflow.data.conventions import Conventions, mask_rules, one_bit_depth
from mitoflow.data.masks import (
    BYTE,
    KINDS,
    NOT_LOOKED_AT,
    SUBTRACT_1,
    WORD,
    MaskValues,
    Rule,
    agree_on_rule,
    binarise,
)
from mitoflow.data.network_input import camera_depth
from mitoflow.data.pairs import Pair, read_set, require_one_dtype, set_names
from mitoflow.data.set_descriptions import FILE, SetDescription, agree_on_voxel_size, read_sets
from mitoflow.data.slice_distance import is_elongated
from mitoflow.errors import InputError
from mitoflow.io.file_names import natural_order
from mitoflow.io.spacing import Spacing
from mitoflow.io.tiff import Array

PARTS = ("train", "test")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or worth a look, worded as an `InputError`."""

    where: str
    found: str
    expected: str
    remedy: str

    @classmethod
    def of(cls, error: InputError) -> Finding:
        """Return an error as a finding."""
        return cls(error.where, error.found, error.expected, error.remedy)

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
        For ``train`` and ``test``: the part as a whole, each of its sets and every stack. Empty where errors keep the
        slices from being read or understood.
    conventions
        How each set is to be read; without those sets of which errors hide it.
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    conventions: dict[str, Conventions] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return asdict(self)

    def warn(self, doubt: InputError) -> None:
        """Take a doubt for one of the warnings."""
        self.warnings.append(Finding.of(doubt))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Take an `InputError` of the block for one of the errors."""
        try:
            yield
        except InputError as error:
            self.errors.append(Finding.of(error))


def check_dataset(
    data: Path, near_duplicate: float, *, orthoplanes: bool = False, normalization: Normalization = "percentiles"
) -> Findings:
    """Read every slice below ``data`` once and report everything that is wrong.

    Parameters
    ----------
    data
        The folder of ``train``, ``test`` and ``sets.yaml``.
    near_duplicate
        The Pearson correlation, in [0, 1], from which successive slices count as near-duplicates.
    orthoplanes
        Whether planes along z are to be learned, which needs voxels about as long as they are wide.
    normalization
        What becomes of grey values; ``range`` needs one bit depth.
    """
    findings = Findings()
    sets: dict[str, SetDescription] = {}
    with findings.collecting():
        sets = read_sets(data)
    summaries = {part: _read_part(findings, data / part) for part in PARTS}
    if not findings.errors:
        _check_names(findings, data, sets, summaries)
    if findings.errors:
        return findings

    for name, description in sets.items():
        of_set = {part: [s for s in summaries[part] if s.pair.dataset == name] for part in PARTS}
        _check_set(findings, data, name, description, of_set, near_duplicate=near_duplicate, orthoplanes=orthoplanes)
        if normalization == "range":
            _check_brightness(findings, findings.conventions.get(name), of_set["test"])
        _check_leak(findings, data / "test" / name / "images", summaries["train"], of_set["test"])
    if findings.conventions.keys() == sets.keys():
        if normalization == "range":
            with findings.collecting():
                one_bit_depth(findings.conventions)
        rules = mask_rules(findings.conventions)
        findings.facts = {part: _facts(found, rules, near_duplicate) for part, found in summaries.items() if found}
    return findings


def _read_part(findings: Findings, part: Path) -> list[_StackSummary]:
    """Read the sets of a part; a test part may be missing."""
    summaries = []
    with findings.collecting():
        for dataset in set_names(part) if part.name == "train" or part.exists() else []:
            summaries += _read_set(findings, part / dataset, dataset)
    return summaries


def _check_names(
    findings: Findings, data: Path, sets: Mapping[str, SetDescription], summaries: Mapping[str, Sequence[_StackSummary]]
) -> None:
    """Compare ``sets.yaml`` with the folders: each set trains, and has an entry."""
    training, testing = ({summary.pair.dataset for summary in summaries[part]} for part in PARTS)
    for name in sorted(training | testing | sets.keys(), key=natural_order):
        if name not in sets:
            where, found, remedy = data / FILE, f"no entry for the set {name}", "add it, or `mitoflow data add` the set"
        elif name not in training:
            where, found, remedy = data / "train" / name, "no such folder", "`mitoflow data add` the set again"
        else:
            continue
        findings.errors.append(Finding(str(where), found, "an entry and a training part of each set", remedy))


def _check_set(
    findings: Findings,
    data: Path,
    name: str,
    description: SetDescription,
    summaries: Mapping[str, Sequence[_StackSummary]],
    *,
    near_duplicate: float,
    orthoplanes: bool,
) -> None:
    """Check one set; its conventions join the findings."""
    both = [*summaries["train"], *summaries["test"]]
    bit_depth: int | None = None
    spacing: Spacing | None = None
    rule: Rule | None = None
    with findings.collecting():
        eight_bit = require_one_dtype([summary.pair for summary in both]) == np.uint8
        bit_depth = 8 if eight_bit else camera_depth(max(summary.maximum for summary in summaries["train"]))
    with findings.collecting():
        paths = (summary.pair.image.path for summary in both)
        spacing = agree_on_voxel_size(paths, description.voxel_size, f"{data / FILE}: {name}", findings.warn)
        if orthoplanes and is_elongated(spacing):
            found = f"voxels of {spacing['z']:g} x {spacing['y']:g} x {spacing['x']:g} nm (z, y, x)"
            expected, remedy = "about as long as they are wide, as train.orthoplanes needs", "set it to false"
            findings.errors.append(Finding(str(data / "train" / name), found, expected, remedy))
    for summary in both:
        if description.unrelated and len(summary.digests) > 1:
            expected = f"files of one slice each, as {data / FILE} says that slices of {name} are unrelated"
            remedy = "correct that, or `mitoflow data add --unrelated --overwrite` the set"
            found = f"{len(summary.digests)} slices"
            findings.errors.append(Finding(str(summary.pair.image.path), found, expected, remedy))
    with findings.collecting():
        given = description.mask_rule
        rule = agree_on_rule(summary.mask_values for summary in both) if given == "auto" else given
    for summary in both:
        if rule == "half" and summary.mask_values.white:
            found = f"antialiased edges that end at {summary.mask_values.white}"
            expected = f"masks from 0 to {BYTE}, or to {WORD} in 16 bits"
            findings.errors.append(Finding(str(summary.pair.mask.path), found, expected, "scale its values to that"))
    if description.instances and rule:
        with findings.collecting():
            _require_instances(both, rule, data / "train" / name / "masks")
    for part in PARTS:
        folder = data / part / name
        _check_images(findings, folder / "images", summaries[part], near_duplicate)
        if rule:
            _check_masks(findings, folder / "masks", summaries[part], rule, instances=description.instances)
    if bit_depth and spacing is not None and rule:
        findings.conventions[name] = Conventions(bit_depth, rule, spacing, description.unrelated, description.instances)


def _require_instances(summaries: Sequence[_StackSummary], rule: Rule, masks: Path) -> None:
    """Raise `InputError` unless masks can hold a number for each mitochondrion."""
    expected = f"a number for each mitochondrion, as instances: true in {FILE} says"
    remedy = "give masks with labels, or import the set without --instances"
    if rule != "nonzero":
        raise InputError(masks, f"{KINDS[rule]}, by the mask rule {rule}", expected, remedy)
    if not any(len(summary.mask_values.values - {0}) > 1 for summary in summaries):
        raise InputError(masks, "one value for all mitochondria in every mask", expected, remedy)


def _check_brightness(findings: Findings, conventions: Conventions | None, test: Sequence[_StackSummary]) -> None:
    """Find test images that are brighter than the bit depth of the training images of their set allows."""
    for summary in test:
        if conventions and summary.maximum >= 1 << conventions.bit_depth:
            found = f"grey values up to {summary.maximum}"
            expected = f"at most {conventions.bit_depth} bits, as in the training images"
            findings.errors.append(Finding(str(summary.pair.image.path), found, expected, "scale both parts alike"))


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
        self.foreground: dict[Rule, list[int]] = {"nonzero": [], "half": [], "partial": []}
        self.not_looked_at = 0

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
                counts.append(int(np.count_nonzero(binarise(mask, rule) == 1)))
            self.not_looked_at += int(np.count_nonzero(mask == NOT_LOOKED_AT))
            last = image
        return last

    @property
    def name(self) -> str:
        return self.pair.image.path.name

    @property
    def pixels(self) -> int:
        return math.prod(self.pair.image.shape)

    def labelled(self, rule: Rule) -> int:
        """Return how many pixels were looked at."""
        return self.pixels - (self.not_looked_at if rule == "partial" else 0)

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


def _check_masks(
    findings: Findings, folder: Path, summaries: Sequence[_StackSummary], rule: Rule, *, instances: bool
) -> None:
    known = [summary for summary in summaries if summary.labelled(rule)]
    if summaries and not known:
        found, remedy = "no pixel that was looked at", "label some, or give another --mask-rule than partial"
        findings.errors.append(Finding(str(folder), found, f"other values than {NOT_LOOKED_AT}", remedy))
    many = [summary.name for summary in known if len(summary.mask_values.values) > 2]
    if many and rule != "partial" and not instances:
        reading = "above 0" if rule == "nonzero" else "from half range on"
        found, remedy = f"more than two values in {_counted(many)}", "otherwise give --mask-rule"
        expected = f"masks in which every value {reading} is mitochondrion"
        findings.warnings.append(Finding(str(folder), found, expected, remedy))
    ways: dict[int, str] = {}
    for summary in summaries:
        if len(summary.mask_values.values) == 2:
            ways.setdefault(max(summary.mask_values.values), summary.name)
    if len(ways) > 1 and ways.keys() <= {1, BYTE, WORD}:
        found = " and ".join(f"{value} in {name}" for value, name in sorted(ways.items()))
        expected, remedy = "one value for mitochondrion", "nothing, if each of them means that"
        findings.warnings.append(Finding(str(folder), found, expected, remedy))
    remedy = "look at the masks, or give --mask-rule"
    full = [summary.name for summary in known if sum(summary.foreground[rule]) == summary.labelled(rule)]
    if full:
        several = any(len(summary.mask_values.values) > 1 for summary in known if summary.name in full)
        to_do = SUBTRACT_1 if several else remedy
        findings.errors.append(Finding(str(folder), f"no background in {_counted(full)}", "0 somewhere", to_do))
    dense = [s.name for s in known if s.labelled(rule) / 2 < sum(s.foreground[rule]) < s.labelled(rule)]
    if dense:
        found, expected = f"more than half of the pixels mitochondrion in {_counted(dense)}", "less, as in tissue"
        look = "look at the masks; if they are black on mitochondria, invert them"
        findings.warnings.append(Finding(str(folder), found, expected, look))
    empty = [summary.name for summary in known if not any(summary.foreground[rule])]
    if empty:
        kind = findings.errors if len(empty) == len(known) else findings.warnings
        kind.append(Finding(str(folder), f"no mitochondrion in {_counted(empty)}", "some foreground", remedy))


def _named(summary: _StackSummary, z: int) -> str:
    return f"slice {z} of {summary.name}" if len(summary.digests) > 1 else summary.name


def _counted(names: Sequence[str]) -> str:
    """Name the first few and count them all."""
    return f"{', '.join(names[:3])}, ... ({len(names)} in all)" if len(names) > 3 else ", ".join(names)


def _facts(summaries: Sequence[_StackSummary], rules: Mapping[str, Rule], near_duplicate: float) -> dict[str, Any]:
    """Return what a part is like: all of it, each set and each stack."""
    stacks = [_stack_facts(summary, rules[summary.pair.dataset], near_duplicate) for summary in summaries]
    by_set = {name: [s for s in stacks if s["dataset"] == name] for name in dict.fromkeys(s["dataset"] for s in stacks)}
    return {**_totals(stacks), "sets": {name: _totals(of_set) for name, of_set in by_set.items()}, "stacks": stacks}


def _totals(stacks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pixels = [stack["labelled"] for stack in stacks]
    foreground = sum(round(stack["foreground"] * size) for stack, size in zip(stacks, pixels, strict=True))
    return {
        "files": len(stacks),
        "slices": sum(stack["shape"][0] for stack in stacks),
        "foreground": foreground / max(1, sum(pixels)),
    }


def _stack_facts(summary: _StackSummary, rule: Rule, near_duplicate: float) -> dict[str, Any]:
    return {
        "dataset": summary.pair.dataset,
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
        "labelled": summary.labelled(rule),
        "foreground": sum(summary.foreground[rule]) / max(1, summary.labelled(rule)),
        "slices_without_foreground": [z for z, count in enumerate(summary.foreground[rule]) if not count],
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
