"""What the page and the server of masks have in common: the model that they start with, and how they run and end."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from typing import Any

import uvicorn

from mitoflow.core import process
from mitoflow.errors import InputError
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.tracking import model_lookup

STALLED = 30  # seconds that the body of a request may stall
CLOSING = 5  # of the seconds of grace after SIGTERM, for what is cut off to end


def load_model(wanted: str | None) -> TrainedModel:
    """Find a model and load it, so that a wrong one ends the command and not the first request.

    What a user must know before anything else about it goes to stderr: that it never saw real tissue.

    Parameters
    ----------
    wanted
        See `mitoflow.tracking.model_lookup.find`.

    Raises
    ------
    InputError
        There is no such model, the registry does not answer, or the model is broken.
    """
    model = model_lookup.find(wanted)
    if model.warning:
        print(model.warning, file=sys.stderr)
    assert model.predictor
    return model


def run(app: Any, host: str, port: int, **options: Any) -> None:
    """Serve an ASGI application until the process is interrupted; after SIGTERM it ends within the grace.

    Parameters
    ----------
    app
        The application.
    host, port
        Where to listen.
    options
        Of ``uvicorn.run``.

    Raises
    ------
    InputError
        It cannot listen there.
    """
    _require_free(host, port)
    # When uvicorn has ended it sends itself the signal that it got.
    signal.signal(signal.SIGTERM, process.ending_within(CLOSING))
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=process.GRACE - CLOSING, **options)


def _require_free(host: str, port: int) -> None:
    """Raise `InputError` where nothing can listen; uvicorn would log it, and end as after a failure of the server."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "give another one, or end that program"
            raise InputError("--port", f"{port}, at which another program listens", "a free port", remedy) from None
        if error.errno == errno.EACCES:
            raise InputError("--port", f"{port}, without the right to it", "one from 1024 on", "change it") from None
        found = f"{host} ({error.strerror})"
        raise InputError("--host", found, "an address of this machine, such as 127.0.0.1", "change it") from None
