"""What users delete, rename and restore in the MLflow UI, one by one, through the API that the UI calls."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mitoflow import cli
from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation.verdict import VERDICT_TAG, Verdict
from mitoflow.tracking import journal, lineage, registry, runs, store
from tests.tracking.tiny_model import WEIGHTS, measured, register, report

pytestmark = pytest.mark.slow


def found(client: MlflowClient, key: str) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`{store.KEY_TAG}` = '{key}'")
    return run


def alias(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias("mitoflow", "champion").version)


def sync(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `mitoflow sync` prints on stderr where it fails."""
    monkeypatch.setattr(sys, "argv", ["mitoflow", "sync"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_deleted_champion_leaves_the_one_before_it(client: MlflowClient) -> None:
    for right in (700, 800, 900):
        register(right)
    client.delete_model_version("mitoflow", "3")
    assert registry.champion() == registry.find_version("champion") == 2
    assert [row.version for row in registry.models() if "champion" in row.aliases] == [2]
    worse = register(750)
    assert worse is not None
    assert (worse.promoted, worse.champion) == (False, 2)
    assert alias(client) == 2
    assert registry.rollback() == (2, 1)
    better = register(950)
    assert better is not None
    assert (better.promoted, better.champion) == (True, 1)
    assert registry.rollback() == (5, 1)


def test_a_champion_that_was_rolled_back_does_not_return(client: MlflowClient) -> None:
    for right in (700, 800, 900):
        register(right)
    registry.rollback()
    client.delete_model_version("mitoflow", "2")
    assert registry.champion() == 1


def test_rollback_finds_the_champion_that_stood_in_for_a_deleted_one(client: MlflowClient) -> None:
    for right in (600, 700, 800):
        register(right)
    client.delete_model_version("mitoflow", "3")
    register(900)
    assert registry.rollback() == (4, 2)
    assert registry.rollback() == (2, 1)


def test_without_any_champion_left_the_next_version_is_the_first(client: MlflowClient) -> None:
    register(800)
    client.delete_model_version("mitoflow", "1")
    with pytest.raises(InputError, match="found no champion"):
        registry.champion()
    assert register(700) == Verdict(2, True, "there was no champion")


def test_a_deleted_challenger_changes_nothing_else(client: MlflowClient) -> None:
    register(800)
    register(700)
    client.delete_model_version("mitoflow", "2")
    assert [row.aliases for row in registry.models()] == [("champion",)]
    register(750)
    assert [row.aliases for row in registry.models()] == [("champion",), ("challenger",)]


def test_aliases_that_were_deleted_or_moved_are_put_back(client: MlflowClient) -> None:
    register(800)
    register(700)
    client.set_registered_model_alias("mitoflow", "production", "2")
    client.delete_registered_model_alias("mitoflow", "champion")
    assert registry.champion() == 1
    register(710)
    assert alias(client) == 1
    client.set_registered_model_alias("mitoflow", "champion", "2")
    assert registry.champion() == 1
    register(720)
    assert alias(client) == 1
    assert registry.find_version("production") == 2


def test_tags_that_were_deleted_are_not_known(client: MlflowClient) -> None:
    register(800)
    client.delete_model_version_tag("mitoflow", "1", f"{VERDICT_TAG}.reason")
    assert registry.models()[0].reason == ""
    client.delete_model_version_tag("mitoflow", "1", VERDICT_TAG)
    assert registry.models()[0].verdict is None
    assert registry.champion() == 1


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("mitoflow.dice", "good"),
        (f"{VERDICT_TAG}.champion", "the first"),
        (f"{VERDICT_TAG}.checks", "none"),
    ],
)
def test_tags_that_were_edited_count_as_deleted(
    client: MlflowClient, caplog: pytest.LogCaptureFixture, tag: str, value: str
) -> None:
    register(800)
    register(700)
    before = registry.models()[1]
    client.set_model_version_tag("mitoflow", "2", tag, value)
    row = registry.models()[1]
    expected = replace(before, verdict=None) if tag.startswith(VERDICT_TAG) else replace(before, dice=None)
    assert row == expected
    begin = VERDICT_TAG if tag.startswith(VERDICT_TAG) else "mitoflow.dice"
    (note,) = caplog.messages
    assert note.startswith(f"note: version 2 of mitoflow: its tags {begin}* were changed in MLflow")
    assert registry.champion() == 1
    better = register(900)
    assert better is not None
    assert (better.promoted, better.champion) == (True, 1)
    assert len(caplog.messages) == 1, "once is enough"


