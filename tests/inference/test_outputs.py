from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest

from mitoflow.errors import InputError
from mitoflow.inference import outputs
from mitoflow.inference.outputs import pending_output


def begin(output: Path, asked_for: str = "this") -> None:
    """Do one block and be interrupted."""
    with pytest.raises(KeyboardInterrupt), pending_output(output, {"what": asked_for}) as work:
        (work.folder / "mask.zarr").mkdir(exist_ok=True)
        (work.folder / "mask.zarr/0").write_text(asked_for)
        work.mark_done("0-0-0")
        raise KeyboardInterrupt


def test_what_was_done_is_found_again(tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    begin(output)
    assert not output.exists()
    with pending_output(output, {"what": "this"}) as work:
        assert work.resumed
        assert work.is_done("0-0-0")
        assert not work.is_done("8-0-0")
        work.publish({output: "mask.zarr"})
    assert (output / "0").read_text() == "this"
    assert [path.name for path in tmp_path.iterdir()] == ["o.zarr"]


def test_what_was_made_for_another_request_is_thrown_away(tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    begin(output)
    with pytest.raises(ValueError), pending_output(output, {"what": "that"}) as work:
        assert not work.resumed
        assert not work.is_done("0-0-0")
        assert not (work.folder / "mask.zarr").exists()
        raise ValueError
    assert list(tmp_path.iterdir()) == [], "nothing stays of what did not come to a block"


def test_discarded_blocks_leave_nothing_behind(tmp_path: Path) -> None:
    begin(tmp_path / "o.zarr")
    with pytest.raises(ValueError), pending_output(tmp_path / "o.zarr", {"what": "this"}) as work:
        assert work.is_done("0-0-0")
        work.discard()
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mitoflow.inference.outputs import pending_output\n"
        "with pending_output(Path(sys.argv[1]), {}) as work: print(flush=True); sys.stdin.read()"
    )
    output = tmp_path / "o.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="found another process that is writing it"), pending_output(output, {}):
            pass
        other.kill()
    with pending_output(output, {}) as work:
        work.publish({})


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before ends between the opening of its lock and the locking."""
    output, lock, taken = tmp_path / "o.zarr", fcntl.flock, []

    def late(*call: int) -> None:
        taken.append(call)
        if len(taken) == 1:
            (outputs.partial_folder(output) / outputs.LOCK).unlink()
        lock(*call)

    monkeypatch.setattr(fcntl, "flock", late)
    with pending_output(output, {}):
        assert len(taken) == 2
        with pytest.raises(InputError, match="found another process that is writing it"), pending_output(output, {}):
            pass


def test_an_existing_output_is_kept_when_an_earlier_publication_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.zarr"
    begin(output)
    with (
        pytest.raises(KeyboardInterrupt),
        monkeypatch.context() as patched,
        pending_output(output, {"what": "this"}, [output]) as work,
    ):
        patched.setattr(outputs, "_replace", interrupt)
        work.publish({output: "mask.zarr"})
    output.mkdir()  # as the renames that were cut short could have left it
    outputs.refuse_existing(output, [output])
    with pytest.raises(InputError, match="an output that exists"), pending_output(output, {"what": "that"}, [output]):
        pass
    with pending_output(output, {"what": "this"}, [output]) as work:
        assert work.is_publishing, "what was finished is still there"


def test_an_output_that_another_process_published_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    output = tmp_path / "o.tif"
    output.write_text("theirs")
    with pytest.raises(InputError, match="an output that exists"), pending_output(output, {}, [output]):
        pass
    assert [*tmp_path.iterdir()] == [output]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_publishing_replaces_files_and_folders(tmp_path: Path) -> None:
    for name in ("o.zarr", "p.tif"):
        with pending_output(tmp_path / "o.zarr", {}) as work:
            (work.folder / "new").mkdir()
            (work.folder / "new.tif").write_text(name)
            work.publish({tmp_path / "p.tif": "new.tif", tmp_path / "o.zarr": "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.zarr", "p.tif"]
    assert (tmp_path / "p.tif").read_text() == "p.tif"


def test_publishing_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, beside = tmp_path / "o.zarr", tmp_path / "p.zarr"
    begin(output)
    real = outputs._replace

    def killed_at_the_second(source: Path, target: Path, aside: Path) -> None:
        if target == output:
            raise KeyboardInterrupt
        real(source, target, aside)

    monkeypatch.setattr(outputs, "_replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt), pending_output(output, {"what": "this"}) as work:
        (work.folder / "probability.zarr").mkdir()
        work.publish({beside: "probability.zarr", output: "mask.zarr"})
    assert beside.exists()
    assert not output.exists()
    outputs.refuse_existing(output, [beside])
    monkeypatch.undo()
    with pending_output(output, {"what": "this"}) as work:
        assert work.is_publishing
        work.resume_publishing()
    assert (output / "0").exists()
    with pytest.raises(InputError, match="p.zarr: found an output that exists.*--overwrite"):
        outputs.refuse_existing(tmp_path / "new.zarr", [beside])


def publish(output: Path, table: Path) -> None:
    """Write a mask and a table, or finish publishing those that are written."""
    with pending_output(output, {}) as work:
        work.mark_done("0-0-0")
        if work.is_publishing:
            work.resume_publishing()
            return
        (work.folder / "mask.zarr").mkdir(exist_ok=True)
        (work.folder / "mask.zarr/0").write_text("new")
        (work.folder / "t.csv").write_text("new")
        work.publish({table: "t.csv", output: "mask.zarr"})


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(source: Path, *_: object) -> None:
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["beside it", "on another file system"])
@pytest.mark.parametrize("fail", [refuse, interrupt, die])
def test_a_result_outlives_every_step_of_its_publication(
    fail: Callable[..., None], is_elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rename or copy fails in turn, before it is made or after; the next run publishes the new content."""
    if is_elsewhere and not Path("/dev/shm").is_dir():
        pytest.skip("no second file system")
    steps = 6 if is_elsewhere else 4  # the list of renames; the table; the old mask aside, and the new one
    for step, is_made in product(range(1, steps + 2), (False, True)):
        folder = tmp_path / f"{step}-{is_made}"
        with tempfile.TemporaryDirectory(dir="/dev/shm" if is_elsewhere else tmp_path) as other:
            output, table = folder / "o.zarr", Path(other) / "t.csv"
            output.mkdir(parents=True)
            (output / "0").write_text("old")
            table.write_text("old")
            steps_begun = count(1)

            def failing(real: Callable[..., Any], *paths: Path, steps_begun: Iterator[int], at: int, made: bool) -> Any:
                if next(steps_begun) != at:
                    return real(*paths)
                if made:
                    real(*paths)
                return fail(*paths)

            process = os.fork()
            if not process:
                try:
                    for module, name in ((os, "rename"), (os, "replace"), (shutil, "copy2")):
                        real = getattr(module, name)
                        fault = partial(failing, real, steps_begun=steps_begun, at=step, made=is_made)
                        monkeypatch.setattr(module, name, fault)
                    publish(output, table)
                    os._exit(0)
                finally:
                    os._exit(1)
            is_published = os.waitpid(process, 0)[1] == 0
            assert is_published or step <= steps
            assert table.read_text() in ("old", "new")
            if not is_published:
                publish(output, table)
            assert table.read_text() == (output / "0").read_text() == "new"
            assert [*folder.iterdir(), *Path(other).iterdir()] == [output, table]


def test_a_result_that_is_lost_is_an_error_and_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, table = tmp_path / "o.zarr", tmp_path / "t.csv"
    monkeypatch.setattr(outputs, "_replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(output, table)
    monkeypatch.undo()
    (lost,) = tmp_path.glob(".o.zarr.partial/*/t.csv")
    lost.unlink()
    with pytest.raises(InputError, match=r"t.csv: found neither this file nor .*; delete .*/.o.zarr.partial, and run"):
        publish(output, table)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_a_table_may_go_to_another_file_system(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        table = Path(elsewhere) / "t.csv"
        assert table.parent.stat().st_dev != tmp_path.stat().st_dev
        with pending_output(tmp_path / "o.zarr", {}) as work:
            (work.folder / "mask.zarr").mkdir()
            (work.folder / "t.csv").write_text("label")
            work.publish({table: "t.csv", tmp_path / "o.zarr": "mask.zarr"})
        assert table.read_text() == "label"
    assert [path.name for path in tmp_path.iterdir()] == ["o.zarr"]


def test_a_straggler_of_an_earlier_request_writes_elsewhere(tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    with pytest.raises(KeyboardInterrupt), pending_output(output, {"threshold": 0.5}) as old:
        old.mark_done("0-0-0")
        raise KeyboardInterrupt
    with pending_output(output, {"threshold": 0.9}) as work:
        (old.folder / "done").mkdir(parents=True)  # as Zarr makes the folders that it writes to
        old.mark_done("8-0-0")
        assert not work.is_done("0-0-0")
        assert not work.is_done("8-0-0")
        work.publish({})


def test_a_full_disk_names_the_output(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="o.zarr"), pending_output(tmp_path / "o.zarr", {}):
        raise OSError(28, "No space left on device")
