"""What belongs to a whole process: memory, signals and the noise of libraries.

Stages, commands and the page call this, because the process is theirs. Importing mitoflow, or reading an image, sets
none of it: there the process is the user's.
"""

from __future__ import annotations

import importlib.util
import logging
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from threading import Barrier
from types import FrameType, ModuleType

from mitoflow.errors import run_as_command

BLAS_THREADS = 4  # of a stage that may multiply matrices at the same time: its own, those that make batches, MLflow's
BLAS_MEMORY = 640 << 20  # bytes for the buffers of these threads, and for the threads
GRACE = 20  # seconds from SIGTERM to the end; schedulers kill after 30


def silence_libraries() -> None:
    """Keep TensorFlow, tifffile and Zarr from writing to stderr, where one line of mitoflow says what is wrong.

    MLflow, when it is imported, writes an identifier for its telemetry into the home folder; here it does not.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"zarr\b")
    if sys.stderr and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietTensorFlow())


class _QuietTensorFlow(MetaPathFinder):
    """Finds TensorFlow, once, and has it imported with stderr discarded.

    During the import TensorFlow 2.21 writes lines from C++ whatever TF_CPP_MIN_LOG_LEVEL says; see its issue 100442.
    """

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where TensorFlow is, with a loader that holds stderr back; None for other modules."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(Loader):
    """Loads a module with stderr discarded, and leaves it to its own loader.

    Parameters
    ----------
    loader
        That of the module.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return the module as its own loader makes it."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module; from then on its own loader is all that it knows."""
        if module.__spec__:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        with _stderr_discarded():
            self._loader.exec_module(module)


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what this process writes to file descriptor 2, where C++ writes to."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage as a process; errors that a user can correct are one line, see `mitoflow.errors.run_as_command`.

    On SIGTERM, by which a scheduler announces that it takes the machine away, the stage ends in order within 20
    seconds, with exit code 143: its run in MLflow is KILLED, and no output is half-written.
    """
    silence_libraries()
    signal.signal(signal.SIGTERM, _end)
    run_as_command(main)


def threads() -> int:
    """Return how many threads share an operation of TensorFlow: sums in another number of parts round otherwise."""
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))


def ending_within(seconds: int) -> Callable[[int, FrameType | None], None]:
    """Return a handler of SIGTERM for a server: its `finally` blocks run, and what takes longer is cut off."""

    def end(number: int, _: FrameType | None) -> None:
        signal.alarm(seconds)
        raise SystemExit(128 + number)

    return end


def require_memory(size: int, protection: int = mmap.PROT_READ) -> None:
    """Raise `MemoryError` unless the process may take `size` more bytes of address space, or of memory to write to."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection).close()
    except OSError as error:
        raise MemoryError(f"not {size >> 20} MiB left") from error


def reserve_blas() -> None:
    """Multiply matrices in several threads at once, so that OpenBLAS takes its buffers while there is memory.

    It takes one buffer for each thread that multiplies beside others, and waits for ever where it gets none
    (`blas_memory_alloc` of the release in numpy 1.26).

    Raises
    ------
    MemoryError, RuntimeError
        There is no memory for the buffers, or for the threads.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    require_memory(BLAS_MEMORY, mmap.PROT_READ | mmap.PROT_WRITE)
    square, together = np.ones((256, 256)), Barrier(BLAS_THREADS)

    def multiply() -> None:
        together.wait()
        np.matmul(square, square)

    with ThreadPoolExecutor(BLAS_THREADS) as pool:
        try:
            products = [pool.submit(multiply) for _ in range(BLAS_THREADS)]
        except RuntimeError:  # a thread cannot be started: those that wait for it must end
            together.abort()
            raise
    for product in products:
        product.result()


def _end(_: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it more than once
    while frame is not None:
        if frame.f_code.co_name == "__del__":  # Python ignores what is raised in a finaliser: try again soon
            signal.signal(signal.SIGALRM, _end)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return
        frame = frame.f_back
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(GRACE)  # ends the process where a library does not let it end in order
    # On a line of its own below the progress bar, and not by `print`, which the signal may have interrupted.
    os.write(sys.stderr.fileno(), b"\nmitoflow: stopped by SIGTERM; run `dvc repro` to resume\n")
    raise SystemExit(128 + signal.SIGTERM)


def failure(stderr: str) -> str:
    """Return why a command of git or DVC failed: DVC's line that begins with ERROR, or else the last line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    message = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "an error")
    return message.removeprefix("ERROR: ").strip()
