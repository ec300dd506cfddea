"""The registered model of the project: its versions, and which of them is the champion.

Every evaluated model becomes a version. The newest that has not won yet carries the alias ``challenger``, the one in
use ``champion``. A challenger wins where there is no champion, or where it beats the champion on the same test data. A
version keeps what was decided about it, and why, in its tags and its description.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mitoflow.core import files, provenance, workspace
from mitoflow.errors import InputError
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference import model_files
from mitoflow.tracking import inputs, naming, places, promotion, promotion_log, registered_model, store, version_tags
from mitoflow.tracking.gate import Candidate, Gate
from mitoflow.tracking.promotion import ChampionState
from mitoflow.tracking.promotion_log import Promotion, PromotionConflict
from mitoflow.tracking.registered_model import Registered

CHALLENGER = places.CHALLENGER

RUN_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Row:
    """A version as `models` lists it.

    Dice, IoU and verdict are None where it was registered by other means, or where their tags cannot be read.

    Of several test sets, Dice and IoU are the mean over the sets, and ``sets`` has the Dice of each by its name.
    """

    version: int
    aliases: tuple[str, ...]
    dice: Interval | None
    iou: Interval | None
    sets: Mapping[str, Interval]
    test_hash: str
    model_sha256: str
    run_id: str
    created: datetime
    verdict: Verdict | None

    @property
    def reason(self) -> str:
        """The reason of the verdict; empty where there is none."""
        return self.verdict.reason if self.verdict else ""


def find_verdict(tags: Mapping[str, str]) -> Verdict | None:
    """Return what was decided about the version with these `version_tags.of`; None where MLflow has none or is away."""
    try:
        version = _find(_named(store.client(store.uri()), tags), tags)
    except store.ERRORS:
        return None
    return version_tags.verdict(version) if version else None


def prepare(evaluation: Evaluation, weights: Path) -> None:
    """Predict what the gate will ask for; does nothing where MLflow is away, or where the gate asks for nothing.

    Parameters
    ----------
    evaluation
        Of the model that will be registered.
    weights
        Its ``.keras`` file, with its settings beside it.
    """
    if not (gate := Gate.load()).non_inferiority:
        return
    with suppress(InputError), registered_model.opened() as model:
        champion = _champion(model, ChampionState.read(model))
        gate.prepare(Candidate(0, lambda: evaluation, lambda: weights), champion)


def admit(client: MlflowClient, run_id: str, folder: Path, tags: Mapping[str, str]) -> str:
    """Make the packed model in ``folder`` a version of the run and decide about it; doing so again changes nothing.

    A model that was evaluated with changes that were not committed becomes another version once they are. Returns a
    line about what was decided.

    Raises
    ------
    InputError
        Someone renamed the registered model, or its log of promotions, in MLflow.
    """
    model = _named(client, tags)
    with workspace.exclusive("registry"):
        ChampionState.read(model)  # raises where the model has another name now, before one is made beside it
        version, run = _find(model, tags), client.get_run(run_id)
        if version is None or (_git_dirty(version.tags), _git_dirty(run.data.tags)) == ("true", "false"):
            version = _create(model, run, folder, tags)
        client.update_run(run_id, name=naming.with_version(run.info.run_name, int(version.version)))
        if verdict := version_tags.verdict(version):
            return outcome(model.name, verdict)
        client.set_registered_model_alias(model.name, CHALLENGER, version.version)
    weights = folder / "artifacts" / model_files.WEIGHTS
    evaluation = Evaluation.read(weights.with_name(model_files.EVALUATION))
    lineage = provenance.from_tags(version.tags)
    challenger = Candidate(int(version.version), lambda: evaluation, lambda: weights, lineage)
    return outcome(model.name, _decide(model, challenger))


def outcome(name: str, verdict: Verdict) -> str:
    """Return a line about what was decided about a version of the registered model with that name."""
    return f"model {name} version {verdict.version}: {verdict.reason}"


def _named(client: MlflowClient, tags: Mapping[str, str]) -> Registered:
    """Return the registered model that a version with these `version_tags.of` belongs to."""
    return Registered(client, tags.get(registered_model.NAME_TAG) or registered_model.name())


def _decide(model: Registered, challenger: Candidate) -> Verdict:
    """Promote a new version, or record why not; changes nothing where that was recorded already."""
    gate = Gate.load()
    state = promotion.settle(model)
    while (verdict := version_tags.verdict(registered_model.get_version(model, challenger.version))) is None:
        with suppress(PromotionConflict):  # then there is another champion to beat
            _judge(model, gate, challenger, state)
        state = promotion.settle(model)
    return verdict


def _judge(model: Registered, gate: Gate, challenger: Candidate, state: ChampionState) -> None:
    if state.champion == challenger.version:
        promotion.record(model, Verdict(challenger.version, True, "it is the champion already"))
        return
    verdict = gate.decide(challenger, _champion(model, state), _compared_before(model, challenger))
    if verdict.promoted and (why := gate.why_by_hand(challenger.lineage)):
        reason = f"{verdict.reason}; but {why}: `mitoflow promote {verdict.version}` makes it the champion"
        verdict = replace(verdict, promoted=False, reason=reason)
    if not verdict.promoted:
        promotion.record(model, verdict)
        return
    try:
        promotion.promote(model, state, verdict, promotion_log.PROMOTED, verdict.reason)
    except MlflowException as error:
        if not store.is_forbidden(error):
            raise
        remedy = f"`mitoflow promote {verdict.version}` by a user who may"
        reason = f"{verdict.reason}; but the user who registered it may not promote: {remedy}"
        promotion.record(model, replace(verdict, promoted=False, reason=reason))


def models() -> list[Row]:
    """Return all versions, oldest first.

    Raises
    ------
    InputError
        The registry cannot be reached; so in all functions below.
    """
    with registered_model.opened() as model:
        aliases = ChampionState.read(model).aliases
        versions = store.search_versions(model.client, model.name)
    return [
        Row(
            version=int(version.version),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if number == int(version.version))),
            dice=version_tags.score(version, "dice"),
            iou=version_tags.score(version, "iou"),
            sets=version_tags.dice_by_set(version),
            test_hash=version.tags.get(version_tags.TEST_HASH, ""),
            model_sha256=version.tags.get(store.MODEL_SHA256_TAG, ""),
            run_id=version.run_id or "",
            created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
            verdict=version_tags.verdict(version),
        )
        for version in sorted(versions, key=lambda version: int(version.version))
    ]


def promote(version: int, *, force: bool = False, reason: str = "") -> Verdict:
    """Make a version the champion where the gate allows it, or in any case with ``force``, which is recorded.

    Raises
    ------
    InputError
        There is no such version, another user promoted one meanwhile, or ``promotion.yaml`` is wrong.
    """
    gate = Gate.load()
    with registered_model.opened() as model:
        registered_model.get_version(model, version)
        state = promotion.settle(model)
        if state.champion == version:
            return Verdict(version, True, "it is the champion already")
        challenger = _candidate(model, version)
        verdict = gate.decide(challenger, _champion(model, state), _compared_before(model, challenger))
        how, why = promotion_log.PROMOTED, reason or verdict.reason
        if force and not verdict.promoted:
            how, why = promotion_log.FORCED, "; ".join(filter(None, [reason, f"the gate said: {verdict.reason}"]))
            verdict = replace(verdict, promoted=True, reason=f"promoted by hand with --force; {why}")
        if verdict.promoted:
            with promotion.explain_conflict(f"version {version}"):
                promotion.promote(model, state, verdict, how, why)
        else:
            promotion.record(model, verdict)
        promotion.settle(model)
        return verdict


def rollback(reason: str = "") -> tuple[int, int]:
    """Make the previous champion the champion again, and return the versions (from, to).

    Raises
    ------
    InputError
        There is no previous champion, or another user promoted a version meanwhile.
    """
    with registered_model.opened() as model, promotion.explain_conflict(f"model {model.name}"):
        versions = promotion.roll_back(model, promotion.settle(model), reason)
        promotion.settle(model)
        return versions


def history() -> list[Promotion]:
    """Return who made which version the champion, when and why, oldest first, with those that do not count."""
    with registered_model.opened() as model:
        return ChampionState.read(model).history


def champion() -> int:
    """Return the version that is the champion.

    Raises
    ------
    InputError
        There is none yet.
    """
    with registered_model.opened() as model:
        version = ChampionState.read(model).champion
    if version is None:
        remedy = "train one with `dvc repro`, or `mitoflow promote VERSION`"
        raise InputError(f"model {model.name}", "no champion", "a champion", remedy)
    return version


def is_missing() -> bool:
    """Return whether there is no registry yet; all other functions would make one."""
    return places.is_missing(places.uri())


def find_version(what: str, name: str = "") -> int | None:
    """Return the version that a name means.

    Parameters
    ----------
    what
        The number of a version, the ID of an evaluation or of a training, whose newest version it is, or an alias
        such as ``champion``.
    name
        Of the registered model; empty for that of this project.

    Returns
    -------
    version
        None where no version has this alias.

    Raises
    ------
    InputError
        There is no version of that number or run.
    """
    with registered_model.opened(name) as model:
        if RUN_ID.fullmatch(what):
            versions = [int(version.version) for version in _of_run(model, what)]
        elif what.isdecimal():
            return int(registered_model.get_version(model, int(what)).version)
        else:
            return ChampionState.read(model).aliases.get(what)
    if not versions:
        expected, remedy = f"a version of model {model.name}", "`mitoflow models` lists them"
        raise InputError(f"run {what}", "no version", expected, remedy)
    return max(versions)


def model_file(version: int, name: str = "") -> Path:
    """Return the ``.keras`` file of a version, with the other files of the model beside it.

    It is one of the registered model with that name, or else of that of this project. All are in one folder and are
    fetched into ``.mitoflow/weights/`` once: settings and evaluation, and of `model_files.OPTIONAL` what the version
    has.

    Raises
    ------
    InputError
        There is no such version, it was registered by other means, or a file is gone or another one.
    """
    with registered_model.opened(name) as model:
        chosen = registered_model.get_version(model, version)
        digest = chosen.tags.get(store.MODEL_SHA256_TAG)
        if digest is None:
            remedy = "take another version; `mitoflow models` lists them"
            raise InputError(f"version {version}", "no model of mitoflow", "one that mitoflow registered", remedy)
        folder = workspace.state_dir() / "weights" / files.short_digest(chosen.source)
        weights = folder / model_files.WEIGHTS
        if weights.is_file() and provenance.file_sha256(weights) == digest:
            return weights
        with files.replacing(folder) as beside:
            beside.mkdir()
            required = (model_files.WEIGHTS, model_files.SETTINGS, model_files.EVALUATION)
            for file in (*required, *_listed(model.client, chosen, *model_files.OPTIONAL)):
                try:
                    _download(model.client, chosen, file, str(beside))
                except store.ERRORS as error:
                    where, remedy = f"version {version}: {file}", "look after the artifacts, or take another version"
                    raise InputError(where, store.reason(error), "a file in the artifact store", remedy) from None
            if (found := provenance.file_sha256(beside / model_files.WEIGHTS)) != digest:
                remedy = "register the model again, or take another version"
                raise InputError(f"version {version}: {model_files.WEIGHTS}", f"SHA-256 {found}", digest, remedy)
    return weights


def _listed(client: MlflowClient, version: ModelVersion, *names: str) -> list[str]:
    """Return those of the files that a version has."""
    there = store.list_artifacts(client, f"{version.source}/artifacts")
    return [name for name in names if name in there]


def _find(model: Registered, tags: Mapping[str, str]) -> ModelVersion | None:
    """Return the version that this evaluation of this training made, of several one without uncommitted changes."""
    same = _equal(tags, store.TRAINING_KEY_TAG, version_tags.EVALUATION_SHA256)
    versions = store.search_versions(model.client, model.name, *same)
    return min(versions, key=lambda version: _git_dirty(version.tags) == "true", default=None)


def _git_dirty(tags: Mapping[str, str]) -> str:
    """Return whether a run or version has uncommitted changes: true or false, and nothing where that is unknown."""
    return provenance.from_tags(tags).get("git_dirty", "")


def _equal(tags: Mapping[str, str], *names: str) -> list[str]:
    """Return MLflow's filters for what has the same values of these tags."""
    return [f"tags.`{name}` = '{tags[name]}'" for name in names]


