"""The import contracts speak of every room."""

import pkgutil
import tomllib
from pathlib import Path

import mitoflow

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def test_the_contracts_know_every_room() -> None:
    rooms = {f"mitoflow.{module.name}" for module in pkgutil.iter_modules(mitoflow.__path__)}
    library = rooms - {"mitoflow.cli", "mitoflow.stages"}
    assert set(CONTRACTS[0]["source_modules"]) == library
    for framework, own_rooms in {"keras": 5, "mlflow": 8, "optuna": 1}.items():
        contract = next(c for c in CONTRACTS if framework in c["forbidden_modules"] and c.get("allow_indirect_imports"))
        assert set(contract["source_modules"]) <= rooms
        assert len(rooms - set(contract["source_modules"])) == own_rooms, framework
