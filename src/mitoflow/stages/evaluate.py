"""Measure the model on the test part, register it, and let the gate decide whether it becomes the champion."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mitoflow.config import params
from mitoflow.config.sections import dotted
from mitoflow.core import files, provenance
from mitoflow.data import fingerprint, network_input
from mitoflow.data.conventions import Conventions, mask_rules, mean_pixel_size, read_conventions
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.data.set_descriptions import FILE, read_sets
from mitoflow.data.slice_distance import SliceDistance
from mitoflow.errors import InputError
from mitoflow.evaluation import protocols, report
from mitoflow.evaluation.evaluation_record import Evaluation, hash_sets
from mitoflow.evaluation.results import Results, score
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference.networks import read_network
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.stages.paths import (
    CONVENTIONS,
    CURVES,
    DATA,
    DOMAIN,
    EVALUATE_REPORTS,
    EVALUATED,
    HEADLINE,
    INFERENCE,
    METRICS,
    MODEL,
    MODEL_FACTS,
    PATCHES,
    TRAIN_REPORTS,
)
from mitoflow.tracking import registration, runs
from mitoflow.tracking.gate import Gate
from mitoflow.tracking.naming import run_name

REPORT = EVALUATE_REPORTS / "report.html"
PRECISION_RECALL = EVALUATE_REPORTS / "precision_recall.csv"
CALIBRATION = EVALUATE_REPORTS / "calibration.csv"
SLICES = EVALUATE_REPORTS / "slices.csv"
#: What goes into MLflow before the verdict, which the report shows.
PUBLISHED = (METRICS, EVALUATED, INFERENCE, DOMAIN, PRECISION_RECALL, CALIBRATION, SLICES)

PROTOCOLS = ("patch_wise", "whole_slice")  # sections of metrics.json
LOOKED_AT = 64  # training patches


@dataclass(frozen=True)
class Published:
    """What MLflow gets of a trained and evaluated model, besides files.

    Attributes
    ----------
    params
        The sections of ``params.yaml`` as the training used them, and its initial weights.
    history
        For each epoch of the training its loss, dice, val_loss and val_dice.
    summary
        The figures of ``metrics.json``.
    evaluation
        The counts on the test part.
    """

    params: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    evaluation: Evaluation


def main() -> None:
    settings = params.load()
    Gate.load()  # raises where promotion.yaml is wrong, before anything is computed
    conventions = read_conventions(CONVENTIONS)
    facts, history = _read_facts(), _read_history()
    store, pairs = PatchStore.open(PATCHES), read_pairs(DATA / "test")
    predictor = _load(facts, settings.evaluate)
    name = run_name("evaluate", settings.data.name)
    with runs.start("evaluate", name, training=runs.producer(MODEL)) as run:
        choice, predictor = _choose(predictor, settings.evaluate, store)
        measured = protocols.measure(predictor, pairs, conventions, store.size, settings.instances)
        wanted = settings.evaluate
        results = score(measured, choice, wanted.bootstrap_block, wanted.bootstrap_resamples, wanted.seed)
        evaluation = _record(results, hash_sets(DATA / "test", mask_rules(conventions)), settings)
        predictor.settings.write(INFERENCE)
        _look_at_training(store, conventions).write(DOMAIN)
        evaluation.write(EVALUATED)
        _write_results(results)
        verdict = publish(run, Published(_all_params(settings, facts), history, results.summary(), evaluation))
        shown = {name: _worst_and_median(name, measured[name], pairs, each) for name, each in results.by_set.items()}
        origin = report.Origin(
            dataset=settings.data.name,
            history=history,
            lineage=provenance.current() | {"model_sha256": evaluation.model_sha256},
            params=settings.model_dump(by_alias=True) | {"train": settings.train.model_dump() | facts["recipe"]},
        )
        report.write_evaluation_report(REPORT, results, origin, shown, verdict)
        run.artifact(REPORT, "evaluate")
        for name, png in report.pictures(results, history, shown).items():
            run.image(name, png)
    for name, each in results.sets.items():
        print(f"test, {name}: whole-slice Dice {each.whole_slice.intervals['dice']}")
    print(f"test: whole-slice Dice {results.whole_slice.intervals['dice']}; see {REPORT}")


def publish(run: runs.Run, published: Published) -> Verdict | None:
    """Record model and evaluation in `run` and register the model; None where MLflow is away.

    A model that was pulled has no training run here, so its curves go into `run` too.
    """
    evaluation = published.evaluation
    run.params(published.params)
    if (DATA / FILE).is_file():
        terms = {name: each.terms or "terms unknown" for name, each in read_sets(DATA).items()}
        run.tags(provenance.tags({"sets": "; ".join(f"{name}: {text}" for name, text in terms.items())}))
    run.metrics(_headline_first(_flat("test", published.summary)))
    if run.training is None:
        for epoch, logs in enumerate(published.history):
            run.metrics(logs, step=epoch)
        run.artifact(TRAIN_REPORTS)
        run.produced(MODEL)
    for name, each in evaluation.sets.items():
        profile = {"slices": len(each.counts), "stacks": sorted(set(each.stacks))}
        source = DATA / "test" / name if name else DATA / "test"
        run.dataset(name or published.params["data"]["name"], str(source), each.test_hash, "test", profile)
    for file in PUBLISHED:
        run.artifact(file, "evaluate")
    verdict = registration.register(run, evaluation, MODEL, INFERENCE)
    run.describe(f"{evaluation.headline}; {registration.outcome(verdict)}")
    print(registration.outcome(verdict))
    return verdict


def register() -> Verdict | None:
    """Register a model and an evaluation that were pulled rather than computed.

    The report stays behind: it shows the verdict of the registry in which it was made.
    """
    for path in (MODEL, MODEL_FACTS, CURVES, *PUBLISHED):
        if not path.is_file():
            raise InputError(path, "no such file", "the outputs of a pipeline", "run `dvc pull` or `dvc repro`")
    recorded, present = map(dotted, provenance.compared_params("evaluate"))
    for key, value in recorded.items():
        if present.get(key) != value:
            remedy = "run `dvc repro evaluate`, or take the value back"
            raise InputError(f"params.yaml: {key}", present.get(key), f"{value}, with which it was evaluated", remedy)
    published = Published(
        params=_all_params(params.load(), _read_facts()),
        history=_read_history(),
        summary=files.read_json(METRICS, "run `dvc repro evaluate`", PROTOCOLS),
        evaluation=Evaluation.read(EVALUATED),
    )
    name = f"register {published.params['data']['name']}"
    with runs.start(provenance.REGISTER, name, training=runs.producer(MODEL)) as run:
        return publish(run, published)


def _load(facts: Mapping[str, Any], wanted: params.Evaluate) -> Predictor:
    """Return the model, with the settings that are known before validation."""
    settings = Settings.for_network(
        wanted,
        bit_depth=facts["bit_depth"],
        divisor=facts["divisor"],
        context=facts["recipe"]["context"],
        context_step=facts.get("context_step", facts["recipe"]["context_step"]),  # models of 0.1 do not say
        normalization=facts.get("normalization", "range"),
        slices=SliceDistance(**facts["slices"]) if facts.get("slices") else None,
        contacts=facts["recipe"].get("contacts", False),
    )
    return Predictor(read_network(MODEL, settings), settings)


def _choose(predictor: Predictor, wanted: params.Evaluate, store: PatchStore) -> tuple[protocols.Choice, Predictor]:
    """Return what the validation slices decide, and the model with these settings."""
    stacks = [pair.image for pair in read_pairs(DATA / "train")]
    choice = protocols.choose(predictor, store.validation, wanted.medians, stacks, wanted.fixed_threshold)
    chosen = dataclasses.replace(predictor.settings, threshold=choice.threshold, median=choice.median)
    return choice, predictor.with_settings(chosen)


def _record(results: Results, hashes: Mapping[str, str], settings: params.Params) -> Evaluation:
    """Return the record of all sets, whose test images and masks have these hashes."""
    wanted = settings.evaluate
    sets = {
        name: Evaluation(
            model_sha256=provenance.file_sha256(MODEL),
            test_hash=hashes[name],
            stacks=list(each.stacks),
            counts=each.counts.tolist(),
            boundaries=each.boundaries.tolist(),
            block=wanted.bootstrap_block,
            resamples=wanted.bootstrap_resamples,
            seed=wanted.seed,
            instances=settings.instances.model_dump(),
        )
        for name, each in results.by_set.items()
    }
    return Evaluation.of_sets(sets)


def _flat(prefix: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of ``metrics.json`` by the keys that MLflow has: ``test/whole_slice/dice``.

    MLflow groups metrics by what is before the last ``/``. The bounds of intervals are a group of their own, so that
    the figures are seen first: ``test/whole_slice/interval/dice_low``.
    """
    flat: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            flat |= _flat(f"{prefix}/{name}", value)
        else:
            group = f"{prefix}/interval" if name.endswith(("_low", "_high")) else prefix
            flat[f"{group}/{name}"] = value
    return flat


