"""A proxy between a client and a server that injects faults of networks and servers."""

from __future__ import annotations

import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

#: What can happen to a request.
TROUBLES = {
    "slow": "slow, 1 to 3 s a call",
    "refusing": "answering 500",
    "unheard": "losing requests",
    "mute": "losing answers to what it did",
    "torn": "cutting answers short",
}


class Proxy:
    """Hands requests on to a server, and has some of them meet with `trouble`.

    Attributes
    ----------
    trouble
        One of `TROUBLES`, or None.
    share
        Of the requests, that meet with it.
    """

    def __init__(self, port: int) -> None:
        self.trouble: str | None = None
        self.share, self.chance = 0.5, random.Random(0)
        handler = type("Handler", (_Handler,), {"proxy": self, "server_port": port})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_until_idle(self) -> None:
        """Return once the server is done with every request made before, also with those of clients that died."""
        own = http.client.HTTPConnection("127.0.0.1", self._server.server_port, timeout=60)
        own.request("GET", "/health")  # answered: connections made before this one were accepted, and are counted
        own.getresponse().read()
        own.close()
        with self._server.changed:
            assert self._server.changed.wait_for(lambda: self._server.requests == 0, timeout=60)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Counts the requests that are not done; each comes by a connection of its own."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests, self.changed = 0, threading.Condition()

    def process_request(self, *arguments: Any) -> None:
        with self.changed:
            self.requests += 1
        super().process_request(*arguments)

    def process_request_thread(self, *arguments: Any) -> None:
        super().process_request_thread(*arguments)
        with self.changed:
            self.requests -= 1
            self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[Proxy]
    server_port: ClassVar[int]

    def _hand_on(self) -> None:
        proxy = self.proxy
        trouble = proxy.trouble if proxy.chance.random() < proxy.share else None
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.close_connection = True
        if trouble == "unheard" or len(body) < length:  # the client died
            return
        if trouble == "refusing":
            self.send_error(500, "Internal Server Error")
            return
        if trouble == "slow":
            time.sleep(proxy.chance.uniform(1, 3))
        try:
            upstream = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):  # the server is away, as it may be
            return
        if trouble == "mute":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if trouble == "torn" else content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _hand_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass
