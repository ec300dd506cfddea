"""Whether what answers at an address is an MLflow server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from google.protobuf.json_format import ParseError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from mitoflow.errors import InputError

PATIENCE = 30.0  # seconds in which a server has to answer completely
NAME = "mitoflow"  # of a registered model, which need not be there

_questions: dict[str, tuple[float, Future[bool]]] = {}  # when each server was asked, see `require_mlflow`


def require_mlflow(client: MlflowClient, server: str) -> None:
    """Ask a server for a registered model; raises `InputError` unless it answers as MLflow does, and in time.

    A timeout of HTTP is not enough: it starts anew with each byte. A question that is still open is neither asked again
    nor waited for longer.
    """
    if server not in _questions or _questions[server][1].done():
        _questions[server] = time.monotonic(), Future()
        threading.Thread(target=_ask, args=(client, _questions[server][1]), daemon=True).start()
    asked, question = _questions[server]
    try:
        if not question.result(max(0.0, asked + PATIENCE - time.monotonic())):
            raise no_mlflow(server, "answers that are none of MLflow's")
    except TimeoutError:
        raise no_mlflow(server, f"no complete answer within {PATIENCE:.0f} seconds") from None


def _ask(client: MlflowClient, question: Future[bool]) -> None:
    """Find out whether a server is MLflow: it has the model or says that there is none, or that the user may not ask.

    To list versions would not tell: an empty answer to that is right.
    """
    try:
        question.set_result(client.get_registered_model(NAME).name == NAME)
    except MlflowException as error:
        absent = isinstance(error, RestException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
        status = error.get_http_status_code()  # type: ignore[no-untyped-call] # MLflow has no types for this method
        if absent or status == 403:
            question.set_result(True)
        elif "not in a valid JSON format" in str(error):
            question.set_result(False)
        else:
            question.set_exception(error)
    except ParseError:
        question.set_result(False)
    except Exception as error:
        question.set_exception(error)


def no_mlflow(server: str, found: str) -> InputError:
    """Return the line about what is no MLflow server, at an address without credentials."""
    remedy = "check MLFLOW_TRACKING_URI, and what stands in front of the server"
    return InputError(server, found, "an MLflow server", remedy)
