"""How the grey values, masks and voxels of each set are read: what stage `validate` hands to later stages."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from mitoflow.core.files import read_yaml, write_yaml
from mitoflow.data.masks import Rule
from mitoflow.errors import InputError
from mitoflow.io.spacing import Spacing

REMEDY = "run `dvc repro validate`"


@dataclass(frozen=True)
class Conventions:
    """How one set is to be read.

    Attributes
    ----------
    bit_depth
        Bits that the grey values of its training images use; see `camera_depth`.
    mask_rule
        See `binarise`.
    spacing
        Nanometres of a voxel, as far as they are known.
    unrelated
        Whether its slices are no neighbours of each other.
    instances
        Whether each mitochondrion has a number of its own in the masks.
    """

    bit_depth: int
    mask_rule: Rule
    spacing: Spacing = field(default_factory=dict)
    unrelated: bool = False
    instances: bool = False


def write_conventions(path: Path, sets: Mapping[str, Conventions]) -> None:
    """Write the conventions of all sets as YAML."""
    write_yaml(path, {name: asdict(conventions) for name, conventions in sets.items()})


def read_conventions(path: Path) -> dict[str, Conventions]:
    """Read what `write_conventions` wrote.

    Raises
    ------
    InputError
        The file is missing or broken.
    """
    keys = {each.name for each in fields(Conventions)}
    entries = read_yaml(path, REMEDY)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != keys:
            raise InputError(f"{path}: {name}", entry, f"the keys {', '.join(sorted(keys))}", REMEDY)
    return {name: Conventions(**entry) for name, entry in entries.items()}


def mask_rules(sets: Mapping[str, Conventions]) -> dict[str, Rule]:
    """Return how the masks of each set are read."""
    return {name: conventions.mask_rule for name, conventions in sets.items()}


def mean_pixel_size(sets: Collection[Conventions]) -> Spacing:
    """Return the geometric mean along y and x of the pixel sizes that are known, in nanometres; empty for none."""
    known = [each.spacing for each in sets if {"y", "x"} <= each.spacing.keys()]
    if not known:
        return {}
    return {axis: math.exp(math.fsum(math.log(spacing[axis]) for spacing in known) / len(known)) for axis in "yx"}


def one_bit_depth(sets: Mapping[str, Conventions]) -> int:
    """Return the bit depth that all sets have, as grey values need that are not stretched.

    Raises
    ------
    InputError
        They differ.
    """
    depths = {conventions.bit_depth: name for name, conventions in sets.items()}
    if len(depths) > 1:
        found = "range, and " + " and ".join(f"{depth} bits in {name}" for depth, name in sorted(depths.items()))
        raise InputError("patch.normalization", found, "sets of one bit depth, or percentiles", "set it to percentiles")
    return next(iter(depths))
