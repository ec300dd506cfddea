"""Find a trained model by its name: in the registry, in a file, or among those that ship with mitoflow.

MLflow, which takes seconds to import, is imported where the registry is asked.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from mitoflow.config import params
from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference import model_files
from mitoflow.inference.trained_model import TrainedModel, is_of_drawn_images
from mitoflow.tracking import places, pretrained

PIPELINE = Path("reports/evaluate")  # of the model of the pipeline
EXPECTED = f"models:/NAME@{places.CHAMPION}, a version, a run, a .keras file or pretrained"


def find(wanted: str | None = None) -> TrainedModel:
    """Find a trained model.

    Parameters
    ----------
    wanted
        ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; the alias or version alone, of the registered model of this
        project; the ID of a run, or ``runs:/ID``; a ``.keras`` file with ``inference.yaml`` beside it, as the pipeline
        and the registry write both; ``pretrained``, which stands for ``general`` or else ``epfl``, or
        ``pretrained:NAME``. Without it the champion, or ``pretrained`` where there is no champion that was trained on
        real tissue.

    Raises
    ------
    InputError
        There is no such model, or the registry does not answer.
    """
    if wanted is None:
        return _default()
    kind, _, rest = wanted.partition(":")
    if kind == "pretrained":
        return _pretrained(rest)
    if wanted.endswith(".keras"):
        return _of_file(Path(wanted))
    return _of_registry(*_version("--model", wanted))


def origin(wanted: str) -> dict[str, str]:
    """Return where a model comes from, by any name that `find` takes; see `mitoflow.tracking.lineage.origin`.

    Raises
    ------
    InputError
        There is no such model, MLflow does not know the file, or the registry does not answer.
    """
    kind, _, rest = wanted.partition(":")
    if kind == "pretrained":
        return pretrained.find(rest).origin
    if wanted.endswith(".keras"):
        return _origin_of_file(Path(wanted))
    from mitoflow.tracking import lineage

    name, version = _version("MODEL", wanted)
    return lineage.origin(str(version), name)


def names() -> list[str]:
    """Return the models of the registry and those that ship, each by a name that `find` takes, its default first.

    Raises
    ------
    InputError
        The registry does not answer.
    """
    if places.is_missing(places.uri()):
        return names_of_pretrained()
    from mitoflow.tracking import lineage, registry

    name = params.load_registry().model
    listed, prefix = registry.models(), f"models:/{name}"
    versions = [f"{prefix}/{row.version}" for row in reversed(listed)]
    champion = next((row.version for row in listed if places.CHAMPION in row.aliases), None)
    if champion is not None and not is_of_drawn_images(lineage.origin(str(champion), name)):
        return [f"{prefix}@{places.CHAMPION}", *versions, *names_of_pretrained()]
    return [*names_of_pretrained(), *versions]


def names_of_pretrained() -> list[str]:
    """Return the models that ship, by names that `find` takes, the one that ``pretrained`` means first."""
    known = [model.name for model in pretrained.models()]
    defaults = [name for name in pretrained.DEFAULTS if name in known]
    return [f"pretrained:{name}" for name in dict.fromkeys((*defaults, *known))]


def _default() -> TrainedModel:
    name = params.load_registry().model
    version = _find_version(places.CHAMPION, name)
    if version is None:
        return _pretrained("")
    champion = _of_registry(name, version)
    if not champion.is_of_drawn_images:
        return champion
    model = _pretrained("")
    message = "note: %s predicts; %s, the champion, was trained on drawn images alone, and --model champion takes it"
    logging.getLogger("mitoflow").warning(message, model.name, champion.name)
    return model


def _split(wanted: str) -> tuple[str, str]:
    """Return the name of the registered model, and which version of it is meant."""
    if not wanted.startswith("models:/"):
        return params.load_registry().model, wanted.removeprefix("runs:/").partition("/")[0]
    name, _, what = wanted.removeprefix("models:/").replace("@", "/", 1).partition("/")
    return name, what.partition("/")[0]


def _version(where: str, wanted: str) -> tuple[str, int]:
    """Return the name of a registered model and the version that is meant; an error begins with `where`."""
    name, what = _split(wanted)
    if Path(wanted).is_file() or not what or ":" in what:
        raise InputError(where, wanted, EXPECTED, "a file must be a .keras model; `mitoflow models` lists versions")
    version = _find_version(what, name)
    if version is None:
        raise InputError(where, f"{wanted}, which names no version", EXPECTED, "`mitoflow models` lists them")
    return name, version


def _find_version(what: str, name: str) -> int | None:
    """Return a version; None where there is none, or no registry yet, which asking would make."""
    if places.is_missing(places.uri()):
        return None
    from mitoflow.tracking import registry

    return registry.find_version(what, name)


def _of_registry(name: str, version: int) -> TrainedModel:
    from mitoflow.tracking import lineage, registry

    weights = registry.model_file(version, name)
    origin = {"model": name, **lineage.origin(str(version), name)}
    return TrainedModel(f"{name} version {version}", weights, weights.parent, origin)


def _pretrained(name: str) -> TrainedModel:
    model = pretrained.find(name)
    called = f"pretrained:{model.name}"
    return TrainedModel(called, model.folder / model_files.WEIGHTS, model.folder, {"model": called, **model.origin})


def _of_file(path: Path) -> TrainedModel:
    if not path.is_file():
        raise InputError("--model", f"{path}, which is no file", EXPECTED, "check the path")
    digest = provenance.file_sha256(path)
    candidates = [path.parent, path.parent.parent / PIPELINE]
    has_settings = [place for place in candidates if (place / model_files.SETTINGS).is_file()]
    folder = next((place for place in has_settings if place == path.parent or _is_of(place, digest)), None)
    if folder is None:
        remedy = "put the one of its evaluation there, or name a version of the registry"
        raise InputError(path, f"no {model_files.SETTINGS} beside it", "a model of mitoflow with its settings", remedy)
    known: dict[str, str] = {}
    with suppress(InputError):  # MLflow does not know the file, or does not answer; the file is all that is needed
        if pretrained.of_file(path) or not places.is_missing(places.uri()):
            known = _origin_of_file(path)
    return TrainedModel(path.stem, path, folder, {"model": str(path), **known, "model_sha256": digest})


def _origin_of_file(path: Path) -> dict[str, str]:
    """Return where a ``.keras`` file comes from: what was released with that model, or else what MLflow knows of it."""
    if path.is_file() and (released := pretrained.of_file(path)):
        return released.origin
    from mitoflow.tracking import lineage  # imports MLflow

    return lineage.origin(str(path))


def _is_of(place: Path, digest: str) -> bool:
    """Return whether the files of a folder belong to the model with that digest."""
    evaluation = place / model_files.EVALUATION
    return evaluation.is_file() and Evaluation.read(evaluation).model_sha256 == digest
