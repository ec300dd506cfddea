"""Two models side by side: the parameters that differ, their scores on the same slices, and where they differ most."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from mitoflow.config.params import as_trained
from mitoflow.core import files, process, provenance, workspace
from mitoflow.data.conventions import mask_rules, read_conventions
from mitoflow.data.masks import binarise
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.pairs import read_set
from mitoflow.errors import InputError
from mitoflow.evaluation import protocols
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.evaluation_record import Evaluation, hash_sets
from mitoflow.evaluation.report import ComparedSlice, Comparison
from mitoflow.inference import model_files
from mitoflow.inference.jobs import Prediction
from mitoflow.inference.prediction import prediction_of
from mitoflow.inference.request import Request
from mitoflow.inference.trained_model import TrainedModel
from mitoflow.io import tiff
from mitoflow.io.spacing import Notify, Spacing
from mitoflow.io.volumes import StackVolume, Volume
from mitoflow.tracking import model_lookup, registry, runs
from mitoflow.tracking.gate import Gate

SLICES = 4  # that are shown
OF_REVISION = (Path("models"), Path("reports/evaluate"))  # what a revision has of its model
EXPECTED = "a version, an alias, a run, a git revision, a DVC experiment, pretrained or a .keras file"


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes
    ----------
    name
        What to call it.
    model
        The trained model.
    params
        Its parameters, by dotted key; empty for one that ships, or a file, which do not state them.
    evaluation
        What it did on the test part; None where that was left behind.
    """

    name: str
    model: TrainedModel
    params: Mapping[str, str]
    evaluation: Evaluation | None


def compare(
    a: str, b: str, part: Path, conventions: Path, *, pictures: bool, notify: Notify = lambda _: None
) -> Comparison:
    """Compare two models.

    Where they were not evaluated on the same slices, they are now, on those of ``data/test``, by the masks that
    `mitoflow predict` makes of them.

    Parameters
    ----------
    a, b
        The number of a version, an alias, the ID of a run, a git revision, the name of a DVC experiment,
        ``pretrained``, ``pretrained:NAME`` or a ``.keras`` file.
    part, conventions
        ``data/test``, and how its masks are read; both may be absent, then there are no pictures, and models that were
        evaluated on other slices cannot be compared slice by slice.
    pictures
        Whether both models predict the slices where they differ most.
    notify
        Called with the notes of predictions that are evaluated now, one line each.

    Raises
    ------
    InputError
        There is no such model, or it was never evaluated and ``data/test`` is not here.
    """
    first, second = find(a), find(b)
    keys = sorted(first.params.keys() | second.params.keys()) if first.params and second.params else []
    params = {key: (first.params.get(key, "–"), second.params.get(key, "–")) for key in keys}
    ours, theirs, evaluated = _evaluations(first, second, part, conventions, notify)
    sets, notes = _sets_of_both(ours, theirs)
    notes = evaluated + notes
    if sets:
        ours, theirs = (Evaluation.of_sets({name: each[side] for name, each in sets.items()}) for side in (0, 1))
    rows = _rows_that_differ(ours, theirs) if sets else []
    if sets and not rows:
        notes.append("they are equally right on every slice")
    shown: list[ComparedSlice] = []
    if rows and pictures:
        folders, why_not = _folders(part, conventions, {name: each.test_hash for name, (each, _) in sets.items()})
        if why_not:
            notes.append(f"no pictures: {why_not}")
        else:
            shown = _look(rows, ours, (first.model, second.model), folders, conventions)
    return Comparison(
        names=(first.name, second.name),
        params={key: values for key, values in params.items() if values[0] != values[1]},
        scores=_scores(ours, theirs, paired=bool(sets)),
        sets={name: _scores(*each, paired=True) for name, each in sets.items()} if len(sets) > 1 else {},
        wrong=[
            (_title(*_place(ours, row)), _place(ours, row)[2], _wrong(ours)[row], _wrong(theirs)[row]) for row in rows
        ],
        slices=shown,
        notes=notes,
    )


def _evaluations(
    first: Side, second: Side, part: Path, conventions: Path, notify: Notify
) -> tuple[Evaluation, Evaluation, list[str]]:
    """Return what both did on the same slices, and a note where they were not evaluated on the same ones before."""
    ours, theirs = first.evaluation, second.evaluation
    if ours and theirs and ours.shared_sets(theirs):
        return ours, theirs, []
    if part.exists() and conventions.exists():
        one, other = (_evaluated(side, part, conventions, notify) for side in (first, second))
        names = [side.name for side, each in ((first, one), (second, other)) if each is not side.evaluation]
        return one, other, [f"evaluated now on {part}: {' and '.join(names)}"]
    if ours and theirs:
        return ours, theirs, []
    remedy = f"run `dvc pull`, which brings {part}, and `dvc repro validate`"
    raise InputError((second if ours else first).name, "no evaluation", "a model that was evaluated", remedy)


