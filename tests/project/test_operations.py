"""``deploy/`` and ``docs/operations.md``: the commands of the page are run as they stand there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from mitoflow.tuning import optuna_study
from tests.parts import PATIENCE, free_port, until
from tests.services import ObjectStore, PostgreSQL, postgres

ROOT = Path(__file__).parents[2]
DEPLOY, GUIDE = ROOT / "deploy", ROOT / "docs" / "operations.md"


def commands(heading: str) -> list[str]:
    """Return the blocks of commands below a heading of the guide."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return [
        re.sub("^    ", "", block, flags=re.MULTILINE)
        for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.M)
    ]


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Run commands in bash, stop at the first that fails, and return the environment that they leave behind."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\nenv -0 >environment"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def left(folder: Path) -> dict[str, str]:
    """Return the environment that the last commands left behind."""
    entries = (folder / "environment").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with deploy/ and its secrets, made as the guide says."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns(".env"))
    (secrets_,) = commands("Secrets")
    run(secrets_, tmp_path, dict(os.environ))
    return tmp_path


@contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start the tracking server as the guide says, and yield where it is."""
    port = free_port()
    *_, start = commands("Start, without Docker")
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(
            ["bash", "-euc", start],
            cwd=folder,
            env=environment | {"MLFLOW_PORT": str(port)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            return bool(urllib.request.urlopen(f"{address}/health", timeout=5).status == 200)
        except OSError:
            return False

    try:
        until(answers, (folder / "log").read_text)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(PATIENCE)


def environment_for(folder: Path, database: PostgreSQL) -> dict[str, str]:
    """Return the environment before the set-up, whose PostgreSQL has the user that the guide makes."""
    (password,) = re.findall("^PGPASSWORD=(.+)$", (folder / "deploy/.env").read_text(), re.MULTILINE)
    make_user = commands("Start, without Docker")[0].strip().splitlines()[-1]
    program, *options = make_user.removeprefix("sudo -u postgres ").split()
    subprocess.run(
        [postgres(program), *options],
        env=database.environment(),
        input=f"{password}\n{password}\n",
        text=True,
        check=True,
        capture_output=True,
        start_new_session=True,  # no terminal to ask
    )
    tools = [str(Path(sys.executable).parent), str(Path(postgres("createuser")).parent)]
    path = os.pathsep.join([*tools, os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
    artifacts = {"MLFLOW_ARTIFACTS_DESTINATION": str(folder / "srv" / "artifacts")}
    return kept | artifacts | {"PATH": path, "PGPORT": str(database.port), "MLFLOW_WORKERS": "1"}


def set_up(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Make the databases as the guide says, and return the environment in which the server is started."""
    script = commands("Start, without Docker")[1]
    run(re.sub("^pip install .*\n", "", script, flags=re.MULTILINE), folder, environment)
    return left(folder)


def studies(environment: dict[str, str]) -> str:
    """Return the URL of the database of studies, with the password for users who tune."""
    return "postgresql://studies:{STUDIES_PASSWORD}@127.0.0.1:{PGPORT}/optuna".format_map(environment)


def registered(client: MlflowClient) -> list[tuple[object, ...]]:
    """Return the content of a registry that a restored backup must have."""
    return [
        (
            model.name,
            model.aliases,
            version.version,
            version.tags,
            version.description,
            client.get_run(version.run_id).data.metrics,
        )
        for model in client.search_registered_models()
        for version in client.search_model_versions(f"name = '{model.name}'")
    ]


