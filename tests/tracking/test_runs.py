import errno
import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from mlflow.entities import Run
from PIL import Image

from mitoflow import __version__
from mitoflow.core import provenance, workspace
from mitoflow.errors import InputError
from mitoflow.tracking import journal, runs, store, system_metrics
from mitoflow.tracking.delivery import Delivery
from mitoflow.tracking.journal import Journal
from tests.parts import until

NOWHERE = "http://127.0.0.1:9"  # the discard port, which does not answer


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, whose tables take seconds to create."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    store.client(f"sqlite:///{path}")
    return path


@pytest.fixture
def checkout(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DVC_ROOT", "DVC_EXP_NAME", *(name for name in os.environ if name.startswith("MLFLOW_"))):
        if name not in store.DEFAULTS:
            monkeypatch.delenv(name, raising=False)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "mlflow.db").write_bytes(tables.read_bytes())
    monkeypatch.chdir(checkout)
    return checkout


def found(key: str) -> Run:
    client = store.client(store.uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`mitoflow.key` = '{key}'")
    return run


def curve(key: str, name: str) -> list[tuple[int, float]]:
    history = store.client(store.uri()).get_metric_history(found(key).info.run_id, name)
    return [(point.step, point.value) for point in history]


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        textwrap.dedent("import os, signal\nfrom pathlib import Path\nfrom mitoflow.tracking import runs\n") + code
    )
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_everything_that_a_run_reports_arrives(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("first")
    with runs.start("train", "unet", tags={"who": "me"}) as run:
        run.params({"train": {"learning_rate": 0.001, "loss": "bce"}, "seed": 1})
        for epoch in range(3):
            run.metrics({"dice": epoch / 10, "loss": float("nan") if epoch == 1 else 1.0}, step=epoch)
        run.tags({"mood": "good"})
        run.artifact(checkout / "notes.txt", "notes")
        (checkout / "notes.txt").write_text("changed after it was logged")
        run.dataset("phantom", "data", "0" * 32 + ".dir", "training", {"slices": 3})
        with run.child("trial 0") as trial:
            trial.metrics({"dice": 0.5})

    there, nested = found(run.key), found(trial.key)
    assert there.info.status == nested.info.status == "FINISHED"
    assert there.info.run_name == "unet"
    assert there.data.params == {"train.learning_rate": "0.001", "train.loss": "bce", "seed": "1"}
    assert curve(run.key, "dice") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert [step for step, _ in curve(run.key, "loss")] == [0, 1, 2]
    expected = {"who": "me", "mood": "good", "mitoflow.stage": "train", "mitoflow.lineage.mitoflow": __version__}
    assert expected.items() <= there.data.tags.items()
    assert (checkout / "mlruns" / there.info.run_id / "artifacts/notes/notes.txt").read_text() == "first"
    (used,) = there.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("phantom", "0" * 32 + ".dir", "training")
    assert nested.data.tags["mlflow.parentRunId"] == there.info.run_id
    assert nested.data.metrics == {"dice": 0.5}
    assert journal.folders() == []
    assert not journal.folders()


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_fails_or_is_interrupted_has_that_status(
    checkout: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), runs.start("train", "unet") as run:
        raise error
    assert found(run.key).info.status == status


def test_an_event_that_is_sent_twice_counts_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    (checkout / "notes.txt").write_text("first")
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with runs.start("train", "unet") as run:
        run.image("worst slice", picture.getvalue())
        run.params({"seed": 1})
        run.metrics({"dice": 0.1, "loss": float("nan")}, step=0)
        run.metrics({"dice": 0.2}, step=1)
        run.artifact(checkout / "notes.txt")
        run.dataset("phantom", "data", "abc", "training", {})
        run.child("trial 0").end()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri())
    (folder,) = journal.folders()
    kept = Journal.adopt(folder)
    for position in [0, *(end for _, end in kept.unsent())]:  # as if it was killed before it noted that this was sent
        kept.mark_sent(position)
        Delivery(kept).send()
    kept.close()

    there = found(run.key)
    pictures = store.client(store.uri()).list_artifacts(there.info.run_id, "images")
    assert [Path(file.path).suffix for file in pictures] == [".webp", ".png"]
    assert curve(run.key, "dice") == [(0, 0.1), (1, 0.2)]
    assert len(curve(run.key, "loss")) == 1
    assert len(there.inputs.dataset_inputs) == 1
    assert there.info.status == "FINISHED"
    assert len(store.client(store.uri()).search_runs([there.info.experiment_id])) == 2


