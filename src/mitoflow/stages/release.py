"""Release the trained model into ``pretrained/``.

Not a stage of ``dvc.yaml``, because a user decides when; otherwise like one: it reads what the stages wrote, and
writes its own output.
"""

from __future__ import annotations

from mitoflow.config import params
from mitoflow.core import files, provenance
from mitoflow.data.datasets import DATASETS
from mitoflow.data.fingerprint import Fingerprint
from mitoflow.errors import InputError
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.inference.settings import Settings
from mitoflow.stages.paths import DOMAIN, EVALUATED, FINDINGS, INFERENCE, METRICS, MODEL, MODEL_FACTS
from mitoflow.tracking import pretrained, registry, release


def main(licence: str | None = None) -> pretrained.Pretrained:
    settings = params.load()
    name = settings.data.name
    dataset = DATASETS.get(name)
    licence = licence or (dataset.licence if dataset else None)
    if licence is None:
        expected = "the terms on which the data may be used, for the model card"
        raise InputError("--licence", f"none for {name}", expected, "give --licence TEXT")
    outputs = "run `dvc repro` or `dvc pull`"
    if not MODEL.is_file():
        raise InputError(MODEL, "no such file", "the outputs of a pipeline", outputs)
    evaluated = Evaluation.read(EVALUATED)
    if (digest := provenance.file_sha256(MODEL)) != evaluated.model_sha256:
        expected = f"{evaluated.model_sha256}, which was evaluated"
        raise InputError(MODEL, f"SHA-256 {digest}", expected, "run `dvc repro evaluate` or `dvc pull`")
    network = files.read_yaml(MODEL_FACTS, outputs, ("parameters",))
    # MLflow keeps the parameters of the first evaluation of a model, and this is the last.
    measured_with = {f"params.evaluate.{key}": str(value) for key, value in settings.evaluate.model_dump().items()}
    trained = release.Trained(
        model=MODEL,
        settings=Settings.read(INFERENCE),
        evaluation=evaluated,
        measured=files.read_json(METRICS, outputs),
        parameters=network["parameters"],
        data={"name": name, "note": dataset.note if dataset else "A lab's own stacks.", "licence": licence},
        parts=files.read_json(FINDINGS, outputs, ("facts",))["facts"],
        origin=registry.origin(str(MODEL)) | measured_with,
        domain=Fingerprint.read(DOMAIN),
    )
    return release.release(pretrained.HERE / name, trained)
