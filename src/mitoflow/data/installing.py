"""How a dataset becomes ``data/``: checked, versioned by DVC and with its preset, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mitoflow.config import params, presets
from mitoflow.core import files, process, workspace
from mitoflow.data.datasets import DATASETS
from mitoflow.data.importing import (
    Excerpt,
    Sources,
    find_pairs,
    hold_out,
    hold_out_slices,
    single_slices,
    whole,
    write_excerpts,
)
from mitoflow.data.set_descriptions import SetDescription, agree_on_voxel_size, read_sets, write_sets
from mitoflow.data.validation import PARTS, Finding, Findings, check_dataset
from mitoflow.errors import InputError
from mitoflow.io.file_names import natural_order
from mitoflow.io.remote import is_url
from mitoflow.io.spacing import as_warnings, warn_of_other_size
from mitoflow.io.volumes import describe_absent, read_spacing

SEVERAL = "general"  # the preset for several sets
UNDESCRIBED = SetDescription()

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
    sets
        The sets by their names, which ``data.name`` in ``params.yaml`` joins by ``+``.
    findings
        What `check_dataset` found; no errors. Warnings name the files and options that the new set came from.
    changed
        Keys of ``params.yaml`` with their old and new values.
    replaced
        An archive of ``data.dvc`` and ``params.yaml`` as they were, which leads back to the data before; None where
        that was the same, or never versioned.
    notes
        Notes for the user.
    """

    sets: Mapping[str, SetDescription]
    findings: Findings
    changed: dict[str, tuple[str, str]]
    replaced: Path | None
    notes: tuple[str, ...] = ()


