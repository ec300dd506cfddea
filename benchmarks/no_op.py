"""How long does `dvc repro` take where nothing has changed?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import Lap, alternate
from benchmarks.table import Row, limit

COMMAND = "python -m benchmarks no_op"
REPOSITORY = Path(__file__).parents[1]
SHORT = {
    "tune.trials": "1",
    "tune.budget": "8",
    "tune.depth.start": "2",
    "tune.depth.high": "2",
    "train.epochs": "1",
    "train.patches_per_epoch": "8",
    "evaluate.bootstrap_resamples": "100",
}


def rows(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        make_project(project)
        series = alternate({"mitoflow": partial(reproduce, project)}, rounds)
    return [limit("`dvc repro` where nothing changed", series["mitoflow"], 3, COMMAND)]


def make_project(project: Path) -> None:
    """Copy this repository and run its pipeline once, with a training that is soon over."""
    from mitoflow.config import presets
    from mitoflow.data.phantom import write_phantom

    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not name.startswith(("data.dvc", "dvc.lock", "reports/", "tests/")):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, project / name)
    write_phantom(project / "data", train=(24, 256, 256), test=(8, 256, 256))
    presets.change(project / "params.yaml", SHORT)
    _run(project, "git", "init", "--quiet")
    _run(project, "dvc", "add", "--quiet", "data")
    _run(project, "dvc", "repro", "--quiet")


def reproduce(project: Path, lap: Lap) -> None:
    while True:
        _run(project, "dvc", "repro", "--quiet")
        lap(1)


def _run(project: Path, *command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "MLFLOW_"))}
    subprocess.run(command, cwd=project, check=True, env=kept | {"PATH": path}, stdout=subprocess.DEVNULL)
