"""The trained model that a person means: of the registry, of a file, or one that ships with mitoflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mitoflow.core import provenance
from mitoflow.data.fingerprint import Domain
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.predictor import Predictor
from mitoflow.tracking import pretrained, registry

PIPELINE = Path("reports/evaluate")  # where the pipeline has what belongs to its model
EXPECTED = f"models:/{registry.NAME}@{registry.CHAMPION}, a version, a run, a .keras file or pretrained"
OF_TRAINING = ("mitoflow", "python", "platform")  # what trained a model, and not what predicts with it


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes
    ----------
    name
        What to call it, such as ``mitoflow version 3``.
    weights
        The ``.keras`` file.
    folder
        Where the files are that belong to it: settings, and as far as there are any what the training images look
        like, what it did on the test part, and a model card.
    origin
        Where it comes from, as far as that is known: at least ``model`` and ``model_sha256``; see
        `mitoflow.tracking.registry.origin`.
    """

    name: str
    weights: Path
    folder: Path
    origin: Mapping[str, str]

    @cached_property
    def predictor(self) -> Predictor:
        """The U-Net with its settings; no code that comes with it is run.

        Raises
        ------
        InputError
            It is none of mitoflow's, it or its settings are broken, or they do not fit together.
        """
        loaded = Predictor.load(self.weights, self.folder / registry.SETTINGS)
        channels = 2 * loaded.settings.context + 1
        shapes = [tuple(getattr(loaded.model, name, ())) for name in ("input_shape", "output_shape")]
        if [len(shape) for shape in shapes] != [4, 4] or (shapes[0][-1], shapes[1][-1]) != (channels, 1):
            found = f"a network from {shapes[0]} to {shapes[1]}"
            expected = f"(slices, y, x, {channels}) to (slices, y, x, 1), as its settings say"
            raise InputError(self.weights, found, expected, f"put the {registry.SETTINGS} of this model beside it")
        return loaded

    @property
    def domain(self) -> Domain | None:
        """What its training images look like; None where that was not recorded."""
        path = self.folder / registry.DOMAIN
        return Domain.read(path) if path.is_file() else None

    @property
    def evaluation(self) -> Evaluation | None:
        """What it did on the test part; None where that was left behind, or is of another model."""
        path = self.folder / registry.EVALUATION
        measured = Evaluation.read(path) if path.is_file() else None
        return measured if measured and measured.model_sha256 == self.origin["model_sha256"] else None

    @property
    def card(self) -> Path | None:
        """Its model card in Markdown; only models that were released have one."""
        path = self.folder / pretrained.CARD
        return path if path.is_file() else None

    @property
    def lineage(self) -> dict[str, str]:
        """The origin without what a person would take for facts about a prediction, and without the parameters."""
        return {key: each for key, each in self.origin.items() if key not in OF_TRAINING and "params." not in key}


def find(wanted: str | None = None) -> TrainedModel:
    """Find a trained model.

    Parameters
    ----------
    wanted
        ``models:/mitoflow@ALIAS``, ``models:/mitoflow/VERSION`` or the alias or version alone; the ID of a run, or
        ``runs:/ID``; a ``.keras`` file with ``inference.yaml`` beside it, as the pipeline and the registry write both;
        ``pretrained``, or ``pretrained:NAME`` where there are several. Without it the champion, or the pretrained model
        where the registry has no champion.

    Raises
    ------
    InputError
        There is no such model, or the registry does not answer.
    """
    if wanted is None:
        version = None if registry.is_missing() else registry.find_version(registry.CHAMPION)
        return _of_registry(version) if version else _pretrained("")
    kind, _, rest = wanted.partition(":")
    if kind == "pretrained":
        return _pretrained(rest)
    if wanted.endswith(".keras"):
        return _of_file(Path(wanted))
    name = wanted.removeprefix(f"models:/{registry.NAME}").lstrip("@/").removeprefix("runs:/").partition("/")[0]
    if Path(wanted).is_file() or not name or ":" in name:
        raise InputError("--model", wanted, EXPECTED, "a file must be a .keras model; `mitoflow models` lists versions")
    version = registry.find_version(name)
    if version is None:
        raise InputError("--model", f"{wanted}, which no version is called", EXPECTED, "`mitoflow models` lists them")
    return _of_registry(version)


def _of_registry(version: int) -> TrainedModel:
    weights = registry.model_file(version)
    origin = {"model": registry.NAME, **registry.origin(str(version))}
    return TrainedModel(f"{registry.NAME} version {version}", weights, weights.parent, origin)


def _pretrained(name: str) -> TrainedModel:
    model = pretrained.find(name)
    made = model.lineage
    sections = {f"{group}.{key}": str(value) for group in ("dataset", "params") for key, value in made[group].items()}
    called = f"pretrained:{model.name}"
    origin = {"model": called, **made.get("run", {}), **made["code"], **sections}
    origin["model_sha256"] = model.evaluation.model_sha256
    return TrainedModel(called, model.folder / pretrained.MODEL, model.folder, origin)


def _of_file(path: Path) -> TrainedModel:
    if not path.is_file():
        raise InputError("--model", f"{path}, which is no file", EXPECTED, "check the path")
    digest = provenance.file_sha256(path)
    places = [path.parent, path.parent.parent / PIPELINE]
    has_settings = [place for place in places if (place / registry.SETTINGS).is_file()]
    folder = next((place for place in has_settings if place == path.parent or _is_of(place, digest)), None)
    if folder is None:
        remedy = "put the one of its evaluation there, or name a version of the registry"
        raise InputError(path, f"no {registry.SETTINGS} beside it", "a model of mitoflow with its settings", remedy)
    try:
        known = {} if registry.is_missing() else registry.origin(str(path))
    except InputError:  # MLflow does not know the file, or does not answer; the file is all that is needed
        known = {}
    return TrainedModel(path.stem, path, folder, {"model": str(path), **known, "model_sha256": digest})


def _is_of(place: Path, digest: str) -> bool:
    """Tell whether the files of a folder belong to the model with that digest."""
    evaluation = place / registry.EVALUATION
    return evaluation.is_file() and Evaluation.read(evaluation).model_sha256 == digest
