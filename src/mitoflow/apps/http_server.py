"""What the page and the server of masks have in common: the model that they start with, and how they run and end."""

from __future__ import annotations

import signal
import sys
from typing import Any

import uvicorn

from mitoflow.core import process
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
    """
    # When uvicorn has ended it sends itself the signal that it got.
    signal.signal(signal.SIGTERM, process.ending_within(CLOSING))
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=process.GRACE - CLOSING, **options)
