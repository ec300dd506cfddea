"""What the gate decided about a version of the registered model, and the checks behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from mitoflow.evaluation.bootstrap import Interval

#: The tag of a version that says what was decided; the names of the other tags of a verdict begin with it.
VERDICT_TAG = "mitoflow.verdict"
DECISIONS = {"promoted": True, "not promoted": False}  # the values of that tag


@dataclass(frozen=True)
class Check:
    """One of the demands of ``promotion.yaml`` besides the gain: what was found, what is wanted, and whether it is."""

    what: str
    found: str
    wanted: str
    passed: bool

    def __str__(self) -> str:
        """Return a line."""
        return f"{self.what} {self.found}, wanted {self.wanted}: {'passed' if self.passed else 'failed'}"


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
        Its Dice minus that of the champion, with the interval; None where they could not be compared.
    compared_before
        How many other versions were compared with a champion on this test data before: the interval allows for them.
    checks
        What ``promotion.yaml`` asks for besides.
    """

    version: int
    promoted: bool
    reason: str
    champion: int | None = None
    difference: Interval | None = None
    compared_before: int = 0
    checks: tuple[Check, ...] = ()

    def tags(self) -> dict[str, str]:
        """Return all but the version as tags of MLflow; the one that says what was decided comes last."""
        tags = {f"{VERDICT_TAG}.reason": self.reason}
        if self.champion is not None:
            tags[f"{VERDICT_TAG}.champion"] = str(self.champion)
        if self.difference is not None:
            figures = self.difference.as_dict(f"{VERDICT_TAG}.difference", ".")
            tags |= {key: str(figure) for key, figure in figures.items()}
            tags[f"{VERDICT_TAG}.compared_before"] = str(self.compared_before)
        if self.checks:
            tags[f"{VERDICT_TAG}.checks"] = json.dumps([asdict(check) for check in self.checks])
        return tags | {VERDICT_TAG: "promoted" if self.promoted else "not promoted"}

    @classmethod
    def from_tags(cls, version: int, tags: Mapping[str, str]) -> Verdict | None:
        """Return the verdict whose `tags` are among those of a version; None where nothing was decided about it.

        Raises
        ------
        ValueError, KeyError
            Someone changed one of them in MLflow to what is none.
        """
        if VERDICT_TAG not in tags:
            return None
        champion = tags.get(f"{VERDICT_TAG}.champion")
        return cls(
            version=version,
            promoted=DECISIONS[tags[VERDICT_TAG]],
            reason=tags.get(f"{VERDICT_TAG}.reason", ""),  # someone may have deleted it in MLflow
            champion=None if champion is None else int(champion),
            difference=Interval.from_dict(f"{VERDICT_TAG}.difference", tags, "."),
            compared_before=int(tags.get(f"{VERDICT_TAG}.compared_before", "0")),  # of older versions it is not known
            checks=TypeAdapter(tuple[Check, ...]).validate_json(tags.get(f"{VERDICT_TAG}.checks", "[]")),
        )
