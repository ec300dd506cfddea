"""dvc.yaml says what the code does."""

from pathlib import Path

from ruamel.yaml import YAML

from mitoflow.stages import paths

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_every_path_in_dvc_yaml_is_the_one_that_the_stages_use() -> None:
    known = {str(path) for path in vars(paths).values() if isinstance(path, Path)}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if not dep.startswith("src/"):
                assert any(dep == path or path.startswith(f"{dep}/") or dep.startswith(f"{path}/") for path in known), (
                    name,
                    dep,
                )