def test_a_training_that_was_edited_is_not_known(client: MlflowClient) -> None:
    register(800, key="k")
    before, run_id = lineage.origin("1"), found(client, "k").info.run_id
    for edited in ("the best one", "0" * 32):
        client.set_tag(run_id, store.TRAINING_RUN_TAG, edited)
        assert lineage.origin("1") == before


def test_an_evaluation_whose_verdict_was_edited_is_decided_about_again(client: MlflowClient) -> None:
    register(800)
    first = register(700, key="k")
    client.set_model_version_tag("mitoflow", "2", f"{VERDICT_TAG}.champion", "the first")
    assert register(700, key="k") == first
    assert registry.models()[1].verdict == first


def test_a_renamed_model_is_one_line_and_no_new_one(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(800)
    client.rename_registered_model("mitoflow", "kept")
    line = "model mitoflow: found renamed to kept, expected the name mitoflow; rename it back in MLflow"
    for ask in (
        *(registry.models, registry.champion, registry.history, lambda: registry.find_version("champion")),
        *(lambda: registry.find_version("1"), lambda: registry.promote(1), lambda: lineage.origin("1")),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        assert str(refused.value) == line
    assert register(700) is None
    assert sync(monkeypatch, capsys) == f"mitoflow: {line}\n"
    assert [model.name for model in client.search_registered_models()] == ["kept", "mitoflow-promotions"]
    client.rename_registered_model("kept", "mitoflow")
    assert runs.sync().left == 0
    assert [(row.version, row.aliases) for row in registry.models()] == [(1, ("champion",)), (2, ("challenger",))]


def test_a_renamed_log_is_one_line_and_no_new_one(client: MlflowClient) -> None:
    register(800)
    client.rename_registered_model("mitoflow-promotions", "kept")
    line = "the log of promotions: found renamed to kept, expected the name mitoflow-promotions; rename it back in"
    with pytest.raises(InputError, match=line):
        registry.champion()
    assert register(900) is None
    client.rename_registered_model("kept", "mitoflow-promotions")
    assert runs.sync().left == 0
    assert registry.champion() == 2


def test_a_deleted_model_begins_anew(client: MlflowClient) -> None:
    register(800)
    client.delete_registered_model("mitoflow")
    assert registry.models() == []
    assert register(700) == Verdict(1, True, "there was no champion")
    assert [entry.counts for entry in registry.history()] == [True]


def test_a_deleted_log_leaves_the_champion(client: MlflowClient) -> None:
    register(800)
    client.delete_registered_model("mitoflow-promotions")
    assert registry.champion() == 1
    worse = register(700)
    assert worse is not None
    assert (worse.promoted, worse.champion) == (False, 1)
    register(900)
    assert [(entry.over, entry.version) for entry in registry.history()] == [(1, 3)]
    assert registry.rollback() == (3, 1)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("after", None),
        ("after", "the first"),
        ("over", "nobody"),
    ],
)
def test_an_entry_of_the_log_that_was_deleted_or_damaged_is_none(
    client: MlflowClient, caplog: pytest.LogCaptureFixture, tag: str, value: str | None
) -> None:
    for right in (700, 800, 900):
        register(right)
    client.delete_model_version("mitoflow-promotions", "3")
    assert registry.champion() == 2
    if value is None:
        client.delete_model_version_tag("mitoflow-promotions", "2", f"mitoflow.promotion.{tag}")
    else:
        client.set_model_version_tag("mitoflow-promotions", "2", f"mitoflow.promotion.{tag}", value)
    assert registry.champion() == 1
    assert [entry.number for entry in registry.history()] == [1]
    (note,) = caplog.messages
    assert note.startswith("note: version 2 of mitoflow-promotions: its tags mitoflow.promotion.* were changed")
    register(950)
    assert (registry.champion(), alias(client)) == (4, 4)


