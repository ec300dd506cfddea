"""A folder is written whole or not at all; YAML from elsewhere takes no more memory or time than its size."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mitoflow.core import files
from mitoflow.data import fingerprint
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.errors import InputError
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.settings import Settings

ROOT = Path(__file__).parents[2]
GENERAL = ROOT / "pretrained/general"
NESTED = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {k: x}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (NESTED, "more than 100000 keys and values"),
        ("a: &a [*a]", "more than 100000 keys and values"),
        (f"a: &a [{'*a,' * 10**4}]", "more than 100000 keys and values"),
        (MERGED, "a merge key"),
        (MERGED.replace("<<", "!<tag:yaml.org,2002:merge> x"), "a merge key"),
        ("a: " + "x" * 2**20, "1048579 bytes, expected at most 1048576"),
    ],
    ids=["aliases of aliases", "an alias in itself", "many in itself", "merge keys", "tagged as merge keys", "large"],
)
def test_yaml_that_grows_is_one_short_line(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "inference.yaml"
    path.write_text(text)
    tracemalloc.start()
    with pytest.raises(InputError, match=found) as error:
        files.read_yaml(path, "take another")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    assert len(str(error.value)) < 2000


def replace_folder(path: Path, text: str) -> None:
    with files.replacing(path) as beside:
        beside.mkdir()
        (beside / "a").write_text(text)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_folder_keeps_its_content_where_the_new_one_cannot_take_its_name(
    is_killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two renames neither has the name; after a kill the old one comes back when it is written again."""
    path, real = tmp_path / "model", os.replace
    replace_folder(path, "old")

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".new"):
            if is_killed:
                os._exit(1)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))
        real(source, target)

    process = os.fork()
    if not process:
        try:
            monkeypatch.setattr(os, "replace", fail)
            replace_folder(path, "new")
        finally:
            os._exit(1)
    os.waitpid(process, 0)
    assert (path / "a").exists() != is_killed
    with pytest.raises(KeyboardInterrupt), files.replacing(path):
        raise KeyboardInterrupt
    assert (path / "a").read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    replace_folder(tmp_path / "large disk", "theirs")
    (tmp_path / "data").symlink_to(tmp_path / "large disk")
    replace_folder(tmp_path / "data", "new")
    assert (tmp_path / "data/a").read_text() == "new"
    assert (tmp_path / "large disk/a").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "large disk"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("inference.yaml", Settings), ("domain.yaml", Fingerprint)])
def test_any_value_in_a_file_of_a_model_is_read_or_refused_in_one_line(
    tmp_path: Path, name: str, kind: type[Settings | Fingerprint]
) -> None:
    whole = files.read_yaml(GENERAL / name, "")
    trained = Fingerprint.read(GENERAL / "domain.yaml")

    @given(st.sampled_from(sorted(whole)), VALUES)
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def check(key: str, value: object) -> None:
        files.write_yaml(tmp_path / name, whole | {key: value})
        try:
            read = kind.read(tmp_path / name)
        except InputError as error:
            assert len(str(error)) < 3000
            return
        if isinstance(read, Fingerprint):
            fingerprint.differences(read, trained)

    check()


@pytest.mark.parametrize(("key", "value"), [("median", 10**9 + 1), ("tile", 10**6), ("context", 10**6)])
def test_settings_that_would_take_all_memory_are_refused(tmp_path: Path, key: str, value: int) -> None:
    whole = files.read_yaml(GENERAL / "inference.yaml", "")
    files.write_yaml(tmp_path / "inference.yaml", whole | {key: value})
    with pytest.raises(InputError, match=f"found {key}: {value}"):
        Settings.read(tmp_path / "inference.yaml")


@pytest.mark.parametrize("value", ["x", float("nan"), [1], None, True])
def test_a_calibration_is_of_numbers(tmp_path: Path, value: object) -> None:
    Calibration(1, 0, 0.1, 5).write(tmp_path / "calibration.yaml")
    whole = files.read_yaml(tmp_path / "calibration.yaml", "")
    files.write_yaml(tmp_path / "calibration.yaml", whole | {"slope": value})
    with pytest.raises(InputError, match="calibration.yaml: slope: found"):
        Calibration.read(tmp_path / "calibration.yaml")