def install_named(
    name: str, source: Path | None = None, *, if_missing: bool = False, add: bool = False, overwrite: bool = False
) -> Installed | None:
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
    add, overwrite
        As in `install`.

    Raises
    ------
    InputError
        There is no such dataset, as `datasets.Dataset.write` and `install`, and see ``if_missing``.
    """
    dataset = DATASETS[name]()
    description = SetDescription(voxel_size=dataset.spacing, tissue=dataset.tissue, terms=dataset.licence)
    new = NewSet(name, description, partial(dataset.write, source=source))
    if not if_missing:
        return install(new, preset=dataset.preset, notes=(dataset.note,), add=add, overwrite=overwrite)
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
    name: str = "imported",
    description: SetDescription = UNDESCRIBED,
    consecutive: bool = False,
    test_fraction: float = 0.25,
    gap: int = 4,
    add: bool = False,
    overwrite: bool = False,
) -> Installed:
    """Put a lab's own stacks into ``data/``, as one set.

    Parameters
    ----------
    images, masks, test_images, test_masks
        Files, folders, globs or addresses, paired by `importing.find_pairs`. Without test files the last slices of each
        stack are the test part; of unrelated slices the last ones.
    name
        What to call the set: a letter, then letters, digits, ``-``, ``_`` and ``.``.
    description
        What is known of it. The voxel size that its files say joins what is given here.
    consecutive
        The files are the slices of one stack, in natural order of their names; the same for those that test.
    test_fraction, gap
        Share of the slices that tests, 0 for none, and how many are left out before those (`importing.hold_out`).
    add, overwrite
        As in `install`.

    Raises
    ------
    InputError
        Files cannot be paired or used, contradict each other or the description, or there are too few slices; and as
        in `install`.
    """
    _require_project()
    _require_options(name, test_images, test_masks, consecutive=consecutive, unrelated=description.unrelated)
    found = find_pairs(images, masks, ("--images", "--masks"), consecutive=consecutive)
    tests = None
    if test_images:
        tests = find_pairs(test_images, test_masks, ("--test-images", "--test-masks"), consecutive=consecutive)
    sources = [found, tests] if tests else [found]
    places = [pair.image.location for source in sources for pair in source.pairs]
    notes = [note for source in sources for note in (*source.notes, *_matches(source))]
    voxel_size = agree_on_voxel_size(places, description.voxel_size, "--voxel-size", as_warnings(notes.append))
    for pair in (pair for source in sources for pair in source.pairs):
        of_mask = read_spacing(pair.mask.location)
        warn_of_other_size(of_mask, pair.mask.location, voxel_size, pair.image.location, as_warnings(notes.append))
    described = description.model_copy(update={"voxel_size": voxel_size})
    train, test = _divide(found, tests, test_fraction, gap, unrelated=description.unrelated)
    prefix = "--test-" if tests else "--"

    def write(train_folder: Path, test_folder: Path) -> dict[Path, str]:
        folders = {train_folder / "images": "--images", train_folder / "masks": "--masks"}
        folders |= {test_folder / "images": f"{prefix}images", test_folder / "masks": f"{prefix}masks"}
        if any(is_url(source) for source in (*images, *masks, *test_images, *test_masks)):
            _say(f"copying {sum(excerpt.size for excerpt in (*train, *test)) / 1e6:.1f} MB, from servers too")
        origins = write_excerpts({train_folder: train, test_folder: test}) | folders
        for source in sources:  # after the masks were read, since only reading tells what a server lacks
            for mask in (pair.mask for pair in source.pairs):
                notes.extend(describe_absent(mask.location, mask.absent_chunks()))
        return origins

    notes += _notes(found, None if tests else train + test, unrelated=description.unrelated)
    installed = install(NewSet(name, described, write), notes=notes, add=add, overwrite=overwrite)
    doubts = [f"warning: {each}" for each in installed.findings.warnings if each.where in ("--masks", "--test-masks")]
    return replace(installed, notes=(*installed.notes, *dict.fromkeys(doubts)))


def _require_options(
    name: str, test_images: Sequence[str], test_masks: Sequence[str], *, consecutive: bool, unrelated: bool
) -> None:
    if name in (*DATASETS, "images", "masks") or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        expected = "a letter, then letters, digits, - or _, and no other dataset's name"
        raise InputError("--name", name, expected, "choose another name")
    if bool(test_images) != bool(test_masks):
        given, lacking = ("--test-images", "--test-masks") if test_images else ("--test-masks", "--test-images")
        raise InputError(given, f"no {lacking}", "both or none", f"add {lacking}")
    if consecutive and unrelated:
        raise InputError("--consecutive", "--unrelated too", "one of them", "leave one out")


def _divide(
    found: Sources, tests: Sources | None, fraction: float, gap: int, *, unrelated: bool
) -> tuple[list[Excerpt], list[Excerpt]]:
    """Return what trains and what tests."""
    every = single_slices if unrelated else whole
    if tests:
        return every(found.pairs), every(tests.pairs)
    if not fraction:
        return every(found.pairs), []
    if unrelated:
        return hold_out_slices(single_slices(found.pairs), fraction)
    return hold_out(found.pairs, fraction, gap)


def _notes(found: Sources, used: Sequence[Excerpt] | None, *, unrelated: bool) -> list[str]:
    """Return what a user should know of files and of the slices that are `used` of them, where a share tests."""
    notes = []
    if not unrelated and sum(pair.image.shape[0] == 1 for pair in found.pairs) > 1:
        notes.append(
            "Files of one slice each: the network learns them without their neighbours. Where they are consecutive "
            "slices of one stack, import them again with --consecutive; where they are not, with --unrelated."
        )
    slices = sum(pair.image.shape[0] for pair in found.pairs)
    if used is not None and (lost := slices - sum(excerpt.depth for excerpt in used)):
        notes.append(f"{lost} slices between train and test are left out.")
    return notes


def _matches(sources: Sources) -> list[str]:
    if not sources.by_order:
        return []
    matches = [f"  {pair.image.location} with {pair.mask.location}" for pair in sources.pairs]
    return ["The names do not show which mask belongs to which image; in order:", *matches]


def install(
    new: NewSet,
    *,
    preset: str = "imported",
    notes: Sequence[str] = (),
    as_recorded: bool = False,
    add: bool = False,
    overwrite: bool = False,
) -> Installed:
    """Make a set beside ``data/``, check it, and let it take the place of what is there, or join it.

    What is there goes into DVC's cache first, and a copy of ``data.dvc`` and ``params.yaml`` leads back to it. Then
    come ``dvc add`` and the preset. When anything fails, ``data/``, ``data.dvc``, ``params.yaml`` and ``.gitignore``
    are as they were.

    Parameters
    ----------
    new
        The set.
    preset
        The values of ``params.yaml`` that fit it alone; `SEVERAL` fits several sets.
    notes
        As in `Installed`.
    as_recorded
        Leave ``params.yaml`` as it is, and insist on the hash in ``data.dvc`` where there is one.
    add
        Keep the other sets.
    overwrite
        Where a set is added, replace the one of its name.

    Raises
    ------
    InputError
        This is no project with DVC, there is a set of that name, the new data has errors, or DVC refuses it.
    """
    settings = _require_project()
    kept = _kept_sets(new.name, overwrite) if add else {}
    sets = {name: (kept | {new.name: new.description})[name] for name in sorted([*kept, new.name], key=natural_order)}
    with _all_or_nothing() as old:
        with files.replacing(DATA) as beside:
            findings = _write_data(beside, new, kept, sets, settings.validate_.near_duplicate)
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
            changed = presets.apply(PARAMS, SEVERAL if len(sets) > 1 else preset, name="+".join(sets))
    return Installed(sets, findings, changed, None if same else way_back, tuple(notes))


def _write_data(
    beside: Path, new: NewSet, kept: Iterable[str], sets: Mapping[str, SetDescription], near_duplicate: float
) -> Findings:
    """Make a data folder of the new set and of those that stay, and check it."""
    for name in kept:
        _link(DATA, beside, name)
    origins = new.write(beside / "train" / new.name, beside / "test" / new.name)
    write_sets(beside, sets)
    _say("checking every slice")
    return _check(beside, near_duplicate, origins)


def _kept_sets(name: str, overwrite: bool) -> dict[str, SetDescription]:
    """Return the sets of ``data/`` that stay where one of that name is added."""
    if not _holds_files(DATA):
        if POINTER.exists():
            remedy = "run `dvc pull`, or `mitoflow data import` to start anew"
            raise InputError(DATA, "no files", f"those that {POINTER} names", remedy)
        return {}
    sets = read_sets(DATA)
    if name in sets and not overwrite:
        expected = f"a name other than {', '.join(sets)}"
        raise InputError("--name", f"{name}, a set that is there", expected, "choose another, or give --overwrite")
    return {each: description for each, description in sets.items() if each != name}


def _link(source: Path, target: Path, name: str) -> None:
    """Put a set of one data folder into another; hard links where they can be, for sets may be large."""

    def link(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:
            shutil.copyfile(file, to)

    for part in PARTS:
        if (source / part / name).is_dir():
            shutil.copytree(source / part / name, target / part / name, copy_function=link)


def _require_project() -> params.Params:
    settings = params.load(PARAMS)
    if not Path(".dvc").is_dir():
        raise InputError(Path.cwd(), "no .dvc folder", "a project under DVC", "run `git init` and `dvc init` in it")
    return settings


def _check(data: Path, near_duplicate: float, origins: Mapping[Path, str]) -> Findings:
    findings = check_dataset(data, near_duplicate)

    def name(finding: Finding) -> Finding:
        words = [finding.where, finding.found, finding.expected, finding.remedy]
        # The longer paths first: a file before its folder, and what remains lies in data/ for the user.
        for path, origin in [*origins.items(), (data, str(DATA))]:
            words = [word.replace(str(path), origin) for word in words]
        return Finding(*words)

    for error in map(name, findings.errors):
        raise InputError(error.where, error.found, error.expected, error.remedy)
    return replace(findings, warnings=[*map(name, findings.warnings)])


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
        remedy = "correct that, then run this again"
        raise InputError(f"dvc {' '.join(arguments)}", process.failure(done.stderr), "success", remedy)
