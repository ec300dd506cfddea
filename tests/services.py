"""Real services for tests, on loopback: PostgreSQL, ``mlflow server`` in front of it, object store, HTTP, SSH server.

Each keeps its port and its data for as long as the object lives, so a test can break it and set it going again:

    with PostgreSQL() as database, TrackingServer(database.create("mlflow")) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        ...
        server.kill()       # kill -9 of the server and all its workers
        database.restart()  # as an upgrade does it; stop() and kill() are there, too
        server.start()      # the same port, the same runs

A test that breaks nothing shares the fixture ``postgresql`` of the session and makes a database of its own in it:
``postgresql.create("optuna")`` returns the URI, with the password. ``TrackingServer(uri, admin="a password")`` asks
everybody for a name and a password; it knows the user ``admin``, who makes the others through MLflow's API.
"""

from __future__ import annotations

import ctypes
import functools
import getpass
import http.server
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import psutil
import pytest

from tests.parts import PATIENCE, free_port

#: Set by CI, where all programs are there: a missing one fails the test in place of skipping it.
REQUIRED = "MITOFLOW_TESTS_SKIP_NO_PROGRAM"
JAVA = "openjdk-17-jre-headless"  # the package of Debian
DEPLOY = Path(__file__).parents[1] / "deploy"
AS_NOBODY: dict[str, Any] = (
    {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
)  # PostgreSQL refuses to be root


class Service(ABC):
    """A server process in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mitoflow-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return the command line that serves until it is stopped."""

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether the service can be used."""

    def launch(self, **options: Any) -> subprocess.Popen[bytes]:
        """Run the command line, with what it prints in the file ``log``."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self.command(), cwd=self.folder, stdout=log, stderr=log, **options)

    @property
    def log(self) -> str:
        """What the service printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start, and wait until it answers; what is running stays."""
        self.process = self.process or self.launch()
        end = time.monotonic() + PATIENCE
        while not self.answers():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.1)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self.process:
            self.process.terminate()
            self.process.wait(PATIENCE)
            self.process = None

    def kill(self) -> None:
        """Kill it and all its children with SIGKILL."""
        if self.process:
            server = psutil.Process(self.process.pid)
            all_of_it = [server, *server.children(recursive=True)]
            for process in all_of_it:
                process.kill()
            psutil.wait_procs(all_of_it, PATIENCE)
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)


