"""What a model is worth on tissue that it has not seen: `python -m benchmarks leave-one-set-out --data PROJECT`.

For each set of a project a model is fitted on the others, by a preset. It is measured on the set that was left out:

- zero-shot, on every slice, by the masks that `mitoflow predict` makes of the stacks: at the pixel size as published
  with the threshold of the model, at the scale and the threshold that the model finds by itself (`unknown`), and, where
  the pixel sizes of the set and of the training sets are known, at those that it finds if it expects that ratio
  (`known`);
- how far the model agrees with itself, beside its Dice, stack by stack and each slice by itself: as it finds, at half
  of that scale, and as published; `--calibration` writes how Dice follows from agreement;
- after fine-tuning on 1, 4 and 12 of its slices, drawn several times, beside the same network trained on the same
  slices from random weights, for as many crops, each slice by itself. A set of few slices gives quarters of slices in
  place of slices.

What is labelled and what is measured after it never lie side by side: the last slices of each stack are measured, and a
gap before them is left out. Only the training part of the project is used; its test part stays closed.

Results are lines of JSON in the project. What is there is not done again, so that the protocol may be interrupted;
fits go on from their checkpoints. Other parameters, other sets or other models to start from are another protocol, with
results and tables of its own. `--without` leaves one augmentation out, for the rows of an ablation. After a change of
the code, remove the folder of `--work`: its models are found by their recipe and their patches.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks import leave_one_set_out_report as report
from benchmarks.result_lines import Results, path_of_results
from mitoflow.config import presets
from mitoflow.config.params import Augmentation, Evaluate, Params, Patch, Recipe
from mitoflow.core import files
from mitoflow.data.conventions import Conventions, mean_pixel_size, read_conventions
from mitoflow.data.cutting import split, write_store
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.data.masks import NOT_LOOKED_AT, binarise
from mitoflow.data.network_input import slice_range, stretched
from mitoflow.data.pairs import Pair, read_pairs, read_set
from mitoflow.data.patches import PatchStore
from mitoflow.data.slice_distance import spread
from mitoflow.errors import InputError, run_as_command
from mitoflow.evaluation import metrics, protocols
from mitoflow.evaluation.bootstrap import bootstrap_interval
from mitoflow.evaluation.curves import ProbabilityHistogram, best_threshold
from mitoflow.inference import model_files
from mitoflow.inference.adaptation import enlarged
from mitoflow.inference.agreement import agreements, for_windows
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.model_input import ArrayVolume
from mitoflow.inference.operating_point import OperatingPoint
from mitoflow.inference.prediction import prediction_of
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import resampling, tiff
from mitoflow.io.spacing import Spacing
from mitoflow.io.volumes import Volume
from mitoflow.models import unet
from mitoflow.stages.paths import CONVENTIONS, DATA
from mitoflow.training import fitting

RESULTS = "leave_one_set_out"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "labels.svg"
PARTS = ("zero-shot", "few-labels")
JUDGED_SLICES = 8  # of a stack, evenly, whose Dice is compared with the agreement of the model
MEASURED_SHARE, GAP = 0.3, 2  # of the slices of a stack that are measured after fine-tuning, and slices before them
ENOUGH = 12  # slices; of a set with fewer to draw from, quarters are labelled
MOST_DRAWS = 100  # of labels, until there are mitochondria in those that validate
INTENSITY = "intensity"  # the name in `--without` of what `train.intensity_strength` sets

#: What a mask stores for background, mitochondrion, and pixels that nobody looked at.
STORED = np.array([0, 255, NOT_LOOKED_AT], np.uint8)

#: Image, (Y, X) uint8, and mask, (Y, X) uint8 as `binarise` returns it.
Slice = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TissueSet:
    """The training part of one set.

    Attributes
    ----------
    name
        Of the set.
    pairs, conventions
        Its stacks, and how they are read.
    """

    name: str
    pairs: list[Pair]
    conventions: Conventions

    @cached_property
    def digest(self) -> str:
        """Identifies the files of the set, and how they are read."""
        stacks = [stack for pair in self.pairs for stack in (pair.image, pair.mask)]
        about = [asdict(self.conventions), [pair.name for pair in self.pairs]]
        return files.short_digest(about, *(stack.path for stack in stacks))

    @cached_property
    def slices(self) -> list[Slice]:
        """Every slice, its grey values between their percentiles: of all stacks, one after the other."""
        return [
            (between_percentiles(image), binarise(mask, self.conventions.mask_rule))
            for pair in self.pairs
            for image, mask in zip(pair.image.slices(), pair.mask.slices(), strict=True)
        ]

    @cached_property
    def stacks(self) -> list[str]:
        """The stack of each slice; slices that are no neighbours are stacks of their own."""
        names = [(pair.name, z) for pair in self.pairs for z in range(pair.image.shape[0])]
        return [f"{name}-{z}" if self.conventions.unrelated else name for name, z in names]

    @cached_property
    def sides(self) -> dict[str, list[int]]:
        """The slices that may be labelled, `train`, and those that are measured after that, `validation`."""
        depths = [pair.image.shape[0] for pair in self.pairs]
        firsts = np.cumsum([0, *depths]).tolist()
        sides = split(depths, MEASURED_SHARE, 0 if self.conventions.unrelated else GAP)
        return {side: [firsts[stack] + z for stack, z in slices] for side, slices in sides.items()}

    def volume(self, stack: str) -> ArrayVolume:
        """Return a stack, as the network sees it."""
        return ArrayVolume(
            np.stack([page for page, name in zip(self.images, self.stacks, strict=True) if name == stack])
        )

    @property
    def images(self) -> list[np.ndarray]:
        """The images of all slices."""
        return [image for image, _ in self.slices]

    def labelled(self, count: int, draw: int, settings: Patch) -> list[Slice]:
        """Draw the slices or quarters that are labelled; one that is alone comes in quarters, of which one validates.

        A draw is made again where there are no mitochondria in what validates, as a person would label others then.

        Raises
        ------
        InputError
            There are fewer, or there are no mitochondria.
        """
        pool = [self.slices[place] for place in self.sides["train"]]
        if len(pool) < ENOUGH:
            pool = [quarter for each in pool for quarter in quarters(each)]
        if count > len(pool):
            raise InputError("--labels", count, f"at most the {len(pool)} of {self.name}", "ask for fewer")
        for places in draws(len(pool), count, draw):
            drawn = [pool[place] for place in places] if count > 1 else quarters(pool[places[0]])
            if can_validate([mask for _, mask in drawn], settings):
                return drawn
        raise no_mitochondria(self.name)


def draws(pool: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield draws of so many different places, (count,)."""
    rng = np.random.default_rng((count, seed))
    for _ in range(MOST_DRAWS):
        yield rng.permutation(pool)[:count]


