"""The page and the server of masks: what they say before they serve."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mitoflow.apps import http_server
from mitoflow.errors import InputError
from mitoflow.inference.settings import Settings
from tests.parts import free_port
from tests.tiny_model import ship_model, write_model

WARNING = "warning: pretrained:own WAS TRAINED ON DRAWN IMAGES ALONE (phantom), NOT ON REAL TISSUE."
SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that ships with the project which is the current folder."""
    folder = tmp_path / "pretrained/own"
    folder.mkdir(parents=True)
    write_model(folder, SETTINGS, np.zeros((1, 16, 16), np.uint8))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(("sets", "drawn"), [("phantom", True), ("phantom+epfl", False)])
def test_a_model_of_drawn_images_is_loaded_with_a_warning(
    own: Path, sets: str, drawn: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ship_model(own, sets)
    assert http_server.load_model("pretrained:own").is_of_drawn_images is drawn
    err = capsys.readouterr().err
    assert err.startswith(WARNING) if drawn else not err


def test_a_broken_model_is_an_error_before_anything_is_served(own: Path) -> None:
    ship_model(own, "epfl")
    (own / "unet.keras").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"unet\.keras"):
        http_server.load_model("pretrained:own")


@pytest.mark.e2e
@pytest.mark.parametrize("command", ["app", "serve"])
def test_the_warning_stands_before_all_else_that_a_server_prints(own: Path, command: str) -> None:
    ship_model(own, "phantom")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        line = [sys.executable, "-m", "mitoflow.cli", command, "--model", "pretrained:own", "--port", port]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(WARNING)
    _, busy = done.stderr.splitlines()
    expected = "found {}, at which another program listens, expected a free port; give another one, or end that program"
    assert busy == f"mitoflow: --port: {expected.format(port)}"
    assert done.returncode == 2


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "1::2"])
def test_an_address_of_another_machine_is_one_line(host: str) -> None:
    """192.0.2.1 is of nobody (RFC 5737)."""
    with pytest.raises(InputError, match=rf"--host: found {host} \(.*\), expected an address of this machine"):
        http_server.run(None, host, free_port())
