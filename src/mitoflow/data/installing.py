"""How a dataset becomes ``data/``: checked, versioned by DVC and with its preset, or not at all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mitoflow.config import params, presets
from mitoflow.config.params import MaskRule
from mitoflow.core import files, workspace
from mitoflow.data.datasets import DATASETS
from mitoflow.data.importing import Sources, find_pairs, hold_out, whole, write_excerpts
from mitoflow.data.set_descriptions import SetDescription, write_sets
from mitoflow.data.validation import Findings, check_dataset
from mitoflow.errors import InputError

DATA, POINTER, PARAMS, IGNORED = Path("data"), Path("data.dvc"), Path("params.yaml"), Path(".gitignore")


@dataclass(frozen=True)
class NewSet:
    """A set on its way into ``data/``.

    Attributes
    ----------
    name
        The folder below ``data/train`` and ``data/test``, and the entry of ``data/sets.yaml``.
    description
        That entry.
    write
        Writes the training and the test part, each as ``images`` and ``masks``, into two folders; returns what to call
        a path there in errors.
    """

    name: str
    description: SetDescription
    write: Callable[[Path, Path], Mapping[Path, str]]


@dataclass(frozen=True)
class Installed:
    """What ``data/`` holds now.

    Attributes
    ----------
    name
        ``data.name`` in ``params.yaml``.
    findings
        What `check_dataset` found; no errors.
    changed
        Keys of ``params.yaml`` with their old and new values.
    replaced
        An archive of ``data.dvc`` and ``params.yaml`` as they were, which leads back to the data before; None where
        that was the same, or never versioned.
    notes
        Notes for the user.
    """

    name: str
    findings: Findings
    changed: dict[str, tuple[str, str]]
    replaced: Path | None
    notes: tuple[str, ...] = ()


def install_named(name: str, source: Path | None = None, *, if_missing: bool = False) -> Installed | None:
    """Put one of `datasets.DATASETS` into ``data/``.

    Parameters
    ----------
    name
        What it is registered under.
    source
        The folder with its files, where it is not to download them.
    if_missing
        Do nothing where ``data/`` holds files, and return None. Otherwise leave ``params.yaml`` as it is, and refuse
        where it or ``data.dvc`` speaks of other data.

    Raises
    ------
    InputError
        There is no such dataset, as `datasets.Dataset.write` and `install`, and see ``if_missing``.
    """
    dataset = DATASETS[name]()
    description = SetDescription(voxel_size=dataset.spacing, tissue=dataset.tissue, terms=dataset.licence)
    new = NewSet(name, description, partial(dataset.write, source=source))
    if not if_missing:
        return install(new, preset=dataset.preset, notes=(dataset.note,))
    if _holds_files(DATA):
        return None
    named = params.load(PARAMS).data.name
    if named != name:
        remedy = f"run `dvc pull` to get it, or `mitoflow data {name}` to work on the {name} instead"
        raise InputError(DATA, "no files", f"the dataset {named} that {PARAMS} names", remedy)
    return install(new, preset=dataset.preset, notes=(dataset.note,), as_recorded=True)


def install_own(
    images: Sequence[str],
    masks: Sequence[str],
    test_images: Sequence[str] = (),
    test_masks: Sequence[str] = (),
    *,
    consecutive: bool = False,
    name: str = "imported",
    mask_rule: MaskRule = "auto",
    test_fraction: float = 0.25,
    gap: int = 4,
) -> Installed:
    """Put a lab's own stacks into ``data/``.

    Parameters
    ----------
    images, masks, test_images, test_masks
        Files, folders or globs, paired by `importing.find_pairs`. Without test files the last slices of each stack are
        the test part.
    consecutive
        The files are the slices of one stack, in natural order of their names; the same for those that test.
    name
        What to call the dataset: a letter, then letters, digits, ``-``, ``_`` and ``.``.
    mask_rule
        How the masks are to be read.
    test_fraction, gap
        Share of the slices that tests, and how many are left out before those (`importing.hold_out`).

    Raises
    ------
    InputError
        Files cannot be paired or used, or there are too few slices; and as in `install`.
    """
    _require_project()
    if name in DATASETS or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        expected = "a letter, then letters, digits, - or _, and no other dataset's name"
        raise InputError("--name", name, expected, "choose another name")
    if bool(test_images) != bool(test_masks):
        given, lacking = ("--test-images", "--test-masks") if test_images else ("--test-masks", "--test-images")
        raise InputError(given, f"no {lacking}", "both or none", f"add {lacking}")

    found = find_pairs(images, masks, ("--images", "--masks"), consecutive=consecutive)
    notes = _matches(found)
    if sum(pair.image.shape[0] == 1 for pair in found.pairs) > 1:
        notes.append(
            "Files of one slice each: the network learns them without their neighbours. "
            "Where they are consecutive slices of one stack, import them again with --consecutive."
        )
    if test_images:
        tests = find_pairs(test_images, test_masks, ("--test-images", "--test-masks"), consecutive=consecutive)
        notes += _matches(tests)
        parts = whole(found.pairs), whole(tests.pairs)
    else:
        parts = hold_out(found.pairs, test_fraction, gap)
        slices, used = sum(pair.image.shape[0] for pair in found.pairs), sum(e.depth for part in parts for e in part)
        notes.append(f"{slices - used} slices between train and test are left out.")
    prefix = "--test-" if test_images else "--"

    def write(train: Path, test: Path) -> dict[Path, str]:
        folders = {train / "images": "--images", train / "masks": "--masks"}
        folders |= {test / "images": f"{prefix}images", test / "masks": f"{prefix}masks"}
        return write_excerpts(dict(zip((train, test), parts, strict=True))) | folders

    return install(NewSet(name, SetDescription(mask_rule=mask_rule), write), mask_rule=mask_rule, notes=notes)


def _matches(sources: Sources) -> list[str]:
    if not sources.by_order:
        return []
    matches = [f"  {pair.image.path} with {pair.mask.path}" for pair in sources.pairs]
    return ["The names do not show which mask belongs to which image; in order:", *matches]


def install(
    new: NewSet,
    *,
    preset: str = "imported",
    mask_rule: MaskRule = "auto",
    notes: Sequence[str] = (),
    as_recorded: bool = False,
) -> Installed:
    """Make a dataset beside ``data/``, check it, and let it take the place of what is there.

    What is there goes into DVC's cache first, and a copy of ``data.dvc`` and ``params.yaml`` leads back to it. Then
    come ``dvc add`` and the preset. When anything fails, ``data/``, ``data.dvc``, ``params.yaml`` and ``.gitignore``
    are as they were.

    Parameters
    ----------
    new
        The set that becomes all of ``data/``; its name becomes ``data.name`` of ``params.yaml``.
    preset, mask_rule
        Of ``params.yaml``: the values that fit, and ``data.mask_rule``.
    notes
        As in `Installed`.
    as_recorded
        Leave ``params.yaml`` as it is, and insist on the hash in ``data.dvc`` where there is one.

    Raises
    ------
    InputError
        This is no project with DVC, the new data has errors, or DVC refuses it.
    """
    settings = _require_project()
    with _all_or_nothing() as old:
        with files.replacing(DATA) as beside:
            origins = new.write(beside / "train" / new.name, beside / "test" / new.name)
            write_sets(beside, {new.name: new.description})
            _say("checking every slice")
            findings = _check(beside, mask_rule, settings.validate_.near_duplicate, origins)
            if _holds_files(DATA):
                _dvc("add", str(DATA))
            before, way_back = _recorded_hash(), _keep_way_back()
            if DATA.exists():
                DATA.replace(old)
        _dvc("add", str(DATA))
        same = before == _recorded_hash()
        if as_recorded and before and not same:
            found, expected = f"the hash of a dataset other than {new.name}", f"that of {new.name}"
            remedy = f"run `dvc pull` to get it, or `mitoflow data {new.name}` to replace it"
            raise InputError(POINTER, found, expected, remedy)
        changed = {}
        if not as_recorded:
            changed = presets.apply(PARAMS, preset, name=new.name, mask_rule=mask_rule)
    return Installed(new.name, findings, changed, None if same else way_back, tuple(notes))


def _require_project() -> params.Params:
    settings = params.load(PARAMS)
    if not Path(".dvc").is_dir():
        raise InputError(Path.cwd(), "no .dvc folder", "a project under DVC", "run `git init` and `dvc init` in it")
    return settings


def _check(data: Path, mask_rule: MaskRule, near_duplicate: float, origins: Mapping[Path, str]) -> Findings:
    findings = check_dataset(data, mask_rule, near_duplicate)
    for error in findings.errors:
        words = [error.where, error.found, error.expected, error.remedy]
        # The longer paths first: a file before its folder, and what remains lies in data/ for the user.
        for path, origin in [*origins.items(), (data, str(DATA))]:
            words = [word.replace(str(path), origin) for word in words]
        raise InputError(*words)
    return findings


@contextmanager
def _all_or_nothing() -> Iterator[Path]:
    """Yield a path for the old ``data/``; when the block raises, put it back, with the files that speak of it."""
    old = files.temporary(DATA, "old")
    empty_before = not DATA.exists()
    kept = {path: path.read_bytes() if path.exists() else None for path in (POINTER, PARAMS, IGNORED)}
    try:
        yield old
    except BaseException:
        if old.exists() or empty_before:
            shutil.rmtree(DATA, ignore_errors=True)
        if old.exists():
            old.replace(DATA)
        for path, content in kept.items():
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != content:
                path.write_bytes(content)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _keep_way_back() -> Path | None:
    """Copy ``data.dvc`` and ``params.yaml`` to where the next dataset does not overwrite them.

    In an archive, because DVC takes every file of that suffix in the project for one of its own.
    """
    digest = _recorded_hash()
    if not digest:
        return None
    archive = workspace.state_dir() / "replaced" / f"{digest[:8]}.tar"
    with files.replacing(archive) as beside, tarfile.open(beside, "w") as tar:
        for path in (POINTER, PARAMS):
            tar.add(path)
    return archive


def _recorded_hash() -> str | None:
    if not POINTER.exists():
        return None
    outs = files.read_yaml(POINTER, "take it from git, or remove it").get("outs")
    return str(outs[0].get("md5")) if outs else None


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def _say(step: str) -> None:
    print(f"data: {step}", file=sys.stderr)


def _dvc(*arguments: str) -> None:
    _say(f"dvc {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        message = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "an error")
        found = message.removeprefix("ERROR: ")
        raise InputError(f"dvc {' '.join(arguments)}", found, "success", "correct that, then run this again")
