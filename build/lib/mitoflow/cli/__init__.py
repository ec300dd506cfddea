"""The ``mitoflow`` command. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitoflow import __version__
from mitoflow.errors import InputError, fail, one_line

if TYPE_CHECKING:
    from mitoflow.apps.onnx_export import Parity
    from mitoflow.data.datasets import Installed
    from mitoflow.evaluation.metrics import Interval

SCORES = {"accuracy": "accuracy", "dice": "Dice", "iou": "IoU"}
MASK_RULES = click.Choice(["auto", "nonzero", "half"])


def main() -> None:
    """Run the command; what a person got wrong is one line on stderr and exit code 2."""
    one_line(_run)


def _run() -> None:
    try:
        mitoflow(prog_name="mitoflow", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        raise SystemExit(2) from None
    except click.UsageError as error:
        fail(_explain(error))
    except click.Abort:
        raise SystemExit(130) from None


def _explain(error: click.UsageError) -> Exception:
    path = error.ctx.command_path if error.ctx else "mitoflow"
    command, remedy = path.removeprefix("mitoflow").strip() or "command", f"see `{path} --help`"
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx and isinstance(error.ctx.command, click.Group):
        *others, last = error.ctx.command.list_commands(error.ctx)
        return InputError(command, error.command_name, f"{', '.join(others)} or {last}", remedy)
    message = " ".join(error.format_message().split()).rstrip(".")
    return click.UsageError(f"{command}: {message}; {remedy}")


class InOrder(click.Group):
    """Commands in the order in which they are written here, which is that of a project's life."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        return list(self.commands)


@click.group(cls=InOrder)
@click.version_option(__version__)
def mitoflow() -> None:
    """From electron-microscopy stacks with mitochondria masks to a registered, promoted U-Net.

    The pipeline itself is run by DVC: `dvc repro`. All commands act on the project in the current folder.
    """
    if not Path("params.yaml").is_file() and "--help" not in sys.argv:
        raise InputError(Path.cwd(), "no params.yaml", "a mitoflow project", "run this in the folder of a checkout")


@mitoflow.group(cls=InOrder)
def data() -> None:
    """Put a dataset into data/, under DVC.

    The preset that fits it goes into params.yaml. What is there now stays in DVC's cache, and the way back to it is
    told.
    """


@data.command("phantom")
@click.option("--if-missing", is_flag=True, help="Do nothing where data/ holds files; never replace another dataset.")
def data_phantom(if_missing: bool) -> None:
    """Make the synthetic EM stack: no real data, for trying things out."""
    from mitoflow.data import datasets

    installed = datasets.install_phantom(if_missing=if_missing)
    if installed:
        _tell(installed)
    else:
        click.echo("data/ holds files: nothing to do")


@data.command("epfl")
@click.option("--from", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Take the four files from DIR.")
def data_epfl(folder: Path | None) -> None:
    """Take the EPFL hippocampus set: 2 x 165 slices of 1024 x 768.

    It is downloaded (about 260 MB) into the user's cache, unless DIR has training.tif, training_groundtruth.tif,
    testing.tif and testing_groundtruth.tif.
    """
    from mitoflow.data import datasets

    _tell(datasets.install_epfl(folder))


@data.command("import")
@click.option("--images", multiple=True, required=True, metavar="PATH", help="EM images, 8- or 16-bit TIFF.")
@click.option("--masks", multiple=True, required=True, metavar="PATH", help="Their masks.")
@click.option("--test-images", multiple=True, metavar="PATH", help="Images that test, and never train.")
@click.option("--test-masks", multiple=True, metavar="PATH", help="Their masks.")
@click.option("--consecutive", is_flag=True, help="The files are the slices of one stack, in the order of their names.")
@click.option("--mask-rule", type=MASK_RULES, default="auto", show_default=True, help="Values that are mitochondrion.")
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of each stack that tests, at its end in z, where there are no test images.",
)
@click.option(
    "--gap", type=click.IntRange(min=0), default=4, show_default=True, help="Slices left out before that share."
)
@click.option("--name", default="imported", show_default=True, help="What to call the dataset.")
def data_import(images: Sequence[str], masks: Sequence[str], **options: Any) -> None:
    """Take your own stacks: TIFF files of one page or many.

    PATH is a file, a folder or a quoted glob, and may be given several times. A mask has the file name of its image;
    where no name is shared, the first image goes with the first mask and so on, and the command says so.
    """
    from mitoflow.data import datasets

    _tell(datasets.install_own(images, masks, **options))


