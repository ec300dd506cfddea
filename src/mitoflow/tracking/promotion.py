"""Which version of the registered model is the champion, as the log of promotions says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mlflow.exceptions import MlflowException

from mitoflow.errors import InputError
from mitoflow.evaluation.verdict import VERDICT_TAG, Verdict
from mitoflow.tracking import promotion_log, store, version_description
from mitoflow.tracking.places import CHALLENGER, CHAMPION
from mitoflow.tracking.promotion_log import Log, Promotion, PromotionConflict
from mitoflow.tracking.registered_model import Registered

PROMOTED_AT_TAG, PROMOTED_OVER_TAG = "mitoflow.promoted.at", "mitoflow.promoted.over"
ROLLED_BACK_AT_TAG = "mitoflow.rolled_back.at"
#: The number of the last promotion that was written on a version.
PROMOTION_TAG = "mitoflow.promotion"


@dataclass(frozen=True)
class ChampionState:
    """The champion at one moment.

    Attributes
    ----------
    log
        None where there is no registered model yet.
    aliases
        The version of each alias. The champion is the last one in the log that still exists, and the alias in MLflow
        follows the log; where the log has none, it is that of the alias.
    stored
        The version of each alias in MLflow.
    """

    log: Log | None
    aliases: Mapping[str, int]
    stored: Mapping[str, int]

    @classmethod
    def read(cls, model: Registered) -> ChampionState:
        """Read log and aliases from MLflow.

        Raises
        ------
        InputError
            The registered model, or its log, has another name now.
        """
        try:
            registered = model.client.get_registered_model(model.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            promotion_log.require_not_renamed(model.client, model.name)
            return cls(None, {}, {})
        stored = {alias: int(version) for alias, version in registered.aliases.items()}
        log = Log.read(model.client, registered)
        aliases = dict(stored)
        if log.last and log.last.version != stored.get(CHAMPION):
            existing = versions(model)
            if standing := [version for version in log.champions if version in existing]:
                aliases[CHAMPION] = standing[-1]
        return cls(log, aliases, stored)

    @property
    def champion(self) -> int | None:
        """The champion; None where there is none yet, or where all that ever were champion were deleted."""
        return self.aliases.get(CHAMPION)

    @property
    def history(self) -> list[Promotion]:
        """All promotions, oldest first, with those that do not count."""
        return self.log.promotions if self.log else []


def versions(model: Registered) -> set[int]:
    """Return the numbers of all versions."""
    return {int(version.version) for version in store.search_versions(model.client, model.name)}


def settle(model: Registered) -> ChampionState:
    """Make aliases and tags agree with the log, and return the state.

    Every command that writes calls this before and afterwards, so the next command completes what a process that died
    left undone. A slow process may write what is no longer true, so this reads again until nothing is left to do.
    """
    while True:
        state = ChampionState.read(model)
        if not (_point(model, state) or _write_down(model, state)):
            return state


def promote(model: Registered, state: ChampionState, verdict: Verdict, how: str, why: str) -> None:
    """Make the version of a verdict the champion, if the champion did not change since ``state``; then `settle`.

    Raises
    ------
    PromotionConflict
        It changed.
    """
    assert state.log, "where there are versions there is a registered model"
    state.log.append(model.client, verdict.version, state.champion, how=how, why=why, verdict=verdict)


def roll_back(model: Registered, state: ChampionState, why: str) -> tuple[int, int]:
    """Make the previous champion the champion again, and return the versions (from, to); then `settle`.

    Raises
    ------
    PromotionConflict
        The champion changed since ``state``.
    InputError
        There is no previous champion.
    """
    existing, champion = versions(model), state.champion
    before = [version for version in (state.log.champions if state.log else []) if version in existing]
    while before and before[-1] == champion:
        before.pop()
    if champion is None or state.log is None or not before:
        found = "no champion" if champion is None else f"version {champion} as the only champion so far"
        remedy = "name a version: `mitoflow promote VERSION`"
        raise InputError(f"model {model.name}", found, "a previous champion", remedy)
    state.log.append(model.client, before[-1], champion, how=promotion_log.ROLLED_BACK, why=why)
    return champion, before[-1]


@contextmanager
def explain_conflict(where: str) -> Iterator[None]:
    """Turn `PromotionConflict` into an `InputError` that names the user who was faster."""
    try:
        yield
    except PromotionConflict as late:
        winner = late.winner
        found = f"version {winner.version}, which {winner.who} made the champion a moment ago"
        expected, remedy = "the champion that this was decided about", "look at `mitoflow history`, then decide again"
        raise InputError(where, found, expected, remedy) from None


def record(model: Registered, verdict: Verdict) -> None:
    """Write a verdict into the tags and the description of its version."""
    tags = verdict.tags()
    version = model.client.get_model_version(model.name, str(verdict.version))
    for key in version.tags.keys() - tags.keys():
        if key.startswith(VERDICT_TAG):
            model.client.delete_model_version_tag(model.name, str(verdict.version), key)
    version_description.write(model.client, version, verdict)
    for key, value in tags.items():  # the decision is the last one: a version that has it has them all
        model.client.set_model_version_tag(model.name, str(verdict.version), key, value)


def _point(model: Registered, state: ChampionState) -> bool:
    """Set the aliases to what the log says; False where they agree already."""
    champion, stored = state.champion, state.stored
    if champion is None or (stored.get(CHAMPION) == champion and stored.get(CHALLENGER) != champion):
        return False
    model.client.set_registered_model_alias(model.name, CHAMPION, str(champion))
    if stored.get(CHALLENGER) == champion:
        model.client.delete_registered_model_alias(model.name, CHALLENGER)
    return True


def _write_down(model: Registered, state: ChampionState) -> bool:
    """Write the last entry of the log into the tags of its version; False where that was done already."""
    last = state.log.last if state.log else None
    if last is None or last.version != state.champion:
        return False
    back = last.how == promotion_log.ROLLED_BACK
    number = str(last.over if back else last.version)
    try:
        tags = model.client.get_model_version(model.name, number).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # it was deleted
    if tags.get(PROMOTION_TAG) == str(last.number) and (back or tags.get(VERDICT_TAG) == "promoted"):
        return False
    when = last.when.isoformat(timespec="seconds")
    if back:
        written = {ROLLED_BACK_AT_TAG: when}
    else:
        verdict = last.verdict or Verdict(last.version, True, last.why)
        record(model, replace(verdict, promoted=True))
        written = {PROMOTED_OVER_TAG: str(last.over or ""), PROMOTED_AT_TAG: when}
    for key, value in (written | {PROMOTION_TAG: str(last.number)}).items():
        model.client.set_model_version_tag(model.name, number, key, value)
    return True
