"""Register an evaluated model: pack it, hand it to the run, and wait for the verdict of the gate.

This is the top of tracking: a run delivers the packed model to the registry, which makes it a version and decides.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation import metrics
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import Verdict
from mitoflow.inference import model_files
from mitoflow.tracking import packing, pretrained, registered_model, registry, runs, store, version_tags


def register(run: runs.Run, evaluation: Evaluation, model_path: Path, settings_path: Path) -> Verdict | None:
    """Make an evaluated model a version, through the journal, and let the gate decide about it.

    The same evaluation of the same training makes one version, however often it is registered.

    Parameters
    ----------
    run
        Of the evaluation, or of the registration where the outputs were pulled rather than computed.
    evaluation
        Of this model.
    model_path, settings_path
        ``models/unet.keras`` and ``reports/evaluate/inference.yaml``.

    Returns
    -------
    verdict
        None where MLflow did not take it: the model is kept, and `mitoflow sync` registers it and decides.

    Raises
    ------
    InputError
        A file is missing, or the evaluation is of another model.
    """
    if not model_path.is_file():
        raise InputError(model_path, "no such file", "a trained model", "run `dvc repro` or `dvc pull`")
    if (digest := provenance.file_sha256(model_path)) != evaluation.model_sha256:
        remedy = "run `dvc repro evaluate` or `dvc pull`, so that model and evaluation belong together"
        raise InputError(model_path, f"SHA-256 {digest}", f"{evaluation.model_sha256}, which was evaluated", remedy)
    run.tags({store.MODEL_SHA256_TAG: evaluation.model_sha256})
    tags = version_tags.of(run.key, run.training or run.key, evaluation)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model"
        packing.pack(packed, evaluation, model_path, settings_path)
        # Here and not in the thread that sends: `flush` waits for a minute, and the gate may predict for longer.
        registry.prepare(evaluation, packed / "artifacts" / model_files.WEIGHTS)
        run.model(packed, tags)
    return registry.find_verdict(tags) if run.flush() else None


def register_pretrained(name: str) -> Verdict | None:
    """Make a pretrained model a version of the registry; the gate decides about it as about any other.

    It comes with the lineage, the data and the parameters that it was made from. The same model makes one version,
    however often it is registered.

    Returns
    -------
    verdict
        None where MLflow does not answer; see `register`.

    Raises
    ------
    InputError
        There is no such model, or a file of it is missing or broken.
    """
    model = pretrained.find(name)
    made, evaluation = model.lineage, model.evaluation
    key = f"pretrained-{evaluation.model_sha256[:32]}"
    with runs.start(provenance.REGISTER, f"pretrained {model.name}", key=key, made_from=made["code"]) as run:
        run.params(made["params"])
        for context, datasets in made["dataset"].items():
            for dataset in datasets.split(", "):  # of several sets
                name_of_data, _, digest = dataset.rpartition(" ")
                run.dataset(name_of_data, str(pretrained.HERE / model.name), digest, context, {})
        for dataset, measured in [
            ("", evaluation),
            *((name, evaluation.sets[name]) for name in evaluation.test_hashes),
        ]:
            prefix = f"test/sets/{dataset}/whole_slice" if dataset else "test/whole_slice"
            scores = metrics.scores_of("pixels")
            run.metrics({f"{prefix}/{name}": measured.interval(name).value for name in scores})
        for file in (pretrained.CARD, pretrained.COVER, pretrained.LINEAGE):
            run.artifact(model.folder / file)
        verdict = register(run, evaluation, model.folder / model_files.WEIGHTS, model.folder / model_files.SETTINGS)
        run.describe(f"{evaluation.headline}; {outcome(verdict)}")
        return verdict


def outcome(verdict: Verdict | None) -> str:
    """Return a line about what `register` came to."""
    if verdict is None:
        return f"model {registered_model.name()}: MLflow has not taken it yet; `mitoflow sync` registers it and decides"
    return registry.outcome(registered_model.name(), verdict)
