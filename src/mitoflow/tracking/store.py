"""MLflow's store: where it is, a client of it, and its errors in a few words."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from google.protobuf.json_format import ParseError
from mlflow import MlflowClient, artifacts
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.entities.paged_list import PagedList
from mlflow.tracking.context.registry import resolve_tags
from requests import HTTPError
from sqlalchemy.exc import SQLAlchemyError

from mitoflow.core import workspace
from mitoflow.errors import InputError
from mitoflow.tracking import local_store, server_check
from mitoflow.tracking.places import uri as uri

Found = TypeVar("Found")

#: What `configure` sets where the user did not. MLflow's own retries take minutes; here the journal is what retries.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
}

#: The tags that runs, models and versions are found by.
KEY_TAG = "mitoflow.key"
STAGE_TAG = "mitoflow.stage"
MODEL_SHA256_TAG = "mitoflow.model_sha256"
#: Of an evaluation: the key, and MLflow's ID, of the run that trained the model.
TRAINING_KEY_TAG, TRAINING_RUN_TAG = "mitoflow.training_key", "mitoflow.training_run"
#: Of a training: the ID of the study that found its values.
STUDY_RUN_TAG = "mitoflow.study_run"

#: The folder among the artifacts of a run with the changes of its code that were not committed.
CHANGES = "changes"
#: Ends an address of MLflow's pages: without it they open in the view for language models, whatever an experiment says.
TRAINING_VIEW = "?workflowType=machine_learning"

#: What `client` and a client raise where their store does not answer, refuses, or answers something else.
ERRORS = (MlflowException, SQLAlchemyError, OSError, ParseError, InputError)

MOST_PAGES = 100  # of versions; MLflow puts thousands on a page


def configure() -> None:
    """Set MLflow's environment variables, for this process and those that it starts, and the levels of its loggers.

    MLflow reads each variable when it needs it, except for the level of its logger, which it reads when it is imported.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    # It logs a traceback where the database is busy; the caller tries again, or reports the reason in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@functools.cache
def client(place: str) -> MlflowClient:
    """Return a client of the store at ``place``, whose tables are made where they are missing.

    Raises
    ------
    InputError
        It is a file that cannot be used, see `local_store.require_usable`; or what answers is no MLflow server, see
        `server_check.require_mlflow`.
    MlflowException, SQLAlchemyError, OSError
        It does not answer, or refuses.
    """
    configure()
    registry = os.environ.get("MLFLOW_REGISTRY_URI") or place
    kind = server_check.BoundedClient if _is_server(place) or _is_server(registry) else MlflowClient
    if is_database(place):
        with workspace.exclusive("store"):  # MLflow does not guard the making of its tables against a second process
            local_store.require_usable(place)
            client = kind(place, registry)
    else:
        client = kind(place, registry)
    if _is_server(registry):
        server_check.require_mlflow(client, without_credentials(registry))
    return client


def search_versions(client: MlflowClient, name: str | None, *wanted: str) -> list[ModelVersion]:
    """Return the versions of a registered model, or of all, for which all `wanted` filters of MLflow hold.

    Raises
    ------
    InputError
        The answer has versions of another kind, or no end; see `_all_pages`.
    """
    wanted = (f"name = '{name}'", *wanted) if name else wanted
    found = _all_pages(client, lambda token: client.search_model_versions(" and ".join(wanted), page_token=token))
    if any(version.name != (name or version.name) or not str(version.version).isdecimal() for version in found):
        server = without_credentials(client.tracking_uri)
        raise server_check.no_mlflow(server, f"versions that are none of model {name or 'any'}")
    return found


def read_tags(version: ModelVersion, begin: str, read: Callable[[Mapping[str, str]], Found]) -> Found | None:
    """Return what the tags of a version say; None, with a note, where someone changed them in MLflow to something else.

    Parameters
    ----------
    version
        Of a registered model, or an entry of its log.
    begin
        How the names of these tags begin.
    read
        Takes all tags, and raises ValueError or KeyError where they are not what mitoflow writes.
    """
    try:
        return read(version.tags)
    except (ValueError, KeyError):
        where = f"version {version.version} of {version.name}"
        _note(f"{where}: its tags {begin}* were changed in MLflow and cannot be read: they count as deleted")
        return None


@functools.cache
def _note(text: str) -> None:
    """Print a note, once: a command may read the same tags several times."""
    logging.getLogger("mitoflow").warning("note: %s", text)


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run; None where there is none of that ID, or where that is no ID: it may be an edited tag."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def search_registered_models(client: MlflowClient) -> list[RegisteredModel]:
    """Return all registered models."""
    return _all_pages(client, lambda token: client.search_registered_models(page_token=token))


