"""``data/sets.yaml``: what is known of each set besides its pixels, and how it agrees with what files say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mitoflow.config.params import MaskRule
from mitoflow.config.sections import Section, validated
from mitoflow.core.files import read_yaml, write_yaml
from mitoflow.errors import InputError
from mitoflow.io.remote import Location
from mitoflow.io.spacing import TOLERANCE, Spacing, Warn
from mitoflow.io.volumes import read_spacing

FILE = "sets.yaml"


def _along_axes(sizes: Spacing) -> Spacing:
    if unknown := sizes.keys() - {*"zyx"}:
        raise ValueError(f"an axis {min(unknown)}, which is none of z, y and x")
    return sizes


VoxelSize = Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_along_axes)]


class SetDescription(Section):
    """An entry of ``data/sets.yaml``.

    Attributes
    ----------
    voxel_size
        In nanometres along ``z``, ``y`` and ``x``, as far as it is known.
    tissue
        The tissue and how it was imaged, in a few words.
    terms
        On which terms the data may be used.
    mask_rule
        How the masks are read; ``auto`` finds out.
    unrelated
        Whether its slices are no neighbours of each other. Each is then a file of its own.
    instances
        Whether each mitochondrion has a number of its own in the masks, so that they say where two of them touch.
    """

    voxel_size: VoxelSize = Field(default_factory=dict)
    tissue: str = ""
    terms: str = ""
    mask_rule: MaskRule = "auto"
    unrelated: bool = False
    instances: bool = False


def read_sets(data: Path) -> dict[str, SetDescription]:
    """Read ``sets.yaml`` in the folder ``data``.

    Raises
    ------
    InputError
        It is missing or broken, or a key is unknown, of the wrong type or out of range.
    """
    path = data / FILE
    entries = read_yaml(path, "run `mitoflow data --help`, or `dvc pull`")
    return {name: validated(SetDescription, entry, Path(f"{path}: {name}")) for name, entry in entries.items()}


def write_sets(data: Path, sets: Mapping[str, SetDescription]) -> None:
    """Write ``sets.yaml`` in the folder ``data``."""
    # Instances are written where there are any, so that the data of before that key keep their hash.
    entries = {
        name: described.model_dump(exclude=set() if described.instances else {"instances"})
        for name, described in sets.items()
    }
    write_yaml(data / FILE, entries)


def agree_on_voxel_size(
    images: Iterable[Location], given: Spacing, source: str, warn: Warn = lambda _: None
) -> Spacing:
    """Return the voxel size of a set: as given, and for other axes as its files say.

    Parameters
    ----------
    images
        Its files, and images on servers.
    given
        The voxel size that a person gave, as far as one did.
    source
        Where it was given.
    warn
        Called with the doubts about the first file that has any; see `mitoflow.io.spacing.in_nanometres`.

    Raises
    ------
    InputError
        A file contradicts what was given, or another file.
    """
    known, sources = dict(given), dict.fromkeys(given, source)
    doubts: list[InputError] = []
    for path in images:
        of_file: list[InputError] = []
        for axis, size in read_spacing(path, of_file.append, given).items():
            if axis not in known:
                known[axis], sources[axis] = size, str(path)
            elif not math.isclose(size, known[axis], rel_tol=TOLERANCE):
                found, expected = f"voxels of {size:g} nm along {axis}", f"{known[axis]:g} nm as in {sources[axis]}"
                remedy = f"correct {source} or the file; files of different voxel sizes are different sets"
                raise InputError(path, found, expected, remedy)
        doubts = doubts or of_file
    for doubt in doubts:
        warn(doubt)
    return known
