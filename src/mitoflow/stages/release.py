"""Release the trained model into ``pretrained/``.

Not a stage of ``dvc.yaml``, because a user decides when; otherwise like one: it reads what the stages wrote, and
writes its own output.
"""

from __future__ import annotations

from pathlib import Path

from mitoflow.config import params
from mitoflow.core import files, provenance
from mitoflow.data.datasets import DATASETS
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.data.set_descriptions import FILE, SetDescription, read_sets
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.judgement import Calibration
from mitoflow.inference.settings import Settings
from mitoflow.stages.paths import DATA, DOMAIN, EVALUATED, FINDINGS, INFERENCE, METRICS, MODEL, MODEL_FACTS
from mitoflow.tracking import lineage, pretrained, release


def main(licence: str | None = None, calibration: Path | None = None, name: str | None = None) -> pretrained.Pretrained:
    settings = params.load()
    data = _describe(settings.data.name, licence)
    outputs = "run `dvc repro` or `dvc pull`"
    if not MODEL.is_file():
        raise InputError(MODEL, "no such file", "the outputs of a pipeline", outputs)
    evaluated = Evaluation.read(EVALUATED)
    if (digest := provenance.file_sha256(MODEL)) != evaluated.model_sha256:
        expected = f"{evaluated.model_sha256}, which was evaluated"
        raise InputError(MODEL, f"SHA-256 {digest}", expected, "run `dvc repro evaluate` or `dvc pull`")
    network = files.read_yaml(MODEL_FACTS, outputs, ("parameters",))
    trained = release.Trained(
        model=MODEL,
        settings=Settings.read(INFERENCE),
        evaluation=evaluated,
        measured=files.read_json(METRICS, outputs),
        parameters=network["parameters"],
        data=data,
        parts=files.read_json(FINDINGS, outputs, ("facts",))["facts"],
        origin=lineage.of_evaluation(evaluated.sha256),
        domain=Fingerprint.read(DOMAIN),
        calibration=Calibration.read(calibration) if calibration else None,
    )
    return release.release(pretrained.HERE / (name or settings.data.name), trained)


def _describe(name: str, licence: str | None) -> dict[str, str]:
    """Return name, note and licence of what is in ``data/``, where ``data.name`` is `name`; of several sets, of all.

    Raises
    ------
    InputError
        There is no licence, neither here nor with the sets.
    """
    sets = read_sets(DATA) if (DATA / FILE).is_file() else {}
    if len(sets) < 2:
        dataset, described = DATASETS.get(name), next(iter(sets.values()), SetDescription())
        note = dataset.note if dataset else "A lab's own stacks."
        licence = licence or (dataset.licence if dataset else described.terms)
        without = [] if licence else [name]
    else:
        without = [] if licence else [each for each, described in sets.items() if not described.terms]
        licence = licence or "; ".join(f"{each}: {described.terms}" for each, described in sets.items())
        note = " ".join(f"{each}: {described.tissue or 'not described'}." for each, described in sets.items())
        name = ", ".join(sets)
    if without:
        expected = "the terms on which the data may be used, for the model card"
        raise InputError("--licence", f"none for {', '.join(without)}", expected, "give --licence TEXT")
    return {"name": name, "note": note, "licence": licence}
