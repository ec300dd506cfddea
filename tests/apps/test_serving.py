"""A real server over HTTP: masks for raw images, and errors in one readable line."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoflow.apps import serving
from mitoflow.apps.json_slices import read_slices
from mitoflow.core.process import GRACE
from mitoflow.errors import InputError
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from tests.io.test_chunks import little_memory
from tests.parts import free_port, until
from tests.tiny_model import write_model

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
        connection.request("POST", "/invocations", body, {"Content-Type": kind, **headers})
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


@contextmanager
def serving_process(folder: Path, largest: int, **variables: str) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    port, log = free_port(), folder / f"log{largest}"
    command = [sys.executable, "-m", "mitoflow.cli", "serve", "--model", "unet.keras", "--port", str(port)]
    command += ["--largest", str(largest)]
    with (
        log.open("w") as stream,
        subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream, env=os.environ | variables) as process,
    ):
        try:
            until(lambda: process.poll() is not None or _listens(port), log.read_text)
            assert process.poll() is None, log.read_text()
            yield Server(port, log), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving_process(folder, 1) as (server, _):
        yield server


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
    "ragged": ('{"inputs": [[[1, 2], [3]]]}', "application/json", 422, "found rows of different lengths"),
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
    "empty rows": (
        b'{"inputs": [' + b"[]," * 2**17 + b"[]]}",
        "application/json",
        422,
        "send larger slices, or a TIFF",
    ),
    "endless number": ('{"inputs": [[[' + "1" * 5000 + "]]]}", "application/json", 422, "JSON that cannot be read"),
    "no type": (b"x", "", 415, "Content-Type is missing"),
    "another kind": (b"x", "image/png", 415, "send application/json or image/tiff"),
    "a table": (b"a,b", "text/csv", 415, "send application/json or image/tiff"),
    "Parquet": (b"PAR1", "application/vnd.apache.parquet", 415, "send application/json or image/tiff"),
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


@pytest.mark.parametrize("unit", ["[],", "[ ],", "[0],", "{},", '"",'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_body_of_empty_lists_takes_little_memory(unit: str, encoding: str) -> None:
    """Parsed, it takes up to 35 times its size."""
    body = f'{{"inputs": [{unit * 2**18}0]}}'.encode(encoding)
    with little_memory(2**20), pytest.raises(InputError, match="body: found .* lists, groups and texts in .* bytes"):
        read_slices(body, SETTINGS)


def test_texts_in_the_place_of_numbers_take_little_memory() -> None:
    """In an array of texts each of them would have the length of the longest one: here 4 GB."""
    body = json.dumps({"inputs": [[["x" * 2**20, *["y"] * 1000]]]}).encode()
    with little_memory(), pytest.raises(InputError, match="inputs: found str values, expected whole numbers"):
        read_slices(body, SETTINGS)


def test_slices_of_narrow_rows_and_long_ones_are_read() -> None:
    for shape in ((4, 2**14, 1), (2, 3, 2**12)):
        slices = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(read_slices(json.dumps({"inputs": slices.tolist()}).encode(), SETTINGS), slices)


def test_what_is_read_takes_at_most_twenty_times_its_size() -> None:
    body = b'{"inputs": [[[' + b"-9," * 2**20 + b"-9]]]}"  # negative numbers are the largest for their characters
    with little_memory(20 * len(body)):
        assert read_slices(body, replace(SETTINGS, normalization="percentiles")).shape == (1, 1, 2**20 + 1)


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


@pytest.mark.parametrize("kind", ["Image/TIFF", "IMAGE/TIFF; q=1", "Application/JSON"])
def test_media_types_are_known_in_any_letter_case(server: Server, kind: str) -> None:
    body = tiff(STACK) if "tiff" in kind.lower() else json.dumps({"inputs": STACK.tolist()})
    assert server.post(body, kind)[0] == 200


def test_notes_are_in_the_body_where_json_is_asked_for(server: Server, expected: np.ndarray) -> None:
    status, headers, body = server.post(tiff(STACK), "image/tiff", Accept="application/json")
    assert (status, headers["content-type"]) == (200, "application/json")
    answer = json.loads(body)
    np.testing.assert_array_equal(answer["predictions"], expected)
    assert any("the model does not say what its training images look like" in note for note in answer["notes"])
    _, _, body = server.post(json.dumps({"inputs": STACK.tolist()}))
    assert json.loads(body) == answer, "JSON in gives what a TIFF of the same slices gives"


def test_an_answer_names_the_model(server: Server) -> None:
    _, headers, _ = server.post(tiff(STACK), "image/tiff")
    _, _, body = server.post(json.dumps({"inputs": STACK[:1].tolist()}))
    assert (headers["x-mitoflow-model"], json.loads(body)["model"]) == ("unet", "unet")


def test_openapi_describes_both_kinds_of_bodies_and_answers(server: Server) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/openapi.json")
    described = json.load(connection.getresponse())["paths"]["/invocations"]["post"]
    assert described["requestBody"]["content"].keys() == {"image/tiff", "application/json"}
    assert described["responses"]["200"]["content"].keys() == {"image/tiff", "application/json"}
    assert {"411", "413", "415", "422", "429"} <= described["responses"].keys()
    status, _, _ = server.post(json.dumps(described["requestBody"]["content"]["application/json"]["example"]))
    assert status == 200
    connection.request("GET", "/docs")
    assert "/openapi.json" in connection.getresponse().read().decode()


def test_the_client_in_the_documents_works(
    server: Server, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs/apps.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"In Python:\n\n((?: {4}.*\n)+)", text)
    assert "127.0.0.1:5001" in block
    monkeypatch.chdir(tmp_path)
    path = Path("data/test/phantom/images/phantom.tif")
    path.parent.mkdir(parents=True)
    path.write_bytes(tiff(STACK))
    client = textwrap.dedent(block).replace(":5001", f":{server.port}")
    ran = subprocess.run(
        [sys.executable, "-c", f"{client}\nnp.save('masks.npy', masks)"], capture_output=True, text=True, check=True
    )
    np.testing.assert_array_equal(np.load("masks.npy"), expected)
    assert "note: the model does not say" in ran.stdout


def begin(server: Server, length: int, body: bytes = b"", kind: str = "image/tiff") -> socket.socket:
    """Send the head of a request, and as much of its body of that length as is given."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def answered(client: socket.socket) -> str:
    """Return the head of an answer."""
    return client.recv(2**16).decode("latin-1").partition("\r\n\r\n")[0].lower()


