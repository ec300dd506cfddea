"""A model behind HTTP, with readable errors.

``/invocations`` speaks the protocol of `mlflow models serve`: it takes ``{"inputs": slices}`` with slices (N, Y, X),
and answers ``{"predictions": masks, "notes": [...], "model": "..."}``. A TIFF, sent as ``image/tiff``, is answered by
what `mitoflow predict` would write, or by JSON where the request accepts ``application/json``. What is wrong with a
request is one line: ``{"error": "..."}``. ``/docs`` describes the requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from mitoflow import __version__
from mitoflow.apps import http_server
from mitoflow.apps.json_slices import read_slices
from mitoflow.errors import InputError, as_user_error
from mitoflow.inference import prediction
from mitoflow.inference.request import Request as PredictionRequest
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import tiff, volumes

TIFF, JSON = "image/tiff", "application/json"
LONGEST = 500  # characters of an error
REQUESTS = 16  # that are held at the same time: one is predicted, the others arrive or wait
TOGETHER = 4  # times the largest request: bytes of the bodies that are held at the same time
RETRY_AFTER = "10"  # seconds
SLOWEST = 2**18  # bytes per second: a body as a whole may take as long as that, and `http_server.STALLED`

_log = logging.getLogger("uvicorn.error")


def serve(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Serve a model; see `http_server.load_model` and `http_server.run`.

    Parameters
    ----------
    wanted
        The model.
    host, port
        Where to listen.
    largest
        Bytes of the largest request, and pixels of the largest stack.
    """
    http_server.run(build(http_server.load_model(wanted), largest), host, port)


def build(model: TrainedModel, largest: int) -> FastAPI:
    """Return the server of a model; see `serve`."""
    settings = model.predictor.settings
    app = FastAPI(title="mitoflow", version=__version__, description=f"Masks of mitochondria by {model.name}.")
    described = {"requestBody": {"required": True, "content": _bodies(settings)}}
    answer = Invocations(model, largest).answer
    app.post("/invocations", summary="Predict a stack", responses=ANSWERS, openapi_extra=described)(answer)

    @app.get("/health", summary="Whether the server answers")
    @app.get("/ping", include_in_schema=False)  # as MLflow calls it
    def health() -> dict[str, str]:
        return {"model": model.name, "mitoflow": __version__}

    return app


#: What OpenAPI says of the answers to a request.
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The mask: 255 for mitochondrion in a TIFF, 1 in JSON. Headers name model and notes of a TIFF.",
        "content": {
            TIFF: {"schema": {"type": "string", "format": "binary"}},
            JSON: {"example": {"predictions": [[[0, 1], [0, 0]]], "notes": [], "model": "mitoflow version 1"}},
        },
    },
    **{
        status: {"description": text, "content": {JSON: {"example": {"error": "found ..., expected ...; ..."}}}}
        for status, text in {
            411: "The request does not say how long it is",
            413: "It is too large",
            415: "It is neither JSON nor TIFF",
            422: "It cannot be predicted",
            429: "Too many requests wait: send it again after the seconds in Retry-After",
        }.items()
    },
}


def _bodies(settings: Settings) -> dict[str, Any]:
    """Return what OpenAPI says of the body of a request."""
    values = "of any range" if settings.normalization == "percentiles" else f"of {settings.bit_depth} bits"
    row = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    slices = {"type": "array", "items": row, "description": f"consecutive slices (N, Y, X), grey values {values}"}
    schema = {"type": "object", "properties": {"inputs": slices}, "required": ["inputs"]}
    return {
        TIFF: {"schema": {"type": "string", "format": "binary"}},
        JSON: {"schema": schema, "example": {"inputs": [[[12, 200], [31, 87]]]}},
    }


