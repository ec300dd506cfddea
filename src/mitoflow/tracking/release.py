"""Release a trained model with its lineage and a model card.

The card has the sections of Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, as far as they apply; every
figure in it was measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mitoflow.core import files
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.errors import InputError
from mitoflow.evaluation import figures, metrics, report
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference import model_files
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.settings import Settings
from mitoflow.tracking.pretrained import CARD, COVER, LINEAGE, Pretrained

LARGEST = 16.0  # megabytes of a model that every clone and every wheel carries
OF_RUN = ("version", "run", "run_name", "training_run", "model_sha256")  # what an origin says of the run
QUANTILES = (0, 0.05, 0.5, 0.95, 1)  # of the Dice of single slices

TEMPLATE = Path(__file__).with_name("model_card.md")


@dataclass(frozen=True)
class Trained:
    """A trained and measured model, as the pipeline leaves it.

    Attributes
    ----------
    model, settings, evaluation
        The ``.keras`` file, what inference must know besides, and what the model did on the test part.
    measured
        All that was measured on the test part, ``metrics.json``.
    parameters
        Of the network.
    data
        What it learned from: ``name``, ``note`` and ``licence``.
    parts
        For ``train`` and ``test`` their ``slices`` and ``stacks``, and the share of ``foreground``; see
        `mitoflow.data.validation.Findings.facts`.
    origin
        Where the model comes from; see `mitoflow.tracking.lineage.origin`.
    domain
        What the training images look like.
    calibration
        How far the model's own agreement can be trusted, measured on sets that were left out; None where it was not.
    """

    model: Path
    settings: Settings
    evaluation: Evaluation
    measured: Mapping[str, Any]
    parameters: int
    data: Mapping[str, str]
    parts: Mapping[str, Any]
    origin: Mapping[str, str]
    domain: Fingerprint
    calibration: Calibration | None = None


def release(folder: Path, trained: Trained) -> Pretrained:
    """Write a model into ``folder``, all of it or nothing: the trained file itself, so that its digest stays.

    Parameters
    ----------
    folder
        ``pretrained/NAME``; what is there is replaced.
    trained
        The model.

    Raises
    ------
    InputError
        The file is larger than `LARGEST`.
    """
    megabytes = trained.model.stat().st_size / 1e6
    if megabytes > LARGEST:
        remedy = "train it with a lower train.base_width"
        raise InputError(trained.model, f"{megabytes:.1f} MB", f"at most {LARGEST} MB", remedy)
    with files.replacing(folder) as beside:
        beside.mkdir()
        shutil.copyfile(trained.model, beside / model_files.WEIGHTS)
        trained.settings.write(beside / model_files.SETTINGS)
        trained.domain.write(beside / model_files.DOMAIN)
        trained.evaluation.write(beside / model_files.EVALUATION)
        if trained.calibration:
            trained.calibration.write(beside / model_files.CALIBRATION)
        made = {"data": dict(trained.data), **_grouped(trained.origin), "metrics": dict(trained.measured)}
        files.write_yaml(beside / LINEAGE, made)
        of_sets = {}
        for name, each in trained.evaluation.sets.items():
            of_set = np.array(each.counts)
            of_sets[name] = figures.SliceScores(of_set, each.stacks, *report.worst_and_median(of_set))
        (beside / COVER).write_bytes(figures.dice_along_z_png(of_sets))
        card = _card(
            name=folder.name,
            made=made,
            parts=trained.parts,
            settings=trained.settings,
            finds_scale=trained.calibration is not None,
            parameters=trained.parameters,
            megabytes=megabytes,
            scores={protocol: _scores(trained.measured[protocol]) for protocol in ("whole_slice", "patch_wise")},
            further=_scores(trained.measured),
            known=metrics.SCORES,
            slices=np.quantile(metrics.dice(np.array(trained.evaluation.counts)), QUANTILES).tolist(),
        )
        (beside / CARD).write_text(card, encoding="utf-8")
    return Pretrained(folder)


def _grouped(origin: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return an origin by what it speaks of: the run, the code, the data that were read, and the parameters."""
    groups: dict[str, dict[str, str]] = {"run": {}, "code": {}, "dataset": {}, "params": {}}
    for key, value in origin.items():
        group, dot, name = key.partition(".")
        if dot:
            groups[group][name] = value
        else:
            groups["run" if key in OF_RUN else "code"][key] = value
    return groups


def _scores(measured: Mapping[str, Any]) -> dict[str, Interval | float]:
    """Return the figures in a section of ``metrics.json``, with their intervals where they have one."""
    figures = {name: value for name, value in measured.items() if isinstance(value, (int, float))}
    return {
        name: Interval.from_dict(name, figures) or value
        for name, value in figures.items()
        if not name.endswith(("_low", "_high"))
    }


def _card(**content: Any) -> str:
    pages = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return pages.from_string(TEMPLATE.read_text(encoding="utf-8")).render(content)
