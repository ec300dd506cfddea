"""``data/sets.yaml``: what is known of each set besides its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mitoflow.config.params import MaskRule
from mitoflow.config.sections import Section, validated
from mitoflow.core.files import read_yaml, write_yaml
from mitoflow.io.spacing import Spacing

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
    """

    voxel_size: VoxelSize = Field(default_factory=dict)
    tissue: str = ""
    terms: str = ""
    mask_rule: MaskRule = "auto"


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
    write_yaml(data / FILE, {name: description.model_dump() for name, description in sets.items()})
