"""Measure the model on the test part, register it, and let the gate decide whether it becomes the champion."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mitoflow.config import params
from mitoflow.core import files, provenance
from mitoflow.data import fingerprint, network_input
from mitoflow.data.conventions import Conventions
from mitoflow.data.masks import Rule, binarise
from mitoflow.data.pairs import Pair, read_pairs
from mitoflow.data.patches import PatchStore
from mitoflow.errors import InputError
from mitoflow.evaluation import boundary, evaluation_record, metrics, protocols, report
from mitoflow.evaluation.bootstrap import Interval, bootstrap_interval
from mitoflow.evaluation.metrics import Counts
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference.predictor import Predictor, Settings
from mitoflow.io import spacing
from mitoflow.models import unet
from mitoflow.stages import (
    CONVENTIONS,
    CURVES,
    DATA,
    DOMAIN,
    EVALUATE_REPORTS,
    EVALUATED,
    INFERENCE,
    METRICS,
    MODEL,
    MODEL_FACTS,
    PATCHES,
    TRAIN_REPORTS,
    as_process,
)
from mitoflow.tracking import registration, runs
from mitoflow.tracking.gate import Gate

REPORT = EVALUATE_REPORTS / "report.html"
LOOKED_AT = 64  # training patches


def main() -> None:
    settings = params.load()
    Gate.load()  # what is wrong in it is better said now than at the end
    conventions = Conventions.read(CONVENTIONS)
    facts = files.read_yaml(MODEL_FACTS, "run `dvc repro train`", ("bit_depth", "divisor", "recipe"))
    store, pairs = PatchStore.open(PATCHES), read_pairs(DATA / "test")
    model = unet.load_model(MODEL)
    inference = Settings(
        bit_depth=facts["bit_depth"],
        divisor=facts["divisor"],
        context=facts["recipe"]["context"],
        context_step=facts["recipe"]["context_step"],
        tile=settings.evaluate.tile,
        overlap=settings.evaluate.overlap,
        tta=settings.evaluate.tta,
        orthoplanes=settings.evaluate.orthoplanes,
        threshold=0.5,
    )
    with runs.start("evaluate", "evaluate", key=runs.producer(MODEL)) as run:
        stacks = [pair.image for pair in read_pairs(DATA / "train")]
        chosen = protocols.choose(Predictor(model, inference), store.validation, settings.evaluate.medians, stacks)
        threshold = chosen.threshold
        inference = dataclasses.replace(inference, threshold=threshold, median=chosen.median)
        predictor = Predictor(model, inference)
        measured = protocols.measure(predictor, pairs, conventions.mask_rule, store.size)
        counts = measured.whole_slice.counts_at(threshold)
        shapes = [
            protocols.compare_shapes(_truth(pair, conventions.mask_rule), measured.masks[pair.name]) for pair in pairs
        ]

        bootstrap = {
            "block": settings.evaluate.bootstrap_block,
            "resamples": settings.evaluate.bootstrap_resamples,
            "seed": settings.evaluate.seed,
        }
        evaluated = evaluation_record.Evaluation(
            model_sha256=provenance.file_sha256(MODEL),
            test_hash=files.fingerprint(conventions.mask_rule, DATA / "test"),
            stacks=measured.stacks,
            counts=counts.tolist(),
            boundaries=np.concatenate([stack.boundary for stack in shapes]).tolist(),
            **bootstrap,
        )
        patch_wise, whole_slice = (
            report.Scores(limit, _scores(c, measured.stacks, bootstrap))
            for limit, c in ((protocols.PATCH_WISE_THRESHOLD, measured.patch_wise), (threshold, counts))
        )
        curve, reliability = measured.whole_slice.precision_recall(), measured.whole_slice.reliability()
        shape_scores = protocols.score_shapes(shapes, measured.stacks, **bootstrap)
        found = {
            "true_instances": sum(stack.matching.true_instances for stack in shapes),
            "predicted_instances": sum(stack.matching.predicted_instances for stack in shapes),
        }
        summary = {
            "patch_wise": _flat(patch_wise.intervals),
            "whole_slice": _flat(whole_slice.intervals),
            "threshold": threshold,
            "median": chosen.median,
            "validation_dice": chosen.dice,
            **_flat(shape_scores),
            **found,
            **{f"slice_dice_{name}": value for name, value in metrics.slice_dice_quantiles(counts).items()},
            "average_precision": curve.average_precision,
            "calibration_error": reliability.expected_calibration_error,
            "brier": reliability.brier,
        }
        inference.write(INFERENCE)
        _look_at_training(store, settings.data.name).write(DOMAIN)
        evaluated.write(EVALUATED)
        files.write_json(METRICS, summary)
        files.write_csv(
            EVALUATE_REPORTS / "precision_recall.csv",
            ("threshold", "precision", "recall"),
            zip(curve.thresholds, curve.precision, curve.recall, strict=True),
        )
        files.write_csv(
            EVALUATE_REPORTS / "calibration.csv",
            ("probability", "frequency", "pixels"),
            zip(reliability.probability, reliability.frequency, reliability.pixels, strict=True),
        )
        _write_slices(EVALUATE_REPORTS / "slices.csv", measured, counts, np.concatenate([s.boundary for s in shapes]))

        verdict = publish(run)
        worst, median = (
            _picture(measured, pairs, conventions.mask_rule, measured.stacks[row], measured.z[row])
            for row in report.worst_and_median(counts)
        )
        results = report.Results(
            dataset=settings.data.name,
            patch_wise=patch_wise,
            whole_slice=whole_slice,
            stacks=measured.stacks,
            counts=counts,
            shapes=shape_scores,
            **found,
            curve=curve,
            reliability=reliability,
            worst=worst,
            median=median,
            history=_history(),
            lineage=provenance.current() | {"model_sha256": evaluated.model_sha256},
            params=settings.model_dump(by_alias=True) | {"recipe": facts["recipe"]},
        )
        report.write_evaluation_report(REPORT, results, verdict)
        run.artifact(REPORT, "evaluate")
    dice = whole_slice.intervals["dice"]
    print(f"test: whole-slice Dice {dice.value:.4f} [{dice.low:.4f}, {dice.high:.4f}]; see {REPORT}")


def publish(run: runs.Run) -> Verdict | None:
    """Record model and evaluation in `run` and register the model; None where MLflow is away.

    What the training recorded is recorded again, which changes nothing there: the run may be one that the store never
    saw, because the model was pulled or the store is another one.
    """
    settings = params.load()
    facts = files.read_yaml(MODEL_FACTS, "run `dvc repro train` or `dvc pull`", ("recipe",))
    run.params(settings.model_dump(by_alias=True) | {"recipe": facts["recipe"], "initial": facts.get("initial", {})})
    for epoch, logs in enumerate(_history()):
        run.metrics(logs, step=epoch)
    run.produced(MODEL)
    summary = files.read_json(METRICS, "run `dvc repro evaluate`", ("patch_wise", "whole_slice"))
    for protocol in ("patch_wise", "whole_slice"):
        run.metrics({f"test_{protocol}_{name}": value for name, value in summary.pop(protocol).items()})
    run.metrics({f"test_{name}": value for name, value in summary.items()})
    evaluated = evaluation_record.Evaluation.read(EVALUATED)
    profile = {"slices": len(evaluated.counts), "stacks": sorted(set(evaluated.stacks))}
    run.dataset(settings.data.name, str(DATA / "test"), evaluated.test_hash, "test", profile)
    run.artifact(TRAIN_REPORTS)
    for file in sorted(EVALUATE_REPORTS.iterdir()):
        if file != REPORT:
            run.artifact(file, "evaluate")
    verdict = registration.register(run, evaluated, MODEL, INFERENCE)
    print(registration.outcome(verdict))
    return verdict


def register() -> Verdict | None:
    """Register a model and an evaluation that were pulled rather than computed.

    The report stays behind: it tells the verdict of the registry in which it was made.
    """
    for path in (MODEL, MODEL_FACTS, CURVES, METRICS, EVALUATED, INFERENCE):
        if not path.is_file():
            raise InputError(path, "no such file", "the outputs of a pipeline", "run `dvc pull` or `dvc repro`")
    with runs.start("register", "register", key=runs.producer(MODEL)) as run:
        return publish(run)


def _look_at_training(store: PatchStore, name: str) -> fingerprint.Domain:
    images = store.train.images
    rows = np.random.default_rng(0).permutation(len(images))[:LOOKED_AT]
    first = read_pairs(DATA / "train")[0].image.path
    known = spacing.read_tiff_spacing(first) or spacing.PUBLISHED.get(name, {})
    return fingerprint.look_at((network_input.to_unit(images[row], store.bit_depth) for row in sorted(rows)), known)


def _scores(counts: Counts, stacks: Sequence[str], bootstrap: dict[str, int]) -> dict[str, Interval]:
    return {
        name: bootstrap_interval(counts, score, stacks=stacks, **bootstrap) for name, score in metrics.SCORES.items()
    }


def _flat(scores: Mapping[str, Interval]) -> dict[str, float]:
    return {key: figure for name, interval in scores.items() for key, figure in interval.as_dict(name).items()}


def _picture(measured: protocols.Measured, pairs: list[Pair], rule: Rule, stack: str, z: int) -> report.PredictedSlice:
    pair = next(pair for pair in pairs if pair.name == stack)
    image, truth = pair.image.slice(z), binarise(pair.mask.slice(z), rule)
    return report.PredictedSlice(stack, z, image, truth, measured.masks[stack][z])


def _truth(pair: Pair, rule: Rule) -> np.ndarray:
    return np.stack([binarise(mask, rule) for mask in pair.mask.slices()])


def _history() -> list[dict[str, float]]:
    with CURVES.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: float(value) for name, value in row.items() if name != "epoch"} for row in rows]


def _write_slices(path: Path, measured: protocols.Measured, counts: Counts, boundaries: Counts) -> None:
    columns: dict[str, Iterable[object]] = {
        "slice": range(len(counts)),
        "stack": measured.stacks,
        "z": measured.z,
        "dice": metrics.dice(counts),
        "iou": metrics.iou(counts),
        **dict(zip(("tp", "fp", "fn", "tn"), counts.T, strict=True)),
        "boundary_f1": boundary.f1(boundaries),
        "error_near_boundary": boundary.near_share(boundaries),
        **dict(zip(boundary.COLUMNS, boundaries.T, strict=True)),
    }
    files.write_csv(path, tuple(columns), zip(*columns.values(), strict=True))


if __name__ == "__main__":
    as_process(main)
