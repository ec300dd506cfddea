"""dvc.yaml says what the code does: which stage reads what, and what makes it run again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import grimp
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from mitoflow.config import params, presets
from mitoflow.config.sections import dotted
from mitoflow.core import provenance
from mitoflow.stages import paths
from mitoflow.training import fitting

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
STAGES = YAML(typ="safe").load(TEXT)["stages"]

#: Changing a key makes these stages run; those after them run where what they read has changed.
KEYS = {
    "data.name": ["train", "evaluate"],
    "validate.*": ["validate"],
    "patch.normalization": ["validate", "patch"],
    "patch.*": ["patch"],
    "tune.*": ["tune"],
    "train.init_from": ["tune", "train"],
    "train.orthoplanes": ["validate", "tune", "train"],
    "train.learning_rate": ["tune", "train"],
    "train.depth": ["tune", "train"],
    "train.augment_strength": ["tune", "train"],
    "train.augmentation.*": ["tune", "train"],
    "train.affine_fraction": ["tune", "train"],
    "train.intensity_strength": ["tune", "train"],
    "train.foreground_fraction": ["tune", "train"],
    "train.set_balance": ["tune", "train"],
    "train.context": ["tune", "train"],
    "train.context_step": ["tune", "train"],
    "train.context_dropout": ["tune", "train"],
    "train.contacts": ["tune", "train"],
    "train.network": ["tune", "train"],
    "train.base_width": ["tune", "train"],
    "train.loss": ["tune", "train"],
    "train.precision": ["tune", "train"],
    "train.batch_size": ["tune", "train"],
    "train.epochs": ["train"],
    "train.patches_per_epoch": ["train"],
    "train.patience": ["train"],
    "train.average_epochs": ["train"],
    "train.seed": ["train"],
    "evaluate.*": ["evaluate"],
    "instances.*": ["evaluate"],
    "registry.*": [],
    "machine.*": [],
}
#: The same for a file; the first pattern counts.
FILES = {
    "*/__pycache__/*": [],
    "src/mitoflow/stages/validate.py": ["validate"],
    "src/mitoflow/stages/patch.py": ["patch"],
    "src/mitoflow/stages/tune.py": ["tune"],
    "src/mitoflow/stages/train.py": ["train"],
    "src/mitoflow/stages/evaluate.py": ["evaluate"],
    "src/mitoflow/stages/*": [],
    "src/mitoflow/data/patches.py": ["validate", "patch", "tune", "train", "evaluate"],
    "src/mitoflow/data/network_input.py": ["validate", "patch", "tune", "train", "evaluate"],
    "src/mitoflow/data/slice_distance.py": ["validate", "patch", "tune", "train", "evaluate"],
    "src/mitoflow/data/*": ["validate", "patch", "evaluate"],
    "src/mitoflow/io/*": ["validate", "patch", "evaluate"],
    "src/mitoflow/evaluation/*": ["validate", "evaluate"],
    "src/mitoflow/inference/*": ["evaluate"],
    "src/mitoflow/instances/*": ["evaluate"],
    "src/mitoflow/models/*": ["tune", "train", "evaluate"],
    "src/mitoflow/training/*": ["tune", "train"],
    "src/mitoflow/tuning/*": ["tune"],
    "src/mitoflow/apps/*": [],
    "src/mitoflow/cli/*": [],
    "src/mitoflow/tracking/*": [],
    "src/mitoflow/config/*": [],
    "src/mitoflow/core/*": [],
    "src/mitoflow/*": [],
    "promotion.yaml": [],
    "pretrained/*": [],
    "data/train/*": ["validate", "patch", "evaluate"],
    "data/test/*": ["validate", "evaluate"],
    "patches/*": ["tune", "train", "evaluate"],
    "reports/tune/best_params.yaml": ["train"],
    "reports/tune/*": [],
    "reports/train/curves.csv": ["evaluate"],
    "models/unet.keras": ["evaluate"],
    "models/another.keras": [],
}

#: What a stage imports and dvc.yaml does not list, by package or module, with the reason.
LEFT_OUT = {
    "mitoflow": "the version, which is recorded",
    "mitoflow.config": "parameters, whose values dvc.yaml lists",
    "mitoflow.core": "how files are written, locked and recorded, and where work is done; not what results are",
    "mitoflow.errors": "messages",
    "mitoflow.stages": "paths, which dvc.yaml has, too",
    "mitoflow.tracking": "what is recorded beside the outputs, and the verdict, which a repetition may not give again",
}
PREDICTION = "comes with the report of an evaluation; a validation predicts nothing"
LEFT_OUT_OF_VALIDATE = {"mitoflow.inference": PREDICTION, "mitoflow.instances": PREDICTION}


def code(stage: str) -> list[str]:
    return [dep for dep in STAGES[stage]["deps"] if dep.startswith("src/")]


def lies_in(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def row(table: dict[str, list[str]], name: str) -> list[str]:
    """Return what the first pattern that fits says; KeyError where none does."""
    for pattern, stages in table.items():
        if fnmatch(name, pattern):
            return stages
    raise KeyError(name)


def test_every_path_in_dvc_yaml_is_the_one_that_the_stages_use() -> None:
    known = {str(path) for path in vars(paths).values() if isinstance(path, Path)}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if not dep.startswith("src/"):
                assert any(dep == path or path.startswith(f"{dep}/") or dep.startswith(f"{path}/") for path in known), (
                    name,
                    dep,
                )


def test_a_key_makes_these_stages_run_and_no_other() -> None:
    keys = dotted(params.Params().model_dump(by_alias=True))
    assert all(any(fnmatch(key, pattern) for key in keys) for pattern in KEYS)
    for key in keys:
        read = [name for name, stage in STAGES.items() if any(f"{key}.".startswith(f"{p}.") for p in stage["params"])]
        assert read == row(KEYS, key), key


def test_a_trial_reads_the_keys_that_it_shares_and_those_that_show_whether_there_is_a_study() -> None:
    train = {key.removeprefix("train.") for key in STAGES["tune"]["params"] if key.startswith("train.")}
    assert train == {*params.SharedWithTrials.model_fields, *params.SAMPLED, "init_from"}


def test_a_file_makes_these_stages_run_and_no_other() -> None:
    tracked = subprocess.check_output(["git", "ls-files", "src"], cwd=ROOT, text=True).splitlines()
    assert all(any(fnmatch(path, pattern) for path in tracked) for pattern in FILES if pattern.startswith("src/"))
    named = [pattern.replace("*", "any") for pattern in FILES if not pattern.startswith(("src/", "*"))]
    for path in [*tracked, *named]:
        assert [name for name, stage in STAGES.items() if lies_in(path, stage["deps"])] == row(FILES, path), path


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mitoflow", cache_dir=None)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports(graph: grimp.ImportGraph, stage: str) -> None:
    reached, outside = {f"mitoflow.stages.{stage}"}, set()
    new = set(reached)
    while new:
        imported = {other for module in new for other in graph.find_modules_directly_imported_by(module)}
        listed = {module for module in imported if lies_in(source(module), code(stage))}
        outside |= imported - listed
        new = listed - reached
        reached |= new
    reasons = LEFT_OUT | (LEFT_OUT_OF_VALIDATE if stage == "validate" else {})
    names = {reason(module, reasons) for module in outside}
    assert None not in names, sorted(module for module in outside if not reason(module, reasons))
    assert [dep for dep in code(stage) if not any(lies_in(source(module), [dep]) for module in reached)] == []


def source(module: str) -> str:
    path = Path("src", *module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def reason(module: str, reasons: dict[str, str]) -> str | None:
    """Return the package or module that has a reason and holds the module; of `mitoflow` itself only the package."""
    known = (name for name in reasons if module == name or (name != "mitoflow" and module.startswith(f"{name}.")))
    return next(known, None)


def test_a_fit_resumes_with_the_code_on_which_train_depends() -> None:
    fits = sorted(f"src/mitoflow/{each}" for each in fitting.CODE)
    assert sorted(set(code("train")) - {"src/mitoflow/stages/train.py"}) == fits
    assert sorted(set(code("tune")) - {"src/mitoflow/stages/tune.py", "src/mitoflow/tuning"}) == fits


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_dvc_adds_a_stage_and_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    dvc(tmp_path, "init", "-q")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    options = ["-d", "models/unet.keras", "-p", "train.depth", "-o", "models/summary.txt"]
    dvc(tmp_path, "stage", "add", "-n", "summary", *options, "python summary.py")
    added = (tmp_path / "dvc.yaml").read_text(encoding="utf-8")
    before, plots = TEXT.split("plots:\n- loss")
    assert added.startswith(before)
    assert added.endswith(f"plots:\n- loss{plots}")
    new = YAML(typ="safe").load(added)["stages"].pop("summary")
    assert new["deps"] == ["models/unet.keras"]


@dataclass
class Pipeline:
    """A project of which DVC has results on record that no stage computed."""

    folder: Path

    def stale(self) -> list[str]:
        """Return the stages that `dvc status` names."""
        with Repo(self.folder) as repo:
            names = {address.rpartition(":")[2] for address in repo.status()}
        return [name for name in STAGES if name in names]

    def changed(self, file: str) -> list[str]:
        """Return the stages that `dvc status` names while a file is another one."""
        path = self.folder / file
        content = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link into DVC's cache may not be written
        path.write_bytes((content or b"") + b"\n")
        stale = self.stale()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        return stale

    def set(self, **values: str) -> None:
        """Change keys of params.yaml; a dot in a key is two underscores here."""
        presets.change(self.folder / "params.yaml", {key.replace("__", "."): value for key, value in values.items()})

    def read(self, file: str) -> Any:
        return YAML(typ="safe").load((self.folder / file).read_text(encoding="utf-8"))


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    tracked = subprocess.check_output(["git", "ls-files", "src"], cwd=ROOT, text=True).splitlines()
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in STAGES.values() for out in outputs(stage)]
    for name in ["data/train/stack", "data/test/stack", *outs]:
        path = tmp_path / name if "/stack" in name or Path(name).suffix else tmp_path / name / "part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n", encoding="utf-8")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    dvc(tmp_path, "init", "-q")
    dvc(tmp_path, "commit", "--force")
    return Pipeline(tmp_path)


def outputs(stage: dict[str, list[Any]]) -> list[Any]:
    return [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]


@pytest.mark.slow
def test_dvc_agrees_with_the_tables(pipeline: Pipeline) -> None:
    assert pipeline.stale() == []
    for file in (
        "src/mitoflow/io/ome.py",
        "src/mitoflow/evaluation/figures.py",
        "src/mitoflow/tracking/registry.py",
        "src/mitoflow/training/augmentation.py",
        "src/mitoflow/training/__pycache__/augmentation.cpython-311.pyc",
        "data/test/stack",
        "models/another.keras",
    ):
        assert pipeline.changed(file) == row(FILES, file), file
    for key, value in {
        "machine.workers": "3",
        "train.epochs": "3",
        "data.name": "cortex",
        "train.context": "0",
    }.items():
        present = presets.scalars((pipeline.folder / "params.yaml").read_text())[key].source
        presets.change(pipeline.folder / "params.yaml", {key: value})
        assert pipeline.stale() == row(KEYS, key), key
        presets.change(pipeline.folder / "params.yaml", {key: present})
    assert pipeline.stale() == []


@pytest.mark.slow
def test_a_stage_that_is_forced_has_its_parameters_on_record(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline.folder)
    assert all(provenance.has_recorded_params(stage) for stage in STAGES)
    pipeline.set(train__learning_rate="0.002", machine__workers="2")
    assert [stage for stage in STAGES if provenance.has_recorded_params(stage)] == ["validate", "patch", "evaluate"]
    assert not provenance.has_recorded_params("another")


@pytest.mark.slow
def test_a_study_of_which_no_value_is_used_does_not_run(pipeline: Pipeline) -> None:
    pipeline.set(train__learning_rate="0.001", train__depth="3", train__augment_strength="0.5")
    assert pipeline.stale() == ["tune", "train"]
    printed = dvc(pipeline.folder, "repro", "--single-item", "tune")
    assert "no study: params.yaml gives train.learning_rate, depth and augment_strength" in printed
    assert pipeline.read("reports/tune/best_params.yaml") == {}
    assert pipeline.read("reports/tune/metrics.json") == {"trials": 0}
    assert list((pipeline.folder / "reports/tune/plots").iterdir()) == []
    assert not (pipeline.folder / ".mitoflow").exists()
    dvc(pipeline.folder, "commit", "--force", "train")  # as if it had run
    assert pipeline.stale() == []

    pipeline.set(tune__seed="7")
    assert pipeline.stale() == ["tune"]
    dvc(pipeline.folder, "repro", "--single-item", "tune")
    assert pipeline.stale() == []
    assert "reports/tune/metrics.json" in dvc(pipeline.folder, "metrics", "show")
    dvc(pipeline.folder, "plots", "show", "reports/tune/trials.csv")
