"""Check out the code, data and parameters of a version in a git worktree, where `dvc repro` makes it again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mitoflow.config import presets
from mitoflow.core import files, process, provenance
from mitoflow.errors import InputError
from mitoflow.tracking import lineage, pretrained, registered_model, registry, store

LOCAL = Path(".dvc/config.local")  # DVC's settings for this machine, such as credentials of a remote
INITIAL = Path("initial")  # the folder for the version that a training starts from


@dataclass(frozen=True)
class Restored:
    """A version in a worktree.

    Attributes
    ----------
    project
        The folder with its ``dvc.yaml``.
    commit
        What is checked out there.
    changed
        Whether the version was made with changes that were not committed; they are in the worktree, not committed.
    threads
        With how many threads it was made; empty where that is not known.
    initial
        The file of the version that its training starts from, in the worktree; None where it starts from no version.
    """

    project: Path
    commit: str
    changed: bool
    threads: str
    initial: Path | None


def check_out(version: int, worktree: Path) -> Restored:
    """Restore a version in a new git worktree, which shares DVC's cache with this checkout.

    Raises
    ------
    InputError
        There is no such version or `worktree` exists; or the commit, the changes, the data or the version that its
        training started from cannot be had. Then no worktree is left.
    """
    if worktree.exists():
        raise InputError(worktree, "a file or folder of that name", "a new folder", "name another one, or remove it")
    facts = lineage.origin(str(version))
    where, commit = f"version {version}", facts.get("git_commit", "")
    if not commit:
        raise InputError(where, "no commit", "a version that was made in a git repository", "take another version")
    if _run("git", "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        found = f"commit {commit}, which is not here"
        raise InputError(where, found, "a commit of this repository", "`git fetch` from where it was made")
    changes = _changes(version, facts)
    with ExitStack() as undo:
        _require(where, "git", "worktree", "add", "--quiet", "--detach", str(worktree), commit)
        undo.callback(_run, "git", "worktree", "remove", "--force", str(worktree))
        if changes:
            _require(where, "git", "apply", "--whitespace=nowarn", "-", cwd=worktree, given=changes)
        project = worktree / _run("git", "rev-parse", "--show-prefix").stdout.decode().strip()
        initial = _restore_initial(where, project, facts)
        _restore_data(where, project, facts.get("data_md5"))
        undo.pop_all()
    threads = facts.get("training_threads") or facts.get("threads", "")
    return Restored(project, commit, bool(changes), threads, initial)


def _changes(version: int, facts: Mapping[str, str]) -> bytes:
    """Return the changes that were not committed when the version was made, as ``git apply`` takes them.

    They are with the model, and those of an earlier mitoflow with its run alone.
    """
    if facts.get("git_dirty") != "true":
        return b""
    where = f"version {version}"
    digest, expected = facts.get("git_diff_sha256"), "the changes with which it was made"
    if digest is None:
        found = "changes that were not committed, and not kept"
        raise InputError(where, found, expected, "take a version of mitoflow 0.2 or newer")
    name, remedy = store.changes_file(digest), "restore the artifacts of the model"
    with registered_model.opened() as model, tempfile.TemporaryDirectory() as folder:
        place = f"{registered_model.get_version(model, version).source}/{store.CHANGES}"
        try:
            if name in store.list_artifacts(model.client, place):
                kept = store.download(model.client, f"{place}/{name}", folder)
            else:
                kept = Path(model.client.download_artifacts(facts["run"], f"{store.CHANGES}/{name}", folder))
        except store.ERRORS as error:
            raise InputError(f"{where}: {name}", store.reason(error), expected, remedy) from None
        if (found := provenance.file_sha256(kept)) != digest:
            raise InputError(f"{where}: {name}", f"SHA-256 {found}", digest, remedy)
        return kept.read_bytes()


def _restore_initial(where: str, project: Path, facts: Mapping[str, str]) -> Path | None:
    """Put the version that the training started from into the worktree, and have ``params.yaml`` there name its file.

    By its number or as champion it could not be found there: the worktree has a store of its own, and in one that is
    shared the champion may be another version by now. What weights are called does not decide what a training makes of
    them.
    """
    parameters = project / "params.yaml"
    train = files.read_yaml(parameters, "take another version", ("train",))["train"]
    if not pretrained.is_of_registry(wanted := str(train.get("init_from"))):
        return None
    name, number, digest = (facts.get(f"params.initial.{key}", "") for key in ("name", "version", "sha256"))
    if not number.isdecimal():
        found, expected = f"{wanted}, and no record of the version that this was", "the version that it started from"
        raise InputError(f"{where}: train.init_from", found, expected, "take another version")
    try:
        weights = registry.model_file(int(number), name)
    except InputError as error:
        raise InputError(f"{where}, trained from {error.where}", error.found, error.expected, error.remedy) from None
    if (found := provenance.file_sha256(weights)) != digest:
        where, expected = f"{where}, trained from version {number}", f"{digest}, from which it was trained"
        raise InputError(where, f"SHA-256 {found}", expected, "take another version")
    file = INITIAL / f"version-{number}" / weights.name
    shutil.copytree(weights.parent, project / file.parent)
    text = parameters.read_bytes().decode()  # with its line ends
    files.write_text(parameters, presets.edited(text, {"train.init_from": str(file)}))
    return file


def _restore_data(where: str, project: Path, expected: str | None) -> None:
    """Put the data of the version into the worktree, from DVC's cache, which it shares, or else from the remote."""
    if expected is None:
        return
    if (found := provenance.data_md5(project)) != expected:
        remedy = "take another version: the data were changed without `dvc add`"
        raise InputError(f"{where}: data.dvc", found, expected, remedy)
    if LOCAL.is_file():
        shutil.copyfile(LOCAL, project / LOCAL)
    dvc = (sys.executable, "-m", "dvc")
    cache = _require(where, *dvc, "cache", "dir").decode().strip()
    _require(where, *dvc, "cache", "dir", "--local", cache, cwd=project)
    if _run(*dvc, "checkout", "--quiet", "data.dvc", cwd=project).returncode:
        _require(where, *dvc, "pull", "--quiet", "data.dvc", cwd=project)


def _run(*command: str, cwd: Path | None = None, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=cwd, input=given, capture_output=True, check=False)


def _require(where: str, *command: str, cwd: Path | None = None, given: bytes = b"") -> bytes:
    """Return what a command prints; raises `InputError` with its last line where it fails."""
    done = _run(*command, cwd=cwd, given=given)
    if done.returncode:
        called = " ".join("dvc" if part == sys.executable else part for part in command if part not in ("-m", "dvc"))
        found = f"`{called}` that fails: {process.failure(done.stderr.decode(errors='replace'))}"
        raise InputError(where, found, "its code and data", "correct that, then run this again")
    return done.stdout
