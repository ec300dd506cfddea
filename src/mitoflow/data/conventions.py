"""How the grey values and masks of a data set are read: what stage `validate` hands to later stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from mitoflow.core.files import read_yaml, write_yaml
from mitoflow.data.masks import Rule


@dataclass(frozen=True)
class Conventions:
    """How the grey values and masks of a data set are to be read: what stage `validate` hands to later stages.

    Attributes
    ----------
    bit_depth
        Bits that the grey values of the training images use; see `camera_depth`.
    mask_rule
        See `binarise`.
    """

    bit_depth: int
    mask_rule: Rule

    def write(self, path: Path) -> None:
        """Write the conventions as YAML."""
        write_yaml(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Conventions:
        """Read conventions that `write` wrote; raises `InputError` where they are missing or broken."""
        values = read_yaml(path, "run `dvc repro validate`", ("bit_depth", "mask_rule"))
        return cls(values["bit_depth"], values["mask_rule"])
