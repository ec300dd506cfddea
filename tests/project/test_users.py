"""A tracking server with user accounts: the rights of each role, and passwords that are never shown."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.server.auth.client import AuthServiceClient

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference.settings import Settings
from mitoflow.models import unet
from mitoflow.tracking import registration, registry, runs, store
from tests.services import PostgreSQL, TrackingServer

pytestmark = pytest.mark.e2e

USERS = Path(__file__).parents[2] / "deploy" / "users.py"
PASSWORDS = {name: secrets.token_urlsafe(18) for name in ("admin", "reader", "writer", "promoter")}


@pytest.fixture(scope="module")
def server(postgresql: PostgreSQL) -> Iterator[TrackingServer]:
    """A server with an account for each role."""
    with TrackingServer(postgresql.create("users"), PASSWORDS["admin"]) as server:
        for role in ("reader", "writer", "promoter"):
            assert administer(server, role, role, answer=PASSWORDS[role]).returncode == 0
        yield server


def administer(server: TrackingServer, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    """Run deploy/users.py as an admin who answers what it asks."""
    admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORDS["admin"]}
    return subprocess.run(
        [sys.executable, USERS, *arguments],
        env=os.environ | admin | {"MLFLOW_TRACKING_URI": server.uri},
        input=f"{answer}\n",
        text=True,
        check=False,
        capture_output=True,
        start_new_session=True,  # no terminal to ask
    )


@pytest.fixture
def checkout(server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("{}\n")
    return tmp_path


def log_in(monkeypatch: pytest.MonkeyPatch, name: str, password: str = "") -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or PASSWORDS[name])


def train(checkout: Path, correct: int) -> Verdict | None:
    """Report a training to the server whose model gets so many of 20 pixels right."""
    model, settings = checkout / "unet.keras", checkout / "inference.yaml"
    unet.save_model(unet.build_unet(depth=1, base_width=1), model)
    Settings(bit_depth=8, divisor=2, tile=64, overlap=16, threshold=0.5).write(settings)
    counts = [[correct // 2, 10 - correct // 2, 10 - correct // 2, correct // 2]] * 4
    evaluation = Evaluation(provenance.file_sha256(model), "test", ["a"] * 4, counts, 2, 50, 0)
    with runs.start("train", "unet") as run:
        run.metrics({"val_dice": correct / 20})
        return registration.register(run, evaluation, model, settings)


def test_what_each_role_may(
    server: TrackingServer,
    postgresql: PostgreSQL,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    log_in(monkeypatch, "promoter")
    first = train(checkout, 10)
    assert first and first.promoted

    log_in(monkeypatch, "writer")
    better = train(checkout, 18)
    assert better and not better.promoted
    assert f"mitoflow promote {better.version}" in better.reason
    with pytest.raises(InputError, match=r"permission denied \(error code 403\), expected a user who may do this"):
        registry.promote(better.version)
    with pytest.raises(InputError, match="permission denied"):
        registry.promote(better.version, force=True)
    assert runs.sync().left == 0

    log_in(monkeypatch, "reader")
    assert [row.version for row in registry.models()] == [first.version, better.version]
    assert registry.model_file(better.version).is_file()
    with pytest.raises(InputError, match="permission denied"):
        registry.promote(better.version, force=True)
    assert train(checkout, 4) is None
    assert "permission denied (error code 403); " in capfd.readouterr().err
    assert runs.sync().left > 0
    assert registry.champion() == first.version

    log_in(monkeypatch, "promoter")
    assert registry.promote(better.version).promoted
    log_in(monkeypatch, "reader")
    with pytest.raises(InputError, match="permission denied"):
        registry.rollback()
    log_in(monkeypatch, "admin")
    assert registry.champion() == better.version
    assert registry.rollback() == (better.version, first.version)

    seen = [file.read_bytes() for place in (checkout, server.folder) for file in place.rglob("*") if file.is_file()]
    seen += [postgresql.run("pg_dump", "users").encode(), server.log.encode()]
    assert len(seen) > 20
    for name, password in PASSWORDS.items():
        assert not [text for text in seen if password.encode() in text], name


def test_a_role_holds_for_the_registered_model_of_the_project(
    server: TrackingServer, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = checkout / "params.yaml"
    settings.write_text("registry: {model: mitoflow-liver}\n")
    assert administer(server, "writer", "promoter").returncode == 0
    log_in(monkeypatch, "writer")
    first, better = train(checkout, 10), train(checkout, 18)
    assert first and better
    assert (first.promoted, better.promoted, registry.rollback()) == (True, True, (2, 1))
    settings.write_text("{}\n")
    other = train(checkout, 20)
    assert other and not other.promoted
    with pytest.raises(InputError, match="permission denied"):
        registry.promote(other.version, force=True)


def test_a_promotion_is_described_where_the_experiment_may_only_be_read(
    server: TrackingServer, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, "admin")
    train(checkout, 10)
    version = train(checkout, 4)
    assert version and not version.promoted
    client = store.client(store.uri())
    experiment = client.get_experiment_by_name("mitoflow").experiment_id
    accounts, name = AuthServiceClient(server.uri), "reviewer"
    password = secrets.token_urlsafe(18)
    assert administer(server, name, "promoter", answer=password).returncode == 0
    accounts.revoke_user_permission(name, "experiment", experiment)
    accounts.grant_user_permission(name, "experiment", experiment, "READ")
    log_in(monkeypatch, name, password)
    assert registry.promote(version.version, force=True, reason="looked at").promoted
    described = client.get_model_version("mitoflow", str(version.version))
    assert described.description.startswith("Promoted: promoted by hand with --force; looked at")
    (output,) = client.get_run(described.run_id).outputs.model_outputs
    assert client.get_logged_model(output.model_id).tags["mlflow.note.content"].startswith("Not promoted: ")


@pytest.mark.parametrize("in_the_address", [False, True])
def test_a_wrong_password_is_one_line(
    server: TrackingServer, checkout: Path, monkeypatch: pytest.MonkeyPatch, in_the_address: bool
) -> None:
    wrong = secrets.token_urlsafe(18)
    if in_the_address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", f"//writer:{wrong}@"))
    else:
        log_in(monkeypatch, "writer", wrong)
    mitoflow = ["-m", "mitoflow.cli"]
    for command in (
        [*mitoflow, "models"],
        [*mitoflow, "promote", "1"],
        [*mitoflow, "rollback"],
        [USERS, "a", "reader"],
    ):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        expected = (
            f"mitoflow: {server.uri}: found wrong name or password (error code 401), expected a user that it knows; "
        )
        assert done.stderr == f"{expected}check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD\n"
        assert not re.search(wrong, done.stdout + done.stderr)
    with runs.start("train", "kept"):
        pass
    assert not [file for file in checkout.rglob("*") if file.is_file() and wrong.encode() in file.read_bytes()]


def test_an_account_gets_another_password_and_is_taken_away(
    server: TrackingServer, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = secrets.token_urlsafe(18), secrets.token_urlsafe(18)

    def may_look(password: str) -> bool:
        log_in(monkeypatch, "guest", password)
        try:
            registry.models()
        except InputError as error:
            assert "wrong name or password" in str(error)
            return False
        return True

    short = administer(server, "guest", "reader", answer="short")
    assert short.returncode == 2
    assert re.search("^mitoflow: guest: found .*[Pp]assword.*; run it again with others$", short.stderr, re.MULTILINE)
    assert administer(server, "guest", "reader", answer=old).returncode == 0
    assert may_look(old)
    assert administer(server, "guest", "password", answer=new).returncode == 0
    assert (may_look(old), may_look(new)) == (False, True)
    assert administer(server, "guest", "remove").returncode == 0
    assert not may_look(new)
    again = administer(server, "guest", "remove")
    assert again.returncode == 2
    assert re.fullmatch("mitoflow: guest: found .*; run it again with others\n", again.stderr)


def test_what_an_admin_gets_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://admin:{PASSWORDS['admin']}@127.0.0.1:9")
    without = "import sys, runpy; sys.modules['flask_wtf'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    for command, message in {
        (USERS, "anna", "reader"): "mitoflow: http://127.0.0.1:9: found .*refused, .*; start its server, or check",
        (USERS, "anna", "queen"): "mitoflow: users.py: found anna queen, expected NAME reader|",
        ("-c", without, USERS): "users.py: found .*Flask-WTF.*; .*pip install -r deploy/requirements.txt",
    }.items():
        # Well below the minutes that MLflow would try again.
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 2
        assert re.match(message, done.stderr)
        assert len(done.stderr.splitlines()) == 1
        assert PASSWORDS["admin"] not in done.stderr
