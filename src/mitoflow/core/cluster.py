"""Dask clusters: an existing one, or processes of this machine, used in the same way."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitoflow import __version__
from mitoflow.core import process
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from distributed import Client, Future

#: Names the environment variable with the address of a Dask scheduler, whose workers then fit the trials of `tune`.
DASK = "MITOFLOW_DASK"

PATIENCE = 60  # seconds for a scheduler, and for its first worker, to answer

#: Held by what works: a worker may have several threads, and one network keeps all its cores busy.
alone = threading.Lock()


def dask_setup(worker: Any) -> None:
    """Give each process of this machine a GPU of its own, while there are as many: TensorFlow takes all it sees.

    Dask calls it by this name in each of them, also in one that follows one that died, before a framework is imported.
    """
    process.silence_libraries()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    gpus = found if given is None else [gpu for gpu in given.split(",") if gpu]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[Client]:
    """Yield a client of the scheduler at `address`, or of that many processes of this machine.

    Workers may come and go. What one was working on when it died is given to another. Nothing else that this process
    computes with Dask goes there: a viewer's own arrays would wait for ever for a scheduler that went away.

    Raises
    ------
    InputError
        The scheduler, or its first worker, does not answer, or went away.
    """
    from distributed.comm import CommClosedError

    with _client(address, workers) as client:
        try:
            yield client
        except OSError as error:  # of a connection that closed, or could not be opened again for a while
            if isinstance(error, CommClosedError) or client.status != "running":
                raise _went_away() from None
            raise


@contextmanager
def _client(address: str | None, workers: int | None) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    if address is None:
        threads = str(max(1, (os.cpu_count() or 1) // (workers or 1)))
        settings = {"TQDM_DISABLE": "1", "TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1"}
        own = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            env=settings,
            preload=__name__,
        )
        with own, Client(own, set_as_default=False) as client:
            yield client
        return
    client = Client.__new__(Client)  # at hand where its start fails: left open, it keeps the process from its end
    try:
        client.__init__(address, timeout=PATIENCE, set_as_default=False)
        client.wait_for_workers(1, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        client.close()
        found = f"{address}, where no scheduler with a worker answers ({error})"
        remedy = "start `dask scheduler` and `dask worker`"
        raise InputError("--dask", found, "the address of a Dask scheduler, such as tcp://host:8786", remedy) from None
    with client:
        yield client


def result(future: Future) -> Any:
    """Return what a worker made, or raise what it raised.

    Raises
    ------
    InputError
        The scheduler went away, a worker lacks mitoflow, or it was the last of several workers that died of this.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except KilledWorker as error:
        found = f"a piece of work of which every worker died ({error})"
        raise InputError("--dask", found, "workers that live", "give them more memory; their logs say why") from None
    except FutureCancelledError:
        raise _went_away() from None
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        found = f"a scheduler or workers that do not know this mitoflow ({error})"
        remedy = "install the same version on all of them"
        raise InputError("--dask", found, f"mitoflow {__version__} everywhere", remedy) from None


def _went_away() -> InputError:
    remedy = "repair it, then give the command again: it resumes"
    return InputError("--dask", "a scheduler that went away", "one that stays", remedy)


def refuse_unseen(*paths: Path) -> None:
    """Raise `InputError` where a file cannot be seen from here, the machine of a worker."""
    for path in paths:
        if not path.exists():
            found = f"no such file on {socket.gethostname()}"
            raise InputError(path, found, "what all workers see", "use a file system that they share")