@pytest.mark.parametrize("verdict", [None, json.dumps({VERDICT_TAG: "not promoted"})])
def test_a_promotion_without_its_verdict_stays_one(client: MlflowClient, verdict: str | None) -> None:
    register(800)
    if verdict is None:
        client.delete_model_version_tag("mitoflow-promotions", "1", "mitoflow.promotion.verdict")
    else:
        client.set_model_version_tag("mitoflow-promotions", "1", "mitoflow.promotion.verdict", verdict)
    client.delete_model_version_tag("mitoflow", "1", VERDICT_TAG)
    register(700)
    assert registry.champion() == 1
    first = registry.models()[0].verdict
    assert first is not None
    assert first.promoted


def test_a_deleted_run_is_made_anew_and_a_restored_one_continues(client: MlflowClient) -> None:
    register(800, key="k")
    first = found(client, "k").info.run_id
    client.delete_run(first)
    assert lineage.origin("1")["run"] == first
    register(900, key="k")
    second = found(client, "k")
    assert second.info.run_id != first
    assert second.data.params == {"train.epochs": "3"}
    assert registry.champion() == 2
    client.delete_run(second.info.run_id)
    client.restore_run(first)
    register(700, key="k")
    assert found(client, "k").info.run_id == first
    assert [lineage.origin(str(row.version))["run"] == first for row in registry.models()] == [True, False, True]


def test_a_run_that_is_deleted_while_its_stage_works_is_made_anew(client: MlflowClient) -> None:
    with runs.start("train", "unet", key="k") as run:
        run.params({"train": {"epochs": 3}})
        with run.child("trial") as trial:
            trial.metrics({"loss": 0.7})
            assert run.flush()
            client.delete_run(found(client, "k").info.run_id)
            run.metrics({"loss": 0.5})
            assert run.flush()
    made = found(client, "k")
    assert (made.data.params, made.data.metrics, made.info.status) == ({"train.epochs": "3"}, {"loss": 0.5}, "FINISHED")
    again = found(client, trial.key)
    assert len(client.get_metric_history(again.info.run_id, "loss")) == 1
    assert journal.folders() == []


def test_a_run_that_is_gone_for_good_leaves_what_the_version_knows(client: MlflowClient) -> None:
    register(800)
    run_id = registry.models()[0].run_id
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
    known = lineage.origin("1")
    assert (known["run"], known["run_status"]) == (run_id, "deleted from MLflow for good")
    assert known["model_sha256"] == provenance.file_sha256(WEIGHTS)
    assert registry.model_file(1).read_bytes() == b"weights"


def test_a_deleted_experiment_is_one_line_until_it_is_restored(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    register(800)
    experiment = client.get_experiment_by_name("mitoflow").experiment_id
    client.delete_experiment(experiment)
    assert registry.champion() == 1
    assert registry.model_file(1).read_bytes() == b"weights"
    line = (
        "experiment mitoflow: found deleted in MLflow, expected one that takes runs; "
        f"`mlflow experiments restore -x {experiment}` brings it back; then run `mitoflow sync`"
    )
    assert register(900) is None
    assert line in capfd.readouterr().err
    assert sync(monkeypatch, capfd) == f"mitoflow: {line}\n"
    client.restore_experiment(experiment)
    assert runs.sync().left == 0
    assert registry.champion() == 2


def test_an_experiment_that_is_deleted_while_a_stage_works_is_one_line(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with runs.start("train", "unet", key="k") as run:
        assert run.flush()
        experiment = client.get_experiment_by_name("mitoflow").experiment_id
        client.delete_experiment(experiment)
        report(run, measured(800))
        assert not run.flush()
    assert "experiment mitoflow: found deleted in MLflow" in sync(monkeypatch, capfd)
    client.restore_experiment(experiment)
    assert runs.sync().left == 0
    assert found(client, "k").info.status == "FINISHED"
    assert registry.champion() == 1


def test_a_chosen_experiment_that_was_deleted_is_one_line_too(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment = client.create_experiment("liver", Path("liver").absolute().as_uri())
    client.delete_experiment(experiment)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    assert register(800) is None
    assert "experiment liver: found deleted in MLflow" in sync(monkeypatch, capfd)


def test_a_renamed_experiment_keeps_its_runs(client: MlflowClient) -> None:
    register(800, key="k")
    client.rename_experiment(client.get_experiment_by_name("mitoflow").experiment_id, "kept")
    register(900, key="k")  # joins its run where that is
    register(950)
    names = [client.get_experiment(client.get_run(row.run_id).info.experiment_id).name for row in registry.models()]
    assert names == ["kept", "kept", "mitoflow"]
    assert registry.champion() == 3
