"""``params.yaml`` as frozen, validated models: one per section."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mitoflow.core import files
from mitoflow.errors import InputError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=1, le=6)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Tuned = Literal["tuned"]
MaskRule = Literal["auto", "nonzero", "half"]


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size}, an even number of slices, of which none is in the middle")
    return size


Odd = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class Section(BaseModel):
    """A section: read-only, nothing unknown in it, no type guessed.

    A model of a whole file lists in `renamed` the dotted keys of mitoflow 0.1, each with what to write in its place and
    what to do.
    """

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class Data(Section):
    """What lies in ``data/``; ``mitoflow data`` writes this section."""

    name: str
    mask_rule: MaskRule = "auto"


class Validate(Section):
    """When two neighbouring slices count as near-duplicates, as their correlation."""

    near_duplicate: Fraction


class Patch(Section):
    """How slices are cut, and which of them validate; lengths in pixels, ``gap`` in slices."""

    size: Annotated[int, Field(ge=16)]
    step: Positive
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    gap: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _step_covers(self) -> Self:
        if self.step > self.size:
            raise ValueError(f"step {self.step} is larger than size {self.size}, which would leave pixels out")
        return self


class Range(Section):
    """A closed interval that the study samples from."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class LearningRates(Range):
    """Learning rates, sampled on a log scale."""

    low: LearningRate
    high: LearningRate


class Depths(Range):
    """Depths of the U-Net, in poolings."""

    low: Depth
    high: Depth


class Strengths(Range):
    """Strengths of the augmentation."""

    low: Fraction
    high: Fraction


class Tune(Section):
    """The study: how many trials, how many at a time, how long each, and over which ranges."""

    trials: Positive
    epochs: Positive
    patches_per_epoch: Positive
    seed: Seed
    learning_rate: LearningRates
    depth: Depths
    augment_strength: Strengths


class Train(Section):
    """The final fit. ``tuned`` takes the value that the study found best."""

    init_from: str | Positive
    learning_rate: LearningRate | Tuned
    depth: Depth | Tuned
    augment_strength: Fraction | Tuned
    affine_fraction: Fraction
    intensity_strength: Fraction
    foreground_fraction: Fraction
    orthoplanes: bool
    context: Annotated[int, Field(ge=0, le=8)]
    context_step: Positive
    context_dropout: Fraction
    base_width: Positive
    loss: str
    precision: Literal["float32", "mixed_bfloat16"]
    batch_size: Positive
    epochs: Positive
    patches_per_epoch: Positive
    patience: Positive
    seed: Seed


class Bootstrap(Section):
    """The block bootstrap behind 95 % intervals; see `mitoflow.evaluation.bootstrap.bootstrap_interval`."""

    block: Positive = 10
    resamples: Annotated[int, Field(ge=100)] = 2000
    seed: Seed = 1


class Evaluate(Section):
    """Whole-slice inference on the test part, and the bootstrap behind the intervals.

    Of `medians`, windows along z in slices, validation chooses one.
    """

    tile: Annotated[int, Field(ge=64)]
    overlap: Annotated[int, Field(ge=0)]
    tta: Literal[1, 4, 8]
    orthoplanes: bool
    medians: Annotated[list[Odd], Field(min_length=1)]
    bootstrap_resamples: Positive
    bootstrap_block: Positive
    seed: Seed

    @model_validator(mode="after")
    def _tiles_advance(self) -> Self:
        if self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} is not below tile {self.tile}")
        return self


class Machine(Section):
    """What the machine has. It decides how fast results come and not what they are, so no stage depends on it."""

    workers: Positive
    strategy: Literal["none", "data_parallel"]


