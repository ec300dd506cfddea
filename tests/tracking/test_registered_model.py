"""Several registered models in one store: each has versions, a champion and a history of its own."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mitoflow.errors import InputError, as_user_error
from mitoflow.tracking import registered_model, registry, runs
from tests.tracking.tiny_model import measured, register, report

pytestmark = pytest.mark.slow


def use(name: str) -> None:
    Path("params.yaml").write_text(f"registry: {{model: {name}}}\n")


def test_each_model_has_its_own_champion_and_history(client: MlflowClient) -> None:
    first = register(800)
    assert first is not None
    use("mitoflow-liver")
    assert registry.models() == registry.history() == []
    worse, better = register(600), register(700)
    assert worse is not None
    assert better is not None
    assert (worse.version, worse.reason) == (1, "there was no champion")
    assert (better.version, better.champion, better.promoted) == (2, 1, True)
    assert [(entry.over, entry.version) for entry in registry.history()] == [(None, 1), (1, 2)]
    assert registry.rollback() == (2, 1)
    use("mitoflow")
    assert (registry.champion(), [row.version for row in registry.models()]) == (1, [1])
    assert [entry.version for entry in registry.history()] == [1]
    assert registry.find_version("champion", "mitoflow-liver") == 1
    assert int(client.get_model_version_by_alias("mitoflow-liver", "champion").version) == 1


def test_what_this_machine_refuses_is_no_fault_of_mlflow(client: MlflowClient) -> None:
    with pytest.raises(OSError, match="No space left") as full, registered_model.opened():
        raise OSError(errno.ENOSPC, "No space left on device", ".mitoflow/weights")
    assert str(as_user_error(full.value)).startswith(".mitoflow/weights: found no space left on the disk")
    with pytest.raises(InputError, match="expected an MLflow registry that answers"), registered_model.opened():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_weights_that_are_gone_from_the_cache_are_fetched_again(client: MlflowClient) -> None:
    register(800)
    kept = registry.model_file(1)
    content = kept.read_bytes()
    kept.unlink()
    assert registry.model_file(1).read_bytes() == content


def test_a_model_that_waits_keeps_its_name(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    use("mitoflow-liver")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with runs.start("train", "unet") as run:
        report(run, measured(700))
    use("mitoflow-brain")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert runs.sync().left == 0
    assert registry.models() == []
    assert registry.find_version("champion", "mitoflow-liver") == 1


@pytest.mark.parametrize("name", ["mitoflow/liver", "mitoflow-promotions", "'", ""])
def test_a_name_that_cannot_be_used_is_one_line(client: MlflowClient, name: str) -> None:
    Path("params.yaml").write_text(f'registry: {{model: "{name}"}}\n')
    with pytest.raises(InputError, match="registry.model: found .* as a name; allowed are letters, digits and"):
        registered_model.name()
