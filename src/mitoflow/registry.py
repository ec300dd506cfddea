"""The registered model ``mitoflow``: its versions, and which of them is the champion.

Every evaluated model becomes a version. The newest that has not won yet carries the alias ``challenger``, the one in
use ``champion``. A challenger wins where there is no champion, or where it beats the champion on the same test data. A
version keeps what was decided about it, and why, in its tags and its description.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient, artifacts, pyfunc
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from mitoflow import lineage, metrics, tracking, workspace
from mitoflow.errors import InputError
from mitoflow.metrics import Interval

NAME = "mitoflow"
CHAMPION, CHALLENGER = "champion", "challenger"

# What inference imports; the versions are those installed here.
REQUIREMENTS = ("tensorflow", "keras", "numpy", "tifffile", "ruamel.yaml", "pyyaml")

EVALUATION_SHA256 = "mitoflow.evaluation_sha256"
TEST_HASH = "mitoflow.test_hash"
SCORES = ("dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high")
VERDICT = "mitoflow.verdict"
PROMOTED_AT, PROMOTED_OVER = "mitoflow.promoted.at", "mitoflow.promoted.over"
ROLLED_BACK_AT = "mitoflow.rolled_back.at"
#: On the registered model: the versions that were champion, in order, as JSON. `rollback` takes the last one off.
CHAMPIONS = "mitoflow.champions"


@dataclass(frozen=True)
class Evaluation:
    """What the test part says about a model, whole-slice; enough to compare any two models later.

    Attributes
    ----------
    model_sha256
        Of the ``.keras`` file.
    test_hash
        Of the test images and masks: only models that were evaluated on the same ones can be compared.
    stacks
        For each slice the stack that it belongs to.
    counts
        For each slice its true positives, false positives, false negatives and true negatives, in pixels.
    block, resamples, seed
        Of the block bootstrap; `mitoflow.metrics.bootstrap_interval` says what they mean.
    """

    model_sha256: str
    test_hash: str
    stacks: list[str]
    counts: list[list[int]]
    block: int
    resamples: int
    seed: int

    def write(self, path: Path) -> None:
        """Write the evaluation as JSON, the same bytes for the same evaluation."""
        path.write_text(self._json(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what `write` wrote.

        Raises
        ------
        InputError
            The file is missing or no evaluation.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(path, error, "an evaluation", "run `dvc repro evaluate` or `dvc pull`") from None

    @property
    def sha256(self) -> str:
        """Digest of everything in it."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def scores(self) -> dict[str, float]:
        """Return whole-slice Dice and IoU with their 95 % intervals, named as in `SCORES`."""
        scores = {}
        for name in ("dice", "iou"):
            interval = metrics.bootstrap_interval(
                self._array(), metrics.SCORES[name], self.block, self.resamples, self.seed, self.stacks
            )
            scores |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return scores

    def better_by(self, other: Evaluation) -> Interval:
        """Return by how much the Dice is higher than that of ``other`` on the same slices, with its 95 % interval."""
        return metrics.paired_dice_difference(
            self._array(), other._array(), self.block, self.resamples, self.seed, self.stacks
        )

    def _array(self) -> metrics.Counts:
        return np.array(self.counts, np.int64).reshape(-1, 4)

    def _json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True) + "\n"


@dataclass(frozen=True)
class Verdict:
    """What was decided about a version.

    Attributes
    ----------
    version
        Of the registered model.
    promoted
        Whether it became the champion.
    reason
        Why, in a sentence with the figures.
    champion
        The champion that it was compared with; None where there was none.
    difference
        Its Dice minus that of the champion, with the 95 % interval; None where they could not be compared.
    """

    version: int
    promoted: bool
    reason: str
    champion: int | None = None
    difference: Interval | None = None


@dataclass(frozen=True)
class Row:
    """A version as `models` lists it; ``scores`` is empty for a version that was registered by other means."""

    version: int
    aliases: tuple[str, ...]
    scores: dict[str, float]
    test_hash: str
    run_id: str
    created: datetime
    verdict: str