def _evaluated(side: Side, part: Path, conventions: Path, notify: Notify) -> Evaluation:
    """Return what a model did on the test part that is here: as it was recorded, or else measured now."""
    known, bootstrap = read_conventions(conventions), Gate.load().bootstrap.model_dump()
    rules = mask_rules(known)
    hashes = hash_sets(part, rules)
    recorded = side.evaluation
    if recorded and {each.test_hash for each in recorded.sets.values()} == {*hashes.values()}:
        return recorded
    sets, predict = {}, partial(_prediction, side.model, notify=notify)
    for name, digest in hashes.items():
        stacks, counts = protocols.count(predict, read_set(part / name, name), rules, known[name].spacing)
        sets[name] = Evaluation(side.model.origin["model_sha256"], digest, stacks, counts.tolist(), **bootstrap)
    return Evaluation.of_sets(sets)


def _prediction(model: TrainedModel, whole: Volume, notify: Notify) -> Prediction:
    """Return the maps that `mitoflow predict` makes of a stack in a file without options."""
    return prediction_of(Request(str(whole.files[0]), Path()), model, whole, notify)


def _sets_of_both(ours: Evaluation, theirs: Evaluation) -> tuple[dict[str, tuple[Evaluation, Evaluation]], list[str]]:
    """Return the test sets that both were evaluated on, and a note where these are not all."""
    sets = ours.shared_sets(theirs)
    if not sets:
        hashes = f"{ours.test_hash[:12]} and {theirs.test_hash[:12]}"
        reason = f"evaluated on different test data ({hashes}): the scores cannot be paired, nor slices compared"
        return {}, [reason]
    if len(sets) < max(len(ours.sets), len(theirs.sets)):
        return sets, [f"compared on the sets that both were evaluated on: {', '.join(sets)}"]
    return sets, []


def _scores(
    ours: Evaluation, theirs: Evaluation, *, paired: bool
) -> dict[str, tuple[Interval, Interval, Interval | None]]:
    """Return each score of both and, where they were made on the same slices, the second minus the first."""
    bootstrap = Gate.load().bootstrap
    return {
        score: (
            ours.interval(score),
            theirs.interval(score),
            theirs.better_by(ours, bootstrap, score) if paired else None,
        )
        for score in ours.scores
        if score in theirs.scores
    }


def find(what: str) -> Side:
    """Find one side: in a file or among those that ship, in the registry, or in git.

    Raises
    ------
    InputError
        There is no such model.
    """
    if what.partition(":")[0] == "pretrained" or what.endswith(".keras"):
        model, params = model_lookup.find(what), {}
        name = model.name
    elif _is_registered(what):
        model = model_lookup.find(what)
        params = {key.removeprefix("params."): v for key, v in model.origin.items() if key.startswith("params.")}
        for key in [key for key in params if key.startswith("recipe.")]:  # where earlier versions had what was tuned
            params[key.replace("recipe.", "train.")] = params.pop(key)
        name = model.name
    else:
        commit = _commit(what)
        folder = _checked_out(what, commit)
        model = model_lookup.find(str(folder / OF_REVISION[0] / model_files.WEIGHTS))
        settings = YAML(typ="safe", pure=True).load(provenance.git("show", f"{commit}:params.yaml") or "{}")
        facts = files.read_yaml(model.weights.with_suffix(".yaml"), "run `dvc repro train`", ("recipe",))
        params = runs.dotted(as_trained(settings, facts["recipe"], facts.get("initial", {})))
        name = f"{what} ({commit[:8]})"
    return Side(name, model, params, Evaluation.of(model))


def _is_registered(what: str) -> bool:
    if what.isdecimal() or registry.RUN_ID.fullmatch(what) or what.startswith("models:/"):
        return True
    try:
        return not registry.is_missing() and registry.find_version(what) is not None
    except InputError:  # MLflow is away; git is not
        return False


def _commit(what: str) -> str:
    """Return the commit of a git revision, or of a DVC experiment, which is a git reference of its own kind."""
    if commit := provenance.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{what}^{{commit}}"):
        return commit
    references = provenance.git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    found = {line.split()[0] for line in references.splitlines() if line.rpartition("/")[2] == what}
    if len(found) != 1:
        remedy = "`mitoflow models`, `git log` and `dvc exp show` list them"
        raise InputError(what, f"{len(found) or 'no'} such name", EXPECTED, remedy)
    return found.pop()


