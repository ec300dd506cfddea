"""The tags of a version: which evaluation made it, on which test data, its main scores, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.entities.model_registry import ModelVersion

from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import VERDICT_TAG, Verdict
from mitoflow.io.file_names import natural_order
from mitoflow.tracking import registered_model, store

SCORES = ("dice", "iou")
EVALUATION_SHA256 = "mitoflow.evaluation_sha256"
TEST_HASH = "mitoflow.test_hash"
SET, SET_HASH = "mitoflow.set.", ".test_hash"  # of one of several test sets: begins its tags, ends one of them


def of(run_key: str, training_key: str, evaluation: Evaluation) -> dict[str, str]:
    """Return the tags of the version that an evaluation makes in its run."""
    tags: dict[str, str] = {}
    for name in SCORES:  # first, because MLflow's list of versions shows all tags in this order
        figures = evaluation.interval(name).as_dict(f"mitoflow.{name}", ".")
        tags |= {key: str(figure) for key, figure in figures.items()}
    for name in evaluation.test_hashes:
        figures = evaluation.sets[name].interval("dice").as_dict(f"{SET}{name}.dice", ".")
        tags |= {key: str(figure) for key, figure in figures.items()}
        tags[f"{SET}{name}{SET_HASH}"] = evaluation.test_hashes[name]
    return tags | {
        registered_model.NAME_TAG: registered_model.name(),
        store.KEY_TAG: run_key,
        store.TRAINING_KEY_TAG: training_key,
        store.MODEL_SHA256_TAG: evaluation.model_sha256,
        EVALUATION_SHA256: evaluation.sha256,
        TEST_HASH: evaluation.test_hash,
    }


def verdict(version: ModelVersion) -> Verdict | None:
    """Return what was decided about a version; None where nothing was, or where its tags cannot be read."""
    return store.read_tags(version, VERDICT_TAG, lambda tags: Verdict.from_tags(int(version.version), tags))


def score(version: ModelVersion, name: str) -> Interval | None:
    """Return one of `SCORES`; None where its tags cannot be read, or the version was registered by other means."""
    return _interval(version, f"mitoflow.{name}")


def dice_by_set(version: ModelVersion) -> dict[str, Interval]:
    """Return the Dice of each test set, but for tags that cannot be read; empty where there is one set."""
    names = [tag.removeprefix(SET).removesuffix(SET_HASH) for tag in version.tags if _is_hash_of_set(tag)]
    found = {name: _interval(version, f"{SET}{name}.dice") for name in sorted(names, key=natural_order)}
    return {name: interval for name, interval in found.items() if interval}


def _interval(version: ModelVersion, name: str) -> Interval | None:
    return store.read_tags(version, name, lambda tags: Interval.from_dict(name, tags, "."))


def test_hashes(tags: Mapping[str, str]) -> set[str]:
    """Return the digests of the test data: of all of them, and of each of several sets."""
    return {value for tag, value in tags.items() if tag == TEST_HASH or _is_hash_of_set(tag)}


def _is_hash_of_set(tag: str) -> bool:
    return tag.startswith(SET) and tag.endswith(SET_HASH)
