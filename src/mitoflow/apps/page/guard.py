"""Which requests reach the page at all, and what the browser is told about its answers."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SAFE = frozenset({"GET", "HEAD"})
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """Refuses requests that other sites make a browser send.

    A site that gives its own name the address of this machine (DNS rebinding) makes the browser send that name as
    Host, so a page that listens on loopback answers to the names of loopback alone. A request that changes something
    must come from the page itself.

    Parameters
    ----------
    app
        What answers the others.
    host
        Where the page listens.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._is_local = host in LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.update(HEADERS)
                answer.setdefault("Cache-Control", "no-cache")
            await send(message)

        headers = Headers(scope=scope)
        is_named = not self._is_local or urlsplit(f"//{headers.get('host', '')}").hostname in LOOPBACK
        if is_named and (scope["method"] in SAFE or _is_own(headers)):
            await self._app(scope, receive, send_with_headers)
            return
        refused = JSONResponse({"error": "this address is not for other sites; open the page by its own"}, 403)
        await refused(scope, receive, send_with_headers)


def _is_own(headers: Headers) -> bool:
    """Return whether the page itself sent a request, or a program; browsers say so where a connection is secure."""
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return not origin or urlsplit(origin).netloc == headers.get("host")