@pytest.mark.slow
def test_a_killed_process_is_ended_and_its_run_resumed_without_doubled_points(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = in_a_process(
        """
run = runs.start("train", "unet", key="train-1")
child = run.child("trial 0", key="train-1-0")
for epoch in range(5):
    run.metrics({"dice": epoch / 10}, step=epoch)
os.kill(os.getpid(), signal.SIGKILL)
""",
        MLFLOW_TRACKING_URI=NOWHERE,
    )
    assert killed.returncode == -signal.SIGKILL
    (folder,) = journal.folders()
    with (folder / "events.jsonl").open("a") as torn:
        torn.write('{"event":"metrics","run":"train-1","ti')
    assert sum(map(journal.waiting, journal.folders())) == 7

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri())
    with runs.start("train", "unet", key="train-1") as run:
        for epoch in range(4, 8):  # the epoch in which it was killed is done again
            run.metrics({"dice": epoch / 10}, step=epoch)
        assert run.flush()
        assert found("train-1").info.status == "RUNNING"
        assert found("train-1-0").info.status == "KILLED"
    assert found("train-1").info.status == "FINISHED"
    assert curve("train-1", "dice") == [(epoch, epoch / 10) for epoch in range(8)]
    assert not journal.folders()


@pytest.mark.slow
def test_sync_ends_the_run_of_a_killed_process(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_process(
        'runs.start("tune", "tune", key="t").metrics({"x": 1})\nos.kill(os.getpid(), signal.SIGKILL)',
        MLFLOW_TRACKING_URI=NOWHERE,
    )
    assert runs.sync().reason.startswith(NOWHERE)  # the journal knows the store that it was for
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri())
    assert runs.sync() == runs.Synced(sent=3, left=0, live=0, reason="")
    run = found("t")
    assert run.info.status == "KILLED"
    assert run.info.end_time - run.info.start_time < 1000  # when it was last heard of, not when it was synced


def test_sync_leaves_a_living_run_alone(checkout: Path) -> None:
    with runs.start("train", "unet"):
        assert runs.sync().live == 1
    assert runs.sync().live == 0


@pytest.mark.slow
def test_an_evaluation_is_a_run_of_its_own_that_names_its_training(checkout: Path) -> None:
    model = checkout / "unet.keras"
    model.write_bytes(b"weights")
    assert runs.producer(model) is None
    with runs.start("train", "unet") as run:
        run.metrics({"val_dice": 0.8})
        run.produced(model)
    training = runs.producer(model)
    with pytest.raises(ValueError, match="broken"), runs.start("evaluate", "evaluate", training=training) as measuring:
        measuring.metrics({"test_dice": 0.7})
        raise ValueError("broken")
    trained, measured = found(run.key), found(measuring.key)
    assert measuring.training == run.key
    assert (trained.info.status, trained.data.metrics) == ("FINISHED", {"val_dice": 0.8})
    assert (measured.info.status, measured.data.metrics) == ("FAILED", {"test_dice": 0.7})
    assert trained.data.tags["mitoflow.model_sha256"] == provenance.file_sha256(model)
    assert measured.data.tags["mitoflow.training_run"] == trained.info.run_id
    assert "mlflow.parentRunId" not in measured.data.tags


def test_an_evaluation_does_not_overtake_its_training(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    with runs.start("train", "unet") as run:
        run.metrics({"val_dice": 0.8})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri())
    with runs.start("evaluate", "evaluate", training=run.key) as measuring:
        assert measuring.flush()
        assert found(measuring.key).data.tags["mitoflow.training_run"] == found(run.key).info.run_id
    assert found(run.key).data.metrics == {"val_dice": 0.8}


