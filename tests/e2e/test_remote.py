"""Real remotes of DVC: what one clone pushed another one pulls, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services import ObjectStore, SSHServer, make_key

from .conftest import Project, outputs, stages_run


def clone(project: Project, folder: Path) -> Project:
    """Clone a project into a folder that has none of its data."""
    project.run("git", "clone", "-q", str(project.folder), str(folder))
    return Project(folder)


def share(project: Project, *remote: str) -> None:
    """Give a project a remote and push everything to it."""
    project.run("dvc", "remote", "add", "--default", "shared", remote[0])
    for option in ("verify=true", *remote[1:]):
        project.run("dvc", "remote", "modify", "shared", *option.split("=", 1))
    project.commit("A remote")
    project.run("dvc", "push", "--run-cache")


def test_a_clone_takes_the_results_from_a_folder(finished: Project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    share(finished, str(remote))
    taken = clone(finished, tmp_path / "pulled")
    taken.run("dvc", "pull")
    assert stages_run(taken.run("dvc", "repro").stdout) == []
    assert outputs(taken) == outputs(finished)

    again = clone(finished, tmp_path / "restored")
    (again.folder / "dvc.lock").unlink()  # never computed in this clone; the run cache of the remote has it
    assert stages_run(again.run("dvc", "repro", "--pull", "patch").stdout) == []
    again.run("git", "checkout", "-q", "dvc.lock")
    assert stages_run(again.run("dvc", "repro", "--pull").stdout) == []
    assert outputs(again) == outputs(finished)

    victim = max((remote / "files/md5").glob("??/*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    bitten = clone(finished, tmp_path / "bitten")
    assert bitten.run("dvc", "pull", check=False).returncode != 0
    verified = finished.run("mitoflow", "data", "verify", str(remote), check=False)
    assert verified.returncode == 2
    named, summary = verified.stderr.splitlines()
    assert named.startswith(f"{victim} (")
    assert "found 1 damaged objects, expected none" in summary
    assert "every object matches its hash" in finished.run("mitoflow", "data", "verify").stdout

    finished.run("mitoflow", "data", "verify", "--delete", str(remote))
    assert not victim.exists()
    finished.run("dvc", "push")
    finished.run("mitoflow", "data", "verify", str(remote))
    bitten.run("dvc", "pull")
    assert stages_run(bitten.run("dvc", "repro").stdout) == []


def test_a_clone_takes_the_results_from_an_object_store(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ObjectStore() as objects:
        for name, value in objects.credentials.items():
            monkeypatch.setenv(name, value)
        share(finished, f"s3://{objects.bucket}/dvc", f"endpointurl={objects.uri}")
        taken = clone(finished, tmp_path / "pulled")
        taken.run("dvc", "pull")
        assert stages_run(taken.run("dvc", "repro").stdout) == []
        wrong = clone(finished, tmp_path / "wrong")
        refused = wrong.run("dvc", "pull", check=False, AWS_SECRET_ACCESS_KEY="wrong")
        assert refused.returncode != 0
        secret = objects.credentials["AWS_SECRET_ACCESS_KEY"].encode()
        assert not [file for file in finished.folder.rglob("*") if file.is_file() and secret in file.read_bytes()]


def test_a_clone_takes_the_results_over_ssh(finished: Project, tmp_path: Path) -> None:
    with SSHServer() as server:
        share(finished, server.uri, f"keyfile={server.key}")
        taken = clone(finished, tmp_path / "pulled")
        taken.run("dvc", "pull")
        assert stages_run(taken.run("dvc", "repro").stdout) == []
        assert outputs(taken) == outputs(finished)
        wrong = clone(finished, tmp_path / "wrong")
        wrong.run("dvc", "remote", "modify", "--local", "shared", "keyfile", str(make_key(tmp_path / "key")))
        assert wrong.run("dvc", "pull", check=False).returncode != 0