def can_validate(masks: Sequence[np.ndarray], settings: Patch) -> bool:
    """Return whether there are mitochondria in those of some single slices that validate; `patch` refuses others."""
    held_out = split([1] * len(masks), settings.validation_fraction, 0)["validation"]
    return any((masks[stack] == 1).any() for stack, _ in held_out)


def no_mitochondria(name: str) -> InputError:
    """Return the error of a set none of whose `draws` can validate."""
    return InputError(name, f"no mitochondria in what validates, in {MOST_DRAWS} draws", "some", "leave the set out")


def between_percentiles(image: np.ndarray) -> np.ndarray:
    """Return a slice, (Y, X), as patch stores and predictions with ``normalization: percentiles`` have it."""
    height, width = image.shape
    return stretched(image, *slice_range(lambda box: image[box[0] : box[1], box[2] : box[3]], (height, width)))


def quarters(whole: Slice) -> list[Slice]:
    """Return the four quarters of a slice."""
    image, mask = whole
    y, x = (length // 2 for length in image.shape)
    corners = [(rows, columns) for rows in (slice(y), slice(y, None)) for columns in (slice(x), slice(x, None))]
    return [(image[corner], mask[corner]) for corner in corners]


@dataclass(frozen=True)
class Trained(TrainedModel):
    """A model that was fitted on the other sets, as `mitoflow predict` gets one of many tissues.

    Attributes
    ----------
    pixel_size
        The mean of the sets that it was trained on, where it is known.
    """

    pixel_size: Spacing

    @property
    def domain(self) -> Fingerprint:
        """The pixel size of training: the scale of a prediction depends on nothing else of it."""
        return Fingerprint(0, [], [], [], [], [], [], self.pixel_size)

    @property
    def calibration(self) -> Calibration:
        """One that says nothing: models that come with one search their scale, and this protocol is to measure it."""
        return Calibration(slope=0.0, intercept=0.0, error=1.0, stacks=0)


@dataclass(frozen=True)
class Protocol:
    """What all measurements of a run have in common.

    Attributes
    ----------
    sets
        The sets of the project by name.
    preset, finetune
        The parameters of the fits on the other sets, and of those on the labelled slices.
    work
        Where copies, patches, checkpoints and models are kept.
    loaders
        Processes that make the batches of the fits on other sets; see `fitting.fit`.
    start
        A folder with a model for each set, ``SET.keras``, that has not seen it, from whose weights the fits on the
        other sets go on; None begins with random weights.
    """

    sets: Mapping[str, TissueSet]
    preset: Params
    finetune: Params
    work: Path
    loaders: int
    start: Path | None = None

    @cached_property
    def digest(self) -> str:
        """Identifies what all results have in common: parameters, the content of the sets, and where fits start."""
        parameters = [
            [each.starting_recipe().model_dump(), each.model_dump(include={"patch", "evaluate"})]
            for each in (self.preset, self.finetune)
        ]
        starts = sorted(self.start.glob("*.keras")) if self.start else []
        content = {name: tissue.digest for name, tissue in self.sets.items()}
        return files.short_digest([parameters, content, [path.name for path in starts]], *starts)[:12]

    def fitted(self, left_out: str, variant: str, recipe: Recipe) -> Trained:
        """Fit a model on the other sets, unless there is one; validation chooses its threshold, unless it is given."""
        store = self._store_without(left_out)
        start = self.start_of(left_out)
        key = files.short_digest([recipe.model_dump(), store.digest], *start)
        models, wanted, title = self.work / "models", self.preset.evaluate, f"{variant}, without {left_out}"
        folder = models / f"{key}-{files.short_digest(wanted.model_dump())}"
        origin = {"model": title, "model_sha256": key}
        trained = Trained(title, models / f"{key}.keras", folder, origin, self.pixel_size_without(left_out))
        folder.mkdir(parents=True, exist_ok=True)
        if not trained.weights.exists():
            checkpoints = self.work / "checkpoints" / key
            checkpoints.mkdir(parents=True, exist_ok=True)
            initial = unet.load_model(start[0]) if start else None
            fitted = fitting.fit(
                store, recipe, initial=initial, loaders=self.loaders, checkpoints=checkpoints, title=title
            )
            unet.save_model(fitted.model, trained.weights)
        if not (folder / model_files.SETTINGS).exists():
            model = unet.load_model(trained.weights)
            self._predictor(model, recipe, store, wanted).settings.write(folder / model_files.SETTINGS)
        return trained

    def start_of(self, left_out: str) -> list[Path]:
        """Return the file of the model that a fit starts from, or nothing.

        Raises
        ------
        InputError
            There is no such file.
        """
        if self.start is None:
            return []
        path = self.start / f"{left_out}.keras"
        if not path.exists():
            raise InputError("--start", f"no {path.name} in {self.start}", "a model for each set", "add it")
        return [path]

    def zero_shot(self, left_out: str, pixel_size: str, trained: Trained) -> dict[str, Any]:
        """Measure the masks that `mitoflow predict` makes of the set that a model has not seen."""
        tissue = self.sets[left_out]
        own = tissue.conventions.spacing if pixel_size == report.KNOWN else {}
        rescale = "none" if pixel_size == report.PUBLISHED else "auto"
        stacks = dict.fromkeys(tissue.stacks)
        predictions = {name: predicted(trained, tissue.volume(name), own, rescale) for name in stacks}
        points = {name: point_of(prediction) for name, prediction in predictions.items()}
        maps = chain.from_iterable(each.maps(each.whole) for each in predictions.values())
        found = self._scores(tissue, range(len(tissue.slices)), maps, [points[name] for name in tissue.stacks])
        return {"points": {name: [round(each, 4) for each in point] for name, point in points.items()}, **found}

    def judged(self, left_out: str, trained: Trained) -> dict[str, Any]:
        """Measure agreement and Dice of each stack of the set: as the model finds, at half of that scale, as published.

        Scales above the best one are left out: there, masks of larger windows differ long before Dice falls.
        """
        tissue, predictor = self.sets[left_out], trained.predictor
        rows = []
        for name in dict.fromkeys(tissue.stacks):
            whole = tissue.volume(name)
            found = point_of(predicted(trained, whole, {}))
            places = [place for place, stack in enumerate(tissue.stacks) if stack == name]
            shown = [places[each] for each in spread(len(places) - 1, JUDGED_SLICES)]
            as_published = OperatingPoint(1.0, predictor.settings.threshold)
            for point in dict.fromkeys((found, found._replace(scale=found.scale / 2), as_published)):
                at_scale = partial(resized_volume, whole)
                (agreed,) = agreements(for_windows(predictor), at_scale, point.scale, [point.threshold])
                dice = self._measured(predictor, left_out, shown, point)["dice"]
                rows.append({"stack": name, **point._asdict(), "agreement": asdict(agreed), "dice": dice})
        return {"stacks": rows}

    def pixel_size_without(self, left_out: str) -> Spacing:
        """Return the mean pixel size of the other sets, where it is known."""
        return mean_pixel_size([tissue.conventions for name, tissue in self.sets.items() if name != left_out])

    def few_labels(
        self, left_out: str, kind: str, recipe: Recipe, count: int, draw: int, trained: Trained
    ) -> dict[str, Any]:
        """Measure a model that was trained on a few slices of the set; with no label, as it is."""
        tissue, started, predictor = self.sets[left_out], time.perf_counter(), trained.predictor
        if count:
            initial = unet.load_model(trained.weights) if kind == report.FINE_TUNED else None
            with tempfile.TemporaryDirectory() as folder:
                pages = {
                    f"{place:02d}": [page]
                    for place, page in enumerate(tissue.labelled(count, draw, self.finetune.patch))
                }
                store = write_patches(Path(folder), {left_out: pages}, self.finetune.patch)
                few = self._few_labels_recipe(recipe).replace(seed=draw + 1)
                title = f"{left_out}, {kind}, {count}, draw {draw}"
                fitted = fitting.fit(store, few, initial=initial, loaders=self.loaders, title=title)
                predictor = self._predictor(fitted.model, few, store, self.finetune.evaluate)
        own = OperatingPoint(1.0, predictor.settings.threshold)
        found = self._measured(predictor, left_out, tissue.sides["validation"], own)
        return {"threshold": own.threshold, **found, "seconds": round(time.perf_counter() - started)}

    def _few_labels_recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe of a fit on a few slices: that of fine-tuning, for the network of the model."""
        same = ("network", "depth", "base_width", "context", "context_step", "precision")
        return self.finetune.starting_recipe().replace(**{key: getattr(recipe, key) for key in same})

    def _store_without(self, left_out: str) -> PatchStore:
        others = {name: tissue.digest for name, tissue in self.sets.items() if name != left_out}
        folder = self.work / f"without-{left_out}-{files.short_digest([self.preset.patch.model_dump(), others])[:12]}"
        if (folder / "patches").exists():
            return PatchStore.open(folder / "patches")
        sets: dict[str, dict[str, list[Slice]]] = {}
        for name in others:
            for stack, page in zip(self.sets[name].stacks, self.sets[name].slices, strict=True):
                sets.setdefault(name, {}).setdefault(stack, []).append(page)
        return write_patches(folder, sets, self.preset.patch)

    def _predictor(self, model: keras.Model, recipe: Recipe, store: PatchStore, wanted: Evaluate) -> Predictor:
        """Return a model with the threshold that these parameters give or validation chooses."""
        # Slices are stretched already, which changes nothing when it is done again.
        settings = replace(Settings.for_recipe(recipe, wanted, store.bit_depth), normalization="percentiles")
        predictor = Predictor(model, settings)
        chosen = protocols.choose(predictor, store.validation, [1], threshold=wanted.fixed_threshold).threshold
        return predictor.with_settings(replace(settings, threshold=chosen))

    def _measured(
        self, predictor: Predictor, name: str, places: Sequence[int], point: OperatingPoint
    ) -> dict[str, Any]:
        """Return the scores of slices, each predicted by itself, with their intervals."""
        tissue = self.sets[name]
        maps = (probability(predictor, tissue.slices[place][0], point.scale) for place in places)
        return self._scores(tissue, places, maps, [point] * len(places))

    def _scores(
        self, tissue: TissueSet, places: Sequence[int], maps: Iterable[np.ndarray], points: Sequence[OperatingPoint]
    ) -> dict[str, Any]:
        """Return the scores of slices by their probability maps, with intervals; `points` are those of the slices."""
        histogram = ProbabilityHistogram()
        shown = tqdm(places, desc=f"{tissue.name}: measured", unit="slice", leave=False)
        for place, found_map in zip(shown, maps, strict=True):
            histogram.add(tissue.slices[place][1], found_map)
        counts_at = {threshold: histogram.counts_at(threshold) for threshold in {point.threshold for point in points}}
        counts = np.stack([counts_at[point.threshold][row] for row, point in enumerate(points)])
        stacks = [tissue.stacks[place] for place in places]
        drawn = (self.preset.evaluate.bootstrap_block, self.preset.evaluate.bootstrap_resamples, 1, stacks)
        found: dict[str, Any] = {"slices": len(places)}
        for name, score in (("dice", metrics.dice), ("iou", metrics.iou)):
            interval = bootstrap_interval(counts, score, *drawn).as_dict(name)
            found |= {key: round(value, 4) for key, value in interval.items()}
        best = histogram.counts_at(best_threshold([histogram])).sum(0)
        return {**found, "dice_at_best_threshold": round(float(metrics.dice(best)), 4)}


def predicted(
    trained: Trained, volume: ArrayVolume, pixel_size: Spacing, rescale: Literal["auto", "none"] = "auto"
) -> Prediction:
    """Return the maps that `mitoflow predict` makes of a stack."""
    volume.spacing = pixel_size
    return prediction_of(Request("stack", Path(), rescale=rescale), trained, volume, lambda _: None)


def point_of(prediction: Prediction) -> OperatingPoint:
    """Return the scale, mean along y and x, and the threshold of a prediction."""
    scale = math.sqrt(math.prod(prediction.volume.shape[1:]) / math.prod(prediction.plane))
    return OperatingPoint(scale, prediction.predictor.settings.threshold)


def resized_volume(volume: Volume, ratio: float) -> Volume:
    """Return a volume with slices that are enlarged by a ratio along y and x."""
    return enlarged(volume, (ratio, ratio))


def probability(predictor: Predictor, image: np.ndarray, ratio: float) -> np.ndarray:
    """Return the map of a slice by itself, (Y, X) float32 in [0, 1], predicted on a grid that is finer by a ratio."""
    sides = tuple(max(predictor.settings.divisor, round(length * ratio)) for length in image.shape)
    seen = np.rint(resampling.resized(image, sides)).astype(image.dtype)
    return np.clip(resampling.resized(next(predictor.stream(lambda z: seen, range(1))), image.shape), 0, 1)


def write_patches(folder: Path, sets: Mapping[str, Mapping[str, list[Slice]]], settings: Patch) -> PatchStore:
    """Cut the stacks of sets into a patch store, ``folder/patches``, beside copies of them."""
    settings = settings.model_copy(update={"normalization": "range"})  # the slices are stretched already
    pairs = []
    for dataset, stacks in sets.items():
        for name, pages in stacks.items():
            images, masks = map(np.stack, zip(*pages, strict=True))
            for kind, stack in (("images", images), ("masks", STORED[masks])):
                (folder / dataset / kind).mkdir(parents=True, exist_ok=True)
                tiff.write_stack(folder / dataset / kind / f"{name}.tif", stack)
        pairs += read_set(folder / dataset, dataset)
    return write_store(folder / "patches", pairs, settings, {name: Conventions(8, "partial") for name in sets})


def read_project(project: Path) -> dict[str, TissueSet]:
    """Return the training parts of the sets of a project whose stage ``validate`` has run.

    Raises
    ------
    InputError
        There are fewer than two sets, or as in `read_pairs` and `read_conventions`.
    """
    conventions, pairs = read_conventions(project / CONVENTIONS), read_pairs(project / DATA / "train")
    names = dict.fromkeys(pair.dataset for pair in pairs)
    if len(names) < 2:
        raise InputError(project / DATA, f"one set, {next(iter(names))}", "two or more", "add one: `mitoflow data add`")
    return {
        name: TissueSet(name, [pair for pair in pairs if pair.dataset == name], conventions[name]) for name in names
    }


def variants(recipe: Recipe, without: Sequence[str]) -> dict[str, Recipe]:
    """Return the recipes to measure by name: without each of some augmentations, or else the recipe itself.

    Raises
    ------
    InputError
        There is no such augmentation.
    """
    names = [*Augmentation.model_fields, INTENSITY]
    recipes = {}
    for name in without:
        if name not in names:
            raise InputError("--without", name, f"one of {', '.join(names)}", "change it")
        off = {**recipe.augmentation.model_dump(), name: {"share": 0.0}}
        change: dict[str, Any] = {"intensity_strength": 0.0} if name == INTENSITY else {"augmentation": off}
        recipes[f"without {name}"] = recipe.replace(**change)
    return recipes or {report.PRESET: recipe}


def changed(settings: Params, changes: Sequence[str]) -> Params:
    """Return parameters with other values for some keys, each given as ``section.key=value``.

    Raises
    ------
    InputError
        A change cannot be read, or its key is unknown.
    """
    values = settings.model_dump(by_alias=True)
    for change in changes:
        key, equals, text = change.partition("=")
        section = values
        *sections, last = key.split(".")
        for name in sections:
            section = section.get(name, {})
        if not equals or last not in section:
            raise InputError("--set", change, "section.key=value, a key of params.yaml", "correct its spelling")
        section[last] = YAML(typ="safe", pure=True).load(text)
    return Params.model_validate(values)


@dataclass(frozen=True)
class Job:
    """A measurement: what it is, and what makes it from the model of its set and variant."""

    key: dict[str, Any]
    measure: Callable[[Trained], dict[str, Any]]


def jobs(protocol: Protocol, name: str, recipe: Recipe, options: argparse.Namespace) -> Iterator[Job]:
    """Yield the measurements of a set, for one recipe."""
    if "zero-shot" in options.only:
        own = mean_pixel_size([protocol.sets[name].conventions])
        known = [report.KNOWN] if own and protocol.pixel_size_without(name) else []
        for pixel_size in (report.PUBLISHED, report.UNKNOWN, *known):
            key = {"kind": report.ZERO_SHOT, "pixel_size": pixel_size}
            yield Job(key, partial(protocol.zero_shot, name, pixel_size))
        yield Job({"kind": report.JUDGED}, partial(protocol.judged, name))
    if "few-labels" in options.only:
        wanted = [(report.FINE_TUNED, 0, 0)]
        wanted += [
            (kind, count, draw)
            for count in options.labels
            for draw in range(options.draws)
            for kind in (report.FINE_TUNED, report.FROM_SCRATCH)
        ]
        for kind, count, draw in wanted:
            measure = partial(protocol.few_labels, name, kind, recipe, count, draw)
            yield Job({"kind": kind, "labels": count, "draw": draw}, measure)


def run(protocol: Protocol, results: Results, options: argparse.Namespace) -> None:
    """Measure what is not there yet, one model after the other."""
    recipes = variants(protocol.preset.starting_recipe(), options.without)
    lacking = []
    for variant, recipe in recipes.items():
        for name in options.sets or protocol.sets:
            protocol.start_of(name)  # raises before anything is measured
            for job in jobs(protocol, name, recipe, options):
                key = {"set": name, "variant": variant, "protocol": protocol.digest, **job.key}
                if results.lacks(key):
                    lacking.append((name, variant, recipe, key, job))
    at, trained = ("", ""), None
    with tqdm(lacking, desc="leave one set out", unit="result") as bar:
        for name, variant, recipe, key, job in bar:
            bar.set_postfix_str(f"{variant}, {name}")
            if trained is None or at != (name, variant):
                at, trained = (name, variant), protocol.fitted(name, variant, recipe)
            results.add(key, job.measure(trained))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks leave-one-set-out", description=described)
    parser.add_argument("--data", type=Path, help="folder of a project with two or more sets (default: this one)")
    parser.add_argument("--preset", default="general", help="how models are fitted (default %(default)s)")
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET", help="sets that are left out; all without it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what is measured; both without it")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="augmentations that are left out")
    parser.add_argument("--labels", nargs="+", type=int, default=[1, 4, 12], metavar="N", help="labelled slices")
    parser.add_argument("--draws", type=int, default=3, help="draws of the labelled slices (default %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the preset")
    parser.add_argument("--set-finetune", nargs="+", default=[], metavar="KEY=VALUE", help="and to the preset finetune")
    parser.add_argument("--loaders", type=int, default=0, help="processes that make batches, for a GPU")
    parser.add_argument("--start", type=Path, help="folder of models, SET.keras, whose weights the fits start from")
    parser.add_argument("--work", type=Path, help="folder for patches and models (default: in the project)")
    parser.add_argument("--into", type=Path, help="the results (default: .mitoflow/benchmarks in the project)")
    parser.add_argument("--figure", type=Path, help="Dice against labels (default: beside the results)")
    parser.add_argument("--calibration", type=Path, help="where to write how Dice follows from agreement: YAML")
    parser.add_argument("--line", type=Path, help="a calibration to check, in place of a line fitted to these stacks")
    parser.add_argument(
        "--table", action="store_true", help="only tables and figure; without --data the published ones"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the protocol, print its tables and draw its figure; errors of the user are one line."""
    options = parse(arguments)
    run_as_command(lambda: measure_and_report(options))


def measure_and_report(options: argparse.Namespace) -> None:
    """Run the protocol with these options."""
    project = options.data or Path()
    published = path_of_results(RESULTS, None)
    results = Results(options.into or path_of_results(RESULTS, options.data if options.table else project))
    digest = None
    if not options.table:
        protocol = Protocol(
            sets=read_project(project),
            preset=changed(presets.load(options.preset), options.set),
            finetune=changed(presets.load("finetune"), options.set_finetune),
            work=options.work or project / ".leave-one-set-out",
            loaders=options.loaders,
            start=options.start,
        )
        if unknown := set(options.sets) - protocol.sets.keys():
            raise InputError("--sets", min(unknown), f"some of {', '.join(protocol.sets)}", "change it")
        run(protocol, results, options)
        digest = protocol.digest
    line = Calibration.read(options.line) if options.line else None
    print(report.tables(results.rows, line))
    rows = report.of_one_protocol(results.rows, digest)
    if options.calibration:
        fitted = report.calibration(rows, line)
        if fitted is None:
            raise InputError("--calibration", "fewer than 3 judged stacks", "more", "measure zero-shot first")
        fitted.write(options.calibration)
    if any("labels" in row for row in rows):
        report.draw(rows, options.figure or (FIGURE if results.path == published else results.path.with_suffix(".svg")))


if __name__ == "__main__":
    main()
