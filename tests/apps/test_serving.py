"""A real server over HTTP: masks for raw images, and errors in one readable line."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from tests.parts import free_port, until, write_model

pytestmark = pytest.mark.e2e

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1, median=3)
STACK = np.random.default_rng(0).integers(0, 256, (6, 64, 80), np.uint8)


class Server:
    """A running server and a client of it."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log

    def post(
        self, body: bytes | str, kind: str = "application/json", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/invocations", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def tiff(voxels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, voxels)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_model(folder, SETTINGS, STACK)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return Predictor.load(folder / "unet.keras", folder / "inference.yaml").masks(STACK)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    port = free_port()
    arguments = ["serve", "--model", "unet.keras", "--port", str(port), "--largest", "1"]
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "mitoflow.cli", *arguments]
        with subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ) as process:
            try:
                until(lambda: process.poll() is not None or _listens(port), (folder / "log").read_text)
                assert process.poll() is None, (folder / "log").read_text()
                yield Server(port, folder / "log")
            finally:
                process.terminate()


def test_json_returns_masks(server: Server, expected: np.ndarray) -> None:
    status, _, body = server.post(json.dumps({"inputs": STACK.tolist()}))
    assert status == 200, body
    np.testing.assert_array_equal(json.loads(body)["predictions"], expected)


def test_a_tiff_returns_a_tiff_with_its_lineage(server: Server, expected: np.ndarray, tmp_path: Path) -> None:
    status, headers, body = server.post(tiff(STACK), "image/tiff")
    assert (status, headers["content-type"]) == (200, "image/tiff"), body
    assert "the model does not say what its training images look like" in headers["x-mitoflow-note"]
    (tmp_path / "mask.tif").write_bytes(body)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mask.tif"), 255 * expected)
    assert ome.read_lineage(tmp_path / "mask.tif")["model"] == "unet.keras"


def test_requests_at_the_same_time(server: Server, expected: np.ndarray) -> None:
    bodies = [(json.dumps({"inputs": STACK.tolist()}), "application/json"), (tiff(STACK), "image/tiff")] * 3
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(lambda body: server.post(*body), bodies))
    assert [status for status, _, _ in answers] == [200] * len(bodies)
    for _, headers, body in answers:
        is_json = headers["content-type"] == "application/json"
        masks = np.array(json.loads(body)["predictions"]) * 255 if is_json else tifffile.imread(io.BytesIO(body))
        np.testing.assert_array_equal(masks, 255 * expected)


BAD: dict[str, tuple[bytes | str, str, int, str]] = {
    "no json": ("slices", "application/json", 422, "JSON"),
    "no inputs": ('{"images": []}', "application/json", 422, "inputs"),
    "one slice": (json.dumps({"inputs": STACK[0].tolist()}), "application/json", 422, "shape"),
    "ragged": ('{"inputs": [[[1, 2], [3]]]}', "application/json", 422, "inhomogeneous"),
    "text": ('{"inputs": [[["a"]]]}', "application/json", 422, "values, expected whole numbers"),
    "too bright": (
        json.dumps({"inputs": (STACK.astype(int) + 1).tolist()}),
        "application/json",
        422,
        "1 to 256",
    ),
    "fractions": (
        json.dumps({"inputs": (STACK / 255).tolist()}),
        "application/json",
        422,
        "fractions from 0 to 1",
    ),
    "empty": ('{"inputs": []}', "application/json", 422, "found nothing, expected slices"),
    "text that looks like numbers": (
        '{"inputs": [[["12", "300"]]]}',
        "application/json",
        422,
        "values, expected whole",
    ),
    "truth": ('{"inputs": [[[true]]]}', "application/json", 422, "bool values"),
    "too deep": ("[" * 100_000, "application/json", 422, "JSON that cannot be read"),
    "endless number": ('{"inputs": [[[' + "1" * 5000 + "]]]}", "application/json", 422, "JSON that cannot be read"),
    "no type": (b"x", "", 415, "no Content-Type"),
    "another kind": (b"x", "image/png", 415, "content types"),
    "no tiff": (b"not a TIFF", "image/tiff", 422, "TIFF"),
    "colour": (tiff(np.zeros((64, 64, 3), np.uint8)), "image/tiff", 422, "expected"),
    "complex": (tiff(np.zeros((64, 64), np.complex64)), "image/tiff", 422, "no plain numbers"),
    "large": (b"x" * (2**20 + 1), "image/tiff", 413, "1048576 at most"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_with_a_request_is_one_line(server: Server, kind: str) -> None:
    body, sent_as, status, said = BAD[kind]
    found, _, answer = server.post(body, sent_as)
    error = json.loads(answer)["error"]
    assert (found, "Traceback" in error, "\n" in error) == (status, False, False), error
    assert said in error
    assert 10 < len(error) < 600
    assert server.post(json.dumps({"inputs": STACK[:1].tolist()}))[0] == 200, "it goes on serving"


def test_a_small_file_of_many_pixels_is_refused(server: Server) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((64, 256, 256), np.uint8), compression="zlib")
    status, _, answer = server.post(buffer.getvalue(), "image/tiff")
    assert (status, json.loads(answer)["error"]) == (413, "4194304 pixels, 1048576 at most; send parts")


def test_a_request_of_unknown_length_is_refused(server: Server) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=300)
    headers = {"Content-Type": "image/tiff", "Transfer-Encoding": "chunked", "Content-Length": "5"}
    connection.request("POST", "/invocations", iter([b"x" * 100]), headers, encode_chunked=True)
    assert connection.getresponse().status in (400, 411)


def test_the_log_has_no_traceback(server: Server) -> None:
    assert server.post("slices")[0] == 422
    assert "Traceback" not in server.log.read_text()
