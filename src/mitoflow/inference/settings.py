"""What inference must know besides the weights of a model, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mitoflow.core import files
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError

if TYPE_CHECKING:  # the registered model runs without pydantic
    from mitoflow.config.params import Evaluate, Recipe

#: Smallest and largest whole numbers; no model needs more, and with much more any machine runs out of memory.
RANGES = {
    "bit_depth": (8, 16),
    "divisor": (1, 2**10),
    "tile": (1, 2**14),
    "overlap": (0, 2**14),
    "context": (0, 100),
    "context_step": (0, 10**4),
    "tta": (1, 8),
    "median": (1, 1001),
}
REMEDY = "run `dvc repro evaluate` or `dvc pull`"

Normalization = Literal["range", "percentiles"]

#: Test-time augmentation: the symmetries of a tile by their number, as quarter turns and the step along x.
TTA = {
    1: [(0, 1)],
    4: [(turns, flip) for turns in (0, 2) for flip in (1, -1)],
    8: [(turns, flip) for turns in range(4) for flip in (1, -1)],
}


@dataclass(frozen=True)
class Settings:
    """What inference must know besides the weights.

    Attributes
    ----------
    bit_depth
        Bits of the grey values that the model was trained on.
    divisor
        The U-Net takes sides that are divisible by this: ``2**depth``.
    tile, overlap
        Largest side of a tile, and the pixels that two neighbouring tiles share and blend.
    threshold
        Probability from which a pixel is mitochondrion.
    context, context_step
        Neighbouring slices on each side that the model sees with a slice, and slices from one to the next; a step of 0
        puts copies of the slice in their place.
    tta
        Test-time augmentation: symmetries of a tile whose predictions are averaged; 1 none, 4 flips, 8 quarter turns
        too.
    median
        Slices, an odd number, over which the probability of a pixel is the median; 1 leaves it as it is.
    orthoplanes
        Whether the probability of a voxel is the mean over the three planes through it, perpendicular to z, y and x, in
        place of that in its slice.
    normalization
        What is done to grey values before anything else. ``percentiles``: each slice is stretched between two
        percentiles of all of it, as `mitoflow.data.network_input.slice_range` says, to 8 bits. ``range``: nothing; they
        count as shares of the largest value of `bit_depth`.
    slices
        How far apart the slices are that the model learned from; None where nobody knows.
    contacts
        Whether the network has a second output, which says where two mitochondria touch.
    """

    bit_depth: int
    divisor: int
    tile: int
    overlap: int
    threshold: float
    context: int = 0
    context_step: int = 1
    tta: int = 1
    median: int = 1
    orthoplanes: bool = False
    normalization: Normalization = "range"
    slices: SliceDistance | None = None
    contacts: bool = False

    @classmethod
    def for_recipe(cls, recipe: Recipe, wanted: Evaluate, bit_depth: int) -> Settings:
        """Return the settings of a network that was fitted by a recipe, before validation chooses a threshold."""
        return cls.for_network(
            wanted,
            bit_depth=bit_depth,
            divisor=2**recipe.depth,
            context=recipe.context,
            context_step=recipe.context_step,
            contacts=recipe.contacts,
        )

    @classmethod
    def for_network(cls, wanted: Evaluate, **facts: Any) -> Settings:
        """Return the settings of a network, before validation chooses a threshold.

        Parameters
        ----------
        wanted
            How it predicts.
        facts
            What it learned from, by the names of the attributes here: `bit_depth`, `divisor`, `context`,
            `context_step`, and `normalization`, `slices` and `contacts` where they are not the defaults.
        """
        return cls(
            tile=wanted.tile,
            overlap=wanted.overlap,
            tta=wanted.tta,
            orthoplanes=wanted.orthoplanes,
            threshold=0.5,
            **facts,
        )

    def write(self, path: Path) -> None:
        """Write the settings as YAML."""
        files.write_yaml(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read settings of this version or of mitoflow 0.1; raises `InputError` where they are missing or not whole."""
        values = files.read_yaml(path, REMEDY)
        is_old = {"views", "planes", "overlap"} <= values.keys()
        if is_old:
            values = _translated(values)
        values = {"normalization": "range", "slices": None, "contacts": False, **values}  # files of before these keys
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise InputError(f"{path}: {missing[0]}", "no such key", "a value", REMEDY)
        settings = cls(**{name: values[name] for name in names} | {"slices": _slices(values["slices"], path)})
        if wrong := settings.wrong():
            raise InputError(path, f"{wrong}: {getattr(settings, wrong)}", "what `mitoflow` wrote there", REMEDY)
        if is_old:
            now = f"tta: {settings.tta}, orthoplanes: {settings.orthoplanes} and overlap: {settings.overlap}".lower()
            line = "%s: written by mitoflow 0.1; its views, planes and overlap are %s now"
            logging.getLogger("mitoflow").warning(line, path, now)
        return settings

    @property
    def outputs(self) -> int:
        """How many logits the network has for each pixel."""
        return 2 if self.contacts else 1

    def uses_orthoplanes(self, shape: tuple[int, int, int]) -> bool:
        """Return whether a stack of `shape` (Z, Y, X) is predicted in orthogonal planes.

        It is not where it has fewer slices than the network needs.
        """
        return self.orthoplanes and shape[0] >= self.divisor

    def wrong(self) -> str | None:
        """Return the name of a value that no inference can work with."""
        checks = {
            **{name: _is_whole(getattr(self, name), low, high) for name, (low, high) in RANGES.items()},
            "threshold": isinstance(self.threshold, float | int) and 0 <= self.threshold <= 1,
            "orthoplanes": type(self.orthoplanes) is bool,
            "contacts": type(self.contacts) is bool,
            "normalization": self.normalization in get_args(Normalization),
        }
        if all(checks.values()):
            checks |= {
                "tile": self.tile > self.overlap,
                "normalization": self.normalization == "range" or self.bit_depth == 8,
                "tta": self.tta in TTA,
                "median": self.median % 2 == 1,
            }
        return next((name for name, is_right in checks.items() if not is_right), None)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _slices(values: Any, path: Path) -> SliceDistance | None:
    if values is None:
        return None
    names = [field.name for field in dataclasses.fields(SliceDistance)]
    numbers = [values.get(name) for name in names] if isinstance(values, dict) else [""]
    if not all(number is None or (isinstance(number, float | int) and number > 0) for number in numbers):
        raise InputError(f"{path}: slices", values, f"numbers above 0 for {', '.join(names)}", REMEDY)
    return SliceDistance(*numbers)


def _translated(values: dict[str, Any]) -> dict[str, Any]:
    """Return what mitoflow 0.1 wrote with the keys of today: its `overlap` was half of what tiles share."""
    overlap, planes = values["overlap"], values["planes"]
    return {
        **values,
        "overlap": 2 * overlap if type(overlap) is int else overlap,
        "tta": values["views"],
        "orthoplanes": planes == 3 if planes in (1, 3) else planes,
    }
