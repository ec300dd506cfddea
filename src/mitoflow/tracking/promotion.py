"""Which version of the registered model is the champion, and what follows from the log of promotions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mitoflow.errors import InputError
from mitoflow.evaluation.verdict import VERDICT_TAG, Verdict
from mitoflow.tracking import promotion_log, store
from mitoflow.tracking.promotion_log import Log, Promotion, PromotionConflict

NAME = "mitoflow"
CHAMPION, CHALLENGER = "champion", "challenger"

PROMOTED_AT, PROMOTED_OVER = "mitoflow.promoted.at", "mitoflow.promoted.over"
ROLLED_BACK_AT = "mitoflow.rolled_back.at"
#: The number of the last promotion that was written on a version.
PROMOTION = "mitoflow.promotion"


@dataclass(frozen=True)
class ChampionState:
    """The champion at one moment.

    Attributes
    ----------
    log
        None where there is no registered model yet.
    aliases
        Which version each alias means. The champion is that of the log, which the alias in MLflow follows; where
        nobody was promoted yet it is that of the alias.
    stored
        The same as MLflow has it.
    """

    log: Log | None
    aliases: Mapping[str, int]
    stored: Mapping[str, int]

    @classmethod
    def read(cls, client: MlflowClient) -> ChampionState:
        """Ask MLflow."""
        try:
            registered = client.get_registered_model(NAME)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return cls(None, {}, {})
        stored = {alias: int(version) for alias, version in registered.aliases.items()}
        log = Log.read(client, registered)
        aliases = dict(stored)
        if log.last and log.last.version != stored.get(CHAMPION):
            aliases.pop(CHAMPION, None)
            if log.last.version in versions(client):
                aliases[CHAMPION] = log.last.version
        return cls(log, aliases, stored)

    @property
    def champion(self) -> int | None:
        """The champion; None where there is none yet, or where it was deleted."""
        return self.aliases.get(CHAMPION)

    @property
    def history(self) -> list[Promotion]:
        """All promotions, oldest first, also those that came too late."""
        return self.log.promotions if self.log else []


def versions(client: MlflowClient) -> set[int]:
    """Return the numbers of the versions that there are."""
    return {int(version.version) for version in store.search_versions(client, NAME)}


def settle(client: MlflowClient) -> ChampionState:
    """Write down what follows from the log, and return how things stand.

    Whoever writes does so before and afterwards, so what a process left open when it died is done by the next one. A
    process that was held up may have written what is no longer true, so it looks again until nothing is left to do.
    """
    while True:
        standing = ChampionState.read(client)
        if not (_point(client, standing) or _write_down(client, standing)):
            return standing


def promote(client: MlflowClient, standing: ChampionState, verdict: Verdict, how: str, why: str) -> None:
    """Make the version of a verdict the champion, if all is still as it was when it was decided; `settle` follows.

    Raises
    ------
    PromotionConflict
        It is not.
    """
    assert standing.log, "where there are versions there is a registered model"
    decided = json.dumps(verdict.tags())
    standing.log.append(client, verdict.version, standing.champion, how=how, why=why, verdict=decided)


def roll_back(client: MlflowClient, standing: ChampionState, why: str) -> tuple[int, int]:
    """Make the previous champion the champion again, and return the versions (from, to); `settle` follows.

    Raises
    ------
    PromotionConflict
        There is another champion by now.
    InputError
        There is no previous champion.
    """
    existing, champion = versions(client), standing.champion
    before = [version for version in (standing.log.champions if standing.log else []) if version in existing]
    while before and before[-1] == champion:
        before.pop()
    if champion is None or standing.log is None or not before:
        found = "no champion" if champion is None else f"version {champion} as the only champion so far"
        remedy = "name a version: `mitoflow promote VERSION`"
        raise InputError(f"model {NAME}", found, "a previous champion", remedy)
    standing.log.append(client, before[-1], champion, how=promotion_log.ROLLED_BACK, why=why)
    return champion, before[-1]


@contextmanager
def in_time(where: str) -> Iterator[None]:
    """Say in one line that somebody was faster."""
    try:
        yield
    except PromotionConflict as late:
        winner = late.winner
        found = f"version {winner.version}, which {winner.who} made the champion a moment ago"
        expected, remedy = "the champion that this was decided about", "look at `mitoflow history`, then decide again"
        raise InputError(where, found, expected, remedy) from None


def record(client: MlflowClient, verdict: Verdict) -> None:
    """Write a verdict on its version."""
    *tags, decided = verdict.tags().items()
    told = f"{decided[1].capitalize()}: {verdict.reason}."
    earlier = client.get_model_version(NAME, str(verdict.version)).tags
    for key in earlier.keys() - verdict.tags().keys():
        if key.startswith(VERDICT_TAG):
            client.delete_model_version_tag(NAME, str(verdict.version), key)
    client.update_model_version(NAME, str(verdict.version), "\n".join([told, *map(str, verdict.checks)])[:5000])
    for key, value in (*tags, decided):  # what was decided comes last: whoever finds it finds the rest
        client.set_model_version_tag(NAME, str(verdict.version), key, value)


def _point(client: MlflowClient, standing: ChampionState) -> bool:
    """Let the alias follow the log; False where it does."""
    champion, stored = standing.champion, standing.stored
    if champion is None or (stored.get(CHAMPION) == champion and stored.get(CHALLENGER) != champion):
        return False
    client.set_registered_model_alias(NAME, CHAMPION, str(champion))
    if stored.get(CHALLENGER) == champion:
        client.delete_registered_model_alias(NAME, CHALLENGER)
    return True


def _write_down(client: MlflowClient, standing: ChampionState) -> bool:
    """Write what the last entry says on the version that it is about; False where that is done."""
    last = standing.log.last if standing.log else None
    if last is None or last.version != standing.champion:
        return False
    back = last.how == promotion_log.ROLLED_BACK
    number = str(last.over if back else last.version)
    try:
        tags = client.get_model_version(NAME, number).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # it was deleted
    if tags.get(PROMOTION) == str(last.number) and (back or tags.get(VERDICT_TAG) == "promoted"):
        return False
    when = last.when.isoformat(timespec="seconds")
    if back:
        written = {ROLLED_BACK_AT: when}
    else:
        record(client, Verdict.from_tags(last.version, json.loads(last.verdict)))
        written = {PROMOTED_OVER: str(last.over or ""), PROMOTED_AT: when}
    for key, value in (written | {PROMOTION: str(last.number)}).items():
        client.set_model_version_tag(NAME, number, key, value)
    return True