def _all_pages(client: MlflowClient, search: Callable[[str | None], PagedList[Found]]) -> list[Found]:
    """Return what a search of MLflow finds, page by page; raises `InputError` where there is no last page."""
    found: list[Found] = []
    token = None
    for _ in range(MOST_PAGES):
        page = search(token)
        found, token = found + list(page), page.token
        if not token:
            return found
    raise server_check.no_mlflow(
        without_credentials(client.tracking_uri), f"a list of versions that does not end after {MOST_PAGES} pages"
    )


def list_artifacts(client: MlflowClient, place: str) -> set[str]:
    """Return the names of the files in a folder of artifacts; raises `ERRORS`."""
    server = client.tracking_uri
    files = server_check.ask(
        server, server_check.PATIENCE, artifacts.list_artifacts, artifact_uri=place, tracking_uri=server
    )
    return {file.path.rpartition("/")[2] for file in files}


def download(client: MlflowClient, place: str, folder: str) -> Path:
    """Copy an artifact into a folder; raises `ERRORS`."""
    server, patience = client.tracking_uri, server_check.PATIENCE_WITH_FILES
    copy = artifacts.download_artifacts
    return Path(server_check.ask(server, patience, copy, artifact_uri=place, dst_path=folder, tracking_uri=server))


def make_registered_model(client: MlflowClient, name: str, description: str) -> None:
    """Make a registered model where there is none of that name."""
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def changes_file(digest: str) -> str:
    """Return the name of the file in `CHANGES` with that SHA-256; a run that was resumed may have several."""
    return f"{digest[:16]}.patch"


def context() -> dict[str, str]:
    """Return the tags that MLflow's own API would set: user, script and commit."""
    return dict(resolve_tags())


def is_database(place: str) -> bool:
    """Return whether the store is a database, which this process opens itself, and not a server."""
    return urlsplit(place).scheme.partition("+")[0] in DATABASE_ENGINES


def _is_server(place: str) -> bool:
    return urlsplit(place).scheme in ("http", "https")


def is_refusal(error: Exception) -> bool:
    """Return whether the store answered and refused; False where it did not answer."""
    return 0 < _status(error) < 500


def as_user_error(place: str, error: BaseException) -> InputError:
    """Return an error of the store at ``place`` as one line that says what to do."""
    if isinstance(error, InputError):
        return error
    if line := local_store.as_user_error(place, error):
        return line
    if isinstance(error, TimeoutError):
        return server_check.no_mlflow(without_credentials(place), str(error))
    if isinstance(error, ParseError):
        return server_check.no_mlflow(without_credentials(place), f"an answer that is none of MLflow's ({error})")
    silent = "start its server, or check MLFLOW_TRACKING_URI and its credentials"
    if place.startswith("sqlite"):
        silent = "wait for the process that writes to the file, or restore it if it is damaged"
    expected, remedy = {
        401: ("a user that it knows", "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        403: ("a user who may do this", "ask an admin of the server for a role that may"),
    }.get(_status(error), ("an MLflow registry that answers", silent))
    return InputError(without_credentials(place), reason(error), expected, remedy)


def is_forbidden(error: Exception) -> bool:
    """Return whether the user lacks the permission."""
    return _status(error) == 403


def reason(error: BaseException) -> str:
    """Return the first cause of an error in a few words, without credentials."""
    if isinstance(error, InputError):
        return without_credentials(str(error))
    while cause := error.__cause__ or error.__context__:
        error = cause
    if refusal := {401: "wrong name or password", 403: "permission denied"}.get(_status(error)):
        return f"{refusal} (error code {_status(error)})"
    text = " ".join(str(error).split()) or type(error).__name__
    return without_credentials(text)[:200]


def _status(error: BaseException) -> int:
    """Return the HTTP status of an answer, 0 where there was none."""
    if isinstance(error, HTTPError) and error.response is not None:  # from the artifacts
        return error.response.status_code
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call] # MLflow has no types for this method
    return 0


def without_credentials(text: str) -> str:
    """Return ``text`` without the user names and passwords of the URLs in it, before the host or in the query."""

    def query(found: re.Match[str]) -> str:
        kept = [part for part in found[1].split("&") if not part.startswith(("user=", "password="))]
        return f"?{'&'.join(kept)}" if kept else ""

    return re.sub(r"\?(\S*)", query, re.sub(r"//[^/\s]+@", "//", text))
