"""Checks of a stage before it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("stage", "megabytes"),
    [
        *(("patch", megabytes) for megabytes in (60, 280, 500, 900)),
        *(("tune", 1300), ("train", 1400), ("evaluate", 1900), ("train", 3000)),
    ],
)
def test_too_little_memory_is_one_line_before_a_library_waits(stage: str, megabytes: int) -> None:
    command = ["prlimit", f"--as={megabytes}000000", sys.executable, "-m", "mitoflow.stages", stage]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mitoflow: memory: found not ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fit"], ["train", "patch"]])
def test_an_unknown_stage_is_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "mitoflow.stages", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    line = f"found {' '.join(arguments) or 'no stage'}, expected one of validate, patch, tune, train, evaluate; name it"
    assert done.stderr == f"mitoflow: python -m mitoflow.stages: {line}\n"


def test_parameters_are_checked_before_libraries_are_loaded(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("patience:", "patiense:"))
    command = [sys.executable, "-X", "importtime", "-m", "mitoflow.stages", "train"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "did you mean patience?" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert not {"keras", "mlflow"} & imported


@pytest.mark.slow
def test_what_reads_images_alone_loads_no_keras() -> None:
    code = "import sys, mitoflow.stages.validate, mitoflow.stages.patch; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mlflow" in loaded
    assert "keras" not in loaded
