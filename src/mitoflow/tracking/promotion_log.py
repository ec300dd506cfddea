"""Who made which version the champion, when and why: an append-only log without locks.

MLflow has no transactions, and the alias ``champion`` is whatever was written last. But the version numbers of a
registered model are keys of a database, and each is given once. So the log is a registered model of its own, and its
versions are the entries: written at once, in one order that all clients see, and never changed.

Invariant: an entry names the last entry that its writer had read. Where another entry that counts came in between, the
new one is too late and does not count; all readers come to the same result. A process that dies leaves nothing to
clean up: before its entry exists nothing has happened, afterwards everything has. The aliases and the tags of versions
follow the log (`mitoflow.tracking.promotion`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from pydantic import TypeAdapter

from mitoflow.errors import InputError
from mitoflow.evaluation.verdict import Verdict
from mitoflow.tracking import store

PROMOTED, FORCED, ROLLED_BACK = "promoted", "forced", "rolled back"

_TAG = "mitoflow.promotion."


@dataclass(frozen=True)
class Promotion:
    """An entry of the log.

    Attributes
    ----------
    number
        Of the entry.
    version, over
        The version that became the champion, and the champion before; None where there was none.
    how
        `PROMOTED` by the gate, `FORCED` in spite of it, or `ROLLED_BACK` to.
    who, when, why
        The user, by the name that MLflow knows; the time, by the clock of the store; the reason that was given or that
        the gate gave.
    verdict
        The verdict of the gate; None where it was not asked.
    counts
        False where another entry came first.
    """

    number: int
    version: int
    over: int | None
    how: str
    who: str
    when: datetime
    why: str
    verdict: Verdict | None
    counts: bool


class PromotionConflict(Exception):  # noqa: N818, it is an outcome
    """Another entry came first: ``winner``, the one that counts."""

    def __init__(self, winner: Promotion) -> None:
        super().__init__(winner)
        self.winner = winner


class Log:
    """The log of a registered model, as it was when it was read, without entries that cannot be read."""

    def __init__(self, model: RegisteredModel, entries: list[ModelVersion]) -> None:
        self._model = model
        self._entries = entries
        #: All entries, in order.
        self.promotions: list[Promotion] = []
        last = 0
        for entry in entries:
            if found := store.read_tags(entry, _TAG, partial(_promotion, entry, last)):
                last = found.number if found.counts else last
                self.promotions.append(found)

    @classmethod
    def read(cls, client: MlflowClient, model: RegisteredModel) -> Log:
        """Read the log of a model; one that was deleted and made again begins anew.

        Raises
        ------
        InputError
            The log has another name now.
        """
        ours = f"tags.`{_TAG}registry` = '{model.creation_timestamp}'"
        entries = store.search_versions(client, log_name(model.name), ours)
        if not entries and (elsewhere := store.search_versions(client, None, ours)):
            raise _renamed("the log of promotions", elsewhere[0].name, log_name(model.name))
        return cls(model, sorted(entries, key=lambda entry: int(entry.version)))

    @property
    def last(self) -> Promotion | None:
        """The last entry that counts; its version is the champion."""
        return next((entry for entry in reversed(self.promotions) if entry.counts), None)

    @property
    def champions(self) -> list[int]:
        """The champions that followed each other, without those that were rolled back; the last one is in use."""
        champions: list[int] = []
        for entry in self.promotions:
            if entry.counts and entry.how == ROLLED_BACK:
                while champions and champions[-1] != entry.version:
                    champions.pop()
            elif entry.counts:
                # Before there was a log, or where the last champion was deleted, the log does not have it at the end.
                if entry.over is not None and entry.over not in champions[-1:]:
                    champions.append(entry.over)
                champions.append(entry.version)
        return champions

    def append(
        self,
        client: MlflowClient,
        version: int,
        over: int | None,
        *,
        how: str,
        why: str,
        verdict: Verdict | None = None,
    ) -> None:
        """Make a version the champion, if no entry came first since the log was read.

        Raises
        ------
        PromotionConflict
            One did.
        MlflowException, SQLAlchemyError, OSError
            MLflow did not take the entry, or gave no answer: `mitoflow.tracking.store.ERRORS`.
        """
        token = uuid.uuid4().hex  # identifies the entry where MLflow's answer got lost
        facts = {
            "registry": str(self._model.creation_timestamp),
            "after": str(self.last.number if self.last else 0),
            "token": token,
            "version": str(version),
            "over": str(over or ""),
            "how": how,
            "who": store.context()["mlflow.user"],
            "why": why,
            "verdict": json.dumps(verdict.tags()) if verdict else "",
        }
        if not self._entries:
            create(client, self._model.name)
        refusal = None
        try:
            self._add(client, facts)
        except store.ERRORS as error:  # many writers at once may exhaust MLflow's tries to find a number
            refusal = error
        log = Log.read(client, self._model)
        ours = next((entry for entry in log._entries if entry.tags.get(f"{_TAG}token") == token), None)
        last = self.last.number if self.last else 0
        winner = next((entry for entry in log.promotions if entry.counts and entry.number > last), None)
        if winner and (ours is None or winner.number != int(ours.version)):
            raise PromotionConflict(winner)
        if refusal and not winner:
            raise refusal

    def _add(self, client: MlflowClient, facts: Mapping[str, str]) -> None:
        source = f"models:/{self._model.name}/{facts['version']}"
        summary = f"{facts['over'] or 'none'} -> {facts['version']}, {facts['how']} by {facts['who']}: {facts['why']}"
        tags = {f"{_TAG}{key}": value for key, value in facts.items()}
        client.create_model_version(log_name(self._model.name), source, tags=tags, description=summary[:4000])


def require_not_renamed(client: MlflowClient, name: str) -> None:
    """Raise where a registered model that has a log has another name now.

    Raises
    ------
    InputError
        It has.
    """
    births = {entry.tags.get(f"{_TAG}registry") for entry in store.search_versions(client, log_name(name))}
    for model in store.search_registered_models(client) if births else ():
        if str(model.creation_timestamp) in births and model.name != name:
            raise _renamed(f"model {name}", model.name, name)


def _renamed(what: str, found: str, name: str) -> InputError:
    return InputError(what, f"renamed to {found}", f"the name {name}", "rename it back in MLflow")


def log_name(name: str) -> str:
    """Return the name of the log of a registered model."""
    return f"{name}-promotions"


def create(client: MlflowClient, name: str) -> str:
    """Create the log of a registered model where there is none, and return its name."""
    about = f"Who made which version of {name} the champion, when and why: never change it by hand"
    store.make_registered_model(client, log_name(name), about)
    return log_name(name)


def _promotion(entry: ModelVersion, last: int, tags: Mapping[str, str]) -> Promotion:
    """Return an entry by its tags, where `last` is the last one before it that counts; see `store.read_tags`."""
    facts = {key: tags.get(f"{_TAG}{key}", "") for key in ("over", "how", "who", "why", "verdict")}
    version = int(tags[f"{_TAG}version"])
    verdict = TypeAdapter(dict[str, str]).validate_json(facts["verdict"] or "{}")
    return Promotion(
        number=int(entry.version),
        version=version,
        over=int(facts["over"]) if facts["over"] else None,
        how=facts["how"],
        who=facts["who"],
        when=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        why=facts["why"],
        verdict=Verdict.from_tags(version, verdict),
        counts=int(tags[f"{_TAG}after"]) >= last,
    )
