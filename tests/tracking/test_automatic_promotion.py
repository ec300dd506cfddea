"""Which versions become champion by themselves, and what many candidates on one test part cost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation.verdict import Verdict
from mitoflow.tracking import registry
from mitoflow.tracking.gate import Candidate, Gate
from tests.tracking.tiny_model import WEIGHTS, measured, register


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def commit(branch: str) -> None:
    """Make the current folder a repository with a branch, and a file in it."""
    git("init", "-q", "-b", branch)
    git("add", "params.yaml")
    git("commit", "-qm", "first")


def registered(right: int, luck: int = 0, test_hash: str = "a" * 64) -> Verdict:
    verdict = register(right, luck=luck, test_hash=test_hash)
    assert verdict is not None
    return verdict


@pytest.mark.slow
def test_an_experiment_is_registered_and_promoted_by_hand_alone(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-mito")
    first = registered(700)
    assert not first.promoted
    reason = "it comes from the DVC experiment brave-mito: `mitoflow promote 1` makes it the champion"
    assert first.reason == f"there was no champion; but {reason}"
    with pytest.raises(InputError, match="no champion"):
        registry.champion()
    assert registry.promote(1).promoted
    second = registered(900)
    assert (second.promoted, second.champion) == (False, 1)
    assert "interval is above zero; but it comes from the DVC experiment" in second.reason
    monkeypatch.delenv("DVC_EXP_NAME")
    assert registered(950).promoted


@pytest.mark.slow
def test_only_the_branch_that_promotion_yaml_names_promotes(client: MlflowClient) -> None:
    commit("main")
    assert registered(700).promoted
    git("checkout", "-qb", "deeper")
    assert registered(800).reason.endswith(
        "but it comes from the branch deeper and not from main: `mitoflow promote 2` makes it the champion"
    )
    git("checkout", "-q", "--detach")
    assert "but it comes from a checkout without a branch and not from main" in registered(800).reason
    Path("promotion.yaml").write_text("auto_promote: deeper\n", encoding="utf-8")
    git("checkout", "-q", "deeper")
    assert registered(800).promoted
    Path("promotion.yaml").write_text("auto_promote: never\n", encoding="utf-8")
    assert "but no version becomes champion by itself: `mitoflow promote 5`" in registered(900).reason
    Path("promotion.yaml").write_text("auto_promote: always\n", encoding="utf-8")
    git("checkout", "-q", "--detach")
    assert registered(950).promoted


@pytest.mark.parametrize(
    ("lineage", "changed"), [({"git_dirty": "false"}, ""), ({"git_dirty": "true"}, "changed"), ({}, "unknown")]
)
def test_a_dirty_tree_is_refused_where_that_is_asked_for(lineage: dict[str, str], changed: str, client: object) -> None:
    challenger = Candidate(1, lambda: measured(800), lambda: WEIGHTS, lineage)
    verdict = Gate(require_clean=True).decide(challenger, None)
    assert verdict.promoted is not bool(changed)
    if changed:
        assert verdict.reason == f"there was no champion; but working tree is {changed} and not as committed"
    assert Gate().decide(challenger, None).promoted


@pytest.mark.slow
def test_the_dirty_tree_of_a_version_is_known_by_its_lineage(client: MlflowClient) -> None:
    commit("main")
    Path("promotion.yaml").write_text("require_clean: true\n", encoding="utf-8")
    Path("params.yaml").write_text("{}  # changed\n", encoding="utf-8")
    assert provenance.current()["git_dirty"] == "true"
    assert not registered(700).promoted
    assert not registry.promote(1).promoted
    git("commit", "-qam", "second")
    assert registered(700).promoted


@pytest.mark.slow
def test_a_verdict_counts_the_candidates_before_it_and_the_interval_allows_for_them(client: MlflowClient) -> None:
    assert registered(800).compared_before == 0
    assert registered(800, luck=1).compared_before == 0
    registered(990, test_hash="b" * 64)  # another test part, so it was not compared
    third = registered(800, luck=2)
    assert third.compared_before == 1
    assert "the 97.5 % interval is not above zero; it allows for earlier comparisons: 1" in third.reason
    client.delete_model_version("mitoflow", "2")
    assert registered(700).compared_before == 2
    again = registry.promote(4)
    assert again.compared_before == 2  # versions 2 and 5, and not itself
    assert Verdict.from_tags(4, client.get_model_version("mitoflow", "4").tags) == again


def test_a_gain_that_is_enough_for_one_candidate_is_not_for_the_best_of_many(client: object) -> None:
    champion = Candidate(1, lambda: measured(800), lambda: WEIGHTS)
    lucky = Candidate(2, lambda: measured(812, luck=6), lambda: WEIGHTS)
    alone, of_many = (Gate().decide(lucky, champion, before) for before in (0, 49))
    assert alone.difference is not None
    assert of_many.difference is not None
    assert (alone.promoted, of_many.promoted) == (True, False)
    assert of_many.difference.low < 0 < alone.difference.low
    assert of_many.difference.value == alone.difference.value
