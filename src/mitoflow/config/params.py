"""``params.yaml`` as models, one per section, with the defaults: the one place where a parameter is defined.

``docs/parameters.md`` says what each key means. A new parameter is a field here, a line in ``params.yaml`` and a row
there; tests hold the three, and the lists in ``dvc.yaml``, together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mitoflow.config.sections import Section, read, validated
from mitoflow.core import files

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Resamples = Annotated[int, Field(ge=100)]  # draws of a bootstrap: with few, the bounds of its interval are noise
Depth = Annotated[int, Field(ge=1, le=6)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Tuned = Literal["tuned"]
MaskRule = Literal["auto", "nonzero", "half", "partial"]
Normalization = Literal["percentiles", "range"]

#: What the study can search: keys of ``tune`` with a range each, and of ``train`` with a number or ``tuned``.
SAMPLED = ("learning_rate", "depth", "augment_strength")


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size}, an even number of slices, of which none is in the middle")
    return size


Odd = Annotated[int, Field(ge=1, le=1001), AfterValidator(_odd)]


class Data(Section):
    """The sets in ``data/``, their names joined by ``+``; ``mitoflow data`` writes this section."""

    name: str = "phantom"


class Validate(Section):
    """When two neighbouring slices count as near-duplicates, as their correlation."""

    near_duplicate: Fraction = 0.995


class Patch(Section):
    """How slices are cut and stretched, and which validate; lengths in pixels, ``gap`` in slices."""

    size: Annotated[int, Field(ge=16)] = 256
    step: Positive = 256
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    gap: Annotated[int, Field(ge=0)] = 4
    normalization: Normalization = "percentiles"

    @model_validator(mode="after")
    def _step_covers(self) -> Self:
        if self.step > self.size:
            raise ValueError(f"step {self.step} is larger than size {self.size}, which would leave pixels out")
        return self


class Range(Section):
    """A closed interval that the study searches, and the value of its first trial."""

    low: float
    start: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.start <= self.high:
            raise ValueError(f"low {self.low}, start {self.start} and high {self.high} are not in ascending order")
        return self


class LearningRates(Range):
    """Learning rates, on a log scale."""

    low: LearningRate = 0.0005
    start: LearningRate = 0.002
    high: LearningRate = 0.01


class Depths(Range):
    """Depths of the U-Net, in poolings."""

    low: Depth = 2
    start: Depth = 4
    high: Depth = 4


class Strengths(Range):
    """Strengths of the augmentation."""

    low: Fraction = 0.0
    start: Fraction = 0.7
    high: Fraction = 1.0


class Tune(Section):
    """The study by successive halving: its trials, its budget, and the ranges of what it searches.

    `budget` counts crops of all trials together, or minutes of one worker; one of `reduction` trials is promoted.
    """

    trials: Positive = 6
    reduction: Annotated[int, Field(ge=2)] = 3
    budget: Positive = 3000
    budget_unit: Literal["crops", "minutes"] = "crops"
    seed: Seed = 1
    learning_rate: LearningRates = LearningRates()
    depth: Depths = Depths()
    augment_strength: Strengths = Strengths()


class Scale(Section):
    """Zoom with rotation by any angle, on a share of the crops.

    `low` and `high` are sizes of structures in the crop relative to those in the image, drawn evenly in log; `stretch`
    is the greatest ratio of the sizes along the two axes.
    """

    share: Fraction = 0.0
    low: Annotated[float, Field(gt=0, le=1)] = 0.5
    high: Annotated[float, Field(ge=1, le=16)] = 2.0
    stretch: Annotated[float, Field(ge=1, le=4)] = 1.5


class Myelin(Section):
    """Sheaths of myelin drawn into a share of the crops, as background."""

    share: Fraction = 0.0


class Inversion(Section):
    """Dark for bright, on a share of the crops."""

    share: Fraction = 0.0


class LocalContrast(Section):
    """CLAHE on a share of the crops; its clip limit lies between 1 and `limit`."""

    share: Fraction = 0.0
    limit: Annotated[float, Field(ge=1)] = 5.0


class Shading(Section):
    """A smooth field added to a share of the crops; `limit` is its greatest standard deviation."""

    share: Fraction = 0.0
    limit: Fraction = 0.12


class Sharpening(Section):
    """An unsharp mask on a share of the crops, of at most `limit` times what a blur takes away."""

    share: Fraction = 0.0
    limit: Annotated[float, Field(gt=0)] = 1.5


class CorrelatedNoise(Section):
    """Noise that neighbouring pixels share, on a share of the crops; `limit` is its greatest standard deviation."""

    share: Fraction = 0.0
    limit: Fraction = 0.12


class Cutout(Section):
    """Boxes of constant grey in a share of the crops, with sides of at most `limit` pixels."""

    share: Fraction = 0.0
    limit: Annotated[int, Field(ge=4)] = 64


class DamagedSlices(Section):
    """A neighbouring slice that is missing, repeated, or shifted by at most `limit` pixels, in a share of the crops."""

    share: Fraction = 0.0
    limit: Positive = 16


class DroppedSlices(Section):
    """Neighbouring slices further apart in a share of the crops: up to `limit` slices between them are skipped."""

    share: Fraction = 0.0
    limit: Positive = 3


class Augmentation(Section):
    """How far the crops leave what the training stacks show; each is off at a share of 0."""

    scale: Scale = Scale()
    myelin: Myelin = Myelin()
    inversion: Inversion = Inversion()
    local_contrast: LocalContrast = LocalContrast()
    shading: Shading = Shading()
    sharpening: Sharpening = Sharpening()
    correlated_noise: CorrelatedNoise = CorrelatedNoise()
    cutout: Cutout = Cutout()
    damaged_slices: DamagedSlices = DamagedSlices()
    dropped_slices: DroppedSlices = DroppedSlices()


class SharedWithTrials(Section):
    """The keys of ``train`` that the trials of the study are fitted with, too."""

    affine_fraction: Fraction = 0.33
    intensity_strength: Fraction = 0.5
    augmentation: Augmentation = Augmentation()
    foreground_fraction: Fraction = 0.5
    set_balance: Fraction = 1.0
    orthoplanes: bool = False
    context: Annotated[int, Field(ge=0, le=8)] = 1
    context_step: Annotated[int, Field(ge=1, le=10**4)] = 1
    context_dropout: Fraction = 0.1
    contacts: bool = False
    network: str = "unet_strided"
    base_width: Positive = 16
    loss: str = "bce"
    precision: Literal["float32", "mixed_bfloat16"] = "mixed_bfloat16"
    batch_size: Positive = 8


class OpenRecipe(SharedWithTrials):
    """What a recipe holds, where the study may still have to find the values that are ``tuned``."""

    learning_rate: LearningRate | Tuned = "tuned"
    depth: Depth | Tuned = "tuned"
    augment_strength: Fraction | Tuned = "tuned"
    epochs: Positive = 25
    patches_per_epoch: Positive = 120
    patience: Positive = 12
    average_epochs: Positive = 1
    seed: Seed = 1


class Recipe(OpenRecipe):
    """All that decides a fit, besides the patches and the initial weights, with no value left to the study."""

    learning_rate: LearningRate
    depth: Depth
    augment_strength: Fraction

    def replace(self, **changes: Any) -> Self:
        """Return the recipe with other values for some keys."""
        return self.model_validate(self.model_dump() | changes)


class Train(OpenRecipe):
    """The training: a recipe, and the weights that it starts from."""

    init_from: str | Positive = "none"

    @property
    def tuned(self) -> list[str]:
        """The keys whose values the study finds."""
        return [key for key in SAMPLED if getattr(self, key) == "tuned"]

    def recipe(self, best_params: Path) -> Recipe:
        """Return the recipe of the final fit; values that are tuned come from the file in which the study put them.

        Raises
        ------
        InputError
            A value is needed from the file, and it is missing there or cannot be used.
        """
        best = files.read_yaml(best_params, "run `dvc repro tune`", self.tuned) if self.tuned else {}
        values = self.model_dump(exclude={"init_from"}) | {key: best[key] for key in self.tuned}
        return validated(Recipe, values, best_params)


class Bootstrap(Section):
    """The block bootstrap behind 95 % intervals; see `mitoflow.evaluation.bootstrap.bootstrap_interval`."""

    block: Positive = 10
    resamples: Resamples = 2000
    seed: Seed = 1


class Evaluate(Section):
    """Whole-slice inference on the test part, and the bootstrap behind the intervals.

    Of `medians`, windows along z in slices, validation chooses one, and the `threshold` too unless it is a number.
    """

    tile: Annotated[int, Field(ge=64, le=2**14)] = 256
    overlap: Annotated[int, Field(ge=0)] = 64
    tta: Literal[1, 4, 8] = 1
    orthoplanes: bool = False
    medians: Annotated[list[Odd], Field(min_length=1)] = [1, 3, 5, 7]  # noqa: RUF012
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["chosen"] = "chosen"
    bootstrap_resamples: Resamples = 2000
    bootstrap_block: Positive = 6
    seed: Seed = 1

    @model_validator(mode="after")
    def _tiles_advance(self) -> Self:
        if self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} is not below tile {self.tile}")
        return self

    @property
    def fixed_threshold(self) -> float | None:
        """The threshold, or None where validation chooses it."""
        return None if self.threshold == "chosen" else self.threshold


class Instances(Section):
    """What counts as a mitochondrion, and when one object is several.

    Attributes
    ----------
    smallest_um3
        Objects of a smaller volume do not count; in a single slice, those of less area than the great circle of a ball
        of this volume. The default is a ball 124 nm across: thin mitochondria are 100 to 200 nm across but long, and
        the smallest that is whole in the EPFL training volume has eleven times this volume.
    smallest_voxels
        The same where the voxel size is unknown. The default is a ball ten voxels across.
    neck
        Two parts of an object are two mitochondria where the neck between them is less than this times as thick as the
        thinner part. From 0, which splits nothing, to below 1, which splits at every constriction. Of the 26 largest
        components of the EPFL training volume two have a neck of at most 0.5, and all others are above 0.7.
    """

    smallest_um3: Annotated[float, Field(ge=0)] = 0.001
    smallest_voxels: Annotated[int, Field(ge=0)] = 500
    neck: Annotated[float, Field(ge=0, lt=1)] = 0.6


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) or name.endswith("-promotions"):
        allowed = "letters, digits and . _ + -, without the ending -promotions, which the logs of promotions have"
        raise ValueError(f"{name!r} as a name; allowed are {allowed}")
    return name


class Registry(Section):
    """Which registered model of MLflow the versions of this project belong to, with a champion and a history."""

    model: Annotated[str, AfterValidator(_model_name)] = "mitoflow"


class Machine(Section):
    """What the machine has: it decides how fast results come, not what they are, so no stage depends on it."""

    workers: Positive = 1
    strategy: Literal["none", "data_parallel"] = "none"
    loaders: Annotated[int, Field(ge=0)] = 0


class Params(Section):
    """All of ``params.yaml``."""

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = {
        "data.mask_rule": ("data/sets.yaml", "remove it"),
        "tune.epochs": ("tune.budget, the crops of all trials together", "replace it"),
        "tune.patches_per_epoch": ("tune.budget, the crops of all trials together", "replace it"),
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

    data: Data = Data()
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()
    patch: Patch = Patch()
    tune: Tune = Tune()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    instances: Instances = Instances()
    registry: Registry = Registry()
    machine: Machine = Machine()

    def starting_recipe(self) -> Recipe:
        """Return the recipe of a training without a study, with the values of its first trial where it is tuned."""
        start = {key: getattr(self.tune, key).start for key in self.train.tuned}
        return Recipe.model_validate(self.train.model_dump(exclude={"init_from"}) | start)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        depth = self.tune.depth.high if self.train.depth == "tuned" else self.train.depth
        tile, overlap = self.evaluate.tile, self.evaluate.overlap
        sizes = {
            "patch.size": self.patch.size,
            "evaluate.tile": tile,
            "evaluate.tile - evaluate.overlap": tile - overlap,
        }
        for key, size in sizes.items():
            if size % 2**depth:
                needed = f"2^depth = {2**depth} (depth {depth}), as the U-Net's poolings need"
                raise ValueError(f"{key} {size} is not divisible by {needed}")
        return self

    @model_validator(mode="after")
    def _network_is_known(self) -> Self:
        if self.evaluate.orthoplanes and self.train.context and not self.train.orthoplanes:
            needed = "train.orthoplanes true, or train.context 0: neighbours in other planes are unlike those along z"
            raise ValueError(f"evaluate.orthoplanes true needs a network that knows such planes, {needed}")
        if self.train.init_from != "none" and self.train.depth == "tuned":
            what = f"train.init_from {self.train.init_from} with train.depth tuned"
            raise ValueError(f"{what}: give the depth of that model")
        return self


def as_trained(sections: Mapping[str, Any], recipe: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of ``params.yaml`` as a training used them.

    Parameters
    ----------
    sections
        The sections as they are written.
    recipe
        Of the training; in ``train`` its numbers take the place of ``tuned``, and ``tuned`` names their keys.
    initial
        The model that the training began with, as the section ``initial``; empty for random weights.
    """
    train = sections.get("train", {})
    tuned = ", ".join(key for key in SAMPLED if train.get(key) == "tuned") or "none"
    return {**sections, "train": {**train, **recipe}, "tuned": tuned, "initial": dict(initial)}


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate ``params.yaml``, which holds every key: DVC does not see a default that changes.

    Raises
    ------
    InputError
        As in `mitoflow.config.sections.read`.
    """
    return read(Params, path, complete=True)


def load_instances(
    options: Mapping[str, float | None] = MappingProxyType({}), path: Path = Path("params.yaml")
) -> Instances:
    """Return what counts as a mitochondrion: by ``params.yaml``, or the defaults where the folder has none.

    Parameters
    ----------
    options
        Values that take the place of those of the file, by key, each in the range of its key; None for no other value.
    path
        The file; other sections are not looked at.

    Raises
    ------
    InputError
        The section is wrong.
    """
    section = _load_section("instances", path).instances
    given = {key: value for key, value in options.items() if value is not None}
    return Instances.model_validate(section.model_dump() | given)


def load_registry() -> Registry:
    """Return the section ``registry`` of ``params.yaml``, or the default where the folder has none.

    Raises
    ------
    InputError
        The section is wrong; others are not looked at.
    """
    return _load_section("registry", Path("params.yaml")).registry


def _load_section(name: str, path: Path) -> Params:
    """Return parameters of which one section is that of a file, where there is such a file."""
    stated = files.read_yaml(path, "git has the file as it was").get(name, {}) if path.is_file() else {}
    return validated(Params, {name: stated}, path)
