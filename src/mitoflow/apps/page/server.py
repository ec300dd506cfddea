"""The server of the page: what the browser asks for, and how much of it."""

from __future__ import annotations

import asyncio
import json
import tempfile
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mitoflow import __version__
from mitoflow.apps import http_server
from mitoflow.apps.page import about, tiles
from mitoflow.apps.page.guard import Guard
from mitoflow.apps.page.results import Kind, Layer, Mask, Origin, Result, Upload
from mitoflow.apps.page.shelf import ENDINGS, BusyError, GoneError, Shelf
from mitoflow.apps.page.strokes import Stroke
from mitoflow.apps.page.worker import Worker
from mitoflow.errors import InputError, as_user_error
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import spacing
from mitoflow.io.spacing import Spacing

STATIC = Path(__file__).parent / "static"
LARGEST_JSON = 2**20  # bytes of a request that is no file
MOST_STROKES = 10_000
TYPES = {".tif": "image/tiff", ".csv": "text/csv; charset=utf-8", ".png": "image/png"}


def serve(wanted: str | None, host: str, port: int, largest: int) -> None:
    """Serve the page; see `http_server.load_model` and `http_server.run`. What it kept is removed at the end.

    Parameters
    ----------
    wanted
        The model.
    host, port
        Where to listen.
    largest
        Bytes of an upload.
    """
    model = http_server.load_model(wanted)
    with tempfile.TemporaryDirectory(prefix="mitoflow-", ignore_cleanup_errors=True) as folder:
        shelf, worker = Shelf(Path(folder), largest), Worker(model)
        try:
            http_server.run(build(model, shelf, worker, host), host, port, access_log=False)
        finally:
            worker.close()
            for result in shelf:
                result.cancel()


def build(model: TrainedModel, shelf: Shelf, worker: Worker, host: str) -> Guard:
    """Return the application; see `serve`."""
    page = Page(model, shelf, worker)
    one = "/api/results/{key}"
    routes = [
        Route("/", page.index),
        Route("/health", page.health),
        Route("/api/model", page.model),
        Route("/api/example", page.draw_example, methods=["POST"]),
        Route("/api/results", page.create, methods=["POST"]),
        Route(one, page.status),
        Route(one, page.remove, methods=["DELETE"]),
        Route(f"{one}/uploads/{{number:int}}", page.receive, methods=["PUT"]),
        Route(f"{one}/cancel", page.cancel, methods=["POST"]),
        Route(f"{one}/inverted", page.invert, methods=["POST"]),
        Route(f"{one}/voxel-size", page.set_voxel_size, methods=["POST"]),
        Route(f"{one}/strokes", page.paint, methods=["POST"]),
        Route(f"{one}/strokes", page.undo, methods=["DELETE"]),
        Route(f"{one}/slices/{{z:int}}", page.share),
        Route(f"{one}/tiles/{{layer}}/{{z:int}}/{{level:int}}/{{row:int}}/{{column:int}}", page.tile),
        Route(f"{one}/files/{{kind}}", page.file),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers: dict[Any, Callable[[Request, Any], Response | Awaitable[Response]]] = {
        InputError: lambda _, error: _refusal(422, str(error)),
        BusyError: lambda _, error: _refusal(429, str(error)),
        GoneError: lambda _, error: _refusal(404, str(error)),
        HTTPException: lambda _, error: _refusal(error.status_code, error.detail),
        ClientDisconnect: lambda _, __: Response(status_code=408),  # nobody receives it
        Exception: _failed,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), host)


