"""A model behind HTTP: MLflow's scoring server, which also takes TIFF files, with readable errors.

``/invocations`` takes what MLflow's own server takes, ``{"inputs": slices}`` with slices (N, Y, X), and answers
``{"predictions": masks}``. A TIFF, sent as ``image/tiff``, is answered by what `mitoflow predict` would write, or by
``{"predictions": masks, "notes": [...]}`` where the request accepts ``application/json``. What is wrong with a request
is one line: ``{"error": "..."}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from mitoflow.core import process
from mitoflow.errors import InputError, as_user_error
from mitoflow.inference import prediction
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.request import Request as PredictionRequest
from mitoflow.inference.settings import Settings
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import volumes
from mitoflow.tracking import model_lookup, packing

TIFF, JSON = "image/tiff", "application/json"
TIMEOUT = "3600"  # seconds for a request, where MLflow's default is one minute
SEND = "send images as they are stored"
LONGEST = 500  # characters of an error
REQUESTS = 16  # that are held at the same time: one is predicted, the others arrive or wait
TOGETHER = 4  # times the largest request: bytes of the bodies that are held at the same time
RETRY_AFTER = "10"  # seconds
STALLED = 30  # seconds that a body may stall
SLOWEST = 2**18  # bytes per second: a body as a whole may take as long as that, and `STALLED`
CLOSING = 5  # of the seconds of grace after SIGTERM, for what is cut off to end

_log = logging.getLogger("uvicorn.error")


def serve(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Serve a model until the process is interrupted.

    Parameters
    ----------
    wanted
        See `mitoflow.tracking.model_lookup.find`.
    host, port
        Where to listen.
    largest
        Bytes of the largest request, and pixels of the largest stack.

    Raises
    ------
    InputError
        There is no such model.
    """
    model = model_lookup.find(wanted)
    if model.warning:
        print(model.warning, file=sys.stderr)
    app = build(model, largest)
    signal.signal(signal.SIGTERM, _end)  # when uvicorn has ended it sends itself the signal that it got
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=process.GRACE - CLOSING)


def _end(*_: object) -> None:
    """Let the prediction stop and remove its files; where it does not, end all the same."""
    signal.alarm(CLOSING)
    raise SystemExit(128 + signal.SIGTERM)


def build(model: TrainedModel, largest: int) -> FastAPI:
    """Return MLflow's server for a model, with what this module adds."""
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", TIMEOUT)
    app: FastAPI = scoring_server.init(as_pyfunc(model.predictor))
    app.add_middleware(Invocations, model=model, largest=largest)
    return app


