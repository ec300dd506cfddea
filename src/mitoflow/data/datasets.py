"""Named datasets, and how one of them becomes ``data/``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pooch
from tqdm import tqdm

from mitoflow.config import params, presets
from mitoflow.config.params import MaskRule
from mitoflow.core import files, workspace
from mitoflow.data import phantom
from mitoflow.data.download import fetch
from mitoflow.data.importing import Excerpt, Sources, find_pairs, hold_out, whole
from mitoflow.data.masks import MaskValues
from mitoflow.data.pairs import Pair
from mitoflow.data.validation import Findings, check_dataset
from mitoflow.errors import InputError
from mitoflow.io.tiff import open_mask, open_stack

DATA, POINTER, PARAMS, IGNORED = Path("data"), Path("data.dvc"), Path("params.yaml"), Path(".gitignore")

EPFL_URL = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/"
EPFL_SHAPE = (165, 768, 1024)
EPFL_STACKS = {"train": "training", "test": "testing"}
EPFL_NOTE = (
    "FIB-SEM of the CA1 hippocampus, EPFL CVLab, for research use. Cite: A. Lucchi, K. Smith, R. Achanta, G. Knott, "
    'P. Fua, "Supervoxel-Based Segmentation of Mitochondria in EM Image Stacks with Learned Shape Features", '
    "IEEE TMI 31(2), 2012."
)

#: What the named datasets are and on which terms they may be used, for the cards of models that learned from them.
NOTES = {
    "phantom": "A synthetic EM stack, drawn by mitoflow and not acquired: it says nothing about real tissue.",
    "epfl": f"{EPFL_NOTE} A voxel is about 5 nm wide along each axis.",
}
LICENCES = {"phantom": "MIT, as mitoflow", "epfl": "research use; cite Lucchi et al., IEEE TMI 31(2), 2012"}


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


@dataclass(frozen=True)
class Recipe:
    """A dataset that is still to be made.

    Attributes
    ----------
    name, preset, mask_rule
        Of ``params.yaml``: ``data.name``, the values that fit, and ``data.mask_rule``.
    write
        Makes ``train`` and ``test`` in the folder that it is given.
    origins
        What a path in that folder, such as ``train/images/s1.tif``, is called in errors; the longer
        paths come first.
    notes
        As in `Installed`.
    """

    name: str
    preset: str
    write: Callable[[Path], None]
    mask_rule: MaskRule = "auto"
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def install_phantom(*, if_missing: bool = False) -> Installed | None:
    """Make the synthetic stack and put it into ``data/``.

    Parameters
    ----------
    if_missing
        Do nothing where ``data/`` holds files, and return None. Otherwise leave ``params.yaml`` as it is, and refuse
        where it or ``data.dvc`` speaks of other data.

    Raises
    ------
    InputError
        As in `install`, and see ``if_missing``.
    """
    recipe = Recipe("phantom", "phantom", phantom.write_phantom)
    if not if_missing:
        return install(recipe)
    if _holds_files(DATA):
        return None
    name = params.load(PARAMS).data.name
    if name != recipe.name:
        remedy = "run `dvc pull` to get it, or `mitoflow data phantom` to work on the phantom instead"
        raise InputError(DATA, "no files", f"the dataset {name} that {PARAMS} names", remedy)
    return install(recipe, as_recorded=True)


def install_epfl(folder: Path | None = None, *, url: str = EPFL_URL) -> Installed:
    """Put the EPFL hippocampus set into ``data/``: two stacks of 165 slices, of which the second tests.

    There is no published checksum: the files count as whole when every page can be read, and shape, pixel type and mask
    values are those of the set.

    Parameters
    ----------
    folder
        Where the four files are, under the names that they have at EPFL; without it they are downloaded into the user's
        cache, once.
    url
        Where they are downloaded from.

    Raises
    ------
    InputError
        A file is missing, cannot be downloaded or is another one; and as in `install`.
    """
    _require_project()
    parts = {}
    for part, stack in EPFL_STACKS.items():
        files = f"{stack}.tif", f"{stack}_groundtruth.tif"
        image, mask = (folder / file for file in files) if folder else (_epfl_download(url + file) for file in files)
        parts[part] = whole([_epfl_pair(stack, image, mask)])
    return install(Recipe("epfl", "epfl", partial(_write, parts), origins=_origins(parts), notes=(EPFL_NOTE,)))


def _epfl_download(url: str) -> Path:
    path = fetch(url, Path(pooch.os_cache("mitoflow")))
    try:
        open_mask(path)
    except InputError as error:
        path.unlink()
        remedy = "try later, or give a local copy with --from"
        raise InputError(url, error.found, "a TIFF", remedy) from None
    return path


def _epfl_pair(name: str, image: Path, mask: Path) -> Pair:
    pair = Pair(name, open_stack(image), open_mask(mask))
    remedy = "take the file from the EPFL download"
    for stack in (pair.image, pair.mask):
        if stack.shape != EPFL_SHAPE or stack.dtype != np.uint8:
            raise InputError(stack.path, f"{stack.dtype} of {stack.shape}", f"uint8 of {EPFL_SHAPE}", remedy)
    values = MaskValues(mask)
    for plane in pair.mask.slices():
        values.add(plane)
    if values.values != {0, 255}:
        raise InputError(mask, f"the values {sorted(values.values)}", "0 and 255", remedy)
    return pair


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
        Files, folders or globs, paired by `sources.find_pairs`. Without test files the last slices of each stack test.
    consecutive
        The files are the slices of one stack, in natural order of their names; the same for those that test.
    name
        What to call the dataset: a letter, then letters, digits, ``-``, ``_`` and ``.``.
    mask_rule
        How the masks are to be read.
    test_fraction, gap
        Share of the slices that tests, and how many are left out before those (`sources.hold_out`).

    Raises
    ------
    InputError
        Files cannot be paired or used, or there are too few slices; and as in `install`.
    """
    _require_project()
    if name in ("phantom", "epfl") or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
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
        parts = {"train": whole(found.pairs), "test": whole(tests.pairs)}
    else:
        train, test = hold_out(found.pairs, test_fraction, gap)
        parts = {"train": train, "test": test}
        slices, used = sum(pair.image.shape[0] for pair in found.pairs), sum(e.depth for e in train + test)
        notes.append(f"{slices - used} slices between train and test are left out.")
    prefix = "--test-" if test_images else "--"
    folders = {"train/images": "--images", "train/masks": "--masks"}
    folders |= {"test/images": f"{prefix}images", "test/masks": f"{prefix}masks"}
    origins = _origins(parts) | folders
    return install(Recipe(name, "imported", partial(_write, parts), mask_rule, origins, tuple(notes)))