@pytest.mark.e2e
def test_a_registry_comes_back_from_its_backup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, give an account, fill, back up, and restore into another PostgreSQL and other artifacts."""
    (backup,), (restore,) = commands("Back up"), commands("Restore")
    password, note = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    with PostgreSQL("postgres") as database:
        environment = set_up(folder, environment_for(folder, database))
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", environment["MLFLOW_AUTH_ADMIN_PASSWORD"])
        with served(folder, environment) as address:
            give(address, "anna", "writer", password)
            client = MlflowClient(address)
            trained = client.create_run(client.get_experiment_by_name("mitoflow").experiment_id).info
            client.log_metric(trained.run_id, "dice", 0.9)
            client.log_text(trained.run_id, note, "note.txt")
            made = client.create_model_version("mitoflow", trained.artifact_uri, trained.run_id, {"why": "best"})
            client.set_registered_model_alias("mitoflow", "champion", made.version)
            before = registered(client)
        optuna_study.open_study(studies(environment), "s")
        run(backup, folder, environment)
        run(backup, folder, environment)  # as every night
    shutil.rmtree(folder / "srv")

    with PostgreSQL("postgres") as database:
        environment |= set_up(folder, environment_for(folder, database))
        run(restore, folder, environment)
        with served(folder, environment) as address:
            client = MlflowClient(address)
            assert registered(client) == before
            assert before[0][1] == {"champion": made.version}
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            assert Path(client.download_artifacts(trained.run_id, "note.txt", str(folder))).read_text() == note
        run("\n".join(commands("Upgrade")), folder, environment)
    log = (folder / "log").read_text()
    hidden = [environment[name] for name in environment if re.search("PASSWORD|SECRET", name)] + [password]
    assert [secret for secret in hidden if secret in log] == []


def query(environment: dict[str, str], database: str, statement: str) -> subprocess.CompletedProcess[str]:
    """Ask a database as the user of the environment."""
    command = [postgres("psql"), "--no-psqlrc", "--tuples-only", "--no-align", f"--dbname={database}", "--command"]
    return subprocess.run([*command, statement], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.e2e
def test_the_user_of_studies_sees_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with PostgreSQL("postgres") as database:
        keeper = set_up(folder, environment_for(folder, database))
        made = keeper["STUDIES_PASSWORD"]
        assert query(keeper, "accounts", "CREATE TABLE people AS SELECT 'anna'").returncode == 0
        tuner = keeper | {"PGUSER": "studies", "PGPASSWORD": made}
        for name in ("accounts", "mlflow"):
            refused = query(tuner, name, "SELECT * FROM people")
            assert refused.returncode != 0
            assert f'permission denied for database "{name}"' in refused.stderr
        assert query(tuner, "optuna", "SET ROLE mitoflow").returncode != 0
        monkeypatch.setenv("MITOFLOW_OPTUNA_STORAGE", studies(keeper))
        with optuna_study.owned_study("s") as study:
            study.ask()
        assert query(keeper, "optuna", "SELECT study_name FROM studies").stdout == "s\n"
        assert made not in database.log


# Compose on this machine: what a container would run is run here, by the user that compose.yaml names.
DOCKER = """#!/bin/sh
[ "$1 $2 $4 $5 $6" = "compose --file exec -T database" ] && [ -f "$3" ] || exit 64
shift 6
PGHOST=127.0.0.1 PGUSER=mitoflow exec "$@"
"""


@pytest.mark.e2e
@pytest.mark.parametrize("with_docker", [False, True])
def test_a_backup_that_fails_leaves_the_one_before(folder: Path, with_docker: bool) -> None:
    """The databases away, the artifacts away, and then a whole one, which is restored."""
    with PostgreSQL("postgres") as database, ObjectStore() as objects:
        environment = set_up(folder, environment_for(folder, database))
        artifacts = folder / "srv" / "artifacts"
        if with_docker:
            artifacts = objects.folder / "objects" / objects.bucket / "mlflow"
            (folder / "docker").write_text(DOCKER)
            (folder / "docker").chmod(0o755)
            del environment["PGHOST"]
            environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
            environment["MLFLOW_S3_ENDPOINT_URL"] = objects.uri
            keys = "\n".join(f"{name}={value}" for name, value in objects.credentials.items())
            with (folder / "deploy" / ".env").open("a") as secret:
                secret.write(f"{keys}\n")

        def backup(what: str) -> subprocess.CompletedProcess[str]:
            command = ["deploy/backup.sh", what, "backup"]
            return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

        def kept() -> dict[str, bytes]:
            files = [path for path in (folder / "backup").rglob("*") if path.is_file() and path.suffix != ".new"]
            return {str(path.relative_to(folder)): path.read_bytes() for path in files}

        asks = environment | {"PGHOST": "127.0.0.1"}
        tuner = asks | {"PGUSER": "studies", "PGPASSWORD": asks["STUDIES_PASSWORD"]}
        for who, name in ((asks, "mlflow"), (asks, "accounts"), (tuner, "optuna")):
            assert query(who, name, f"CREATE TABLE things AS SELECT 'of {name}' AS owner").returncode == 0
        artifacts.mkdir(parents=True)
        (artifacts / "model").write_text("weights")
        done = backup("save")
        assert (done.returncode, done.stderr) == (0, "")  # cron would send it
        before = kept()
        assert len(before) == 4
        assert (folder / "backup" / "accounts.dump").stat().st_mode & 0o077 == 0

        database.stop()
        assert backup("save").returncode != 0
        assert kept() == before
        database.start()
        artifacts.rename(folder / "away")
        objects.restart()  # it remembers what it had
        lost = backup("save")
        assert with_docker or lost.returncode != 0  # an object store has no folder that could be missing
        assert kept().keys() == before.keys()

        for name in ("mlflow", "accounts", "optuna"):
            database.run("dropdb", name)
        database.run("dropuser", "studies")
        set_up(folder, asks)
        done = backup("restore")
        assert done.returncode == 0, done.stderr
        for who, name in ((asks, "mlflow"), (asks, "accounts"), (tuner, "optuna")):
            assert query(who, name, "SELECT owner FROM things").stdout == f"of {name}\n"
        assert query(tuner, "optuna", "DROP TABLE things").returncode == 0
        assert (artifacts / "model").read_text() == "weights"
        again = backup("restore")
        assert again.returncode != 0
        assert "already exists" in again.stderr


def test_a_backup_without_a_command_is_one_line(folder: Path) -> None:
    done = subprocess.run(["deploy/backup.sh", "backup"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "backup.sh: found backup, expected save FOLDER or restore FOLDER; say which\n"


def give(address: str, name: str, role: str, password: str) -> None:
    """Give a user a role, as the admin of the environment."""
    command = [sys.executable, DEPLOY / "users.py", name, role]
    subprocess.run(
        command,
        env=os.environ | {"MLFLOW_TRACKING_URI": address},
        input=f"{password}\n",
        text=True,
        check=True,
        capture_output=True,
        start_new_session=True,  # no terminal to ask
    )


COMPOSE = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "example.env").read_text(), re.MULTILINE))


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += re.findall("^FROM (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 3
    assert all(re.fullmatch(r"[\w/]+:\d+\.\d+[\w.-]*", image) for image in images), images


def test_the_server_is_what_is_tested_here() -> None:
    for line in (DEPLOY / "requirements.txt").read_text().splitlines():
        if pinned := re.fullmatch(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", line):
            assert version(pinned[1]) == pinned[2]
        else:
            assert line.startswith("#")


def test_ports_are_on_loopback_unless_configured_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == 3
    assert all(port.startswith("${ADDRESS:-127.0.0.1}:") for port in ports)


def test_secrets_come_from_the_environment() -> None:
    values = {
        (name, key): value
        for name, service in SERVICES.items()
        for key, value in service.get("environment", {}).items()
        if re.search("PASSWORD|SECRET|KEY", key)
    }
    assert len(values) == 9
    for place, value in values.items():
        wanted = re.fullmatch(r"\$\{(\w+):\?.+\}", value)
        assert wanted and wanted[1] in EXAMPLE, place
    assert {name for name, value in EXAMPLE.items() if value} == {"AWS_ACCESS_KEY_ID"}
    subprocess.run(["git", "check-ignore", "--quiet", "deploy/.env"], cwd=ROOT, check=True)


def test_every_service_has_a_health_check() -> None:
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in SERVICES.values())
    assert SERVICES["tracking"]["depends_on"] == {
        name: {"condition": "service_healthy"} for name in ("database", "objects")
    }
    mounted = [mount.split(":")[0] for service in SERVICES.values() for mount in service["volumes"]]
    assert all(
        (DEPLOY / mount).is_file() if mount.startswith(".") else mount in COMPOSE["volumes"] for mount in mounted
    )


def test_secrets_are_made_as_the_guide_says(folder: Path) -> None:
    file = folder / "deploy" / ".env"
    assert file.stat().st_mode & 0o077 == 0
    lines = dict(line.split("=", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    assert lines.keys() == EXAMPLE.keys()
    assert all(len(value) == 48 for name, value in lines.items() if name != "AWS_ACCESS_KEY_ID")
