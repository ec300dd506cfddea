"""What Dice to expect of a prediction, and what to do about it: a judgement that needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mitoflow.core import files
from mitoflow.errors import InputError
from mitoflow.inference.agreement import Agreement

Verdict = Literal["usable", "look closely", "do not use"]

USABLE, LOOK_CLOSELY = 0.8, 0.6  # expected Dice from which a verdict holds


@dataclass(frozen=True)
class Calibration:
    """How Dice follows from agreement, as measured on tissue that a model had not seen.

    ``slope * product + intercept``, within [0, 1], is the expected Dice.

    Attributes
    ----------
    slope, intercept
        Of the straight line through the left-out stacks.
    error
        What four of five of these stacks lay within, in Dice.
    stacks
        How many stacks it was measured on.
    """

    slope: float
    intercept: float
    error: float
    stacks: int

    @classmethod
    def fit(cls, agreements: Sequence[Agreement], dices: Sequence[float]) -> Calibration:
        """Return the calibration for stacks of which both agreement and Dice are known; at least three."""
        slope, intercept = np.polyfit([agreement.product for agreement in agreements], dices, 1)
        return cls(float(slope), float(intercept), 0.0, 0).checked_on(agreements, dices)

    def checked_on(self, agreements: Sequence[Agreement], dices: Sequence[float]) -> Calibration:
        """Return the same line with its error on these stacks, such as some that it was not fitted to."""
        errors = [abs(self.dice(agreement) - dice) for agreement, dice in zip(agreements, dices, strict=True)]
        return replace(self, error=float(np.quantile(errors, 0.8)), stacks=len(errors))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read what `write` wrote; raises `InputError` where it is missing or not whole."""
        names = ("slope", "intercept", "error", "stacks")
        remedy = "take it from where the model came from"
        values = files.read_yaml(path, remedy, names)
        for name in names:
            if type(values[name]) not in (int, float) or not np.isfinite(values[name]):
                raise InputError(f"{path}: {name}", values[name], "a number", remedy)
        return cls(**{name: values[name] for name in names})

    def write(self, path: Path) -> None:
        """Write the calibration as YAML."""
        files.write_yaml(path, asdict(self))

    def dice(self, agreement: Agreement) -> float:
        """Return the Dice to be expected of a stack, in [0, 1]."""
        return float(np.clip(self.slope * agreement.product + self.intercept, 0, 1))


def verdict(dice: float) -> Verdict:
    """Return in words what an expected Dice means."""
    if dice >= USABLE:
        return "usable"
    return "look closely" if dice >= LOOK_CLOSELY else "do not use"