class Params(Section):
    """All of ``params.yaml``."""

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = {
        "tune.workers": ("machine.workers", "move it"),
        "train.strategy": ("machine.strategy", "move it"),
        "train.resampled": ("affine_fraction", "rename it"),
        "train.foreground": ("foreground_fraction", "rename it"),
        "train.planes": ("orthoplanes: true for 3, false for 1", "rename it"),
        # Nothing shows whether a value of overlap is old, so it is named here: every file of mitoflow 0.1 has this key.
        "evaluate.views": ("tta", "rename it, and double evaluate.overlap, which now is all that two tiles share"),
        "evaluate.planes": ("orthoplanes: true for 3, false for 1", "rename it"),
        "evaluate.resamples": ("bootstrap_resamples", "rename it"),
        "evaluate.block": ("bootstrap_block", "rename it"),
    }

    data: Data
    validate_: Annotated[Validate, Field(alias="validate")]
    patch: Patch
    tune: Tune
    train: Train
    evaluate: Evaluate
    machine: Machine

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        trained = self.tune.depth.high if self.train.depth == "tuned" else self.train.depth
        tile, overlap = self.evaluate.tile, self.evaluate.overlap
        sizes = {
            "patch.size": (self.patch.size, max(trained, self.tune.depth.high)),  # the study tries its depths anyway
            "evaluate.tile": (tile, trained),
            "evaluate.tile - evaluate.overlap": (tile - overlap, trained),
        }
        for key, (size, depth) in sizes.items():
            if size % 2**depth:
                needed = f"2^depth = {2**depth} (depth {depth}), as the U-Net's poolings need"
                raise ValueError(f"{key} {size} is not divisible by {needed}")
        if self.evaluate.orthoplanes and not self.train.orthoplanes:
            raise ValueError("evaluate.orthoplanes true needs a network trained on them: train.orthoplanes true")
        tuned = [key for key in ("learning_rate", "depth") if getattr(self.train, key) == "tuned"]
        if self.train.init_from != "none" and tuned:
            what = f"train.init_from {self.train.init_from} with train.{tuned[0]} tuned"
            raise ValueError(f"{what}, which the study finds for networks that begin anew: give a number")
        return self


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate ``params.yaml``.

    Raises
    ------
    InputError
        The file is missing or no YAML, or a key is unknown, missing, of the wrong type or out of range. The line names
        the key and, for a misspelled one, the key that was probably meant.
    """
    return read(Params, path)


def read(model: type[AnySection], path: Path) -> AnySection:
    """Read a YAML file as `model`, and raise what `load` raises."""
    raw = files.read_yaml(path, "run this in the project's folder; git has the file as it was")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _explain(model, path, error) from None


def _explain(model: type[Section], path: Path, error: ValidationError) -> InputError:
    """Turn pydantic's complaints into one line: an unknown key first, since it often explains a missing one."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first, keys = errors[0], _keys(errors[0]["loc"])
    where = f"{path}: {'.'.join(keys)}"
    match first["type"]:
        case "extra_forbidden" if new := model.renamed.get(".".join(keys)):
            return InputError(where, "a key of mitoflow 0.1", *new)
        case "extra_forbidden":
            section: Any = model
            for key in keys[:-1]:
                if key.isdecimal():  # a place in a list of sections
                    (section,) = get_args(section)
                else:
                    section = next(f.annotation for name, f in section.model_fields.items() if key in (name, f.alias))
            known = [field.alias or name for name, field in section.model_fields.items()]
            close = difflib.get_close_matches(keys[-1], known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "remove it"
            return InputError(where, "an unknown key", f"one of {', '.join(known)}", remedy)
        case "missing":
            return InputError(where, "no such key", "a value", "add it; git has the file as it was")
        case "value_error":
            found = first["msg"].removeprefix("Value error, ")
            return InputError(where.removesuffix(": "), found, "values that fit together", "change one of them")
        case _:
            # A key of several types has one complaint for each of them.
            wanted = dict.fromkeys(_expected(e["msg"]) for e in errors if _keys(e["loc"]) == keys)
            return InputError(where, repr(first["input"]), " or ".join(wanted), "change the value")


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of pydantic's location, without the types that it names inside a union."""
    sections = {"literal", "constrained", "function"}
    return [str(part) for part in location if str(part).replace("[", "-").split("-")[0] not in sections]


def _expected(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("a valid ").removeprefix("a ")
