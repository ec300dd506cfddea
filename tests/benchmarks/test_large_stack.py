"""The folder in which the benchmark of a large stack works, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import zarr

from benchmarks import large_stack
from mitoflow.errors import InputError


def test_an_interrupted_preparation_goes_on_and_another_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks = {"small": (1, 64, 64), "large": (3, 64, 64)}
    write = large_stack.write_stack

    def interrupted(path: Path, shape: tuple[int, int, int]) -> None:
        write(path, shape)
        if shape == stacks["large"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(large_stack, "write_stack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        large_stack.prepare(tmp_path, stacks)
    assert not (tmp_path / "large.ome.zarr").exists()
    monkeypatch.setattr(large_stack, "write_stack", write)
    large_stack.prepare(tmp_path, stacks)
    assert zarr.open_array(tmp_path / "large.ome.zarr/0", mode="r").shape == (3, 64, 64)
    assert (tmp_path / "pretrained/epfl").is_dir()
    with pytest.raises(InputError, match=r"found the shape \(3, 64, 64\), expected \(4, 64, 64\)"):
        large_stack.prepare(tmp_path, {**stacks, "large": (4, 64, 64)})


def test_the_model_is_the_one_of_the_documents() -> None:
    assert large_stack.MODEL == "pretrained:epfl"
