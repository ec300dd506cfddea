"""YAML files as frozen, validated models; what is wrong with a file is one line that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mitoflow.core import files
from mitoflow.errors import InputError


class Section(BaseModel):
    """A section: read-only, nothing unknown in it, no type guessed.

    A model of a whole file lists in `renamed` the dotted keys of mitoflow 0.1, each with what to write in its place and
    what to do.
    """

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


def read(model: type[AnySection], path: Path, *, complete: bool = False) -> AnySection:
    """Read a YAML file as `model`.

    Parameters
    ----------
    model
        The model of the whole file.
    path
        The file.
    complete
        Whether the file must hold every key; otherwise a default stands in for one that it lacks.

    Raises
    ------
    InputError
        The file is missing or no YAML, or a key is unknown, missing, of the wrong type or out of range. The line names
        the key and, for a misspelled or renamed one, the key that is meant.
    """
    raw = files.read_yaml(path, "run this in the project's folder; git has the file as it was")
    if complete and (key := next(_missing(model, raw), None)):
        raise InputError(f"{path}: {key}", "no such key", "a value", "add it; git has the file as it was")
    return validated(model, raw, path)


def validated(model: type[AnySection], values: Mapping[str, Any], path: Path) -> AnySection:
    """Return values that were read from a file as `model`; raises as `read` does."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(model, path, error) from None


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _missing(model: type[Section], raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that sections lack, but for sections with an unknown key: it may be a misspelled one."""
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, kind in known.items():
        if key in raw:
            if isinstance(kind, type) and issubclass(kind, Section) and isinstance(raw[key], Mapping):
                yield from _missing(kind, raw[key], f"{prefix}{key}.")
        elif raw.keys() <= known.keys():
            yield prefix + key


def _explain(model: type[Section], path: Path, error: ValidationError) -> InputError:
    """Turn pydantic's complaints into one line: an unknown key first, since it often explains another complaint."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first, keys = errors[0], _keys(errors[0]["loc"])
    where = f"{path}: {'.'.join(keys)}"
    match first["type"]:
        case "extra_forbidden" if new := model.renamed.get(".".join(keys)):
            return InputError(where, "a key of mitoflow 0.1", *new)
        case "extra_forbidden":
            return unknown_key(where, keys[-1], _known_keys(model, keys[:-1]))
        case "missing":
            return InputError(where, "no such key", "a value", "add it; git has the file as it was")
        case "value_error":
            found = first["msg"].removeprefix("Value error, ")
            if isinstance(first["input"], str | int | float):
                return InputError(where, found, "another value", "change it")
            return InputError(where.removesuffix(": "), found, "values that fit together", "change one of them")
        case _:
            # A key of several types has one complaint for each of them.
            wanted = dict.fromkeys(_expected(e["msg"]) for e in errors if _keys(e["loc"]) == keys)
            return InputError(where, repr(first["input"]), " or ".join(wanted), "change the value")


def unknown_key(where: str, key: str, known: Sequence[str]) -> InputError:
    """Return the error about a key that is none of those which are known where it stands."""
    close = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else "remove it"
    return InputError(where, "an unknown key", f"one of {', '.join(known)}", remedy)


def _known_keys(model: type[Section], keys: list[str]) -> list[str]:
    """Return the keys of the section of `model` that `keys` lead to."""
    section: Any = model
    for key in keys:
        if key.isdecimal():  # a place in a list of sections
            (section,) = get_args(section)
        else:
            section = next(f.annotation for name, f in section.model_fields.items() if key in (name, f.alias))
    return [field.alias or name for name, field in section.model_fields.items()]


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of pydantic's location, without the types that it names inside a union."""
    types = {"literal", "constrained", "function"}
    return [str(part) for part in location if str(part).replace("[", "-").split("-")[0] not in types]


def _expected(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("a valid ").removeprefix("a ")
