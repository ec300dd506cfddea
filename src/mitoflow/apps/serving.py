"""A model behind HTTP: MLflow's scoring server, which also takes TIFF files, with readable errors.

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
from http import HTTPStatus
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from mitoflow.errors import InputError
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
    uvicorn.run(build(model, largest), host=host, port=port)


def build(model: TrainedModel, largest: int) -> FastAPI:
    """Return MLflow's server for a model, with what this module adds."""
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", TIMEOUT)
    app: FastAPI = scoring_server.init(as_pyfunc(model.predictor))
    alone, settings = asyncio.Lock(), model.predictor.settings

    def masks(tiff: bytes) -> Response:
        with tempfile.TemporaryDirectory() as folder:
            image, mask = Path(folder) / "image.tif", Path(folder) / "mask.tif"
            image.write_bytes(tiff)
            if (pixels := _pixels(image)) > largest:
                return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{pixels} pixels, {largest} at most; send parts")
            notes: list[str] = []
            prediction.predict(PredictionRequest(str(image), mask, name="request"), model, notes.append)
            headers = {"X-Mitoflow-Note": _line(" | ".join(notes).replace(str(image), "the image"))} if notes else {}
            return Response(mask.read_bytes(), media_type=TIFF, headers=headers)

    async def guard(request: Request, forward: RequestResponseEndpoint) -> Response:
        if request.url.path != "/invocations" or request.method != "POST":
            return await forward(request)
        length = request.headers.get("content-length", "")
        if "transfer-encoding" in request.headers or not length.isdecimal():
            return _refusal(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is; send Content-Length")
        if int(length) > largest:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, {largest} at most; send parts")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if not kind:
            return _refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"no Content-Type; send application/json or {TIFF}")
        try:
            body = await request.body()
            async with alone:  # one prediction keeps all cores busy
                if kind == TIFF:
                    return await asyncio.to_thread(masks, body)
                if kind == JSON:
                    await asyncio.to_thread(_require_grey_values, body, settings)
                answer = await forward(request)
            return answer if answer.status_code < HTTPStatus.BAD_REQUEST else await _readable(answer)
        except InputError as error:
            message = f"found {error.found}, expected {error.expected}; {error.remedy}"
            return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        except Exception:
            _log.exception("a request failed")
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why")

    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    return app


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
    depth, height, width = volumes.open_volume(str(path)).shape
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
