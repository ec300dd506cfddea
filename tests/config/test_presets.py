"""Presets, and params.yaml edited where the values stand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mitoflow.config import params, presets
from mitoflow.config.sections import dotted
from mitoflow.errors import InputError

COMMITTED = Path(__file__).parents[2] / "params.yaml"
NAMES = list(presets.names())

CRLF = "# ours\r\ndata:   {name:  'phantom' }\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes(COMMITTED.read_bytes())
    return path


def test_the_committed_file_is_the_preset_phantom(path: Path) -> None:
    presets.apply(path, "epfl", name="epfl")
    presets.apply(path, "phantom", name="phantom")
    assert path.read_bytes() == COMMITTED.read_bytes()
    assert presets.apply(path, "phantom", name="phantom") == {}
    assert path.read_bytes() == COMMITTED.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "name"), [*itertools.permutations(NAMES, 2)])
def test_nothing_stays_of_the_preset_before(path: Path, before: str, name: str) -> None:
    presets.change(
        path, {"machine.workers": "3", "data.name": "cortex", "instances.neck": "0.5", "registry.model": "liver"}
    )
    presets.apply(path, before)
    presets.apply(path, name)
    found, preset = params.load(path), presets.load(name)
    assert found == preset.model_copy(
        update={key: getattr(found, key) for key in ("machine", "registry", "data", "instances")}
    )
    assert (found.machine.workers, found.data.name, found.instances.neck) == (3, "cortex", 0.5)
    assert found.registry.model == "liver"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_states_differences_from_the_defaults_and_nothing_else(name: str) -> None:
    stated = YAML(typ="safe").load(presets.PRESETS.read_text())[name]
    assert stated.pop("about")
    assert not {"data", "instances", "registry", "machine"} & stated.keys()
    defaults, preset = (dotted(each.model_dump(by_alias=True)) for each in (params.Params(), presets.load(name)))
    assert dotted(stated) == {key: value for key, value in preset.items() if value != defaults[key]}


def test_there_is_no_other_preset(path: Path) -> None:
    with pytest.raises(InputError, match="preset: found eplf, expected one of phantom, epfl, epfl-quick"):
        presets.apply(path, "eplf")


def test_comments_order_and_columns_stay(path: Path) -> None:
    changed = presets.apply(path, "epfl", name="epfl")
    assert changed["data.name"] == ("phantom", "epfl")
    before, after = COMMITTED.read_text().splitlines(), path.read_text().splitlines()
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old.partition("#")[1:] == new.partition("#")[1:]
        assert old.find("#") == new.find("#")
        assert old.partition(":")[0] == new.partition(":")[0]
    text = COMMITTED.read_text()
    lines = {text.count("\n", 0, value.start) for key, value in presets.scalars(text).items() if key in changed}
    assert {place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new} == lines


def test_the_layout_of_the_file_does_not_matter() -> None:
    edited = presets.edited(CRLF, {"data.name": "epfl"})
    assert edited == "# ours\r\ndata:   {name:  epfl }\r\n"


def test_a_value_too_long_for_its_column_keeps_a_space_before_the_comment() -> None:
    assert presets.edited("a: 1  # one\nb: 2\n", {"a": "12345", "b": "3"}) == "a: 12345 # one\nb: 3\n"


@given(st.from_regex(r"[A-Za-z][\w.-]*", fullmatch=True))
def test_a_name_is_read_back_as_the_text_it_is(name: str) -> None:
    text = presets.edited("data:\n  name: phantom  # what\n", {"data.name": presets._spelled(name)})
    assert YAML(typ="safe", pure=True).load(text) == {"data": {"name": name}}


@pytest.mark.parametrize("name", ["true", "null", "1.5", "yes: no", "a # b"])
def test_a_name_that_yaml_would_read_as_something_else_is_quoted(path: Path, name: str) -> None:
    presets.apply(path, "imported", name=name)
    assert params.load(path).data.name == name


@pytest.mark.parametrize("content", [b"", b"data: [\n", b"<<<<<<< HEAD\n", b"a: 1  # \xe9\n"])
def test_a_file_that_is_no_yaml_is_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="params.yaml: found"):
        presets.apply(path, "epfl")
    assert path.read_bytes() == content


def test_a_wrong_value_names_the_file_and_the_key(path: Path) -> None:
    with pytest.raises(InputError) as error:
        presets.change(path, {"train.depth": "99"})
    assert error.value.where == f"{path}: train.depth"


def test_a_key_that_is_not_there_is_named(path: Path) -> None:
    text = path.read_text().replace("  seed: 1\n\nevaluate", "\nevaluate")
    path.write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml: train\.seed: found no such key"):
        presets.apply(path, "epfl", name="epfl")
    assert path.read_text() == text


def test_values_that_do_not_fit_the_file_leave_it_alone(path: Path) -> None:
    text = path.read_text() + "surprise: 1\n"
    path.write_text(text)
    with pytest.raises(InputError, match="surprise"):
        presets.apply(path, "epfl", name="epfl")
    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]