def test_a_training_names_the_study_that_found_its_values(checkout: Path) -> None:
    found_values = checkout / "best_params.yaml"
    found_values.write_text("depth: 3")
    with runs.start("tune", "tune [of] it") as study:
        study.produced(found_values)
    with runs.start("train", "unet", study=runs.producer(found_values)) as run:
        run.describe("early")
        run.describe("done")
    there = found(study.key).info
    assert found(run.key).data.tags["mitoflow.study_run"] == there.run_id
    page = f"#/experiments/{there.experiment_id}/runs/{there.run_id}?workflowType=machine_learning"
    assert found(run.key).data.tags["mlflow.note.content"] == f"done\n\nStudy: [tune \\[of\\] it]({page})"
    assert "mlflow.parentRunId" not in found(run.key).data.tags
    assert "mitoflow.model_sha256" not in found(study.key).data.tags


def test_a_folder_is_logged_without_the_files_of_git(checkout: Path) -> None:
    reports = checkout / "reports"
    reports.mkdir()
    for name in (".gitignore", "curves.csv"):
        (reports / name).touch()
    with runs.start("train", "unet") as run:
        run.artifact(reports)
    files = store.client(store.uri()).list_artifacts(found(run.key).info.run_id, "reports")
    assert [file.path for file in files] == ["reports/curves.csv"]


