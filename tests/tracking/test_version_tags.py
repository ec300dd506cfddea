"""What the tags of versions, and of entries in the log of promotions, say after someone edited them in MLflow."""

from __future__ import annotations

import json

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel

from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.verdict import VERDICT_TAG, Check, Verdict
from mitoflow.tracking import store, version_tags
from mitoflow.tracking.promotion_log import Log

DICE = Interval(0.9, 0.8, 0.95)
SET = {"mitoflow.set.vnc.test_hash": "b" * 64, **DICE.as_dict("mitoflow.set.vnc.dice", ".")}
VERDICT = Verdict(1, True, "better", 2, DICE, 3, (Check("megabytes", "8.0", "at most 16", True),))
TAGS = {**DICE.as_dict("mitoflow.dice", "."), **SET, **VERDICT.tags()}
ENTRY = {"after": "0", "version": "1", "over": "2", "how": "promoted", "verdict": json.dumps(VERDICT.tags())}


@pytest.fixture(autouse=True)
def no_note_was_printed() -> None:
    """Forget the notes of earlier tests: each is printed once."""
    store._note.cache_clear()


def version(tags: dict[str, object], number: int = 7) -> ModelVersion:
    """Return a version as MLflow gives it."""
    listed = [ModelVersionTag(key, str(value)) for key, value in tags.items()]
    return ModelVersion("mitoflow", str(number), creation_timestamp=1, tags=listed)


def log(*entries: dict[str, str]) -> Log:
    """Return a log of entries with these tags."""
    tagged = [{f"mitoflow.promotion.{key}": value for key, value in entry.items()} for entry in entries]
    return Log(RegisteredModel("mitoflow"), [version(tags, number) for number, tags in enumerate(tagged, start=1)])


def test_tags_as_they_were_written(caplog: pytest.LogCaptureFixture) -> None:
    read = version_tags.verdict(version(TAGS, 1)), version_tags.score(version(TAGS), "dice")
    assert read == (VERDICT, DICE)
    assert version_tags.dice_by_set(version(TAGS)) == {"vnc": DICE}
    assert (version_tags.verdict(version({})), version_tags.score(version({}), "dice")) == (None, None)
    (entry,) = log(ENTRY).promotions
    assert (entry.number, entry.version, entry.over, entry.verdict) == (1, 1, 2, VERDICT)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("", "perhaps"),
        (".champion", "the first"),
        (".champion", ""),
        (".champion", "9" * 5000),
        (".compared_before", "none"),
        (".difference", "large"),
        (".checks", "{"),
        (".checks", "5"),
        (".checks", '["a"]'),
        (".checks", '[{"what": 1}]'),
    ],
)
def test_a_verdict_that_was_edited_is_none(tag: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    edited = version({**TAGS, f"{VERDICT_TAG}{tag}": value})
    assert [version_tags.verdict(edited) for _ in range(2)] == [None, None]
    assert version_tags.score(edited, "dice") == DICE
    note = "version 7 of mitoflow: its tags mitoflow.verdict* were changed in MLflow and cannot be read"
    assert caplog.messages == [f"note: {note}: they count as deleted"]


@pytest.mark.parametrize("value", ["", "good", "0,9"])
def test_a_score_that_was_edited_is_none(value: str, caplog: pytest.LogCaptureFixture) -> None:
    edited = version({**TAGS, "mitoflow.dice": value, "mitoflow.set.vnc.dice.low": value})
    assert version_tags.score(edited, "dice") is None
    assert version_tags.dice_by_set(edited) == {}
    assert version_tags.verdict(version(TAGS, 1)) == VERDICT
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("after", ""),
        ("after", "first"),
        ("version", "1.5"),
        ("over", "nobody"),
        ("verdict", "{"),
        ("verdict", "[]"),
        ("verdict", json.dumps({VERDICT_TAG: 5})),
        ("verdict", json.dumps({**VERDICT.tags(), f"{VERDICT_TAG}.checks": "none"})),
    ],
)
def test_an_entry_of_the_log_that_was_edited_is_none(tag: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    later = {**ENTRY, "after": "2", "version": "3", "over": "1"}
    kept = log(ENTRY, {**ENTRY, tag: value}, later)
    assert [entry.number for entry in kept.promotions] == [1, 3]
    assert kept.champions == [2, 1, 3]
    note = "version 2 of mitoflow: its tags mitoflow.promotion.* were changed in MLflow and cannot be read"
    assert caplog.messages == [f"note: {note}: they count as deleted"]