def _checked_out(what: str, commit: str) -> Path:
    """Return a folder with the model and the evaluation of a commit, which DVC puts there once."""
    folder = workspace.state_dir() / "revisions" / commit
    if folder.is_dir():
        return folder
    with files.replacing(folder) as beside:
        for path in OF_REVISION:
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "dvc", "get", "--quiet", "--rev", commit, "-o", str(beside / path), "."]
            done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
            if done.returncode:
                message = process.failure(done.stderr)
                remedy = "`dvc pull`, or `dvc fetch --all-commits`, brings what others computed"
                raise InputError(what, f"{path} that cannot be had: {message}", "its outputs in DVC's cache", remedy)
    return folder


def _wrong(evaluation: Evaluation) -> list[int]:
    """Return the wrong pixels of each slice."""
    return [added + missed for _, added, missed, _ in evaluation.counts]


def _rows_that_differ(a: Evaluation, b: Evaluation) -> list[int]:
    """Return the slices where the numbers of wrong pixels differ most, none of them near another."""
    difference = np.abs(np.subtract(_wrong(a), _wrong(b)))
    chosen: list[int] = []
    for row in map(int, np.argsort(-difference, kind="stable")):
        near = any(_stack(a, row) == _stack(a, other) and abs(row - other) < a.block for other in chosen)
        if difference[row] and not near and len(chosen) < SLICES:
            chosen.append(row)
    return chosen


def _stack(evaluation: Evaluation, row: int) -> tuple[str, str]:
    """Return the set, which has no name where it is the only one, and the stack of a slice."""
    return evaluation.datasets[row] if evaluation.datasets else "", evaluation.stacks[row]


def _place(evaluation: Evaluation, row: int) -> tuple[str, str, int]:
    """Return the set, the stack and the z of a slice."""
    of_stack = _stack(evaluation, row)
    return *of_stack, sum(_stack(evaluation, earlier) == of_stack for earlier in range(row))


def _title(dataset: str, stack: str, _z: int) -> str:
    return f"{dataset}/{stack}" if dataset else stack


def _folders(part: Path, conventions: Path, wanted: Mapping[str, str]) -> tuple[dict[str, Path], str]:
    """Return where the test images of each set are, by their hashes, or why that is not known."""
    for path in (part, conventions):
        if not path.exists():
            return {}, f"{path} is not here; `dvc pull` brings it"
    here = {found: name for name, found in hash_sets(part, mask_rules(read_conventions(conventions))).items()}
    for expected in wanted.values():
        if expected not in here:
            return {}, f"{part} is {', '.join(each[:12] for each in here)}, and they were evaluated on {expected[:12]}"
    folders = {name: part / here[expected] for name, expected in wanted.items()}
    return folders if len(folders) > 1 else {"": next(iter(folders.values()))}, ""


def _look(
    rows: Sequence[int],
    evaluation: Evaluation,
    models: tuple[TrainedModel, TrainedModel],
    folders: Mapping[str, Path],
    conventions: Path,
) -> list[ComparedSlice]:
    """Let both predict slices of the test part, and no others than these and what they see around them."""
    known = read_conventions(conventions)
    pairs = {(name, pair.name): pair for name, folder in folders.items() for pair in read_set(folder, folder.name)}
    places = [_place(evaluation, row) for row in rows]
    masks: dict[tuple[str, str, int], list[np.ndarray]] = {place: [] for place in places}
    for of_stack in dict.fromkeys((dataset, stack) for dataset, stack, _ in places):
        chosen = sorted(z for *each, z in places if tuple(each) == of_stack)
        for model in models:
            pair = pairs[of_stack]
            for z, mask in _predict(model, pair.image, known[pair.dataset].spacing, chosen):
                masks[*of_stack, z].append(mask)
    shown = []
    for place in places:
        dataset, stack, z = place
        pair = pairs[dataset, stack]
        truth = binarise(pair.mask.slice(z), known[pair.dataset].mask_rule)
        first, second = (np.where(truth == UNLABELLED, 0, mask).astype(np.uint8) for mask in masks[place])
        only = (truth == 1).astype(np.uint8)
        shown.append(ComparedSlice(_title(*place), z, pair.image.slice(z), only, first, second))
    return shown


def _predict(
    model: TrainedModel, image: tiff.Stack, spacing: Spacing, chosen: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the masks of slices, by ascending z."""
    prediction = _prediction(model, StackVolume([image], spacing=spacing), lambda _: None)
    settings = prediction.predictor.settings
    # Orthogonal planes reach through all slices: one pass over what lies between costs less than one for each slice.
    once = settings.uses_orthoplanes(prediction.volume.shape)
    runs = [range(chosen[0], chosen[-1] + 1)] if once else [range(z, z + 1) for z in chosen]
    for run in runs:
        maps = prediction.maps(replace(prediction.whole, slices=run))
        for z, probability in zip(run, maps, strict=True):
            if z in chosen:
                yield z, (probability >= settings.threshold).astype(np.uint8)