def _matches(sources: Sources) -> list[str]:
    if not sources.by_order:
        return []
    matches = [f"  {pair.image.path} with {pair.mask.path}" for pair in sources.pairs]
    return ["The names do not show which mask belongs to which image; in order:", *matches]


def _origins(parts: Mapping[str, Sequence[Excerpt]]) -> dict[str, str]:
    return {
        f"{part}/{kind}/{excerpt.pair.name}.tif": str(stack.path)
        for part, excerpts in parts.items()
        for excerpt in excerpts
        for kind, stack in (("images", excerpt.pair.image), ("masks", excerpt.pair.mask))
    }


def _write(parts: Mapping[str, Sequence[Excerpt]], data: Path) -> None:
    slices = 2 * sum(excerpt.depth for excerpts in parts.values() for excerpt in excerpts)
    with tqdm(desc="data", total=slices, unit="slice", disable=None) as bar:
        for part, excerpts in parts.items():
            for excerpt in excerpts:
                excerpt.write(data / part, bar.update)


def install(recipe: Recipe, *, as_recorded: bool = False) -> Installed:
    """Make a dataset beside ``data/``, check it, and let it take the place of what is there.

    What is there goes into DVC's cache first, and a copy of ``data.dvc`` and ``params.yaml`` leads back to it. Then
    come ``dvc add`` and the preset. When anything fails, ``data/``, ``data.dvc``, ``params.yaml`` and ``.gitignore``
    are as they were.

    Parameters
    ----------
    recipe
        The dataset.
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
            recipe.write(beside)
            _say("checking every slice")
            findings = _check(beside, recipe, settings.validate_.near_duplicate)
            if _holds_files(DATA):
                _dvc("add", str(DATA))
            before, way_back = _recorded_hash(), _keep_way_back()
            if DATA.exists():
                DATA.replace(old)
        _dvc("add", str(DATA))
        same = before == _recorded_hash()
        if as_recorded and before and not same:
            found, expected = f"the hash of a dataset other than {recipe.name}", f"that of {recipe.name}"
            remedy = f"run `dvc pull` to get it, or `mitoflow data {recipe.name}` to replace it"
            raise InputError(POINTER, found, expected, remedy)
        changed = {}
        if not as_recorded:
            changed = presets.apply(PARAMS, recipe.preset, name=recipe.name, mask_rule=recipe.mask_rule)
    return Installed(recipe.name, findings, changed, None if same else way_back, recipe.notes)


def _require_project() -> params.Params:
    settings = params.load(PARAMS)
    if not Path(".dvc").is_dir():
        raise InputError(Path.cwd(), "no .dvc folder", "a project under DVC", "run `git init` and `dvc init` in it")
    return settings


def _check(data: Path, recipe: Recipe, near_duplicate: float) -> Findings:
    findings = check_dataset(data, recipe.mask_rule, near_duplicate)
    for error in findings.errors:
        words = [error.where, error.found, error.expected, error.remedy]
        for path, origin in recipe.origins.items():
            words = [word.replace(str(data / path), origin) for word in words]
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
