"""A small project, made once as a user would make it, run through `dvc repro`, and copied for every test."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from mitoflow.config import presets

REPOSITORY = Path(__file__).parents[2]
SMALL = {
    "patch.size": "64",
    "patch.step": "64",
    "tune.reduction": "2",
    "tune.trials": "4",
    "tune.budget": "192",
    "tune.depth.low": "1",
    "tune.depth.start": "2",
    "tune.depth.high": "2",
    "train.learning_rate": "tuned",
    "train.base_width": "8",
    "train.batch_size": "8",
    "train.epochs": "4",
    "train.loss": "bce_dice",
    "train.patches_per_epoch": "240",
    "evaluate.tile": "64",
    "evaluate.overlap": "16",
    "evaluate.bootstrap_resamples": "200",
}
# The shortest training of a network that exists, beside whatever else a preset says.
QUICK = {"train__epochs": "1", "train__patches_per_epoch": "8", "train__batch_size": "4", "train__patience": "1"}

STAGES = ["validate", "patch", "tune", "train", "evaluate"]


@dataclass(frozen=True)
class Project:
    """A checkout with a data set, and the commands that a user runs in it."""

    folder: Path

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as in an activated environment and return what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(**variables), capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of an activated virtual environment, without the settings of the caller's MLflow."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "GIT_"))}
        return kept | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"} | variables

    @contextmanager
    def started(
        self, *command: str, stderr: int = subprocess.DEVNULL, **variables: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a process group of its own; what is left of it afterwards is killed."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            self.signal(process, signal.SIGKILL)
            process.wait()

    def signal(self, process: subprocess.Popen[str], number: signal.Signals) -> None:
        """Send a signal to a command that was `started`, and to all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def wait_for_all(self, process: subprocess.Popen[str], seconds: float) -> None:
        """Wait until a command that was `started`, and all that it started, has ended by itself."""
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)

    def set(self, **values: str) -> None:
        """Change keys of params.yaml; a dot in a key is two underscores here."""
        presets.change(self.folder / "params.yaml", {key.replace("__", "."): value for key, value in values.items()})

    def read(self, file: str) -> str:
        """Return the text of a file."""
        return (self.folder / file).read_text(encoding="utf-8")

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)


def store(project: Project) -> MlflowClient:
    """Return a client of the project's own MLflow store."""
    return MlflowClient(f"sqlite:///{project.folder}/mlflow.db")


def runs(project: Project) -> list[Run]:
    """Return all runs of the experiment."""
    client = store(project)
    return list(client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id]))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks of booleans."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def stages_run(printed: str) -> list[str]:
    """Return the stages that `dvc repro` says it ran."""
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]


def outputs(project: Project) -> dict[str, str]:
    """Return DVC's hash of every output but the report, which has the verdict."""
    with Repo(project.folder) as repo:
        outs = {str(out): out.hash_info.value for stage in repo.index.stages for out in stage.outs}
    return {name: digest for name, digest in outs.items() if not name.endswith("evaluate/report.html")}


@pytest.fixture(scope="session")
def made_project(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    """Return a project with data and without results, shared by all workers; copy it before use."""
    return _once(tmp_path_factory, "made", lambda folder: _make(folder, small_dataset))


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory, made_project: Path) -> Path:
    """Return a project after its first `dvc repro`, shared by all workers; copy it before use."""

    def finish(folder: Path) -> None:
        project = copy_project(made_project, folder)
        project.run("dvc", "repro")
        project.commit("First results")

    return _once(tmp_path_factory, "finished", finish)


@pytest.fixture
def fresh(made_project: Path, tmp_path: Path) -> Project:
    """A project that nothing was run in."""
    return copy_project(made_project, tmp_path / "project")


@pytest.fixture
def finished(finished_project: Path, tmp_path: Path) -> Project:
    """A project after its first `dvc repro`."""
    return copy_project(finished_project, tmp_path / "project")


def copy_project(source: Path, target: Path) -> Project:
    """Copy a project; MLflow's absolute paths in its SQLite store follow."""
    shutil.copytree(source, target, symlinks=True)
    if (target / "mlflow.db").exists():
        with sqlite3.connect(target / "mlflow.db") as store:
            tables = [name for (name,) in store.execute("select name from sqlite_master where type = 'table'")]
            for table in tables:
                for _, column, kind, *_ in list(store.execute(f"pragma table_info({table})")):
                    if kind.startswith(("VARCHAR", "TEXT")):
                        replaced = f"update {table} set {column} = replace({column}, ?, ?)"
                        store.execute(replaced, (f"{source}/", f"{target}/"))
    return Project(target)


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(shared / f"{name}.lock"):
        if not (shared / f"{name}.done").exists():
            make(shared / name)
            (shared / f"{name}.done").touch()
    return shared / name


def _make(folder: Path, dataset: Path) -> None:
    folder.mkdir()
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        source = REPOSITORY / name
        if source.is_file() and not name.startswith(("tests/", "data.dvc", "dvc.lock", "models/", "reports/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    shutil.copytree(dataset, folder / "data")
    project = Project(folder)
    presets.change(folder / "params.yaml", SMALL)
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@localhost")
    project.run("dvc", "add", "-q", "data")
    project.run("mitoflow", "models")  # makes the store of MLflow, which takes seconds, once for all copies
    project.commit("A small project")