class Invocations(BaseHTTPMiddleware):
    """What happens to a request before MLflow's server sees it, and to its answer.

    One request is predicted at a time, because a prediction uses all cores; a bounded number of others waits. A request
    is refused by its headers where it can be, and else after its body is read.

    Parameters
    ----------
    app
        What takes the requests that are let through.
    model, largest
        See `build`.
    """

    def __init__(self, app: ASGIApp, model: TrainedModel, largest: int) -> None:
        super().__init__(app)
        self.model, self.largest = model, largest
        self.alone = asyncio.Lock()
        self.held: list[int] = []  # bytes of each body that is received, waits or is predicted

    async def dispatch(self, request: Request, forward: RequestResponseEndpoint) -> Response:
        """Answer a request."""
        if request.url.path != "/invocations" or request.method != "POST":
            return await forward(request)
        try:
            kind, length = _media_type(request), self._length(request)
            with self._place(length):
                body = await _body(request, length)
                async with self.alone:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    if kind == TIFF:
                        return await self._predict_tiff(request, body)
                    await asyncio.to_thread(_require_grey_values, body, self.model.predictor.settings)
                    answer = await forward(request)
            if answer.status_code >= HTTPStatus.BAD_REQUEST:
                return await _readable(answer)
            if self.model.warning:
                answer.headers["X-Mitoflow-Note"] = _line(self.model.warning)
            return answer
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

    async def _predict_tiff(self, request: Request, body: bytes) -> Response:
        """Answer with what `mitoflow predict` would write, and stop where the client leaves."""
        is_left = threading.Event()
        as_json = JSON in request.headers.get("accept", "").lower()
        predicting = asyncio.create_task(asyncio.to_thread(self._masks, body, as_json, is_left))
        try:
            while not (await asyncio.wait([predicting], timeout=1))[0]:
                if await request.is_disconnected():
                    is_left.set()
            return predicting.result()
        finally:  # also where the server ends
            is_left.set()

    def _masks(self, tiff: bytes, as_json: bool, is_left: threading.Event) -> Response:
        def advance(_: int) -> None:
            if is_left.is_set():
                raise ClientDisconnect

        with tempfile.TemporaryDirectory() as folder:
            image, mask = Path(folder) / "image.tif", Path(folder) / "mask.tif"
            image.write_bytes(tiff)
            largest = self.largest // 3 if as_json else self.largest  # JSON has three characters for a pixel
            if (pixels := _pixels(image)) > largest:
                message = f"{pixels} pixels, {largest} at most; send parts"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
            notes: list[str] = []
            request = PredictionRequest(str(image), mask, name="request")
            prediction.predict(request, self.model, notes.append, advance)
            notes = [_line(note.replace(str(image), "the image")) for note in notes]
            if as_json:
                return JSONResponse({"predictions": (_slices(mask) // 255).tolist(), "notes": notes})
            said = {"X-Mitoflow-Note": _line(" | ".join(notes))} if notes else {}
            return Response(mask.read_bytes(), media_type=TIFF, headers=said)


def _media_type(request: Request) -> str:
    """Return TIFF or JSON, and have MLflow see it in lower case, in which alone it knows it."""
    kind = request.headers.get("content-type", "").lower()
    if kind.partition(";")[0].strip() not in (TIFF, JSON):
        message = f"Content-Type {kind or 'is missing'}; send {JSON} or {TIFF}"
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
    headers = [(name, text.lower() if name == b"content-type" else text) for name, text in request.scope["headers"]]
    request.scope["headers"] = headers
    return kind.partition(";")[0].strip()


async def _body(request: Request, length: int) -> bytes:
    """Return the body, unless it comes more slowly than any network that is of use."""
    try:
        async with asyncio.timeout(STALLED + length / SLOWEST):
            return await request.body()
    except TimeoutError:
        message = f"the body of {length} bytes did not come in time; send it again"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message, {"Connection": "close"}) from None


def as_pyfunc(predictor: Predictor) -> PyFuncModel:
    """Return what MLflow would load from the registry, with the network that is loaded already."""
    return PyFuncModel(Model(signature=packing.signature(predictor.settings)), _Segmenter(predictor))


class _Segmenter:
    """See `mitoflow.tracking.pyfunc.Segmenter`."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, slices: np.ndarray) -> np.ndarray:
        try:
            return self._predictor.masks(slices)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def _require_grey_values(body: bytes, settings: Settings) -> None:
    """Refuse what MLflow would make grey values of without a word: text, and numbers that the model cannot take.

    Those are fractions and numbers that are too large, unless it stretches slices between their percentiles. All else
    that can be wrong is left to MLflow.
    """
    try:
        sent = json.loads(body)
    except json.JSONDecodeError:
        return
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        raise InputError("body", f"JSON that cannot be read ({error})", '{"inputs": slices}', SEND) from None
    try:
        values = np.asarray(sent["inputs"] if "inputs" in sent else sent["instances"])
    except (LookupError, TypeError, ValueError):
        return
    if values.size == 0:
        raise InputError("inputs", "nothing", "slices (N, Y, X)", SEND)
    if settings.normalization == "percentiles" and values.dtype.kind in "iuf":
        return
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() < 2**settings.bit_depth:
        return
    numbers = values.dtype.kind in "iuf"
    kind = {"i": "grey values", "u": "grey values", "f": "fractions"}.get(values.dtype.kind, f"{values.dtype} values")
    found = f"{kind} from {values.min():g} to {values.max():g}" if numbers else kind
    expected = (
        f"whole numbers from 0 to {2**settings.bit_depth - 1}" if settings.normalization == "range" else "numbers"
    )
    raise InputError("inputs", found, expected, SEND)


def _pixels(path: Path) -> int:
    return math.prod(volumes.open_volume(str(path)).shape)


def _slices(path: Path) -> np.ndarray:
    """Return all of a stack, (Z, Y, X)."""
    volume = volumes.open_volume(str(path))
    depth, height, width = volume.shape
    return np.stack([volume.read(z, (0, height, 0, width)) for z in range(depth)])


async def _readable(answer: Response) -> Response:
    """Return MLflow's refusal without its traceback and without the data, as what it is: a fault of the request."""
    body = b"".join([chunk async for chunk in answer.body_iterator]).decode()  # type: ignore[attr-defined]
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, LookupError, TypeError):
        message = body
    status = HTTPStatus(answer.status_code)
    if status == HTTPStatus.BAD_REQUEST:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    return _refusal(status, message.rpartition("Error: ")[2])


def _refusal(status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": _line(message)}, status, headers)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