class PostgreSQL(Service):
    """PostgreSQL with one user, who may do everything, and whose password is random."""

    def __init__(self, user: str = "mitoflow") -> None:
        initdb = postgres("initdb")
        super().__init__()
        self.user = user
        self.password = secrets.token_urlsafe(24)
        if AS_NOBODY:
            shutil.chown(self.folder, AS_NOBODY["user"], AS_NOBODY["group"])
        (self.folder / "password").write_text(self.password)
        options = ["--pgdata", self.folder / "data", "--username", user, "--no-sync"]
        authentication = ["--auth", "scram-sha-256", "--pwfile", self.folder / "password", "--encoding", "UTF8"]
        subprocess.run(
            [initdb, *options, *authentication], cwd=self.folder, check=True, capture_output=True, **AS_NOBODY
        )
        (self.folder / "password").unlink()

    def command(self) -> Sequence[str | Path]:
        # Without fsync it survives kill -9 as before, but not a power cut.
        where = ["-D", self.folder / "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]
        return [postgres("postgres"), *where, "-c", "fsync=off"]

    def launch(self, **options: Any) -> subprocess.Popen[bytes]:
        return super().launch(**AS_NOBODY, **options)

    def answers(self) -> bool:
        ready = [postgres("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        """Stop at once, though there are clients: as ``pg_ctl stop -m fast``."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
        super().stop()

    def uri(self, database: str) -> str:
        """Return where a database is, with the password."""
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database and return its URI."""
        self.run("createdb", database)
        return self.uri(database)

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a client program of PostgreSQL, such as psql or pg_dump, and return what it printed."""
        done = subprocess.run(
            [postgres(program), *arguments], env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Return the environment by which PostgreSQL's programs find the server and its user."""
        server = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": self.user, "PGPASSWORD": self.password}
        return {**os.environ, **server, "PGDATABASE": "postgres"}


class TrackingServer(Service):
    """``mlflow server`` with its artifact proxy.

    Parameters
    ----------
    database
        URI of what it keeps runs and the registry in.
    admin
        Password of the user ``admin``; with it the server asks everybody for a name and a password.
    """

    def __init__(self, database: str, admin: str = "") -> None:
        super().__init__()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database, self.admin = database, admin
        if admin:
            settings = (DEPLOY / "accounts.ini").read_text(encoding="utf-8")
            own = settings.replace("postgresql:///accounts", f"sqlite:///{self.folder}/accounts.db")
            (self.folder / "accounts.ini").write_text(own, encoding="utf-8")

    def command(self) -> Sequence[str | Path]:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--serve-artifacts"]
        options += ["--artifacts-destination", str(self.folder / "artifacts")]
        options += ["--app-name", "basic-auth"] if self.admin else []
        return [Path(sys.executable).parent / "mlflow", "server", *options]

    def launch(self, **options: Any) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        settings = {"MLFLOW_BACKEND_STORE_URI": self.database, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        settings |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
        if self.admin:
            settings["MLFLOW_AUTH_CONFIG_PATH"] = str(self.folder / "accounts.ini")
            settings["MLFLOW_AUTH_ADMIN_PASSWORD"] = self.admin
            settings["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_urlsafe(24)
        return super().launch(env=kept | settings, **options)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class ObjectStore(Service):
    """A store that speaks S3, with one bucket: ``rclone serve s3`` on a folder.

    Attributes
    ----------
    credentials
        The variables of the environment that clients need.
    """

    bucket = "mitoflow"

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"http://127.0.0.1:{self.port}"
        secret = secrets.token_urlsafe(24)
        self.credentials = {
            "AWS_ACCESS_KEY_ID": "mitoflow",
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        (self.folder / "objects" / self.bucket).mkdir(parents=True)

    def command(self) -> Sequence[str | Path]:
        keys = f"{self.credentials['AWS_ACCESS_KEY_ID']},{self.credentials['AWS_SECRET_ACCESS_KEY']}"
        where = ["--addr", f"127.0.0.1:{self.port}", "--auth-key", keys, "--config", "/dev/null"]
        # A test writes files beside it, so it must look again soon; with 0 it does little else, and may never answer.
        where += ["--dir-cache-time", "10ms"]
        return [Path(sys.executable).parent / "rclone", "serve", "s3", *where, self.folder / "objects"]

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class HTTPFolder:
    """A plain HTTP server on a folder, which neither lists folders nor sends parts of files.

    Attributes
    ----------
    folder, url
        The folder, and its address.
    asked
        The paths that were asked for.
    answers
        By the end of a path the status and the body that it gets in place of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        served = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                served.asked.append(self.path)
                wrong = next((wrong for end, wrong in served.answers.items() if self.path.endswith(end)), None)
                if wrong is None:
                    super().do_GET()
                    return
                self.send_response(wrong[0])
                self.send_header("Content-Length", str(len(wrong[1])))
                self.end_headers()
                self.wfile.write(wrong[1])

            def log_message(self, *_: object) -> None:
                """Stay quiet."""

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class SSHServer(Service):
    """OpenSSH's server, which the user who runs it can log in to by one key.

    Attributes
    ----------
    uri
        Of a folder on it, as DVC takes it.
    key
        Path of the private key that it knows.
    """

    def __init__(self) -> None:
        self.program = find_program("sshd", "openssh-server", "/usr/sbin")
        super().__init__()
        self.uri = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.folder}/objects"
        self.key = make_key(self.folder / "key")
        make_key(self.folder / "host")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # in which it gives up its rights

    def command(self) -> Sequence[str | Path]:
        options = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "key.pub",
            "AuthenticationMethods": "publickey",
            "PermitRootLogin": "prohibit-password",
            "StrictModes": "no",  # the folder is in one that others may write to
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
        }
        return [self.program, "-D", "-e", "-f", "/dev/null", *(f"-o{name}={value}" for name, value in options.items())]

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def make_key(path: Path) -> Path:
    """Write a private key of SSH without a passphrase, and its public key beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def postgres(program: str) -> str:
    """Return the path of a program of PostgreSQL; Debian keeps those of the server off the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    return find_program(program, "postgresql", *map(str, versions))


def find_program(name: str, package: str, *folders: str) -> str:
    """Return the path of a program; without it the test is skipped, and in CI it fails.

    Parameters
    ----------
    name
        The program.
    package
        Of Debian, which brings it.
    folders
        Where it may be besides those of PATH.
    """
    if found := shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]])):
        return found
    lacks_program(name, package)


def find_library(name: str, package: str) -> None:
    """Return where the loader finds a library, such as ``libEGL.so.1``; without it as `find_program`."""
    try:
        ctypes.CDLL(name)
    except OSError:
        lacks_program(name, package)


def lacks_program(name: str, package: str) -> NoReturn:
    """Skip the test, or the module that is imported, which needs a package of Debian; in CI fail."""
    _end_without(f"no {name} on this machine: install Debian's package {package}")


def require_module(name: str, extra: str) -> None:
    """Skip the test where a module is not installed, which an extra of mitoflow brings; in CI fail."""
    if importlib.util.find_spec(name) is None:
        _end_without(f"no {name} in this environment: pip install -e '.[{extra}]'")


def _end_without(why: str) -> NoReturn:
    if os.environ.get(REQUIRED):
        pytest.fail(why)
    pytest.skip(why, allow_module_level=True)


def powerless() -> list[str]:
    """Return what a command line begins with so that it may not write everywhere, as root may.

    The test is skipped where root cannot give that up, as in some containers.
    """
    if os.geteuid():
        return []
    command = [find_program("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root may write anywhere, and cannot give that up on this machine")
    return command


@dataclass(frozen=True)
class OpenedInImageJ:
    """What ImageJ makes of a file.

    Attributes
    ----------
    shape
        Channels, slices, frames, rows and columns.
    voxel_size
        Along z, y and x.
    unit
        Of the voxel size; ``pixel`` where it is unknown.
    pixels
        All of them, slice by slice, in one dimension; ImageJ turns labels of 32 bits into float32.
    """

    shape: tuple[int, ...]
    voxel_size: tuple[float, ...]
    unit: str
    pixels: np.ndarray


def open_in_imagej(path: Path) -> OpenedInImageJ:
    """Open a little-endian TIFF in ImageJ itself, as when it is dropped on it."""
    java, jar, raw = find_program("java", JAVA), Path("/usr/share/java/ij.jar"), path.with_suffix(".raw")
    if not jar.exists():
        lacks_program("ImageJ", "libij-java")
    command = [java, "-Djava.awt.headless=true", "-cp", jar, Path(__file__).parent / "io/OpenInImageJ.java", path, raw]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    shape, size, unit, bits = answer.stdout.split("|")
    dtype = {8: "u1", 16: "<u2", 32: "<f4"}[int(bits)]
    pixels = np.fromfile(raw, dtype)
    return OpenedInImageJ(tuple(map(int, shape.split())), tuple(map(float, size.split())), unit, pixels)