@data.command("verify")
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.option("--delete", is_flag=True, help="Delete them, so that `dvc pull` or `dvc push` brings them whole.")
def data_verify(store: Path | None, delete: bool) -> None:
    """Hash every object in DVC's cache, and name those that are damaged.

    STORE is another cache, or a remote that is a folder. DVC itself trusts what is there.
    """
    from mitoflow.data import dvc_cache

    if store is None:
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["an error"])[-1].removeprefix("ERROR: ")
            raise InputError(Path.cwd(), f"no cache of DVC: {said}", "a project under DVC", "name STORE, or `dvc init`")
        store = Path(done.stdout.strip())
    found = list(dvc_cache.damaged(store))
    for damage in found:
        click.echo(damage, err=True)
        if delete:
            damage.delete()
    if found and not delete:
        remedy = "`--delete` them; then `dvc pull`, or `dvc push` from a clone that has them whole"
        raise InputError(store, f"{len(found)} damaged objects", "none", remedy)
    if found:
        click.echo(f"{store}: {len(found)} damaged objects deleted; now `dvc pull`, or `dvc push` from a whole clone")
        return
    click.echo(f"{store}: every object is what its name says")


def _tell(installed: Installed) -> None:
    findings = installed.findings
    click.echo(f"data/ holds {installed.name}, {findings.bit_depth} bits; masks read by the rule {findings.mask_rule}")
    rows = []
    for part, facts in findings.facts.items():
        sizes = {f"{x} x {y}" for _, y, x in (stack["shape"] for stack in facts["stacks"])}
        size = sizes.pop() if len(sizes) == 1 else f"{len(sizes)} sizes"
        rows.append([part, str(len(facts["stacks"])), str(facts["slices"]), size, f"{facts['foreground']:.2%}"])
    _print_table(["part", "files", "slices", "size", "mitochondria"], rows)
    for note in installed.notes:
        click.echo(note)
    for key, (old, new) in installed.changed.items():
        click.echo(f"params.yaml: {key} {old} -> {new}")
    if installed.replaced:
        archive = shlex.quote(os.path.relpath(installed.replaced))
        click.echo(f"to go back to the data before: tar xf {archive} && dvc checkout data.dvc")
    click.echo("next: git add data.dvc params.yaml .gitignore && dvc repro")


@mitoflow.command()
@click.argument("name", required=False)
def preset(name: str | None) -> None:
    """Write a preset into params.yaml, or list them.

    What names the data stays as it is.
    """
    from mitoflow.config import presets

    if name is None:
        _print_table(["preset", ""], list(presets.names().items()))
        return
    for key, (old, new) in presets.choose(Path("params.yaml"), name).items():
        click.echo(f"params.yaml: {key} {old} -> {new}")


@mitoflow.command()
@click.argument("stage", required=False)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change params.yaml first; no VALUE, no change."
)
def repro(stage: str | None, changes: Sequence[str]) -> None:
    """Run `dvc repro`, as the entry points of MLproject do."""
    from mitoflow.config import presets

    values = {key: value for key, _, value in (change.partition("=") for change in changes) if value}
    for key, (old, new) in presets.change(Path("params.yaml"), values).items():
        click.echo(f"params.yaml: {key} {old} -> {new}")
    command = [sys.executable, "-m", "dvc", "repro", *([stage] if stage else [])]
    raise SystemExit(subprocess.run(command, check=False).returncode)


