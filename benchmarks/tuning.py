"""Does the study pay? `python -m benchmarks tuning PROJECT ...`, for hours.

Each PROJECT is a clone of this repository that is made for this, with data and a preset; its `params.yaml` is changed.
For each seed a training is measured on the test part, by `dvc repro`, with

- `defaults`: the values `start` of `params.yaml`;
- `tuned`: the values that the study found;
- `random`: the best of a random search with the same budget, whose trials all are as long as the longest of the study.

The best is chosen on the validation part, as always. Beside it some configurations are fitted for the crops of each
rung, and for those of a training: do the scores of a rung rank them as the scores of a training do?

Results are lines of JSON in the project. What is there is not done again, and what was interrupted goes on; other data
or other parameters are another result. After each result a line says how long the rest will take, by the crops that are
left. Values that were trained already, with the same seed, come out of DVC's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import optuna
from scipy import stats

from benchmarks.result_lines import Results, path_of_results
from mitoflow.config import params, presets
from mitoflow.config.params import SAMPLED, Params, Recipe, SharedWithTrials
from mitoflow.core import files, workspace
from mitoflow.core.progress import progress_bar
from mitoflow.data.patches import PatchStore
from mitoflow.errors import InputError, run_as_command
from mitoflow.stages.paths import BEST_PARAMS, DATA, EVALUATE_REPORTS, PATCHES, TRAIN_REPORTS
from mitoflow.training import fitting
from mitoflow.tuning import halving
from mitoflow.tuning.trial import Trial

PARAMS = Path("params.yaml")
RESULTS = "tuning"
CONFIGURATION = "configuration"

Values = dict[str, Any]


def repro(*stage: str, **changes: Any) -> None:
    """Change `params.yaml` of this project, two underscores for a dot in a key, and run `dvc repro`."""
    presets.change(PARAMS, {key.replace("__", "."): str(value) for key, value in changes.items()})
    if subprocess.run([sys.executable, "-m", "dvc", "repro", *stage], check=False).returncode:
        raise InputError(Path.cwd(), "a pipeline that failed", "one that runs", "see above, then run this again")


class Row(NamedTuple):
    """A result: its key, what it costs, in crops, and what measures it."""

    key: dict[str, Any]
    crops: int
    measure: Callable[[], dict[str, Any]]


def trained(find: Callable[[int], Values], seed: int) -> dict[str, Any]:
    """Train with the values that a search finds, and return them with the test and the validation Dice.

    Parameters
    ----------
    find
        The search, which takes the seed.
    seed
        Of the search and of the training.
    """
    values = find(seed)
    repro(**{f"train__{key}": value for key, value in values.items()}, train__seed=seed)
    tested = files.read_json(EVALUATE_REPORTS / "metrics.json", "run `dvc repro`", ["whole_slice"])["whole_slice"]
    fitted = files.read_json(TRAIN_REPORTS / "metrics.json", "run `dvc repro`", ["best_val_dice"])
    figures = {key: tested[key] for key in ("dice", "dice_low", "dice_high")}
    return {"values": values, **figures, "val_dice": fitted["best_val_dice"]}


def tuned_values(budget: int, seed: int) -> Values:
    """Return what the study finds."""
    left_open = {f"train__{key}": "tuned" for key in SAMPLED}
    repro("tune", **left_open, tune__budget=budget, tune__budget_unit="crops", tune__seed=seed)
    return files.read_yaml(BEST_PARAMS, "run `dvc repro tune`", SAMPLED)


def random_values(settings: Params, budget: int, seed: int) -> Values:
    """Return the best of independent values, each fitted for as many crops as the longest trial of the study."""
    trial, folder = trials(settings, seed)
    crops = sum(rung.crops for rung in halving.rungs(settings.tune, budget))
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    scores: list[tuple[float, Values]] = []
    for number in range(max(1, budget // crops)):
        values = drawn.ask(halving.distributions(settings.tune)).params
        scores.append((score(trial, folder / f"random-{crops}", number, values, [crops]), values))
    return max(scores, key=lambda each: each[0])[1]


def configuration(settings: Params, number: int, values: Values, budget: int) -> dict[str, Any]:
    """Return the scores of a configuration after each rung, and after a training."""
    trial, folder = trials(settings, settings.tune.seed)
    crops = [rung.crops for rung in halving.rungs(settings.tune, budget)]
    folder /= f"rungs-{'-'.join(map(str, crops))}"
    lengths = range(1, len(crops) + 1)
    scores = {str(sum(crops[:each])): score(trial, folder, number, values, crops[:each]) for each in lengths}
    recipe = Recipe.model_validate(settings.train.model_dump(exclude={"init_from"}) | values)
    checkpoints = folder / f"training-{number}"
    checkpoints.mkdir(parents=True, exist_ok=True)
    title = f"configuration {number + 1}, training"
    fitted = fitting.fit(PatchStore.open(PATCHES), recipe, checkpoints=checkpoints, title=title)
    return {"values": values, "scores": scores, "trained": fitted.history[fitted.best_epoch]["val_dice"]}


def trials(settings: Params, seed: int) -> tuple[Trial, Path]:
    """Return what trials of the study would have in common, and a folder for their checkpoints."""
    shared = settings.train.model_dump(include=set(SharedWithTrials.model_fields)) | {"seed": seed}
    trial = Trial.of(PATCHES, shared)
    return trial, workspace.state_dir() / "benchmark-tuning" / trial.digest


def score(trial: Trial, folder: Path, number: int, values: Values, crops: Sequence[int]) -> float:
    """Return the best validation Dice of a trial in its last rung."""
    return max(logs["val_dice"] for logs in trial(folder, number, values, crops, lambda: None))


def digest(settings: Params) -> str:
    """Identify the data of this project, and the parameters that decide its results and are not in their keys."""
    decides = settings.model_dump(include={"patch", "tune", "train", "evaluate"})
    for key in ("budget", "budget_unit"):
        del decides["tune"][key]
    return files.short_digest(decides, DATA)[:12]


def rows(settings: Params, settings_digest: str, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the results of a project, in the order in which they are measured."""
    start = {key: getattr(settings.tune, key).start for key in SAMPLED}
    training = settings.train.epochs * settings.train.patches_per_epoch
    of = {"set": settings.data.name, "settings": settings_digest}
    for budget in options.budget or [settings.tune.budget]:
        searches: dict[str, Callable[[int], Values]] = {
            "defaults": lambda seed: start,
            "tuned": partial(tuned_values, budget),
            "random": partial(random_values, settings, budget),
        }
        for seed in options.seeds:
            for kind, find in searches.items():
                searched = 0 if kind == "defaults" else budget
                key = {**of, "kind": kind, "budget": searched, "seed": seed}
                yield Row(key, searched + training, partial(trained, find, seed))
        if not options.configurations:
            continue
        crops = sum(rung.crops for rung in halving.rungs(settings.tune, budget)) + training
        wanted = settings.tune.model_copy(update={"trials": options.configurations})
        for number, values in enumerate(halving.starting_points(wanted, halving.distributions(wanted))):
            key = {**of, "kind": CONFIGURATION, "budget": budget, "number": number}
            yield Row(key, crops, partial(configuration, settings, number, values, budget))


