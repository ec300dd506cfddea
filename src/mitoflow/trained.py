"""The trained model that a person means: of the registry, of a file, or one that ships with mitoflow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mitoflow import lineage, pretrained, registry
from mitoflow.domain import Domain
from mitoflow.errors import InputError
from mitoflow.inference import Predictor

PIPELINE = Path("reports/evaluate")  # where the pipeline has the settings of its model
EXPECTED = "models:/mitoflow@champion, a version, a run, a .keras file or pretrained"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes
    ----------
    name
        What to call it.
    predictor
        The model itself, with its settings.
    domain
        What its training images look like; None where that was not recorded.
    lineage
        Where it comes from.
    """

    name: str
    predictor: Predictor
    domain: Domain | None
    lineage: dict[str, str]


def find(wanted: str | None = None) -> TrainedModel:
    """Load a trained model; no code that comes with it is run.

    Parameters
    ----------
    wanted
        ``models:/mitoflow@ALIAS``, ``models:/mitoflow/VERSION`` or the version alone; the ID of a run, or ``runs:/ID``;
        a ``.keras`` file with ``inference.yaml`` beside it, as the pipeline and the registry write both;
        ``pretrained``, or ``pretrained:NAME`` where there are several. Without it the champion, or the pretrained model
        where the registry has no champion.

    Raises
    ------
    InputError
        There is no such model, it is none of mitoflow's, its file carries code or is broken, or the registry does not
        answer.
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
    facts = {"model": registry.NAME, **_facts(registry.origin(str(version)))}
    with tempfile.TemporaryDirectory() as folder:
        registry.fetch_settings(version, Path(folder))
        model, settings = registry.model_file(version), Path(folder) / registry.SETTINGS
        return _load(f"{registry.NAME} version {version}", model, settings, facts)


def _pretrained(name: str) -> TrainedModel:
    model = pretrained.find(name)
    made = model.lineage
    facts = {"model": f"pretrained:{model.name}", **_facts({**made.get("run", {}), **made["code"]})}
    return _load(facts["model"], model.folder / pretrained.MODEL, model.folder / pretrained.SETTINGS, facts)


def _of_file(path: Path) -> TrainedModel:
    if not path.is_file():
        raise InputError(path, "no such file", EXPECTED, "check the path")
    places = [path.parent, path.parent.parent / PIPELINE]
    settings = next((place / registry.SETTINGS for place in places if (place / registry.SETTINGS).is_file()), None)
    if settings is None:
        remedy = "put the one of its evaluation there, or name a version of the registry"
        raise InputError(path, f"no {registry.SETTINGS} beside it", "a model of mitoflow with its settings", remedy)
    try:
        known = {} if registry.is_missing() else registry.origin(str(path))
    except InputError:  # MLflow does not know the file, or does not answer; the file is all that is needed
        known = {}
    return _load(str(path), path, settings, {"model": str(path), **_facts(known)})


def _facts(origin: Mapping[str, str]) -> dict[str, str]:
    """Leave out what a person would take for facts about the prediction, and the many parameters."""
    of_training = ("mitoflow", "python", "platform")
    return {key: str(value) for key, value in origin.items() if key not in of_training and "params." not in key}


def _load(name: str, model: Path, settings: Path, facts: dict[str, str]) -> TrainedModel:
    predictor = Predictor.load(model, settings)
    seen = 2 * predictor.settings.context + 1
    shapes = [tuple(getattr(predictor.model, name, ())) for name in ("input_shape", "output_shape")]
    if [len(shape) for shape in shapes] != [4, 4] or (shapes[0][-1], shapes[1][-1]) != (seen, 1):
        expected = f"(slices, y, x, {seen}) to (slices, y, x, 1), as its settings say"
        raise InputError(model, f"a network from {shapes[0]} to {shapes[1]}", expected, "name a model of mitoflow")
    facts = {**facts, "model_sha256": lineage.file_sha256(model)}
    domain = settings.with_name(registry.DOMAIN)
    return TrainedModel(name, predictor, Domain.read(domain) if domain.is_file() else None, facts)