@mitoflow.command()
@click.option("--dask", metavar="ADDRESS", help="Fit trials on the workers of a Dask scheduler: tcp://host:8786.")
def tune(dask: str | None) -> None:
    """Run `dvc repro tune`, on other machines if there are some.

    A study that was interrupted goes on where it was, whoever fits its trials.
    """
    from mitoflow.stages import DASK

    if dask:
        from mitoflow.core import cluster

        with cluster.connected(dask):  # a wrong address is told before DVC says anything
            os.environ[DASK] = dask
    raise SystemExit(subprocess.run([sys.executable, "-m", "dvc", "repro", "tune"], check=False).returncode)


@mitoflow.command()
def summary() -> None:
    """Show the measured model and what became of it."""
    from mitoflow.core import provenance, workspace
    from mitoflow.evaluation.metrics import Interval
    from mitoflow.stages import EVALUATE_REPORTS, MODEL
    from mitoflow.tracking import registry

    path = EVALUATE_REPORTS / "metrics.json"
    remedy, protocols = "run `dvc repro` or `dvc pull`", ("patch_wise", "whole_slice")
    if not MODEL.is_file():
        raise InputError(MODEL, "no such file", "a measured model", remedy)
    measured = workspace.read_json(path, remedy, protocols)
    rows = []
    for protocol in protocols:
        scores = measured[protocol]
        intervals = (Interval(*(scores[name + end] for end in ("", "_low", "_high"))) for name in SCORES)
        rows.append([protocol.replace("_", "-"), *map(_score, intervals)])
    _print_table(["test", *SCORES.values()], rows)
    try:
        digest = provenance.file_sha256(MODEL)
        same = [row for row in registry.models() if row.model_sha256 == digest]
        told = [f"version {row.version} ({', '.join(row.aliases) or 'no alias'}): {row.verdict}" for row in same]
        click.echo(f"registered model: {told[-1] if told else 'none yet, see `mitoflow sync` and `mitoflow register`'}")
        for check in same[-1].checks if same else ():
            click.echo(f"promotion.yaml: {check}")
    except InputError as error:
        click.echo(f"registered model: {error}")
    click.echo(f"report: {EVALUATE_REPORTS / 'report.html'}; runs and versions: `make ui`")


@mitoflow.command()
@click.option("--port", default=5000, show_default=True)
def ui(port: int) -> None:
    """Open MLflow: runs, artifacts and the model registry."""
    from mitoflow.tracking import store

    place = store.uri()
    if not store.is_database(place):
        click.echo(f"MLflow is at {store.without_credentials(place)}")
        return
    os.environ["MLFLOW_BACKEND_STORE_URI"] = place  # command lines are for everybody to see, and it may hold a password
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command])


@mitoflow.command()
@click.option("--pretrained", "shipped", is_flag=True, help="The trained models that ship with the project instead.")
def models(shipped: bool) -> None:
    """List the versions of the registered model."""
    if shipped:
        _list_pretrained()
        return
    from mitoflow.tracking import registry

    rows = [
        [
            str(row.version),
            " ".join(row.aliases),
            _score(row.dice),
            _score(row.iou),
            row.test_hash[:8],
            f"{row.created.astimezone():%Y-%m-%d %H:%M}",
            row.verdict,
        ]
        for row in registry.models()
    ]
    if rows:
        _print_table(["version", "alias", "Dice", "IoU", "test data", "created", "verdict"], rows)
    else:
        click.echo("no versions yet: `dvc repro` makes one, or `mitoflow register` after `dvc pull`")


def _list_pretrained() -> None:
    from mitoflow.tracking import pretrained

    rows = []
    for model in pretrained.models():
        made, measured = model.lineage["data"], model.evaluation
        scores = (_score(measured.interval(score)) for score in ("dice", "iou"))
        rows.append([model.name, *scores, made["name"], made["licence"]])
    if rows:
        _print_table(["name", "Dice", "IoU", "data", "licence of the data"], rows)
    else:
        click.echo("no pretrained models here: `mitoflow release` makes one of a finished pipeline")


