"""Memory, signals and log levels: set by stages, and not by an import."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoflow import errors
from tests.parts import ENVIRONMENT

MULTIPLY = """
import resource
from pathlib import Path
from mitoflow.core import process

def main():
    process.reserve_blas()
    (held,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line]
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(held), resource.RLIM_INFINITY))
    import numpy as np
    print((np.eye(3) @ np.full((3, 3), 7.0))[0])

process.run_stage(main)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_product_of_matrices_ends_where_no_memory_is_left() -> None:
    done = run(MULTIPLY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[7. 7. 7.]\n"


def test_a_library_that_cannot_be_mapped_is_one_line() -> None:
    code = MULTIPLY.replace("print(", "import scipy.sparse; print(")
    assert code != MULTIPLY
    done = run(code)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("mitoflow: memory: found ")


def test_threads_that_cannot_be_started_are_one_line() -> None:
    done = run("""
        import threading
        from mitoflow.core import process

        start, started = threading.Thread.start, []

        def refuse(thread):
            started.append(thread)
            if len(started) == 3:
                raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = refuse
        process.run_stage(process.reserve_blas)
    """)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mitoflow: memory: found can't start new thread, expected enough")


SIGTERM = """
    import os, signal, time
    from mitoflow.core import process

    class Held:
        def __del__(self):
            {in_finaliser}

    def main():
        try:
            held = Held()
            del held
            {after}
            time.sleep(30)
        finally:
            print("in order")

    process.run_stage(main)
"""


@pytest.mark.parametrize(
    "lines",
    [
        {"in_finaliser": "pass", "after": "os.kill(os.getpid(), signal.SIGTERM)"},
        # Python ignores an exception in a finaliser, so the process would not end.
        {"in_finaliser": "os.kill(os.getpid(), signal.SIGTERM)", "after": "pass"},
    ],
    ids=["anywhere", "in a finaliser"],
)
def test_sigterm_ends_a_stage_in_order(lines: dict[str, str]) -> None:
    done = run(SIGTERM.format(**lines))
    assert (done.returncode, done.stdout) == (143, "in order\n"), done.stderr
    assert done.stderr == "\nmitoflow: stopped by SIGTERM; run `dvc repro` to resume\n"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ImportError("libtensorflow_cc.so.2: failed to map segment from shared object"), "failed to map segment"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cannot allocate memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("OOM when allocating tensor with shape[8,512,512,64]\n and type float"), "oom when allocating"),
        (MemoryError(), "none left"),
        (MemoryError("Unable to allocate 8 GiB"), "Unable to allocate 8 GiB"),
    ],
)
def test_an_allocation_that_fails_in_a_library_is_one_line(error: Exception, found: str) -> None:
    line = f"memory: found {found}, expected enough for this step; use a machine that has more"
    assert str(errors.as_user_error(error)) == line


STATE = """
    import logging, os, signal, sys

    def state():
        loggers = {name: logging.getLogger(name).getEffectiveLevel() for name in ("", "mitoflow", "tifffile", "zarr")}
        handlers = logging.getLogger().handlers, logging.getLogger("tifffile").handlers
        return loggers, str(handlers), dict(os.environ), signal.getsignal(signal.SIGTERM)

    before = state()
"""
HEAVY = "tensorflow", "keras", "mlflow", "patchify", "pydantic", "cv2", "matplotlib", "dask", "optuna", "dvc"


@pytest.mark.parametrize(
    "code",
    [
        "import mitoflow, mitoflow.stages, mitoflow.stages.paths, mitoflow.core.process",
        """
    from mitoflow.io import volumes
    volume = volumes.open_volume("stack.tif")
    assert volume.read(2, (0, 8, 0, 8)).tolist() == [[2] * 8] * 8
    try:
        volumes.open_volume("damaged.tif")
    except mitoflow.errors.InputError:
        print("one error")
        """,
    ],
    ids=["import", "read"],
)
def test_importing_and_reading_change_nothing_and_load_no_framework(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None], (5, 8, 8))
    tifffile.imwrite("stack.tif", stack, photometric="minisblack", compression="zlib")
    Path("damaged.tif").write_bytes(Path("stack.tif").read_bytes()[:200])
    ending = f"""
    assert state() == before, (before, state())
    print(*sorted(set({HEAVY}) & set(sys.modules)))
    """
    done = run(STATE + "    import mitoflow.errors\n    " + code + ending)
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("\n", "one error\n\n")
