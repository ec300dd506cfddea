"""What the page keeps: for how long, how much, and under which names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mitoflow.apps.page import shelf as shelves
from mitoflow.apps.page.results import Upload
from mitoflow.apps.page.shelf import BusyError, GoneError, Shelf
from mitoflow.errors import InputError


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, largest=1000)


def add(shelf: Shelf, name: str = "cell.tif", size: int = 10) -> str:
    return shelf.add(name, [Upload(name, size)], None).key


def finish(shelf: Shelf, key: str, size: int = 0) -> None:
    result = shelf.find(key)
    result.state = "failed"
    (result.input / "cell.tif").write_bytes(bytes(size))


def test_a_result_may_be_removed_by_two_at_once(shelf: Shelf) -> None:
    key = add(shelf)
    shelf.remove(key)
    shelf.remove(key)
    assert not [*shelf]


def test_the_oldest_result_makes_room(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "KEPT", 3)
    keys = [add(shelf) for _ in range(3)]
    for key in keys[:2]:
        finish(shelf, key)
    shelf.find(keys[0])  # it is in use
    newest = add(shelf)
    assert {each.key for each in shelf} == {keys[0], keys[2], newest}
    assert {each.name for each in tmp_path.iterdir()} == {keys[0], keys[2], newest}
    with pytest.raises(GoneError, match="this result is gone"):
        shelf.find(keys[1])


def test_bytes_are_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "MOST_BYTES", 100)
    keys = [add(shelf), add(shelf)]
    for key in keys:
        finish(shelf, key, size=45)
    newest = add(shelf, size=20)
    assert {each.key for each in shelf} == {keys[1], newest}


def test_results_are_kept_for_a_day_and_idle_uploads_for_an_hour(shelf: Shelf) -> None:
    done, idle, waiting = add(shelf), add(shelf), add(shelf)
    finish(shelf, done)
    shelf.find(waiting).state = "waiting"
    for key, age in ((done, 23 * 3600), (idle, 3500), (waiting, 30 * 3600)):
        shelf._results[key].touched = time.monotonic() - age
    assert {each.key for each in shelf} == {done, idle, waiting}
    shelf._results[idle].touched -= 200
    add(shelf)
    assert idle not in {each.key for each in shelf}
    shelf._results[done].touched -= 2 * 3600
    add(shelf)
    assert done not in {each.key for each in shelf}
    assert waiting in {each.key for each in shelf}


def test_unfinished_results_are_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "UNFINISHED", 2)
    keys = [add(shelf), add(shelf)]
    with pytest.raises(BusyError, match="try it again later"):
        add(shelf)
    shelf.remove(keys[0])
    add(shelf)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("../cell.tif", "no plain name"),
        ("/etc/cell.tif", "no plain name"),
        (".cell.tif", "no plain name"),
        (f"{'a' * 200}.tif", "no plain name"),
        ("cell.exe", "the ending .exe"),
        ("cell.ome.zarr", "the ending .zarr"),
        ("cell", "the ending of none"),
    ],
)
def test_names_of_files_are_those_of_images(shelf: Shelf, name: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        add(shelf, name)


def test_uploads_are_bounded(shelf: Shelf) -> None:
    with pytest.raises(InputError, match="found 1 MiB, expected at most 0; use `mitoflow predict`"):
        add(shelf, size=1001)
    with pytest.raises(InputError, match="two files of that name"):
        shelf.add("slices", [Upload("a.tif", 1), Upload("a.tif", 1)], None)
    with pytest.raises(InputError, match="found 0 files"):
        shelf.add("slices", [], None)