class Page:
    """What the browser asks for; the answers are JSON unless they say otherwise.

    Parameters
    ----------
    model, shelf, worker
        The model, the results that are kept, and what predicts them.
    """

    def __init__(self, model: TrainedModel, shelf: Shelf, worker: Worker) -> None:
        self._model, self._shelf, self._worker = model, shelf, worker

    async def index(self, _: Request) -> Response:
        """Return the page itself, as HTML."""
        return FileResponse(STATIC / "index.html")

    async def health(self, _: Request) -> Response:
        """Say that the server answers."""
        return JSONResponse({"model": self._model.name, "mitoflow": __version__})

    def model(self, _: Request) -> Response:
        """Describe the model, see `mitoflow.apps.page.about.describe`, and which files the page takes."""
        return JSONResponse({**about.describe(self._model), "endings": ENDINGS})

    async def create(self, request: Request) -> Response:
        """Make room for a stack: ``files``, each with ``name`` and ``size``, its ``name`` and its ``voxel_size``."""
        values = await _json(request)
        try:
            uploads = [Upload(str(each["name"]), int(each["size"])) for each in values["files"]]
            name, size = str(values["name"])[:300], str(values.get("voxel_size") or "")
        except (LookupError, TypeError, ValueError):
            raise HTTPException(400, "the names and sizes of the files are missing; reload the page") from None
        known = spacing.parse(size) if size.strip() else None
        result = await run_in_threadpool(self._shelf.add, name, uploads, known)
        return JSONResponse(result.status())

    def draw_example(self, _: Request) -> Response:
        """Draw a phantom, and predict it."""
        result = self._shelf.add("phantom.tif", [Upload("phantom.tif", 0)], None, "drawn")
        self._worker.predict(result)
        return JSONResponse(result.status())

    def invert(self, request: Request) -> Response:
        """Predict the same stack with its grey values the other way round, as another result."""
        first = self._find(request)
        if first.state != "done" or first.origin == "inverted":
            raise HTTPException(409, "only a stack that was predicted can be inverted")
        name = f"{Path(first.name).stem}_inverted{Path(first.name).suffix}"
        return JSONResponse(self._predict_again(first, name, first.spacing, "inverted").status())

    async def set_voxel_size(self, request: Request) -> Response:
        """Predict the same stack with another ``voxel_size``, as another result; the corrections go along."""
        first, values = self._find_done(request), await _json(request)
        if first.origin == "drawn":
            raise HTTPException(409, "a drawn stack has no other voxel size")
        known = spacing.parse(str(values.get("voxel_size") or ""))
        result = await run_in_threadpool(self._predict_again, first, first.name, known, first.origin)
        result.strokes = first.strokes
        return JSONResponse(result.status())

    def _predict_again(self, first: Result, name: str, known: Spacing | None, origin: Origin) -> Result:
        result = self._shelf.add(name, first.uploads, known, origin)
        for each in first.input.iterdir():
            (result.input / each.name).hardlink_to(each)
        self._worker.predict(result)
        return result

    async def receive(self, request: Request) -> Response:
        """Take a file, which is the body; after the last one the prediction begins."""
        result, number = self._find(request), request.path_params["number"]
        if result.state != "uploading" or number >= len(result.uploads):
            raise HTTPException(409, "this file was not expected; choose the files anew")
        expected = result.uploads[number]
        await _save(request, result.input / expected.name, expected.size)
        is_complete = sum(1 for _ in result.input.glob("[!.]*")) == len(result.uploads)
        if is_complete and result.state == "uploading":  # it may have been cancelled meanwhile
            self._worker.predict(result)
        return JSONResponse(result.status())

    async def status(self, request: Request) -> Response:
        """Say how far a result is."""
        return JSONResponse(self._find(request).status())

    async def cancel(self, request: Request) -> Response:
        """Stop a result that is unfinished."""
        result = self._find(request)
        result.cancel()
        return JSONResponse(result.status())

    async def remove(self, request: Request) -> Response:
        """Forget a result."""
        await run_in_threadpool(self._shelf.remove, self._find(request).key)
        return JSONResponse({})

    async def paint(self, request: Request) -> Response:
        """Add a stroke to the corrections."""
        result, values = self._find_done(request), await _json(request)
        if len(result.strokes) >= MOST_STROKES:
            raise HTTPException(409, f"{MOST_STROKES} strokes are the most; go on in napari or Fiji")
        result.strokes = (*result.strokes, Stroke.read(values, result.image.shape))
        return JSONResponse({"strokes": len(result.strokes)})

    async def undo(self, request: Request) -> Response:
        """Take back the last stroke."""
        result = self._find_done(request)
        result.strokes = result.strokes[:-1]
        return JSONResponse({"strokes": len(result.strokes)})

    def share(self, request: Request) -> Response:
        """Say which share of a slice is mitochondrion."""
        result, z = self._find_done(request), request.path_params["z"]
        if z >= result.image.shape[0]:
            raise HTTPException(404, f"there is no slice {z}")
        return JSONResponse({"share": float((result.plane(z, _mask(request, result)) > 0).mean())})

    def tile(self, request: Request) -> Response:
        """Return a tile as bytes; see `mitoflow.apps.page.results.Result.tile`."""
        result, path = self._find_done(request), request.path_params
        if path["layer"] not in get_args(Layer):
            raise HTTPException(404, "there is no such layer")
        place = (path["level"], path["row"], path["column"])
        if path["z"] >= result.image.shape[0] or not tiles.exists(result.image.shape, *place):
            raise HTTPException(404, "there is no such tile")
        voxels = result.tile(path["layer"], path["z"], place, _mask(request, result))
        headers = {"Content-Encoding": "deflate", "Cache-Control": "no-store"}
        return Response(zlib.compress(voxels, 1), media_type="application/octet-stream", headers=headers)

    def file(self, request: Request) -> Response:
        """Return a file for the user; with HEAD, only whether it can be made."""
        result, kind = self._find_done(request), request.path_params["kind"]
        if kind not in get_args(Kind):
            raise HTTPException(404, "there is no such file")
        mask = _mask(request, result)
        if kind == "training" and not mask.strokes:
            raise HTTPException(409, "no slice was corrected yet")
        path = result.file(kind, mask)
        return FileResponse(path, media_type=TYPES[path.suffix], filename=path.name)

    def _find(self, request: Request) -> Result:
        return self._shelf.find(request.path_params["key"])

    def _find_done(self, request: Request) -> Result:
        result = self._find(request)
        if result.state != "done":
            raise HTTPException(409, f"{result.name} is not predicted yet")
        return result