class Invocations:
    """Predictions for requests.

    One request is predicted at a time, because a prediction uses all cores; a bounded number of others waits. A request
    is refused by its headers where it can be, and else after its body is read.

    Parameters
    ----------
    model, largest
        See `serve`.
    """

    def __init__(self, model: TrainedModel, largest: int) -> None:
        self.model, self.largest = model, largest
        self.alone = asyncio.Lock()
        self.held: list[int] = []  # bytes of each body that is received, waits or is predicted

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        try:
            kind, length = _media_type(request), self._length(request)
            with self._place(length):
                body = await _body(request, length)
                async with self.alone:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    return await self._predict(request, kind, body)
        except HTTPException as refused:
            return _refusal(HTTPStatus(refused.status_code), refused.detail, refused.headers)
        except InputError as error:
            message = f"found {error.found}, expected {error.expected}; {error.remedy}"
            return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.REQUEST_TIMEOUT)  # nobody receives it
        except asyncio.CancelledError:  # the server ends, and this request has had its grace
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server ends; send the request again")
        except Exception as error:
            if line := as_user_error(error):
                _log.error("a request failed: %s", line)
            else:
                _log.exception("a request failed")
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why")

    def _length(self, request: Request) -> int:
        """Return how many bytes a body has, which its headers must say."""
        length = request.headers.get("content-length", "")
        if "transfer-encoding" in request.headers or not length.isdecimal():
            message = "the request does not say how long it is; send Content-Length"
            raise HTTPException(HTTPStatus.LENGTH_REQUIRED, message)
        if int(length) > self.largest:
            message = f"{length} bytes, {self.largest} at most; send parts"
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return int(length)

    @contextmanager
    def _place(self, length: int) -> Iterator[None]:
        """Hold a place among the requests for a body of that many bytes."""
        if len(self.held) >= REQUESTS or sum(self.held) + length > TOGETHER * self.largest:
            message = f"{len(self.held)} requests wait; send it again later"
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, message, {"Retry-After": RETRY_AFTER})
        self.held.append(length)
        try:
            yield
        finally:
            self.held.remove(length)

    async def _predict(self, request: Request, kind: str, body: bytes) -> Response:
        """Answer with what `mitoflow predict` would write, and stop where the client leaves."""
        began, is_left = time.monotonic(), threading.Event()
        _log.info("predicting a request of %d bytes", len(body))
        as_json = JSON in (kind, *request.headers.get("accept", "").lower().replace(";", ",").split(","))
        predicting = asyncio.create_task(asyncio.to_thread(self._masks, kind, body, as_json, is_left))
        try:
            while not (await asyncio.wait([predicting], timeout=1))[0]:
                if await request.is_disconnected():
                    is_left.set()
            answer = predicting.result()
            _log.info("predicted it in %.1f seconds", time.monotonic() - began)
            return answer
        except ClientDisconnect:
            _log.info("stopped a prediction: its client has left")
            raise
        finally:  # also where the server ends
            is_left.set()

    def _masks(self, kind: str, body: bytes, as_json: bool, is_left: threading.Event) -> Response:
        def advance(_: int) -> None:
            if is_left.is_set():
                raise ClientDisconnect

        with tempfile.TemporaryDirectory() as folder:
            image, mask = Path(folder) / "image.tif", Path(folder) / "mask.tif"
            if kind == JSON:
                tiff.write_stack(image, read_slices(body, self.model.predictor.settings))
            else:
                image.write_bytes(body)
                self._require_few_pixels(image, as_json)
            notes: list[str] = []
            request = PredictionRequest(str(image), mask, name="request")
            prediction.predict(request, self.model, notes.append, advance)
            notes = [_line(note.replace(str(image), "the image")) for note in notes]
            if as_json:
                predicted = (_slices(mask) // 255).tolist()
                return JSONResponse({"predictions": predicted, "notes": notes, "model": self.model.name})
            said = {"X-Mitoflow-Model": self.model.name} | ({"X-Mitoflow-Note": " | ".join(notes)} if notes else {})
            return Response(mask.read_bytes(), media_type=TIFF, headers={name: _ascii(said[name]) for name in said})

    def _require_few_pixels(self, image: Path, as_json: bool) -> None:
        largest = self.largest // 3 if as_json else self.largest  # JSON has three characters for a pixel
        if (pixels := math.prod(volumes.open_volume(str(image)).shape)) > largest:
            message = f"{pixels} pixels, {largest} at most; send parts"
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def _media_type(request: Request) -> str:
    """Return TIFF or JSON."""
    kind = request.headers.get("content-type", "").lower().partition(";")[0].strip()
    if kind not in (TIFF, JSON):
        message = f"Content-Type {kind or 'is missing'}; send {JSON} or {TIFF}"
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
    return kind


async def _body(request: Request, length: int) -> bytes:
    """Return the body, unless it comes more slowly than any network that is of use."""
    try:
        async with asyncio.timeout(http_server.STALLED + length / SLOWEST):
            return await request.body()
    except TimeoutError:
        message = f"the body of {length} bytes did not come in time; send it again"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message, {"Connection": "close"}) from None


def _slices(path: Path) -> np.ndarray:
    """Return all of a stack, (Z, Y, X)."""
    volume = volumes.open_volume(str(path))
    depth, height, width = volume.shape
    return np.stack([volume.read(z, (0, height, 0, width)) for z in range(depth)])


def _refusal(status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": _line(message)}, status, headers)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _ascii(text: str) -> str:
    """Return text for a header, which may not hold every character."""
    return text.encode("ascii", "backslashreplace").decode()
