"""dvc.yaml says what the code does."""

from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# What checks input, finds files, talks to MLflow and finds other machines decides nothing about the outputs of a stage.
BESIDE_THE_POINT = (
    *("mitoflow.cluster", "mitoflow.errors", "mitoflow.params", "mitoflow.workspace"),
    *("mitoflow.delivery", "mitoflow.journal", "mitoflow.lineage", "mitoflow.pretrained"),
    *("mitoflow.championship", "mitoflow.gate", "mitoflow.promotions", "mitoflow.registry"),
    *("mitoflow.store", "mitoflow.tracking"),
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_that_decides_its_outputs(stage: str) -> None:
    graph = grimp.build_graph("mitoflow")
    for module in BESIDE_THE_POINT:
        graph.remove_module(module)
    needed = {f"mitoflow.stages.{stage}"} | graph.find_upstream_modules(f"mitoflow.stages.{stage}")
    needed -= {"mitoflow", "mitoflow.stages"}  # a version and paths
    files = {f"src/{name.replace('.', '/')}.py" for name in needed}
    if "mitoflow.report" in needed:
        files.add("src/mitoflow/templates")
    assert {dep for dep in STAGES[stage]["deps"] if dep.startswith("src/")} == files


def test_every_path_in_dvc_yaml_is_the_one_that_the_stages_use() -> None:
    from mitoflow import stages

    known = {str(path) for path in vars(stages).values() if isinstance(path, Path)}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if not dep.startswith("src/"):
                assert any(dep == path or path.startswith(f"{dep}/") or dep.startswith(f"{path}/") for path in known), (
                    name,
                    dep,
                )
