"""Downloads over real sockets, from a server that hangs up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mitoflow.data.download import ATTEMPTS, fetch
from mitoflow.errors import InputError

CONTENT = np.random.default_rng(3).bytes(300_000)


@dataclass
class Server:
    """Serves `CONTENT` at any address but ``/missing``, and hangs up after `patience` bytes of an answer."""

    url: str = ""
    patience: int = len(CONTENT)
    knows_ranges: bool = True
    asked: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        if request.path == "/missing":
            request.send_error(404)
        elif start >= len(CONTENT):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            request.send_response(206 if wanted and self.knows_ranges else 200)
            request.send_header("Content-Length", str(len(CONTENT) - start))
            request.end_headers()
            request.wfile.write(CONTENT[start : start + self.patience])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}/stack.tif"
        yield server
        http.shutdown()


def test_a_download_goes_on_where_the_server_hung_up(server: Server, tmp_path: Path) -> None:
    server.patience = 120_000
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked[:2] == [None, "bytes=65536-"]  # the last whole block
    assert len(server.asked) == len(set(server.asked))
    assert [path.name for path in tmp_path.iterdir()] == ["stack.tif"]


def test_a_later_run_goes_on_where_an_earlier_one_was_killed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "stack.tif.part").write_bytes(CONTENT[:200_000])
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=200000-"]


def test_what_is_there_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_server_that_cannot_go_on_starts_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "stack.tif.part").write_bytes(b"x" * 1000)
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more than the server has"])
def test_a_part_as_long_as_the_file_or_longer(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "stack.tif.part").write_bytes(left)
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


def test_a_server_that_sends_nothing_is_given_up_and_the_part_is_kept(server: Server, tmp_path: Path) -> None:
    server.patience = 0
    (tmp_path / "stack.tif.part").write_bytes(CONTENT[:200_000])
    with pytest.raises(InputError, match=r"stack\.tif: found 0\.2 MB and then no connection .*--from"):
        fetch(server.url, tmp_path)
    assert len(server.asked) == ATTEMPTS
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"stack.tif.part": 200_000}


def test_an_address_that_does_not_exist_is_one_line_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="404"):
        fetch(server.url.replace("stack.tif", "missing"), tmp_path)
    assert len(server.asked) == 1


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no connection .*run it again to resume"):
        fetch("http://127.0.0.1:9/stack.tif", tmp_path)
