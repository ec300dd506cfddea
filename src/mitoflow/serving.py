"""A model behind HTTP: MLflow's scoring server, which also takes TIFF files, with errors that a person can read.

``/invocations`` takes what MLflow's own server takes, ``{"inputs": slices}`` with slices (N, Y, X), and answers
``{"predictions": masks}``. A TIFF, sent as ``image/tiff``, is answered by what `mitoflow predict` would write. What is
wrong with a request is one line: ``{"error": "..."}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import threading
from http import HTTPStatus
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from mlflow import pyfunc
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from mitoflow import prediction, registry, scans, store, trained
from mitoflow.errors import InputError
from mitoflow.trained import TrainedModel

TIFF = "image/tiff"
TIMEOUT = "3600"  # seconds for a request, where MLflow's default is one minute
LONGEST = 500  # characters of an error

_log = logging.getLogger("uvicorn.error")


def serve(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Serve a model until the process is interrupted.

    Parameters
    ----------
    wanted
        See `mitoflow.trained.find`.
    host, port
        Where to listen.
    largest
        Bytes of the largest request, and pixels of the largest stack.

    Raises
    ------
    InputError
        There is no such model.
    """
    model = trained.find(wanted)
    uvicorn.run(build(model, load(model), largest), host=host, port=port)


def load(model: TrainedModel) -> PyFuncModel:
    """Return a model as MLflow loads it: from the registry where it is there, and else packed as it would be there."""
    if version := model.origin.get("version"):
        os.environ.setdefault("MLFLOW_TRACKING_URI", store.uri())
        registered: PyFuncModel = pyfunc.load_model(f"models:/{registry.NAME}/{version}")
        return registered
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model"
        registry.pack(packed, model.evaluation, model.weights, model.folder / registry.SETTINGS)
        loaded: PyFuncModel = pyfunc.load_model(str(packed))
        return loaded


def build(model: TrainedModel, loaded: PyFuncModel, largest: int) -> FastAPI:
    """Return MLflow's server for a model, with what this module adds."""
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", TIMEOUT)
    app: FastAPI = scoring_server.init(loaded)
    alone, bit_depth = threading.Lock(), model.predictor.settings.bit_depth

    def masks(tiff: bytes) -> Response:
        with tempfile.TemporaryDirectory() as folder, alone:
            image, mask = Path(folder) / "image.tif", Path(folder) / "mask.tif"
            image.write_bytes(tiff)
            if (pixels := _pixels(image)) > largest:
                return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{pixels} pixels, {largest} at most; send parts")
            notes: list[str] = []
            prediction.predict(prediction.Request(str(image), mask), notes.append, model)
            told = {"X-Mitoflow-Note": _line(" | ".join(notes).replace(str(image), "the image"))} if notes else {}
            return Response(mask.read_bytes(), media_type=TIFF, headers=told)

    async def guard(request: Request, forward: RequestResponseEndpoint) -> Response:
        if request.url.path != "/invocations" or request.method != "POST":
            return await forward(request)
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return _refusal(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is; send Content-Length")
        if int(length) > largest:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, {largest} at most; send parts")
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip() == TIFF:
                return await asyncio.to_thread(masks, await request.body())
            await asyncio.to_thread(_require_grey_values, await request.body(), bit_depth)
            answer = await forward(request)
            return answer if answer.status_code < HTTPStatus.BAD_REQUEST else await _readable(answer)
        except InputError as error:
            said = f"found {error.found}, expected {error.expected}; {error.remedy}"
            return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, said)
        except Exception:
            _log.exception("a request failed")
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why")

    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    return app


def _require_grey_values(body: bytes, bit_depth: int) -> None:
    """Refuse numbers that MLflow would make grey values of without a word: it cuts off fractions and what is too large.

    All else that can be wrong is left to MLflow.
    """
    try:
        sent = json.loads(body)
        numbers = np.asarray(sent.get("inputs", sent.get("instances", [])))
    except (ValueError, AttributeError):
        return
    if numbers.dtype.kind in "iuf" and numbers.size:
        low, high = numbers.min(), numbers.max()
        if numbers.dtype.kind == "f" or low < 0 or high >= 2**bit_depth:
            found = f"{'fractions' if numbers.dtype.kind == 'f' else 'grey values'} from {low:g} to {high:g}"
            raise InputError("inputs", found, f"whole numbers from 0 to {2**bit_depth - 1}", "send images as stored")


def _pixels(path: Path) -> int:
    depth, height, width = scans.open_scan(str(path)).shape
    return depth * height * width


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


def _refusal(status: HTTPStatus, message: str) -> Response:
    text = json.dumps({"error": _line(message)})
    return Response(text, status_code=status, media_type="application/json")


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