def _score(score: Interval | None) -> str:
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]" if score else ""


@mitoflow.command()
@click.argument("a")
@click.argument("b")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page, with pictures, as well.")
def compare(a: str, b: str, html: Path | None) -> None:
    """Compare two models: parameters, scores, slices.

    A and B are versions, aliases, runs, git revisions or DVC experiments. The intervals of the differences are paired:
    both models are scored on the same draws of the same slices.
    """
    if html and html.suffix != ".html":
        raise InputError("--html", html, "a name that ends with .html", "take another name")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from mitoflow.evaluation import report
    from mitoflow.stages import CONVENTIONS, DATA
    from mitoflow.tracking import model_comparison

    compared = model_comparison.compare(a, b, DATA / "test", CONVENTIONS, pictures=html is not None)
    rows = [
        [name, _score(first), _score(second), f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" if gain else "–"]
        for name, (first, second, gain) in compared.scores.items()
    ]
    _print_table(["test", *compared.names, "difference, paired"], rows)
    if compared.params:
        click.echo()
        _print_table(["parameter", *compared.names], [[key, *values] for key, values in compared.params.items()])
    if compared.wrong:
        click.echo()
        wrong = [[stack, *map(str, figures)] for stack, *figures in compared.wrong]
        _print_table(["differ most on", "z", *(f"wrong pixels, {name}" for name in compared.names)], wrong)
    for note in compared.notes:
        click.echo(note)
    if html:
        report.write_comparison(html, compared)
        click.echo(f"page: {html}")


@mitoflow.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--force", is_flag=True, help="Whatever the gate says; recorded with who and why, so it needs a reason.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")
def promote(version: int, force: bool, reason: str) -> None:
    """Make VERSION the champion, if promotion.yaml allows it."""
    if force and not reason:
        raise click.UsageError("--force needs --reason TEXT")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the gate may predict
    from mitoflow.tracking import registry

    verdict = registry.promote(version, force=force, reason=reason)
    if not verdict.promoted:
        expected = "a version that beats the champion" if verdict.champion else "a version that passes the gate"
        remedy = "give --force and --reason to promote it all the same"
        raise InputError(f"version {version}", verdict.reason, expected, remedy)
    click.echo(f"version {version} is the champion: {verdict.reason}")
    for check in verdict.checks:
        click.echo(str(check))


@mitoflow.command()
@click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")
def rollback(reason: str) -> None:
    """Make the previous champion the champion again."""
    from mitoflow.tracking import registry

    before, now = registry.rollback(reason)
    click.echo(f"version {now} is the champion again, in place of {before}")


@mitoflow.command()
def history() -> None:
    """List who made which version the champion, and why."""
    from mitoflow.tracking import registry

    rows = [
        [
            str(entry.number),
            f"{entry.when.astimezone():%Y-%m-%d %H:%M}",
            entry.who,
            f"{entry.over or 'none'} -> {entry.version}",
            entry.how if entry.counts else "too late",
            entry.why,
        ]
        for entry in registry.history()
    ]
    if rows:
        _print_table(["number", "when", "who", "champion", "how", "why"], rows)
    else:
        click.echo("no promotions yet: `dvc repro` makes a version, and the gate decides about it")


@mitoflow.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="A version, an alias, a run, a .keras file or pretrained.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="In place of the model's.")
@click.option("--tta", is_flag=True, help="Average over all symmetries of a tile: better, and up to 8 times as long.")
@click.option("--probability", is_flag=True, help="Write OUTPUT_probability too, float32 in [0, 1].")
@click.option("--instances", is_flag=True, help="Write OUTPUT_instances too: each mitochondrion with its own label.")
@click.option("--table", type=click.Path(path_type=Path), metavar="FILE", help="Measure each mitochondrion: CSV.")
@click.option("--overlay", type=click.Path(path_type=Path), metavar="FILE", help="Draw contours on a few slices: PNG.")
@click.option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Predict this part alone.")
@click.option("--rescale", is_flag=True, help="Resample the slices to the pixel size that the model was trained on.")
@click.option("--voxel-size", metavar="Z,Y,X", help="Nanometres, where INPUT does not say.")
@click.option("--fill-missing", is_flag=True, help="Take missing chunks of a Zarr for empty ones.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Predict with N processes of this machine.")
@click.option("--dask", metavar="ADDRESS", help="Predict on the workers of a Dask scheduler, such as tcp://host:8786.")
def predict(source: str, output: Path, voxel_size: str | None, **options: Any) -> None:
    """Write the mask of a stack of any size.

    INPUT is a TIFF of one page or many, a folder or quoted glob of slices, or an OME-Zarr; OUTPUT ends with .tif,
    .ome.tif or .ome.zarr. The model is the champion, or the pretrained one where there is no champion yet. A command
    that was interrupted goes on where it was when it is given again.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells more about itself than about the stack
    from mitoflow.inference import prediction
    from mitoflow.io import spacing

    known = spacing.parse(voxel_size) if voxel_size else None
    request = prediction.Request(source, output, spacing=known, **options)
    model = prediction.predict(request, lambda line: click.echo(line, err=True))
    told = f"`mitoflow lineage {shlex.quote(str(output))}`"
    click.echo(f"{output}: mask by {model.name}; {told} tells where it comes from")


@mitoflow.command()
@click.option("--model", metavar="MODEL", help="A version, an alias, a run, a .keras file or pretrained.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; by default for this machine alone."
)
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@click.option("--largest", type=click.IntRange(min=1), default=100, show_default=True, help="MiB of a request.")
def serve(model: str | None, host: str, port: int, largest: int) -> None:
    """Answer HTTP requests with masks: JSON or TIFF to /invocations.

    The model is the champion, or the pretrained one where there is no champion yet.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from mitoflow.apps import serving

    serving.serve(model, host, port, largest * 2**20)


@mitoflow.command()
@click.argument("prediction")
@click.argument("truth")
def score(prediction: str, truth: str) -> None:
    """Compare a mask, or labels, with one that was drawn."""
    from mitoflow.evaluation import scoring

    scores = scoring.score(prediction, truth)
    told = [[name, str(value) if isinstance(value, int) else f"{value:.4f}"] for name, value in scores.items()]
    _print_table([], told)


@mitoflow.command()
@click.option("--model", metavar="MODEL", help="A version, an alias, a run, a .keras file or pretrained.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for other machines too.")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--largest", type=click.IntRange(min=1), default=500, show_default=True, help="MiB of a file.")
def app(model: str | None, host: str, port: int, largest: int) -> None:
    """Open a page that shows masks of dropped images.

    The model is the champion, or the pretrained one where there is no champion yet.
    """
    from mitoflow.tracking import model_lookup

    model_lookup.find(model)  # what is wrong with it is better said here than on the page
    page = str(Path(__file__).parents[1] / "apps" / "page.py")
    options = {
        "server.address": host,
        "server.port": port,
        "server.maxUploadSize": largest,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "runner.magicEnabled": "false",
        "client.toolbarMode": "viewer",
        "browser.gatherUsageStats": "false",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    click.echo(f"http://{host}:{port}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command = [sys.executable, "-m", "streamlit", "run", page, *flags, "--", *([model] if model else [])]
    os.execv(sys.executable, command)


@mitoflow.command()
@click.argument("what", metavar="VERSION|FILE")
def lineage(what: str) -> None:
    """Tell where a version, a .keras file or a mask comes from."""
    if what.lower().endswith((".tif", ".tiff", ".zarr")):
        from mitoflow.io import ome

        facts = ome.read_lineage(Path(what))
    else:
        from mitoflow.tracking import registry

        facts = registry.origin(what)
    _print_table([], [[key, value] for key, value in facts.items()])


@mitoflow.command()
@click.option("--pretrained", "name", metavar="NAME", help="The model in pretrained/NAME instead.")
def register(name: str | None) -> None:
    """Register a model that was pulled, not computed."""
    if name:
        from mitoflow.tracking import pretrained, registry

        click.echo(registry.outcome(pretrained.register(name)))
        return
    from mitoflow.stages import evaluate

    evaluate.register()


@mitoflow.command()
@click.option("--onnx", type=click.Path(path_type=Path), metavar="FILE", help="Write the network as ONNX.")
@click.option(
    "--bioimageio",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a package for the BioImage Model Zoo: ONNX, Keras, test images, documentation.",
)
@click.option("--model", "wanted", metavar="MODEL", help="A version, an alias, a run, a .keras file or pretrained.")
@click.option("--author", "authors", multiple=True, metavar="NAME", help="Who trained it; for the package.")
@click.option("--licence", default="MIT", show_default=True, metavar="SPDX", help="Of the weights; for the package.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier export wrote there.")
def export(
    onnx: Path | None, bioimageio: Path | None, wanted: str, authors: Sequence[str], licence: str, overwrite: bool
) -> None:
    """Write a model for other programs: ilastik, deepImageJ, QuPath.

    The model is the champion, or the pretrained one where there is no champion yet. They get the network alone, in
    float32; what `predict` does besides is left to them.
    """
    if not (onnx or bioimageio):
        raise click.UsageError("nothing to write: give --onnx FILE, --bioimageio DIR or both")
    for target, earlier in ((onnx, onnx), (bioimageio, bioimageio and bioimageio / "rdf.yaml")):
        if target and earlier and target.exists() and not (overwrite and earlier.is_file()):
            remedy = "take another name; --overwrite replaces an earlier export, and nothing else"
            raise InputError(target, "something that exists", "a new name", remedy)
    try:
        from mitoflow.apps import bioimageio_export, onnx_export
        from mitoflow.tracking import model_lookup
    except ModuleNotFoundError as error:
        remedy = "install them: `pip install -e .[export]`"
        raise InputError("mitoflow export", f"no {error.name}", "the libraries that it needs", remedy) from None
    model = model_lookup.find(wanted)
    if onnx:
        parity = onnx_export.export_onnx(onnx, model.predictor)
        _tell_exported(onnx, model.name, parity)
    if bioimageio:
        parity = bioimageio_export.write_package(bioimageio, model, authors or ("The mitoflow authors",), licence)
        _tell_exported(bioimageio, model.name, parity)
        click.echo(f"next: KERAS_BACKEND=tensorflow bioimageio test {shlex.quote(str(bioimageio))}")


def _tell_exported(target: Path, model: str, parity: Parity) -> None:
    figures = f"{parity.converted:.1g} from Keras in float32 and by {parity.trained:.1g} from the model as trained"
    click.echo(f"{target}: {model}; probabilities on a drawn slice differ by at most {figures}")


@mitoflow.command()
@click.option("--licence", metavar="TEXT", help="The terms of your own data, for the model card.")
def release(licence: str | None) -> None:
    """Put the trained model into pretrained/, with its card."""
    from mitoflow.stages import release

    model = release.main(licence)
    click.echo(
        f"{model.folder}: Dice {_score(model.evaluation.interval('dice'))}; look at {model.folder / 'MODEL_CARD.md'}"
    )


@mitoflow.command()
def sync() -> None:
    """Send to MLflow what it missed while it was away."""
    from mitoflow.tracking import runs

    synced = runs.sync()
    if synced.live:
        click.echo(f"{synced.live} running stages send for themselves")
    click.echo(f"{synced.sent} events sent")
    errors = list(synced.damaged)
    if synced.left:
        found = f"{synced.left} events that it did not take ({synced.trouble})"
        errors.append(InputError("MLflow", found, "a server that answers", "start it and run `mitoflow sync` again"))
    for error in errors[:-1]:
        click.echo(f"mitoflow: {error}", err=True)
    if errors:
        raise errors[-1]


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
