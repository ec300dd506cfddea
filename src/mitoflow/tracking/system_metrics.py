"""CPU, memory, disk, network and GPU of the machine while a stage works, as MLflow measures them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
)
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from mitoflow.tracking import runs, store

INTERVAL = 10.0  # seconds, as in MLflow


@contextmanager
def measured(run: runs.Run, *, after_scores: bool = False) -> Iterator[None]:
    """Log to a run what the machine does while the block runs, as ``system/...``.

    MLflow's own logger needs a server that answers; this one writes to the journal of the run. MLflow's variables
    apply: ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` turns it off, ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` is
    the time between two measurements in seconds.

    Parameters
    ----------
    run
        The run.
    after_scores
        Whether measurements wait until the run has another metric, or the block ends: MLflow's comparison of runs opens
        on the metric that was logged first.
    """
    store.configure()
    over = threading.Event()
    thread = threading.Thread(
        target=_measure, args=(run, over, after_scores), name="mitoflow system metrics", daemon=True
    )
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def _measure(run: runs.Run, over: threading.Event, after_scores: bool) -> None:
    interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL
    monitors = _monitors()
    _read(monitors)  # the load of the processors is that since the last reading
    waiting: list[tuple[dict[str, float], int, float]] = []
    for step in itertools.count():
        ended = over.wait(interval)
        if not ended or step == 0:  # what ends within the first interval has one measurement
            waiting.append(({f"system/{name}": value for name, value in _read(monitors).items()}, step, time.time()))
        if ended or run.has_metrics or not after_scores:
            for values, measured_step, when in waiting:
                run.metrics(values, measured_step, when)
            waiting.clear()
        if ended:
            return


def _monitors() -> list[BaseMetricsMonitor]:
    """Return the monitors that work on this machine; one for AMD's GPUs is not among them."""
    monitors: list[BaseMetricsMonitor] = []
    for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(ImportError, RuntimeError, AttributeError, OSError):  # there is none, or nothing that reads it
            monitors.append(monitor())
    return monitors


def _read(monitors: list[BaseMetricsMonitor]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return values