def measure(results: Results, options: argparse.Namespace) -> None:
    """Measure in the project of this folder, whatever an interrupted run left in its ``params.yaml``."""
    left_open = {f"train__{key}": "tuned" for key in SAMPLED}
    repro("patch", **left_open, train__init_from="none", train__seed=1, tune__seed=1)
    settings = params.load()
    measure_rows(results, rows(settings, digest(settings), options), settings.data.name)


def measure_rows(results: Results, wanted: Iterable[Row], name: str) -> None:
    """Measure the results that are not there yet, each once, and show how long the rest will take."""
    missing = {str(row.key): row for row in wanted if results.lacks(row.key)}
    with progress_bar(desc=f"tuning, {name}", total=sum(row.crops for row in missing.values()), unit="crop") as bar:
        for row in missing.values():
            results.add(row.key, row.measure())
            bar.update(row.crops)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return Spearman's rank correlation and its 95 % interval, which takes four pairs.

    By Fisher's transformation, with the variance of Bonett and Wright, Psychometrika 65, 2000.
    """
    rho = float(stats.spearmanr(first, second).statistic)
    if len(first) < 4 or abs(rho) == 1:
        return rho, rho if abs(rho) == 1 else -1.0, rho if abs(rho) == 1 else 1.0
    margin = 1.96 * np.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    low, high = np.tanh(np.arctanh(rho) + margin * np.array([-1, 1]))
    return rho, float(low), float(high)


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown: Dice of the trainings, then the rank correlations."""
    return "\n".join([*_trainings(rows), "", *_correlations(rows)])


def _trainings(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| set | values | crops of the search | test Dice of each seed | mean | validation Dice, mean | settings |"
    yield "|---|---|---|---|---|---|---|"
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] != CONFIGURATION:
            groups.setdefault((row["set"], row["kind"], row["budget"], _settings(row)), []).append(row)
    for (name, kind, budget, settings), same in groups.items():
        each = ", ".join(f"{row['dice']:.4f} [{row['dice_low']:.4f}, {row['dice_high']:.4f}]" for row in same)
        dice, validation = (np.mean([row[key] for row in same]) for key in ("dice", "val_dice"))
        yield f"| {name} | {kind} | {budget:,} | {each} | {dice:.4f} | {validation:.4f} | {settings} |"


def _correlations(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| set | crops of a trial | configurations | rank correlation with a training | settings |"
    yield "|---|---|---|---|---|"
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == CONFIGURATION:
            groups.setdefault((row["set"], row["budget"], _settings(row)), []).append(row)
    for (name, _, settings), same in groups.items():
        for crops in same[0]["scores"] if len(same) > 1 else ():
            found = rank_correlation([row["scores"][crops] for row in same], [row["trained"] for row in same])
            rho, low, high = (f"{each:.2f}" for each in found)
            yield f"| {name} | {int(crops):,} | {len(same)} | {rho} [{low}, {high}] | {settings} |"


def _settings(row: Mapping[str, Any]) -> str:
    """Return the digest of the settings of a row, which older rows do not say."""
    return str(row.get("settings", ""))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks tuning", description=described)
    parser.add_argument("projects", nargs="*", type=Path, metavar="PROJECT", help="clones with data and a preset")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of studies and trainings")
    parser.add_argument(
        "--budget", nargs="+", type=int, metavar="CROPS", help="of a search (default: tune.budget of the project)"
    )
    parser.add_argument("--configurations", type=int, default=12, help="for the rank correlation; 0 leaves it out")
    parser.add_argument("--into", type=Path, help="the results (default: .mitoflow/benchmarks in each project)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in each project, and print the tables; without a project those of the published results."""
    options = parse(arguments)
    paths = [(options.into or path_of_results(RESULTS, each)).absolute() for each in options.projects or [None]]

    def measure_all() -> None:
        for project, path in zip(options.projects, paths, strict=False):
            with contextlib.chdir(project):
                measure(Results(path), options)
        print(tables([row for path in dict.fromkeys(paths) for row in Results(path).rows]))

    run_as_command(measure_all)
