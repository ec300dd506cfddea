"""The model that a version was trained from comes along with its code; tests/e2e trains such a version again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.tracking import runs
from mitoflow.tracking.version_checkout import check_out
from tests.tracking import tiny_model

pytestmark = pytest.mark.slow


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def register(init_from: str, initial: dict[str, str]) -> None:
    """Commit the parameters, and register a version that was trained with them from that model."""
    Path("params.yaml").write_text(f"train:\n  seed: 1\n  init_from: {init_from}   # what it starts from\n")
    git("add", "params.yaml")
    git("commit", "-qm", init_from)
    with runs.start("train", "unet") as run:
        run.params({"initial": initial})
        tiny_model.report(run, tiny_model.measured(800))
        assert run.flush()


@pytest.fixture
def start(client: MlflowClient) -> dict[str, str]:
    """Make the folder of `client` a repository with version 1, the champion; return how a training records it."""
    git("init", "-q", "-b", "main")
    register("none", {})
    return {"name": "mitoflow", "version": "1", "sha256": provenance.file_sha256(tiny_model.WEIGHTS)}


@pytest.mark.parametrize("init_from", ["champion", "1"])
def test_the_model_that_it_started_from_is_in_the_worktree(
    start: dict[str, str], tmp_path: Path, init_from: str
) -> None:
    register(init_from, start)
    restored = check_out(2, tmp_path / "again")
    assert restored.initial == Path("initial/version-1/unet.keras")
    assert provenance.file_sha256(restored.project / restored.initial) == start["sha256"]
    assert (restored.project / "initial/version-1/inference.yaml").is_file()
    parameters = (restored.project / "params.yaml").read_text().splitlines()
    assert parameters == ["train:", "  seed: 1", "  init_from: initial/version-1/unet.keras # what it starts from"]
    assert check_out(1, tmp_path / "first").initial is None
    assert "init_from: none" in (tmp_path / "first/params.yaml").read_text()


@pytest.mark.parametrize(
    ("recorded", "deleted", "line"),
    [
        ({}, "1", "version 2, trained from version 1: found no such version, expected a version of model mitoflow"),
        ({"version": "7"}, "", "version 2, trained from version 7: found no such version, expected a version of"),
        ({"sha256": "0" * 64}, "", f"version 2, trained from version 1: found SHA-256 .*, expected {'0' * 64}, from"),
        ({"version": ""}, "", "version 2: train.init_from: found champion, and no record of the version that this was"),
    ],
)
def test_a_model_that_it_started_from_and_that_is_not_there_is_one_line(
    client: MlflowClient, start: dict[str, str], tmp_path: Path, recorded: dict[str, str], deleted: str, line: str
) -> None:
    register("champion", start | recorded)
    if deleted:
        client.delete_model_version("mitoflow", deleted)
    with pytest.raises(InputError, match=f"^{line}"):
        check_out(2, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_artifacts_of_the_model_that_it_started_from_are_named(start: dict[str, str], tmp_path: Path) -> None:
    register("champion", start)
    for weights in sorted(tmp_path.glob("mlruns/**/unet.keras")):
        weights.unlink()
    with pytest.raises(InputError, match=r"^version 2, trained from version 1: unet\.keras: found .* artifact store; "):
        check_out(2, tmp_path / "again")