def register(run: tracking.Run, evaluation: Evaluation, model_path: Path, settings_path: Path) -> Verdict | None:
    """Make an evaluated model a version, through the journal, and let the gate decide about it.

    The same evaluation in the same run makes one version, however often it is registered.

    Parameters
    ----------
    run
        The training run, or a run of its own where the outputs were pulled rather than computed.
    evaluation
        Of this model.
    model_path, settings_path
        ``models/unet.keras`` and ``models/unet.yaml``.

    Returns
    -------
    verdict
        None where MLflow is away: the model is kept, and `mitoflow sync` registers it and decides.

    Raises
    ------
    InputError
        A file is missing, or the evaluation is of another model.
    """
    if not model_path.is_file():
        raise InputError(model_path, "no such file", "a trained model", "run `dvc repro` or `dvc pull`")
    if (digest := lineage.file_sha256(model_path)) != evaluation.model_sha256:
        remedy = "run `dvc repro evaluate` or `dvc pull`, so that model and evaluation belong together"
        raise InputError(model_path, f"SHA-256 {digest}", f"{evaluation.model_sha256}, which was evaluated", remedy)
    tags = {
        tracking.KEY: run.key,
        tracking.MODEL_SHA256: evaluation.model_sha256,
        EVALUATION_SHA256: evaluation.sha256,
        TEST_HASH: evaluation.test_hash,
        **{f"mitoflow.{name}": str(value) for name, value in evaluation.scores().items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model"
        pack(packed, evaluation, model_path, settings_path)
        run.model(packed, tags)
    if not run.flush():
        return None
    with _registry() as store:
        found = _find(store, tags)
    return _verdict(found) if found else None


def pack(folder: Path, evaluation: Evaluation, model_path: Path, settings_path: Path) -> None:
    """Write the MLflow model: U-Net, settings, evaluation and the code that runs them, without a pickle.

    It takes slices (N, Y, X) of any size, uint8 for a model of 8 bits and uint16 for one of more, and returns masks
    (N, Y, X) uint8 in {0, 1}.
    """
    from mitoflow.inference import Settings  # imports Keras

    bit_depth = Settings.read(settings_path).bit_depth
    pixel = np.dtype(np.uint8 if bit_depth == 8 else np.uint16)
    shape = (-1, -1, -1)
    example = np.random.default_rng(0).integers(2**bit_depth, size=(1, 64, 64), dtype=pixel)
    package = Path(__file__).parent
    with tempfile.TemporaryDirectory() as beside, warnings.catch_warnings():
        evaluated = Path(beside) / "evaluation.json"
        evaluation.write(evaluated)
        warnings.simplefilter("ignore")
        pyfunc.save_model(
            path=str(folder),
            python_model=str(package / "pyfunc.py"),
            artifacts={"model": str(model_path), "settings": str(settings_path), "evaluation": str(evaluated)},
            code_paths=[str(package)],
            pip_requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
            signature=ModelSignature(Schema([TensorSpec(pixel, shape)]), Schema([TensorSpec(np.dtype(np.uint8), shape)])),
            input_example=example,
        )


def admit(store: MlflowClient, run_id: str, folder: Path, tags: Mapping[str, str]) -> None:
    """Make the packed model in ``folder`` a version of the run and decide about it; doing so again changes nothing."""
    with tracking.only_one("registry"):
        version = _find(store, tags) or _create(store, run_id, folder, tags)
        if VERDICT not in version.tags:
            store.set_registered_model_alias(NAME, CHALLENGER, version.version)
            evaluation = Evaluation.read(folder / "artifacts" / "evaluation.json")
            verdict = _judge(store, int(version.version), evaluation)
            if verdict.promoted:
                _crown(store, verdict.version)
            _record(store, verdict)


def models() -> list[Row]:
    """Return all versions, oldest first.

    Raises
    ------
    InputError
        The registry cannot be reached; so in all functions below.
    """
    with _registry() as store:
        aliases = _aliases(store)
        versions = _search(store, f"name = '{NAME}'")
    return [
        Row(
            version=int(version.version),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if number == int(version.version))),
            scores={name: float(version.tags[f"mitoflow.{name}"]) for name in SCORES if f"mitoflow.{name}" in version.tags},
            test_hash=version.tags.get(TEST_HASH, ""),
            run_id=version.run_id,
            created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
            verdict=version.tags.get(f"{VERDICT}.reason", ""),
        )
        for version in sorted(versions, key=lambda version: int(version.version))
    ]


def promote(version: int, *, force: bool = False) -> Verdict:
    """Make a version the champion where the gate allows it, or in any case with ``force``, which is recorded.

    Raises
    ------
    InputError
        There is no such version.
    """
    with _registry() as store, tracking.only_one("registry"):
        chosen = _get(store, version)
        if _aliases(store).get(CHAMPION) == version:
            return Verdict(version, True, "it is the champion already")
        if TEST_HASH in chosen.tags:
            verdict = _judge(store, version, _evaluation(store, chosen))
        else:
            verdict = Verdict(version, False, "it was never evaluated by mitoflow")
        if force and not verdict.promoted:
            reason = f"promoted by hand with --force; the gate said: {verdict.reason}"
            verdict = Verdict(version, True, reason, verdict.champion, verdict.difference)
        if verdict.promoted:
            _crown(store, version)
        _record(store, verdict)
        return verdict


def rollback() -> tuple[int, int]:
    """Make the previous champion the champion again, and return the versions (from, to).

    Raises
    ------
    InputError
        There is no previous champion.
    """
    with _registry() as store, tracking.only_one("registry"):
        champion = _aliases(store).get(CHAMPION)
        existing = {int(version.version) for version in _search(store, f"name = '{NAME}'")}
        history = [version for version in _champions(store) if version in existing]
        while history and history[-1] == champion:
            history.pop()
        if champion is None or not history:
            found = "no champion" if champion is None else f"version {champion}, which is the only champion so far"
            raise InputError(f"model {NAME}", found, "a previous champion", "name a version: `mitoflow promote VERSION`")
        store.set_registered_model_tag(NAME, CHAMPIONS, json.dumps(history))
        store.set_registered_model_alias(NAME, CHAMPION, str(history[-1]))
        store.set_model_version_tag(NAME, str(champion), ROLLED_BACK_AT, _now())
        return champion, history[-1]


def trace(what: str) -> dict[str, str]:
    """Return where a version, or the model in a ``.keras`` file, comes from: run, digests, lineage, data, parameters.

    Raises
    ------
    InputError
        There is no such version or file, or no run in MLflow made the file.
    """
    with _registry() as store:
        if what.isdecimal():
            version, run_id = what, _get(store, int(what)).run_id
        else:
            version, run_id = _origin(store, Path(what))
        run = store.get_run(run_id)
    told = {
        "version": version,
        "run": run.info.run_id,
        "run_name": run.info.run_name,
        "model_sha256": run.data.tags.get(tracking.MODEL_SHA256, ""),
        **lineage.from_tags(run.data.tags),
        **{f"dataset.{_context(used)}": f"{used.dataset.name} {used.dataset.digest}" for used in run.inputs.dataset_inputs},
        **{f"params.{key}": value for key, value in sorted(run.data.params.items())},
    }
    return {key: value for key, value in told.items() if value}
