"""MLflow's SQLite file in a checkout: locked, damaged, of another MLflow, empty, moved and copied."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitoflow import cli
from mitoflow.cli import mitoflow
from mitoflow.core import sqlite
from mitoflow.errors import InputError
from mitoflow.tracking import journal, local_store, registry, runs, store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a run and its artifact."""
    folder = tmp_path_factory.mktemp("used") / "first"
    folder.mkdir()
    (folder / "params.yaml").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(folder)
        report("first")
        runs.sync()  # where the machine was too busy for the tables to be made meanwhile
    return folder


@pytest.fixture
def checkout(used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that checkout, which is the current folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(sqlite, "PATIENCE", 0.2)
    store.client.cache_clear()
    shutil.copytree(used, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def report(name: str) -> None:
    """Start and end a run with an artifact."""
    Path("notes.txt").write_text(name)
    with runs.start("train", name) as run:
        run.artifact(Path("notes.txt"))


def artifacts(folder: Path) -> set[str]:
    return {file.read_text() for file in (folder / "mlruns").rglob("notes.txt")}


def test_a_copied_checkout_writes_into_itself(used: Path, checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"mlflow.db: found artifacts in {used}/mlruns, .* run `mitoflow relocate`"):
        registry.models()
    report("second")
    assert "run `mitoflow relocate`" in capfd.readouterr().err
    assert artifacts(used) == artifacts(checkout) == {"first"}

    done = CliRunner().invoke(mitoflow, ["relocate"])
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert runs.sync().left == 0
    assert (artifacts(used), artifacts(checkout)) == ({"first"}, {"first", "second"})
    client = store.client(store.uri())
    for run in client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id]):
        assert run.info.artifact_uri.startswith(checkout.as_uri())
        assert Path(client.download_artifacts(run.info.run_id, "notes.txt")).read_text() == run.info.run_name
    assert "nothing to change" in CliRunner().invoke(mitoflow, ["relocate"]).output


def test_a_database_without_its_artifacts_cannot_be_relocated(used: Path, checkout: Path) -> None:
    shutil.rmtree("mlruns")
    with pytest.raises(InputError, match=f"mlruns: found no such folder, .*; copy {used}/mlruns, or remove mlflow.db"):
        local_store.relocate()


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"damage".ljust(200) + path.read_bytes()[200:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite_pages(path: Path) -> None:
    """Damage all but the first pages, where the list of tables is."""
    content = bytearray(path.read_bytes())
    for page in range(3 * 4096, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_revision(revision: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("update alembic_version set version_num = ?", (revision,))

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (overwrite_header, "found a damaged file .*; restore it from a copy, or remove it and run `mitoflow register`"),
        (overwrite_pages, "found a damaged file .*; restore it from a copy, or remove it and run `mitoflow register`"),
        (cut_in_half, "found a damaged file .*; restore it from a copy, or remove it and run `mitoflow register`"),
        (replace_by_a_folder, "found a folder, expected an SQLite database; restore it from a copy, or remove it and"),
        (
            empty,
            "found an empty file, expected the runs whose artifacts are in mlruns/; restore it from a copy, or rem",
        ),
        (of_revision("ffffffffffff"), "found tables of a newer MLflow, expected those of MLflow .*; use the MLflow th"),
        (of_revision("0c779009ac13"), "found tables of an older MLflow, .*; copy it, then run `mlflow db upgrade sqli"),
    ],
)
def test_a_file_that_cannot_be_used_gets_its_own_remedy(
    checkout: Path, change: Callable[[Path], None], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    local_store.relocate()
    change(checkout / "mlflow.db")
    with pytest.raises(InputError, match=f"mlflow.db: {line}"):
        registry.models()
    report("kept on disk")
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert journal.folders()


@pytest.mark.parametrize("arguments", ["models", "history", "promote 1", "rollback", "compare 1 2", "sync", "relocate"])
def test_every_command_ends_in_one_line(
    checkout: Path, arguments: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    local_store.relocate()
    report("kept on disk")
    overwrite_header(checkout / "mlflow.db")
    store.client.cache_clear()
    if arguments == "sync":
        report("another")
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["mitoflow", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = capfd.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"mitoflow: {checkout}/mlflow.db: found a damaged file (file is not a database)")


def test_a_locked_file_is_not_asked_to_start_its_server(checkout: Path) -> None:
    local_store.relocate()
    expected = "mlflow.db: found a database that another process keeps locked, .*; close the program that has it open"
    with closing(sqlite3.connect("mlflow.db")) as other:
        other.execute("begin exclusive")
        with pytest.raises(InputError, match=expected):
            registry.models()
    assert registry.models() == []


def test_an_empty_file_without_artifacts_is_a_new_store(checkout: Path) -> None:
    shutil.rmtree("mlruns")
    empty(checkout / "mlflow.db")
    assert registry.models() == []
