"""What answers at MLFLOW_TRACKING_URI and is no MLflow server, or one that answers nonsense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mitoflow.errors import InputError
from mitoflow.tracking import journal, lineage, registry, runs, server_check, store

Answer = Callable[[BaseHTTPRequestHandler], None]

RUN = "a" * 32
MODEL = {"registered_model": {"name": "mitoflow"}}
VERSION = {"model_version": {"name": "mitoflow", "version": "1", "run_id": RUN}}
OTHERS = [{"name": "mitoflow-promotions", "version": "7"}]


class Server(ThreadingHTTPServer):
    """Answers every request alike, on the loopback interface."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.answer(self)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def always(body: object) -> Answer:
    """Answer 200 with a text, or with JSON."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def by_question(answers: dict[str, object]) -> Answer:
    """Answer each question, ``runs/get`` and so on, with JSON."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        always(answers[urlsplit(request.path).path.partition("/mlflow/")[2]])(request)

    return answer


def one_byte_at_a_time(request: BaseHTTPRequestHandler) -> None:
    for _ in range(100):
        request.wfile.write(b"H")
        time.sleep(0.2)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Server]]:
    """Start a server that answers so, and name it as the store of an empty checkout."""
    started: list[Server] = []

    def start(answer: Answer) -> Server:
        started.append(Server(answer))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", started[-1].uri)
        return started[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "[]",
        "null",
        "<html>Please log in</html>",
        {"registered_model": 5},
        {"registered_model": {"name": 5}},
        {"registered_model": {"name": "another"}},
        {"model_versions": "none", "next_page_token": 1},
        {"model_versions": OTHERS, "next_page_token": "more"},
    ],
)
def test_another_server_is_not_an_empty_registry(serve: Callable[[Answer], Server], body: object) -> None:
    server = serve(always(body))
    expected = (
        rf"^{server.uri}: found answers that are none of MLflow's, expected an MLflow server; check MLFLOW_TRACKIN"
    )
    with pytest.raises(InputError, match=expected):
        registry.models()


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"model_versions": OTHERS, "next_page_token": "more"}, "a list of versions that does not end after 100 pages"),
        ({"next_page_token": "more"}, "a list of versions that does not end after 100 pages"),
        ({"model_versions": [{}]}, "versions that are none of model mitoflow"),
        ({"model_versions": [{"name": "mitoflow", "version": "first"}]}, "versions that are none of model mitoflow"),
        ({"model_versions": 5}, "an answer that is none of MLflow's"),
        ({"model_versions": [{"name": "mitoflow", "version": "1", "tags": 5}]}, "an answer that is none of MLflow's"),
    ],
)
def test_nonsense_about_versions_ends_in_one_line(
    serve: Callable[[Answer], Server], versions: dict[str, object], found: str
) -> None:
    server = serve(always({**MODEL, **versions}))
    with pytest.raises(InputError, match=f"^{server.uri}: found {found}"):
        registry.models()
    assert server.asked < 150


@pytest.mark.parametrize(
    ("question", "nonsense", "found"),
    [
        ("runs/get", {}, f"not run {RUN}"),
        ("runs/get", {"run": {"info": {"run_id": "b" * 32}}}, f"not run {RUN}"),
        ("model-versions/get", {}, "not version 1 of mitoflow"),
        ("model-versions/get", {"model_version": {"name": "mitoflow", "version": "2"}}, "not version 1 of mitoflow"),
    ],
)
def test_an_answer_about_something_else_is_one_line(
    serve: Callable[[Answer], Server], question: str, nonsense: object, found: str
) -> None:
    right = {"registered-models/get": MODEL, "model-versions/get": VERSION}
    server = serve(by_question(right | {question: nonsense}))
    with pytest.raises(InputError) as refused:
        lineage.origin("1")
    assert str(refused.value).startswith(f"{server.uri}: found an answer that is none of MLflow's ({found}), expected")


@pytest.mark.parametrize(
    "ask",
    [
        registry.models,
        registry.champion,
        registry.history,
        registry.rollback,
        lambda: registry.promote(1),
        lambda: registry.find_version("champion"),
    ],
)
def test_an_alias_whose_version_is_no_number_is_one_line(
    serve: Callable[[Answer], Server], ask: Callable[[], object]
) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        (name,) = parse_qs(urlsplit(request.path).query)["name"]
        aliases = [{"alias": "champion", "version": "x"}] if name == "liver" else []
        of_model, of_version = {"name": name, "aliases": aliases}, {"name": name, "version": "1"}
        always({"registered_model": of_model, "model_version": of_version})(request)

    Path("params.yaml").write_text("registry: {model: liver}\n")
    server = serve(answer)
    with pytest.raises(InputError) as refused:
        ask()
    found = "an answer that is none of MLflow's (alias champion of version x)"
    assert str(refused.value).startswith(f"{server.uri}: found {found}, expected an MLflow server")


def test_a_server_that_never_finishes_its_answer_costs_bounded_time(
    serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_check, "PATIENCE", 0.5)
    server = serve(one_byte_at_a_time)
    begun = time.monotonic()
    with pytest.raises(InputError, match=f"^{server.uri}: found no complete answer within 0 seconds, expected an MLfl"):
        registry.models()
    with runs.start("train", "unet") as run:
        run.metrics({"dice": 0.5})
    assert time.monotonic() - begun < 10
    (line,) = capfd.readouterr().err.splitlines()
    assert "no complete answer" in line
    assert "3 events are kept on disk" in line
    assert server.asked == 1  # an open question is not asked again


def test_a_server_that_is_slow_after_a_right_answer_costs_bounded_time(
    serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_check, "PATIENCE", 0.5)

    def answer(request: BaseHTTPRequestHandler) -> None:
        (one_byte_at_a_time if "search" in request.path else always(MODEL))(request)

    server = serve(answer)
    begun = time.monotonic()
    with pytest.raises(InputError, match=f"^{server.uri}: found no complete answer within 0 seconds, expected an MLfl"):
        registry.models()
    assert time.monotonic() - begun < 10
    assert server.asked > 1


def test_a_training_keeps_what_another_server_would_swallow(serve: Callable[[Answer], Server]) -> None:
    serve(always({}))
    with runs.start("train", "unet") as run:
        run.metrics({"dice": 0.5})
    assert journal.folders(run.key)
    synced = runs.sync()
    assert synced.left == 3
    assert "answers that are none of MLflow's" in str(synced.errors)


def test_a_registry_without_the_model_is_empty(serve: Callable[[Answer], Server]) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if "search" in request.path:
            always({})(request)
            return
        content = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}).encode()
        request.send_response(404)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    serve(answer)
    assert store.search_versions(store.client(store.uri()), "mitoflow") == []
