"""Trained models that ship with the project, and the weights from which a training may start."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitoflow.core import files, provenance
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference import model_files
from mitoflow.inference.settings import Settings

if TYPE_CHECKING:
    from mitoflow.inference.trained_model import TrainedModel

HERE = Path("pretrained")

# In a checkout the models are in a top-level folder, also where a command that runs from it is used elsewhere. A wheel
# installs them as data files and not inside the package, because the registry puts a copy of it into every version.
PLACES = (
    HERE,
    Path(__file__).parents[3] / HERE,
    Path(sysconfig.get_path("data")) / "share" / "mitoflow" / HERE,
)

#: What ``pretrained`` stands for: the first of these that there is.
DEFAULTS = ("general", "epfl")

#: What a released model has beside the files that `mitoflow.inference.model_files` names.
LINEAGE, CARD, COVER = "lineage.yaml", "MODEL_CARD.md", "cover.png"

REMEDY = "take the folder from git again, or install mitoflow again"


@dataclass(frozen=True)
class Pretrained:
    """A released model.

    Attributes
    ----------
    folder
        ``pretrained/NAME``.
    """

    folder: Path

    @property
    def name(self) -> str:
        """What it is called."""
        return self.folder.name

    @property
    def evaluation(self) -> Evaluation:
        """What the model did on the test part; raises `InputError` where it is missing or broken."""
        return Evaluation.read(self.folder / model_files.EVALUATION)

    @property
    def lineage(self) -> dict[str, Any]:
        """What the model was made from, as `mitoflow.tracking.release` writes it; raises like `evaluation`."""
        return files.read_yaml(self.folder / LINEAGE, REMEDY, ("data", "code", "dataset", "params"))

    @property
    def origin(self) -> dict[str, str]:
        """Where the model comes from, by the keys of `mitoflow.tracking.lineage.origin`; raises like `evaluation`.

        The version and the run, which are of another store, are ``released_version`` and so on.
        """
        made = self.lineage
        run = {key: value for key, value in made.get("run", {}).items() if key != "model_sha256"}
        facts = {f"released_{key}": value for key, value in run.items()}
        facts |= made["code"]
        for group in ("dataset", "params"):
            facts |= {f"{group}.{key}": str(value) for key, value in made[group].items()}
        return facts | {"model_sha256": self.evaluation.model_sha256}


def models() -> list[Pretrained]:
    """Return the models of this project and those that were installed with mitoflow, by name.

    Of two with the same name the project's own counts.
    """
    files = [file for place in reversed(PLACES) for file in place.glob(f"[!.]*/{model_files.WEIGHTS}")]
    return [Pretrained(folder) for _, folder in sorted({file.parent.name: file.parent for file in files}.items())]


def find(name: str = "") -> Pretrained:
    """Return the model of that name; without a name the first of `DEFAULTS`, or the only one there is.

    Raises
    ------
    InputError
        There is none of that name, none at all, or no name for one of several; or the model is not the one that was
        evaluated.
    """
    known = {model.name: model for model in models()}
    if not name:
        defaults = [each for each in (*DEFAULTS, *known) if each in known]
        name = defaults[0] if defaults and (defaults[0] in DEFAULTS or len(known) == 1) else ""
    if name not in known:
        found = name or ("none" if not known else "no name")
        expected = f"one of {', '.join(known)}" if known else "one that `mitoflow release` made"
        raise InputError("pretrained model", found, expected, "`mitoflow models --pretrained` lists them")
    path, expected = known[name].folder / model_files.WEIGHTS, known[name].evaluation.model_sha256
    if (digest := provenance.file_sha256(path)) != expected:
        raise InputError(path, f"SHA-256 {digest}", f"{expected}, which was evaluated", REMEDY)
    return known[name]


def of_file(path: Path) -> Pretrained | None:
    """Return the released model that a ``.keras`` file is, also as a copy; None where it is none.

    A copy is found by its digest among `models`, and the file of any other release by what is beside it.
    """
    digest, needed = provenance.file_sha256(path), (LINEAGE, model_files.EVALUATION)
    candidates = (Pretrained(path.parent), *models())
    whole = (model for model in candidates if all((model.folder / name).is_file() for name in needed))
    return next((model for model in whole if model.evaluation.model_sha256 == digest), None)


def card(model: TrainedModel) -> Path | None:
    """Return the model card in Markdown; None where the model was not released."""
    path = model.folder / CARD
    return path if path.is_file() else None


@dataclass(frozen=True)
class InitialWeights:
    """The weights from which a training starts.

    Attributes
    ----------
    path
        A ``.keras`` file.
    origin
        Where they come from, for the lineage: ``name``, ``sha256`` of the file and, for one of the registry,
        ``version``.
    """

    path: Path
    origin: dict[str, str]

    @property
    def slices(self) -> SliceDistance | None:
        """How far apart the slices are that the model learned from; None where no file beside it says."""
        settings = self.path.with_name(model_files.SETTINGS)
        return Settings.read(settings).slices if settings.is_file() else None

    def require_normalization(self, wanted: str) -> None:
        """Compare ``patch.normalization`` with how grey values were normalised for these weights.

        Raises
        ------
        InputError
            They differ. A file of weights without settings beside it says nothing, and passes.
        """
        settings = self.path.with_name(model_files.SETTINGS)
        if not settings.is_file():
            return
        known = files.read_yaml(settings, REMEDY).get("normalization", "range")  # models of 0.1 do not say
        if known != wanted:
            found = f"{self.origin['name']}, which learned from grey values by {known}"
            expected = f"{wanted}, as patch.normalization says"
            raise InputError("train.init_from", found, expected, f"set patch.normalization to {known}")


def initial_weights(wanted: str) -> InitialWeights | None:
    """Find the weights that ``train.init_from`` names.

    What ``champion`` and ``pretrained`` stand for may change; the digest in the origin does not.

    Parameters
    ----------
    wanted
        ``none``; ``pretrained``, where there is one, or ``pretrained:NAME``; ``champion`` or the number of a version
        of the registered model; or the path of a ``.keras`` file.

    Returns
    -------
    weights
        None for ``none``.

    Raises
    ------
    InputError
        There is no such model, version or file, no champion yet, or the registry cannot be reached.
    """
    kind, _, name = wanted.partition(":")
    if wanted == "none":
        return None
    if kind == "pretrained":
        model = find(name)
        return _weights(model.folder / model_files.WEIGHTS, name=f"pretrained:{model.name}")
    if is_of_registry(wanted):
        from mitoflow.tracking import registered_model, registry  # import MLflow

        version = registry.champion() if wanted == "champion" else int(wanted)
        return _weights(registry.model_file(version), name=registered_model.name(), version=str(version))
    if wanted.endswith(".keras") and Path(wanted).is_file():
        return _weights(Path(wanted), name=wanted)
    expected = "none, pretrained, pretrained:NAME, champion, the number of a version or an existing .keras file"
    raise InputError("train.init_from", wanted, expected, "change the value")


def is_of_registry(wanted: str) -> bool:
    """Return whether ``train.init_from`` names a version by what only a registry can tell: its number, or champion."""
    return wanted == "champion" or wanted.isdecimal()


def _weights(path: Path, **origin: str) -> InitialWeights:
    return InitialWeights(path, {**origin, "sha256": provenance.file_sha256(path)})
