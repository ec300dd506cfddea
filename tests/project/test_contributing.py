"""What contributors rely on: the hooks, the changelog and the citation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mitoflow import __version__
from mitoflow.config.params import Params
from mitoflow.tracking.gate import Gate

ROOT = Path(__file__).parents[2]


def test_the_hooks_mend_what_is_committed_and_download_nothing(tmp_path: Path) -> None:
    config = YAML(typ="safe").load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} == {"system"}
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    source = tmp_path / "module.py"
    source.write_text('"""A module."""\n\nimport sys\nimport os\n\nprint( os.sep,sys.argv)\n', encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
    }

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    run("git", "init", "--quiet")
    run("git", "add", "module.py", ".pre-commit-config.yaml", "pyproject.toml")
    refused = run("pre-commit", "run", "--all-files")
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert source.read_text() == '"""A module."""\n\nimport os\nimport sys\n\nprint(os.sep, sys.argv)\n'
    again = run("pre-commit", "run", "--all-files")
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.findall(r"ruff \w+\.*(\w+)", again.stdout) == ["Passed", "Passed"]


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*)\] - \S+$", changelog, re.MULTILINE)[0] == __version__


def test_the_changelog_lists_the_renamed_keys() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert Params.renamed
    assert Gate.renamed
    for key in (*Params.renamed, *Gate.renamed):
        assert re.search(rf"^ *\| `{re.escape(key)}\b", changelog, re.MULTILINE), key


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(git("rev-parse", "--is-shallow-repository").stdout != "false\n", reason="no history here")
def test_blame_ignores_commits_of_this_history() -> None:
    listed = (ROOT / ".git-blame-ignore-revs").read_text(encoding="utf-8")
    commits = re.findall(r"^[0-9a-f]{40}$", listed, re.MULTILINE)
    assert commits
    for commit in commits:
        assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, commit