def test_more_requests_than_wait_are_sent_away_until_later(server: Server) -> None:
    """They are counted from their first byte on."""
    waiting = [begin(server, 10) for _ in range(serving.REQUESTS)]
    time.sleep(1)
    status, headers, _ = server.post(tiff(STACK), "image/tiff")
    assert (status, headers["retry-after"]) == (429, "10")
    for client in waiting:
        client.close()
    until(lambda: server.post(tiff(STACK), "image/tiff")[0] == 200)


def test_bodies_are_counted_together(server: Server) -> None:
    waiting = [begin(server, 2**20) for _ in range(serving.TOGETHER)]
    time.sleep(1)
    assert server.post(tiff(STACK), "image/tiff")[0] == 429
    for client in waiting:
        client.close()
    until(lambda: server.post(tiff(STACK), "image/tiff")[0] == 200)


def test_a_body_that_stalls_is_cut_off(server: Server) -> None:
    with begin(server, 100, b"II*") as client:
        head = answered(client)
        assert head.startswith("http/1.1 408 ")
        assert "connection: close" in head
        assert client.recv(1) in (b"", b"{")


def predictions(server: Server) -> list[str]:
    """What the log says of predictions: each begins, and then has an answer or is stopped."""
    return re.findall("(predicting a request|predicted it|stopped a prediction)", server.log.read_text())


def test_a_request_whose_client_has_left_is_not_predicted(server: Server) -> None:
    begin(server, 100, b"II*").close()
    before, large = predictions(server), tiff(np.random.default_rng(1).integers(0, 256, (15, 256, 256), np.uint8))
    with begin(server, len(large), large) as client:
        until(lambda: len(predictions(server)) > len(before))
        for _ in range(3):
            begin(server, len(tiff(STACK)), tiff(STACK)).close()
        assert answered(client).startswith("http/1.1 200 ")
    assert server.post(tiff(STACK), "image/tiff")[0] == 200
    assert predictions(server) == before + ["predicting a request", "predicted it"] * 2


def test_a_prediction_whose_client_leaves_is_stopped(folder: Path) -> None:
    voxels = np.resize(STACK % 10, (64, 512, 512))
    bodies = {"image/tiff": tiff(voxels), "application/json": json.dumps({"inputs": voxels.tolist()}).encode()}
    with serving_process(folder, 99) as (server, _):
        for kind, body in bodies.items():
            before = predictions(server)
            with begin(server, len(body), body, kind):
                until(lambda before=before: len(predictions(server)) > len(before))
            assert server.post(tiff(STACK), "image/tiff")[0] == 200
            said = ["predicting a request", "stopped a prediction", "predicting a request", "predicted it"]
            assert predictions(server) == before + said


def test_the_log_has_no_traceback(server: Server) -> None:
    assert server.post("slices")[0] == 422
    assert "Traceback" not in server.log.read_text()


def test_sigterm_ends_the_server_within_the_grace(folder: Path, tmp_path: Path) -> None:
    """Whatever is half-sent or half-predicted, without a traceback and without files that stay behind."""
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.resize(STACK, (64, 1024, 1024)), compression="zlib")
    with serving_process(folder, 100, TMPDIR=str(tmp_path)) as (server, process):
        half, predicted = begin(server, 100, b"II*"), begin(server, len(stack.getvalue()), stack.getvalue())
        until(lambda: list(tmp_path.glob("*/.mask*")), lambda: list(tmp_path.rglob("*")))
        process.terminate()
        process.wait(GRACE + 5)
        for client in (half, predicted):
            assert answered(client).startswith("http/1.1 503 ")
            client.close()
    assert "Traceback" not in server.log.read_text()
    assert not list(tmp_path.iterdir())