def _of_run(model: Registered, run_id: str) -> list[ModelVersion]:
    """Return the versions that an evaluation made, or all evaluations of a training."""
    if versions := store.search_versions(model.client, model.name, f"run_id = '{run_id}'"):
        return versions
    training = store.find_run(model.client, run_id)
    key = training.data.tags.get(store.KEY_TAG) if training else None
    return store.search_versions(model.client, model.name, f"tags.`{store.TRAINING_KEY_TAG}` = '{key}'") if key else []


def _create(model: Registered, run: Run, folder: Path, tags: Mapping[str, str]) -> ModelVersion:
    run_id = run.info.run_id
    logged = _logged_model(model.client, run, tags)
    _take_changes(model.client, run, folder)
    packed = Model.load(str(folder))
    packed.run_id, packed.model_id, packed.model_uuid = run_id, logged.model_id, logged.model_id
    packed.artifact_path = logged.artifact_location
    packed.save(str(folder / "MLmodel"))
    model.client.log_model_artifacts(logged.model_id, str(folder))
    model.client.finalize_logged_model(logged.model_id, "READY")
    model.client.log_batch(run_id, metrics=list(_of_model(run, logged.model_id)))
    outputs = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in [output.model_id for output in outputs]:
        model.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    registered_model.create(model.client, model.name)
    everything = {**tags, **provenance.tags(provenance.from_tags(run.data.tags))}
    # The place and not models:/ID, which a SQLite store would look up in MLflow's global store.
    version = model.client.create_model_version(
        model.name, logged.artifact_location, run_id, everything, model_id=logged.model_id
    )
    # A server sets this tag, by which the UI links both, itself; a SQLite store does not.
    link = json.dumps([{"name": model.name, "version": str(version.version)}])
    model.client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: link})
    return version


