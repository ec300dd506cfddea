"""The memory of a process stays flat when it predicts again and again: the benchmark, with fewer calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import memory

CALLS = 12
GROWTH = 1.03  # from the second call to the last; a network that is copied at each call makes it 1.09 and more


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    memory.write_project(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("what", ["calls of predict", "TIFF files to the server"])  # the page frees such a copy itself
def test_memory_stays_flat(project: Path, what: str) -> None:
    found, _ = memory.measure(memory.KINDS[what], project, CALLS)
    print(found)
    assert max(found[2:]) < GROWTH * found[1]