def _headline_first(scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores with those of whole slices first and bounds of intervals last.

    MLflow lists the metrics of a run in the order in which they were logged, and its comparison opens on the first one.
    """
    order = {name: ("/interval/" in name, not name.startswith("test/whole_slice/")) for name in scores}
    return {name: scores[name] for name in sorted(scores, key=lambda name: order[name])}


def _read_facts() -> dict[str, Any]:
    return files.read_yaml(MODEL_FACTS, "run `dvc repro train` or `dvc pull`", ("bit_depth", "divisor", "recipe"))


def _read_history() -> list[dict[str, float]]:
    with CURVES.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: float(value) for name, value in row.items() if name != "epoch"} for row in rows]


def _all_params(settings: params.Params, facts: Mapping[str, Any]) -> dict[str, Any]:
    return params.as_trained(settings.model_dump(by_alias=True), facts["recipe"], facts.get("initial", {}))


def _write_results(results: Results) -> None:
    summary = results.summary()
    files.write_json(METRICS, summary)
    by_set = {name: _headline(each) for name, each in summary.get("sets", {}).items()}
    files.write_json(HEADLINE, _headline(summary) | by_set)
    curve, reliability = results.curve, results.reliability
    files.write_csv(
        PRECISION_RECALL,
        ("threshold", "precision", "recall"),
        zip(curve.thresholds, curve.precision, curve.recall, strict=True),
    )
    files.write_csv(
        CALIBRATION,
        ("probability", "frequency", "pixels"),
        zip(reliability.probability, reliability.frequency, reliability.pixels, strict=True),
    )
    columns = results.slices()
    files.write_csv(SLICES, tuple(columns), zip(*columns.values(), strict=True))


def _headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of ``metrics.json`` that tables of experiments show."""
    chosen = {name: summary["whole_slice"][name] for name in ("dice", "iou")}
    return chosen | {name: summary[name] for name in ("boundary_f1", "instance_f1_50")}


def _look_at_training(store: PatchStore, sets: Mapping[str, Conventions]) -> fingerprint.Fingerprint:
    """Measure what training images look like; of several sets, pixels have the geometric mean of the known sizes."""
    images = store.train.images
    rows = np.random.default_rng(0).permutation(len(images))[:LOOKED_AT]
    known = next(iter(sets.values())).spacing if len(sets) == 1 else mean_pixel_size(sets.values())
    return fingerprint.measure((network_input.to_unit(images[row], store.bit_depth) for row in sorted(rows)), known)


def _worst_and_median(
    dataset: str, measured: protocols.Measured, pairs: Sequence[Pair], results: Results
) -> tuple[report.PredictedSlice, report.PredictedSlice]:
    """Return the slices of a set that the report shows."""

    def picture(row: int) -> report.PredictedSlice:
        name, z = results.stacks[row], results.z[row]
        stack = next(stack for stack in measured.stacks if stack.name == name)
        image = next(pair.image for pair in pairs if (pair.dataset, pair.name) == (dataset, name)).slice(z)
        return report.PredictedSlice(name, z, image, (stack.truth[z] == 1).astype(np.uint8), stack.mask[z])

    worst, median = report.worst_and_median(results.counts)
    return picture(worst), picture(median)