def test_system_metrics_go_through_the_journal(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with runs.start("train", "unet") as run, system_metrics.measured(run):
        until(lambda: run.flush() and len(curve(run.key, "system/cpu_utilization_percentage")) > 1)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with runs.start("train", "unet") as without, system_metrics.measured(without):
        time.sleep(0.2)
    measured = found(run.key).data.metrics
    assert 0 <= measured["system/cpu_utilization_percentage"] <= 100
    assert 0 < measured["system/system_memory_usage_percentage"] <= 100
    assert [step for step, _ in curve(run.key, "system/cpu_utilization_percentage")][:2] == [0, 1]
    assert found(without.key).data.metrics == {}


def test_what_ends_within_the_first_interval_has_one_measurement(checkout: Path) -> None:
    with runs.start("train", "unet") as run, system_metrics.measured(run, after_scores=True):
        run.metrics({"val_dice": 0.5})
    assert len(curve(run.key, "system/cpu_utilization_percentage")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scored", [True, False])
def test_system_metrics_of_a_training_wait_for_its_scores(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    """MLflow's comparison opens on the metric that was logged first."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with runs.start("train", "unet") as run, system_metrics.measured(run, after_scores=True):
        time.sleep(1)
        first_epoch = time.time()
        if scored:
            run.metrics({"val_dice": 0.5})
            until(lambda: run.flush() and len(curve(run.key, "system/cpu_utilization_percentage")) > 1)
    logged = found(run.key)
    client = store.client(store.uri())
    points = client.get_metric_history(logged.info.run_id, "system/cpu_utilization_percentage")
    assert next(iter(logged.data.metrics)).startswith("val_dice" if scored else "system/")
    assert [point.step for point in points] == [*range(len(points))]
    assert points[0].timestamp < 1000 * first_epoch  # the time of the measurement


def test_a_value_that_comes_back_is_the_last_one(checkout: Path) -> None:
    for value in (0.91, 0.92, 0.91, 0.91):
        with runs.start("evaluate", "unet", key="same") as run:
            run.metrics({"test_dice": value})
    client = store.client(store.uri())
    (found,) = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id])
    assert [point.value for point in client.get_metric_history(found.info.run_id, "test_dice")] == [0.91, 0.92, 0.91]
    assert found.data.metrics["test_dice"] == 0.91


def test_a_parameter_that_changed_does_not_block_the_run(checkout: Path) -> None:
    for epochs in (3, 5):
        with runs.start("train", "unet", key="k") as run:
            run.params({"epochs": epochs, "seed": 1})
    assert found("k").data.params == {"epochs": "3", "seed": "1"}
    assert found("k").data.tags["mitoflow.changed.epochs"] == "5"


@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db"])
def test_a_run_in_a_temporary_copy_lands_in_the_main_store(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.setenv("DVC_EXP_NAME", "brave-mito")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (copy / "notes.txt").write_text("kept")
    with runs.start("train", "unet") as run:
        run.artifact(copy / "notes.txt")
    there = found(run.key)
    assert there.data.tags["mitoflow.lineage.dvc_experiment"] == "brave-mito"
    assert (checkout / "mlruns" / there.info.run_id / "artifacts/notes.txt").read_text() == "kept"
    assert [path.name for path in copy.iterdir()] == ["notes.txt"]


def test_a_run_of_an_mlflow_project_is_its_child(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = store.client(store.uri()).create_run("0")  # as `mlflow run` does
    monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    with runs.start("train", "unet") as run:
        pass
    there = found(run.key)
    assert there.data.tags["mlflow.parentRunId"] == project.info.run_id
    # 0 is MLflow's default, which was not chosen: the run goes to the experiment of all others.
    assert there.info.experiment_id == store.client(store.uri()).get_experiment_by_name("mitoflow").experiment_id


@pytest.mark.slow
def test_processes_that_start_at_once_share_a_new_store(checkout: Path) -> None:
    (checkout / "mlflow.db").unlink()
    program = """
import pathlib, sys
import mlflow.store.tracking.sqlalchemy_store
from mitoflow.tracking import runs, store
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path("go").exists(): pass
store.client(store.uri())
with runs.start("train", "unet") as run: run.metrics({"x": 1})
"""
    ready = [checkout / "0", checkout / "1"]
    processes = [subprocess.Popen([sys.executable, "-c", program, path], stderr=subprocess.PIPE) for path in ready]
    while not all(path.exists() for path in ready):
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.01)
    (checkout / "go").touch()
    assert [process.communicate()[1] for process in processes] == [b"", b""]
    store.client.cache_clear()
    client = store.client(store.uri())
    runs = client.search_runs([client.get_experiment_by_name("mitoflow").experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"x": 1.0})] * 2


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("postgresql://ann:hunter2@lab/mlflow", "postgresql://lab/mlflow"),
        ("postgresql://lab/mlflow?user=ann&password=hunter2", "postgresql://lab/mlflow"),
        ("postgresql://lab/mlflow?user=ann&sslmode=require", "postgresql://lab/mlflow?sslmode=require"),
        ("really? at https://ann:hunter2@lab.", "really? at https://lab."),
    ],
)
def test_an_address_is_shown_without_user_and_password(text: str, kept: str) -> None:
    assert store.without_credentials(text) == kept


def test_secrets_are_not_written_down(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    with runs.start("train", "unet"):
        pass
    (folder,) = journal.folders()
    assert "hunter2" not in (folder / "events.jsonl").read_text()
    message = capfd.readouterr().err
    assert message.startswith(
        "mitoflow: tracking: http://127.0.0.1:9: [Errno 111] Connection refused; 2 events are kept"
    )
    assert len(message.splitlines()) == 1
    assert "hunter2" not in message + runs.sync().reason
    assert store.reason(OSError("no http://ann:hunter2@host/api")) == "no http://host/api"
    for before in range(170, 200):  # where a long message is cut, a password is not cut in two
        assert "hunter" not in store.reason(OSError(f"{'-' * before}http://ann:hunter2@host/api"))


def test_lineage_has_code_data_and_lock(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    files = {
        "data.dvc": "outs:\n- md5: abc.dir\n  path: data\n",
        "dvc.lock": "stages:\n  patch:\n    outs:\n    - path: patches\n      md5: def.dir\n",
        "requirements.lock": "numpy==1.26.4\n",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    git("init", "-q")
    git("add", *files)
    git("commit", "-qm", "first")
    Path("dvc.lock").write_text(files["dvc.lock"].replace("def", "fed"))  # DVC does this between stages
    lineage = provenance.current()
    assert lineage["git_commit"] == git("rev-parse", "HEAD")
    assert lineage["git_dirty"] == "false"
    assert (lineage["data_md5"], lineage["patches_md5"]) == ("abc.dir", "fed.dir")
    assert lineage["requirements_sha256"] == hashlib.sha256(b"numpy==1.26.4\n").hexdigest()
    assert provenance.from_tags(provenance.tags(lineage)) == lineage
    for stage in ("validate", "patch"):  # those in dvc.lock are the patches of before
        assert provenance.current(stage) == {key: value for key, value in lineage.items() if key != "patches_md5"}
    of_another_machine = {"python", "platform", "threads"}
    assert provenance.current("register").keys() == lineage.keys() - of_another_machine
    Path("requirements.lock").write_text("numpy==1.26.5\n")
    assert provenance.current()["git_dirty"] == "true"


def test_the_changes_of_a_working_tree_restore_it(checkout: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout

    git("init", "-q", ".")
    Path("src").mkdir()
    for name in ("params.yaml", "src/kept.py", "src/gone.py"):
        Path(name).write_text("a: 1\n")
    git("add", "params.yaml", "src")
    git("-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "-qm", "first")
    assert provenance.changes() == b""
    Path("params.yaml").write_text("a: 2\n")  # of the same length
    Path("src/gone.py").unlink()
    Path("src/new ü.py").write_text("b: 1")  # untracked, and without a last line end
    Path("src/new.bin").write_bytes(bytes(range(256)))
    Path("notes.txt").write_text("mine")
    before = git("status", "--porcelain")
    changes = provenance.changes()
    assert changes
    assert git("status", "--porcelain") == before
    assert provenance.current()["git_diff_sha256"] == hashlib.sha256(changes).hexdigest()
    git("worktree", "add", "-q", "--detach", "../restored", "HEAD")
    subprocess.run(["git", "apply", "-"], cwd="../restored", input=changes, check=True)
    sources = {file.name: file.read_bytes() for file in Path("src").iterdir()}
    assert {file.name: file.read_bytes() for file in Path("../restored/src").iterdir()} == sources
    assert Path("../restored/params.yaml").read_text() == "a: 2\n"
    assert not Path("../restored/notes.txt").exists()

    with runs.start("train", "unet") as run:
        pass
    there = found(run.key)
    kept = Path("mlruns", there.info.run_id, "artifacts", store.CHANGES)
    digest = there.data.tags["mitoflow.lineage.git_diff_sha256"]
    assert (kept / store.changes_file(digest)).read_bytes() == changes


def test_lineage_outside_of_a_repository_is_what_can_be_known(checkout: Path) -> None:
    assert set(provenance.current()) == {"mitoflow", "python", "platform", "threads"}


def test_a_journal_is_for_one_process(checkout: Path) -> None:
    events = Journal.create("k")
    events.append({"event": "start", "run": "k", "time": 1})
    with pytest.raises(BlockingIOError):
        Journal.adopt(events.folder)
    events.close()
    assert journal.waiting(events.folder) == 1
    with pytest.raises(ValueError, match="key"):
        Journal.create("../elsewhere")


def test_a_new_journal_is_locked_before_anybody_sees_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *call: (seen.append(journal.folders()), lock(*call)))
    created = Journal.create("key")
    assert seen == [[]]
    assert journal.folders() == [created.folder]
    created.append({"event": "end", "run": "key", "time": 1, "status": "FINISHED"})
    assert journal.waiting(created.folder) == 1


CLOSED_AND_KILLED = """
import os, signal, sys
from pathlib import Path
from mitoflow.tracking.journal import Journal

events = Journal.create("k")
events.append({"event": "artifact", "run": "k", "time": 1, "file": events.keep(Path("file"))})
events.mark_sent((events.folder / "events.jsonl").stat().st_size)
waits = int(sys.argv[1])


def kill(event, _):
    global waits
    if event in ("os.rename", "os.remove", "os.rmdir"):
        if waits == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        waits -= 1


sys.addaudithook(kill)
events.close()
"""


@pytest.mark.slow
def test_a_kill_while_a_journal_is_removed_leaves_a_whole_one_or_none(checkout: Path) -> None:
    Path("file").write_text("a curve")
    for before in range(20):  # changes of the disk before the kill
        done = subprocess.run([sys.executable, "-c", CLOSED_AND_KILLED, str(before)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        for folder in journal.folders():
            left = Journal.adopt(folder)
            assert left.all_sent
            assert [(folder / event["file"]).read_text() for event in left.events()] == ["a curve"]
            left.close()
        assert journal.folders() == []
    assert before > 3
    assert list(workspace.state_dir().glob("journal/*")) == []


def test_a_torn_line_at_any_place_costs_only_itself(checkout: Path) -> None:
    for cut in (1, 10, 40):
        events = Journal.create("k")
        events.append({"event": "start", "run": "k", "time": 1})
        events.append({"event": "metrics", "run": "k", "time": 2, "values": {"x": 1}, "step": 0})
        events.close()
        path = events.folder / "events.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        adopted = Journal.adopt(events.folder)
        assert [event["event"] for event in adopted.events()] == ["start", "end"]
        assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "end"]
        adopted.close()


@pytest.mark.slow
def test_a_damaged_journal_stops_no_other(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    for key in ("damaged", "whole"):
        with runs.start("train", "unet", key=key) as run:
            run.metrics({"x": 1})
    damaged, whole = journal.folders()
    content = bytearray((damaged / "events.jsonl").read_bytes())
    content[content.index(b'"x":1') + 4] ^= 2  # 1 becomes 3, which is JSON still
    (damaged / "events.jsonl").write_bytes(content)
    (whole / "sent").write_text("17")  # damaged as well, and harmless
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri())
    with runs.start("train", "unet", key="damaged") as run:  # resumed
        run.metrics({"x": 2})
    assert curve("damaged", "x") == [(0, 2)]
    assert f"{damaged}/events.jsonl: found a damaged line" in capfd.readouterr().err

    (checkout / "params.yaml").write_text("{}\n")
    synced = in_a_process("import sys\nfrom mitoflow import cli\nsys.argv = ['mitoflow', 'sync']\ncli.main()")
    assert (synced.returncode, synced.stdout) == (2, "3 events sent\n")
    assert synced.stderr.startswith(f"mitoflow: {damaged}/events.jsonl: found a damaged line")
    assert synced.stderr.count("\n") == 1
    synced = runs.sync()
    assert (synced.sent, synced.left) == (0, 0)
    (error,) = synced.errors
    assert str(damaged) in str(error)
    assert "\n" not in str(error)
    assert curve("whole", "x") == [(0, 1)]
    assert (damaged / "events.jsonl").read_bytes() == content
    assert journal.folders() == [damaged]
    assert Journal(damaged).unsent(), "it is still locked"


@pytest.mark.slow
def test_a_bit_that_flips_in_a_journal_is_noticed(checkout: Path) -> None:
    events = Journal.create("k")
    events.append({"event": "start", "run": "k", "time": 1})
    events.append({"event": "metrics", "run": "k", "time": 2, "values": {"x": 1.5, "y": float("nan")}, "step": 0})
    events.append({"event": "end", "run": "k", "time": 3, "status": "FINISHED"})
    events.close()
    path, written = events.folder / "events.jsonl", list(map(str, events.events()))
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            try:
                read = list(map(str, events.events()))
            except InputError:
                continue
            assert read in (written, written[:-1]), "without its end the last line counts as cut off"
    path.write_bytes(content)
    assert list(map(str, events.events())) == written


def test_a_file_system_without_locks_is_one_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for begin in (lambda: runs.start("train", "unet"), workspace.exclusive("train").__enter__):
        with pytest.raises(InputError, match=r"\.mitoflow.*: found a file system without locks, expected one that has"):
            begin()
