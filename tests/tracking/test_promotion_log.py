"""The log of promotions on a real server with PostgreSQL: promotions at the same time, and processes killed in one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mitoflow.errors import InputError
from mitoflow.tracking import registry, store
from tests.faults.proxy import Proxy
from tests.services import PostgreSQL, TrackingServer

pytestmark = pytest.mark.e2e

ROUNDS, KILLS = 10, 10

# A user: promotes the versions that it reads, in a process of its own that is killed where the order says so.
PERSON = """
import json, os, signal, sys, time
from mitoflow.tracking import registry, store
from mitoflow.errors import InputError
store.client(store.uri()).get_registered_model("mitoflow")
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = registry.promote(order["version"], force=True, reason="a test").reason
        except InputError as error:
            answer = f"mitoflow: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    if order["killed_after"] is not None:
        time.sleep(order["killed_after"])
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps(os.read(read, 10000).decode()), flush=True)
    os.close(read)
"""


class Person:
    """A user with a checkout and a name."""

    def __init__(self, name: str, folder: Path, uri: str) -> None:
        folder.mkdir()
        about = {"MLFLOW_TRACKING_URI": uri, "LOGNAME": name, "DVC_ROOT": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PERSON],
            cwd=folder,
            env={**os.environ, **about},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._hear() == "ready\n"

    def begin(self, version: int, killed_after: float | None = None) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"version": version, "killed_after": killed_after}) + "\n")
        self.process.stdin.flush()

    def end(self) -> str:
        answer: str = json.loads(self._hear())
        return answer

    def _hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def server(postgresql: PostgreSQL) -> Iterator[TrackingServer]:
    with TrackingServer(postgresql.create("promotions")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: TrackingServer) -> Iterator[Proxy]:
    with closing(Proxy(server.port)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def people(
    server: TrackingServer, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Person, Person]]:
    client = MlflowClient(server.uri)
    client.create_registered_model("mitoflow")
    for _ in range(4):
        client.create_model_version("mitoflow", "s3://nowhere/model")
    folder = tmp_path_factory.mktemp("people")
    ann, bob = (Person(name, folder / name, proxy.uri) for name in ("ann", "bob"))
    yield ann, bob
    for person in (ann, bob):
        person.process.kill()
        person.process.wait()


@pytest.fixture
def client(server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return store.client(store.uri())


def champion(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias("mitoflow", "champion").version)


def test_of_two_promotions_at_once_exactly_one_counts(client: MlflowClient, people: tuple[Person, Person]) -> None:
    overtaken = 0
    for turn in range(ROUNDS):
        before, versions = registry.history(), (1, 2) if turn % 2 else (3, 4)
        for person, version in zip(people, versions, strict=True):
            person.begin(version)
        answers = [person.end() for person in people]
        new = registry.history()[len(before) :]
        losers = [line for line in answers if line.startswith("mitoflow: ")]
        if len(losers) == 0:  # one was done before the other began, which then knew of it
            champions = [entry.version for entry in before if entry.counts]  # an entry that is too late does not
            assert [entry.over for entry in new] == [champions[-1] if champions else None, new[0].version]
            assert champion(client) == new[-1].version
            continue
        overtaken += 1
        assert len(losers) == 1, answers
        winner = next(entry for entry in new if entry.counts)
        name = winner.who
        assert name == ("ann", "bob")[versions.index(winner.version)]
        assert losers[0] == (
            f"mitoflow: version {versions[1 - versions.index(winner.version)]}: found version {winner.version}, which "
            f"{name} made the champion a moment ago, expected the champion that this was decided about; look at "
            "`mitoflow history`, then decide again"
        )
        assert [entry.counts for entry in new].count(True) == 1
        assert champion(client) == winner.version
    print(f"{ROUNDS} rounds, {overtaken} in which one was too late")
    assert overtaken >= ROUNDS / 2


def test_a_process_killed_in_a_promotion_leaves_nothing_open(
    client: MlflowClient, proxy: Proxy, people: tuple[Person, Person]
) -> None:
    ann, bob = people
    ann.begin(1)
    ann.end()
    begun = time.monotonic()
    ann.begin(2)
    ann.end()
    latest, states = time.monotonic() - begun, []
    chance = random.Random(0)
    for turn in range(KILLS):
        before, version = champion(client), 3 + turn % 2
        ann.begin(version, killed_after=chance.uniform(0, latest))
        answer = ann.end()
        proxy.wait_until_idle()  # the server carries out what it was asked for last
        entries = registry.history()
        stored = client.get_model_version_by_alias("mitoflow", "champion")
        states.append((entries[-1].version == version, int(stored.version) == version, answer != ""))
        latest *= 0.7 if states[-1][0] else 1.3  # so that some die before the decision and some after it
        assert registry.champion() == entries[-1].version

        bob.begin(version)
        second = bob.end()
        assert second == "it is the champion already" if entries[-1].version == version else "a test" in second
        assert champion(client) == version
        tags = client.get_model_version("mitoflow", str(version)).tags
        last = registry.history()[-1]
        assert (last.version, last.over, last.counts) == (version, before, True)
        assert tags["mitoflow.promoted.over"] == str(before)
        assert tags["mitoflow.verdict"] == "promoted"
        assert tags["mitoflow.promotion"] == str(last.number)
    open_ = sum(decided and not answer for decided, _, answer in states)
    print(f"{KILLS} kills: {sum(not decided for decided, *_ in states)} before the decision, {open_} after it")
    assert 0 < sum(decided for decided, *_ in states) < KILLS


def test_the_history_is_in_order_and_rolls_back(client: MlflowClient, people: tuple[Person, Person]) -> None:
    now = champion(client)
    other = 1 if now != 1 else 2
    registry.promote(other, force=True, reason="better on the liver")
    assert registry.rollback("worse on the heart") == (other, now)
    forced, back = registry.history()[-2:]
    assert (forced.version, forced.over, forced.how) == (other, now, "forced")
    assert (
        forced.why
        == "better on the liver; the gate said: it was never evaluated by mitoflow, or its evaluation is lost"
    )
    assert (back.version, back.over, back.how, back.why) == (now, other, "rolled back", "worse on the heart")
    assert forced.when <= back.when
    assert champion(client) == now


def test_an_alias_set_by_hand_is_put_back(client: MlflowClient, people: tuple[Person, Person]) -> None:
    now = registry.champion()
    client.set_registered_model_alias("mitoflow", "champion", str(1 if now != 1 else 2))
    assert registry.champion() == now
    with pytest.raises(InputError, match="no such version"):
        registry.promote(99)
    assert registry.promote(now).reason == "it is the champion already"
    assert champion(client) == now


def test_a_deleted_champion_leaves_the_one_before_it(client: MlflowClient, people: tuple[Person, Person]) -> None:
    now, before = registry.champion(), registry.history()
    client.delete_model_version("mitoflow", str(now))
    standing = registry.champion()
    assert standing in {row.version for row in registry.models()} - {now}
    left = next(row.version for row in registry.models() if row.version != standing)
    registry.promote(left, force=True, reason="the other one is gone")
    assert registry.history()[-1].over == standing
    assert len(registry.history()) == len(before) + 1
    assert champion(client) == left
