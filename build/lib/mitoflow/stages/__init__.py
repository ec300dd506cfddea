"""The stages of ``dvc.yaml``, one file each, and the paths through which they hand on their results."""

import mmap
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread
from types import FrameType

from mitoflow.errors import fail, mendable, one_line

DATA = Path("data")
PATCHES = Path("patches")
MODEL = Path("models/unet.keras")
MODEL_FACTS = Path("models/unet.yaml")
CONVENTIONS = Path("reports/validate/conventions.yaml")
BEST_PARAMS = Path("reports/tune/best_params.yaml")
VALIDATE_REPORTS, TUNE_REPORTS, TRAIN_REPORTS, EVALUATE_REPORTS = (
    Path("reports") / stage for stage in ("validate", "tune", "train", "evaluate")
)
FINDINGS = VALIDATE_REPORTS / "report.json"
CURVES = TRAIN_REPORTS / "curves.csv"
INFERENCE = EVALUATE_REPORTS / "inference.yaml"
DOMAIN = EVALUATE_REPORTS / "domain.yaml"
EVALUATED = EVALUATE_REPORTS / "evaluation.json"
METRICS = EVALUATE_REPORTS / "metrics.json"

#: Names the environment variable with the address of a Dask scheduler, whose workers then fit the trials of `tune`.
DASK = "MITOFLOW_DASK"

MULTIPLYING = 4  # threads of a stage that may multiply matrices at once: its own, those that make batches, MLflow's
BUFFERS = 640 << 20  # bytes of address space for their buffers and their own
LIBRARIES = 1 << 30  # bytes of it for whatever a stage loads, and these buffers
KERAS = 4 << 30  # the same for the stages that fit or predict: TensorFlow aborts where it gets less
WITH_KERAS = [f"{__name__}.{stage}" for stage in ("tune", "train", "evaluate")]
GRACE = 20  # seconds; schedulers kill 30 seconds after the notice


def as_process(main: Callable[[], None]) -> None:
    """Run a stage as a process; see `mitoflow.errors.one_line`.

    SIGTERM is the notice that the machine is taken away. The stage ends at once, in order and with exit code 143: its
    run in MLflow as KILLED, nothing half-written. Run again, `tune` and `train` go on after the last whole epoch.
    """
    signal.signal(signal.SIGTERM, _end)

    def run() -> None:
        reserve_blas()
        main()

    one_line(run)


def require(size: int, protection: int = mmap.PROT_READ) -> None:
    """Raise `MemoryError` where not so many bytes of address space are left, or of memory where it is to be written."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection).close()
    except OSError as error:
        raise MemoryError(f"not {size >> 20} MiB left") from error


def reserve_blas() -> None:
    """Have BLAS take its buffers while there is memory.

    OpenBLAS takes one when it is loaded, and one for each thread that multiplies beside others, at the first product;
    where there is no memory by then, it asks for ever (`blas_memory_alloc` of the release that numpy 1.26 brings).

    Raises
    ------
    MemoryError
        There is too little for the buffers already, or for the threads.
    """
    import numpy as np

    require(BUFFERS, mmap.PROT_READ | mmap.PROT_WRITE)
    square, together = np.ones((256, 256)), Barrier(MULTIPLYING)

    def multiply() -> None:
        with suppress(BrokenBarrierError):
            together.wait()
            np.matmul(square, square)

    threads = [Thread(target=multiply) for _ in range(MULTIPLYING)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        together.abort()
        raise MemoryError(f"no room for a thread ({error})") from error
    for thread in threads:
        thread.join()


def _end(_: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers say it more than once
    while frame is not None:
        if frame.f_code.co_name == "__del__":  # Python ignores what is raised there
            signal.signal(signal.SIGALRM, _end)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return
        frame = frame.f_back
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(GRACE)  # ends the process where something does not let it end in order
    # Below the progress bar, and not by `print`, which the signal may have interrupted.
    os.write(sys.stderr.fileno(), b"\nmitoflow: stopped by SIGTERM; run `dvc repro` and it goes on\n")
    raise SystemExit(128 + signal.SIGTERM)


try:
    # Before the stage that Python was asked for imports what it needs.
    require(LIBRARIES if set(WITH_KERAS).isdisjoint(sys.orig_argv) else KERAS)
except MemoryError as error:
    fail(mendable(error) or error)