def _take_changes(client: MlflowClient, run: Run, folder: Path) -> None:
    """Put the changes that were not committed into the packed model: `mlflow gc` may remove the run and its files."""
    digest = provenance.from_tags(run.data.tags).get("git_diff_sha256")
    if digest is None:
        return
    place, name = f"{run.info.artifact_uri}/{store.CHANGES}", store.changes_file(digest)
    if name in store.list_artifacts(client, place):  # they stay where a released model was made
        (folder / store.CHANGES).mkdir(exist_ok=True)
        store.download(client, f"{place}/{name}", str(folder / store.CHANGES))


def _logged_model(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> LoggedModel:
    """Return the logged model of this evaluation in this run, with the parameters of the run."""
    params, experiment_id = run.data.params, run.info.experiment_id
    same = _equal(tags, store.KEY_TAG, version_tags.EVALUATION_SHA256)
    for logged in client.search_logged_models([experiment_id], " AND ".join(same)):
        return logged
    called = "-".join(filter(None, (params.get("train.network", "unet"), params.get("data.name"))))
    name = re.sub(r"[^\w+-]", "_", called)  # MLflow allows no dots and slashes
    return client.create_logged_model(experiment_id, name, run.info.run_id, dict(tags), params)


def _of_model(run: Run, model_id: str) -> Iterator[Metric]:
    """Yield the test scores of a run as those of its model, each with the test set that it was measured on."""
    tested = (each for each in inputs.of_run(run) if "test" in {tag.value for tag in each.tags})
    sets = {each.dataset.name: each.dataset for each in tested}
    for point in run.data.to_proto().metrics:  # with the times, which `run.data.metrics` lacks
        key = str(point.key)
        if key.startswith("test/"):
            known = sets.get(key.split("/")[2]) if key.startswith("test/sets/") else None
            of_set = known or (next(iter(sets.values())) if len(sets) == 1 else None)
            dataset = (of_set.name, of_set.digest) if of_set else (None, None)
            yield Metric(key, point.value, point.timestamp, point.step, model_id, *dataset)


def _candidate(model: Registered, version: int) -> Candidate:
    """Return what the gate looks at; nothing is fetched before it is asked for."""
    known = registered_model.get_version(model, version)
    lineage = provenance.from_tags(known.tags)
    return Candidate(
        version, lambda: _evaluation(model.client, known), lambda: model_file(version, model.name), lineage
    )


def _compared_before(model: Registered, challenger: Candidate) -> int:
    """Return how many other versions were compared with a champion on test data of this one.

    A verdict counts those before it, so a version that was deleted since still counts where a later one was compared.
    """
    if challenger.evaluation is None:
        return 0
    hashes = {challenger.evaluation.test_hash, *challenger.evaluation.test_hashes.values()}
    counted = {}
    for version in store.search_versions(model.client, model.name):
        verdict = version_tags.verdict(version)
        if verdict and verdict.difference and hashes & version_tags.test_hashes(version.tags):
            counted[verdict.version] = verdict.compared_before
    compared = max([len(counted), *(before + 1 for before in counted.values())], default=0)
    return compared - (challenger.version in counted)


def _champion(model: Registered, state: ChampionState) -> Candidate | None:
    return None if state.champion is None else _candidate(model, state.champion)


def _evaluation(client: MlflowClient, version: ModelVersion) -> Evaluation | None:
    """Return what a version did on the test part; None where mitoflow never evaluated it, or its files are lost."""
    if version_tags.TEST_HASH not in version.tags or not _listed(client, version, model_files.EVALUATION):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Evaluation.read(_download(client, version, model_files.EVALUATION, folder))


def _download(client: MlflowClient, version: ModelVersion, name: str, folder: str) -> Path:
    """Copy an artifact that `mitoflow.tracking.packing` put into the model of a version into ``folder``."""
    return store.download(client, f"{version.source}/artifacts/{name}", folder)
