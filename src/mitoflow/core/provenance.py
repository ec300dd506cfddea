"""Where a run comes from: code, data, locked dependencies and experiment."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitoflow import __version__
from mitoflow.core import files, process
from mitoflow.errors import InputError

PREFIX = "mitoflow.lineage."
BEFORE_PATCHES, REGISTER = ("validate", "patch"), "register"  # stages, by the names of their runs
MACHINE = ("python", "platform", "threads")
UNTRACKED = ("src", "data.dvc")  # what decides a result also where git does not have it yet


def current(stage: str = "") -> dict[str, str]:
    """Return the lineage of what runs now in this folder; what cannot be known is left out.

    The stages of `BEFORE_PATCHES` have no ``patches_md5``, and one that registers what was computed elsewhere has none
    of `MACHINE`.

    Keys
    ----
    git_commit, git_dirty
        HEAD, and whether the working tree differs from it: see `changes`.
    git_diff_sha256
        Of these `changes`, where there are some.
    git_branch
        The branch; ``HEAD`` where none is checked out.
    data_md5, patches_md5
        DVC's hashes of ``data/`` and ``patches/``.
    requirements_sha256
        Of ``requirements.lock``.
    dvc_experiment
        The name that ``dvc exp run`` gave.
    mitoflow, python, platform, threads
        Versions, the operating system and processor, and `process.threads`.
    """
    lock, diff = Path("requirements.lock"), changes()
    known = {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if diff is None else "true" if diff else "false",
        "git_diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
        "git_branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "data_md5": data_md5(Path()),
        "patches_md5": recorded_md5("patch", Path("patches")),
        "requirements_sha256": file_sha256(lock) if lock.is_file() else None,
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
        "mitoflow": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(process.threads()),
    }
    left_out = ("patches_md5",) if stage in BEFORE_PATCHES else MACHINE if stage == REGISTER else ()
    return {key: value for key, value in known.items() if value and key not in left_out}


def changes() -> bytes | None:
    """Return how the working tree differs from HEAD, as ``git apply`` takes it; None outside of a repository.

    Untracked files count where they are code, or say which data there are. ``dvc.lock`` and ``reports/`` do not count:
    the pipeline writes them while it runs. Contents are compared in a new index, because the times in git's own hide a
    change of the same length in the copy that ``dvc exp run --queue`` makes.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        if git("read-tree", "HEAD", **index) is None:
            return None
        for path in UNTRACKED:
            git("add", "--intent-to-add", "--", path, **index)
        git("update-index", "-q", "--refresh", **index)
        return _output("diff-index", "-p", "--binary", "HEAD", "--", ".", ":!dvc.lock", ":!reports", **index)


def data_md5(project: Path) -> str | None:
    """Return DVC's hash of the data of a project; None where DVC does not have them."""
    return _output_md5(_yaml(project / "data.dvc"), "data")


def recorded_md5(stage: str, output: Path) -> str | None:
    """Return DVC's hash of an output of a stage as ``dvc.lock`` has it; None where it was never recorded."""
    return _output_md5(_yaml(Path("dvc.lock")).get("stages", {}).get(stage, {}), str(output))


def has_recorded_params(stage: str) -> bool:
    """Return whether ``params.yaml`` has the values with which ``dvc.lock`` records a stage.

    A stage that runs all the same was forced, or reads other data or code than before.
    """
    recorded, present = compared_params(stage)
    return bool(recorded) and recorded == present


def compared_params(stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters that ``dvc.lock`` records for a stage, by its keys in ``dvc.yaml``, and their values now.

    Both are empty where the stage was never recorded.
    """
    recorded = _yaml(Path("dvc.lock")).get("stages", {}).get(stage, {}).get("params", {}).get("params.yaml", {})
    present = _yaml(Path("params.yaml"))
    return recorded, {key: _value(present, key) for key in recorded}


def tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """Return a lineage as MLflow tags, ``mitoflow.lineage.*``."""
    return {PREFIX + key: value for key, value in lineage.items()}


def from_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the lineage among the tags of a run or a model version."""
    return {key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)}


def file_md5(path: Path) -> str:
    """Return DVC's hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def file_sha256(path: Path) -> str:
    """Return what ``sha256sum`` prints for a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git(*arguments: str, **environment: str) -> str | None:
    """Return what a git command prints, run with more variables of the environment; None where it fails."""
    printed = _output(*arguments, **environment)
    return None if printed is None else printed.decode().strip()


def _output(*arguments: str, **environment: str) -> bytes | None:
    """Return what git prints; None where it fails."""
    command, given = ["git", *arguments], os.environ | environment
    try:
        return subprocess.run(command, env=given, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return files.read_yaml(path, "run DVC")
    except InputError:
        return {}


def _value(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    section, _, rest = key.partition(".")
    found = values.get(section)
    return _value(found, rest) if rest and isinstance(found, dict) else found


def _output_md5(stage: Mapping[str, Any], path: str) -> str | None:
    return next((out.get("md5") for out in stage.get("outs", []) if out.get("path") == path), None)