def _mask(request: Request, result: Result) -> Mask:
    """Return the mask that a query asks for: that of the model by default."""
    query = request.query_params
    try:
        threshold = float(query.get("threshold", result.threshold))
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise HTTPException(400, "a threshold is a number from 0 to 1")
    return Mask(threshold, result.strokes if query.get("corrected") == "1" else ())


async def _json(request: Request) -> dict[str, Any]:
    """Return the values of a body in JSON."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_JSON:
            raise HTTPException(413, f"more than {LARGEST_JSON} bytes")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "the request is no JSON with keys and values; reload the page")
    return values


async def _save(request: Request, path: Path, size: int) -> None:
    """Write a body to a file, whole or not at all."""
    beside, received = path.with_name(f".{path.name}"), 0
    chunks = request.stream()
    try:
        with beside.open("wb") as file:
            while True:
                async with asyncio.timeout(http_server.STALLED):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                received += len(chunk)
                if received > size:
                    raise HTTPException(413, f"{path.name}: more bytes than announced; choose the file again")
                file.write(chunk)
        if received != size:
            raise HTTPException(400, f"{path.name}: {received} bytes of {size}; choose the file again")
        beside.replace(path)
    except TimeoutError:
        raise HTTPException(408, f"{path.name}: the upload stalled; choose the file again") from None
    finally:
        beside.unlink(missing_ok=True)


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": " ".join(message.split())}, status)


def _failed(_: Request, error: Exception) -> Response:
    """Say as little as a user can use; the log gets the traceback."""
    line = as_user_error(error)
    return _refusal(500, str(line) if line else "the page failed; the log of `mitoflow app` says why")
