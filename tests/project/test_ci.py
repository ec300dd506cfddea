"""The workflows of CI: their rights, and the commands of their steps as far as they can run here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from tests import services
from tests.services import PostgreSQL, SSHServer

WORKFLOWS = Path(__file__).parents[2] / ".github/workflows"
PINNED = re.compile(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})")


def read(name: str) -> dict[str, Any]:
    return dict(YAML(typ="safe").load((WORKFLOWS / name).read_text(encoding="utf-8")))


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in read(name)["jobs"].values() for step in job["steps"]]


def script(name: str, step: str) -> str:
    (found,) = [each["run"] for each in steps(name) if each.get("name") == step]
    return str(found)


@pytest.mark.parametrize("name", ["ci.yml", "comment.yml"])
def test_actions_are_pinned_and_nothing_from_outside_is_part_of_a_command(name: str) -> None:
    for step in steps(name):
        assert PINNED.fullmatch(step["uses"]) if "uses" in step else "${{" not in step["run"]
    assert all("timeout-minutes" in job for job in read(name)["jobs"].values())


def test_code_of_a_pull_request_runs_without_a_token_that_may_write() -> None:
    both = {path.name: read(path.name) for path in WORKFLOWS.glob("*.yml")}
    assert set(both) == {"ci.yml", "comment.yml"}
    for workflow in both.values():
        assert "pull_request_target" not in workflow["on"]
        assert all("permissions" not in job for job in workflow["jobs"].values())  # none has more than its workflow
    requested, posted = both["ci.yml"], both["comment.yml"]
    assert requested["permissions"] == {"contents": "read"}
    assert "secrets" not in (WORKFLOWS / "ci.yml").read_text(encoding="utf-8")
    assert all(not step["with"]["persist-credentials"] for step in steps("ci.yml") if "checkout" in str(step))
    assert posted["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert posted["on"]["workflow_run"]["workflows"] == [requested["name"]]
    assert not [step for step in steps("comment.yml") if "checkout" in step.get("uses", "")]


def test_the_commands_are_those_of_the_project() -> None:
    assert script("ci.yml", "Test") == ".ci/run"
    assert (WORKFLOWS.parents[1] / ".ci/run").stat().st_mode & 0o100
    assert read("ci.yml")["on"]["push"] == {"branches": ["main"]}
    makefile = (WORKFLOWS.parents[1] / "Makefile").read_text(encoding="utf-8")
    for step in ("Run the pipeline on the phantom", "Test with numpy 2"):
        target = script("ci.yml", step).removeprefix("make ")
        assert re.search(rf"^{target}:( |$)", makefile, re.MULTILINE), step


def test_every_supported_python_is_tested() -> None:
    project = tomllib.loads((WORKFLOWS.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = SpecifierSet(project["requires-python"])
    job = read("ci.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    (setup,) = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert f"python{setup}" == job["env"]["PYTHON"] == "python${{ matrix.python }}"


@pytest.mark.parametrize(
    ("needed", "package"),
    [
        (SSHServer, "openssh-server"),
        (PostgreSQL, "postgresql"),
        (lambda: services.find_program("chromedriver", "chromium-driver"), "chromium-driver"),
        (lambda: services.open_in_imagej(Path("mask.tif")), services.JAVA),
        (lambda: services.find_program("jq", "jq"), "jq"),
        (lambda: services.find_library("libOfNobody.so", "libegl1"), "libegl1"),
    ],
)
def test_a_missing_program_skips_the_test_and_names_its_package_but_fails_in_ci(
    needed: Callable[[], object], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.delenv(services.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"install Debian's package {package}$"):
        needed()
    run = (WORKFLOWS.parents[1] / ".ci/run").read_text(encoding="utf-8")
    installed = re.search('^packages="(.*)"$', run, re.MULTILINE)
    assert installed and package in installed[1].split()
    (variable,) = re.findall(r"^export (.*)$", run, re.MULTILINE)
    monkeypatch.setenv(*variable.split("="))
    with pytest.raises(pytest.fail.Exception, match=package):
        needed()


def bash(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
    return subprocess.run(command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_metrics_of_two_commits_become_a_table(tmp_path: Path) -> None:
    base, fork = tmp_path / "base", tmp_path / "fork"
    (base / "reports").mkdir(parents=True)
    (base / "dvc.yaml").write_text("metrics:\n  - reports/metrics.json\n")
    (base / "reports/metrics.json").write_text(json.dumps({"whole_slice": {"dice": 0.9, "iou": 0.8}}))
    dvc = f"'{sys.executable}' -m dvc"
    made = f"""
git init -q -b main; git config user.name T; git config user.email t@localhost
{dvc} init -q; git add -A; git commit -qm main
git clone -q . '{fork}'
"""
    assert bash(made, base).returncode == 0
    (fork / "reports/metrics.json").write_text(json.dumps({"whole_slice": {"dice": 0.91234567, "iou": 0.8}}))
    summary = tmp_path / "summary.md"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    text = script("ci.yml", "Compare the metrics")
    done = bash(text, fork, BASE="main", GITHUB_STEP_SUMMARY=str(summary), PATH=path)
    assert done.returncode == 0, done.stderr
    comment = (fork / "metrics.md").read_text(encoding="utf-8")
    assert comment == summary.read_text(encoding="utf-8")
    assert "against main" in comment
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in comment.splitlines() if "|" in line]
    assert rows[0] == ["Path", "Metric", "origin/main", "workspace", "Change"]
    assert rows[2:] == [["reports/metrics.json", "whole_slice.dice", "0.9", "0.9123", "0.0123"]]

    missing = bash(text, fork, BASE="nowhere", GITHUB_STEP_SUMMARY=str(summary), PATH=path)
    assert missing.returncode != 0


def test_the_comment_goes_to_the_pull_request_of_that_commit_or_nowhere(tmp_path: Path) -> None:
    text = script("comment.yml", "Comment")
    assert bash(f"bash -n <<'EOF'\n{text}\nEOF", tmp_path).returncode == 0
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/metrics.md").symlink_to("/proc/self/environ")
    assert bash(text, tmp_path).returncode == 1
    assert not (tmp_path / "comment.md").exists()
    services.find_program("jq", "jq")
    choose = re.search(r"\| (jq .*)\)$", text, re.MULTILINE)
    assert choose
    answers = json.dumps([{"number": 3, "head": {"sha": "old"}}, {"number": 7, "head": {"sha": "abc"}}])
    for sha, number in (("abc", "7"), ("gone", "")):
        done = bash(f"echo '{answers}' | {choose[1]}", tmp_path, SHA=sha)
        assert (done.returncode, done.stdout.strip()) == (0, number), done.stderr
