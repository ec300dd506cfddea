"""Whether what answers at an address is an MLflow server, and how long its answers may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from google.protobuf.json_format import ParseError
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException, RestException

from mitoflow.errors import InputError

Found = TypeVar("Found")

PATIENCE, PATIENCE_WITH_FILES = 30.0, 600.0  # seconds in which a server has to answer completely
NAME = "mitoflow"  # of a registered model, which need not be there

_late: dict[str, Future[Any]] = {}  # by server, the question that it did not answer in time


class BoundedClient(MlflowClient):
    """A client of a server that may be slow, or answer nonsense.

    Each of its methods raises `TimeoutError` where the answer takes too long, see `ask`. Those below raise `ParseError`
    where the answer is about something else than what was asked for.
    """

    def get_run(self, run_id: str) -> Run:
        """Return the run with that ID."""
        run = super().get_run(run_id)
        if run.info.run_id != run_id:
            raise ParseError(f"not run {run_id}")
        return run

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """Return that version of a registered model."""
        found = super().get_model_version(name, version)
        if (found.name, str(found.version)) != (name, version):
            raise ParseError(f"not version {version} of {name}")
        return found

    def get_registered_model(self, name: str) -> RegisteredModel:
        """Return the registered model with that name."""
        model = super().get_registered_model(name)
        if model.name != name:
            raise ParseError(f"not model {name}")
        for alias, version in model.aliases.items():
            if not str(version).isdecimal():
                raise ParseError(f"alias {alias} of version {version}")
        return model

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        patience = PATIENCE_WITH_FILES if "artifact" in name or name == "log_image" else PATIENCE
        return partial(ask, self.tracking_uri, patience, found)


def ask(server: str, patience: float, question: Callable[..., Found], *arguments: Any, **named: Any) -> Found:
    """Return what a call gives that asks a server.

    The timeout of HTTP does not bound it: that starts anew with each byte. A server that has not answered an earlier
    question yet is not asked another one.

    Raises
    ------
    TimeoutError
        There is no complete answer after ``patience`` seconds, or none yet to an earlier question.
    """
    if server not in _late or _late[server].done():
        answer: Future[Found] = Future()
        threading.Thread(target=_answer, args=(answer, partial(question, *arguments, **named)), daemon=True).start()
        if wait([answer], patience).done:
            return answer.result()
        _late[server] = answer
    raise TimeoutError(f"no complete answer within {patience:.0f} seconds")


def _answer(answer: Future[Found], question: Callable[[], Found]) -> None:
    try:
        answer.set_result(question())
    except BaseException as error:
        answer.set_exception(error)


def require_mlflow(client: MlflowClient, server: str) -> None:
    """Ask a server for a registered model; raises `InputError` unless it answers as MLflow does.

    It has the model, says that there is none, or that the user may not ask. To list versions would not tell: an empty
    answer to that is right.
    """
    try:
        client.get_registered_model(NAME)
        is_mlflow = True
    except MlflowException as error:
        absent = isinstance(error, RestException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
        status = error.get_http_status_code()  # type: ignore[no-untyped-call] # MLflow has no types for this method
        is_mlflow = absent or status == 403
        if not is_mlflow and "not in a valid JSON format" not in str(error):
            raise
    except ParseError:
        is_mlflow = False
    if not is_mlflow:
        raise no_mlflow(server, "answers that are none of MLflow's")


def no_mlflow(server: str, found: str) -> InputError:
    """Return the line about what is no MLflow server, at an address without credentials."""
    remedy = "check MLFLOW_TRACKING_URI, and what stands in front of the server"
    return InputError(server, found, "an MLflow server", remedy)
