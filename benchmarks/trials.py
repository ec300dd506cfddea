"""How many trials an hour does a second worker bring, and how long does the owner of a study take for a trial?

The first question is one of real trials, short ones, on one worker of a Dask scheduler that has all cores against two
that share them. The second is one of trials that sleep, on 1, 8 and 64 workers: the time of the study beyond the
sleep, divided by its trials. It is an upper bound of the owner's work: the workers are threads of its process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Candidate, Lap, Series, alternate
from benchmarks.table import Row, compare, limit
from benchmarks.train_step import write_patches

COMMAND = "python -m benchmarks trials"
EACH = {1: 4, 8: 2, 64: 1}  # trials of a simulated study for each worker, by the number of workers
ASLEEP = 1.0  # seconds of a simulated trial
TRIALS = 2  # of a real study
CROPS = 8  # of a real trial


def rows(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        write_patches(Path(folder))
        real: dict[str, Candidate] = {
            name: partial(fit, Path(folder), workers) for name, workers in (("mitoflow", 2), ("one worker", 1))
        }
        trials = alternate(real, rounds)
        simulated: dict[str, Candidate] = {str(workers): partial(simulate, Path(folder), workers) for workers in EACH}
        series = alternate(simulated, min(rounds, 3))
    what = "trials an hour, two workers that share the cores"
    return [
        compare(what, "trials/h", trials, "one worker", "one worker with all of them", 1.2, COMMAND),
        *(
            limit(f"overhead of a trial, {workers} workers", overhead(series[str(workers)], workers), 0.25, COMMAND)
            for workers in EACH
        ),
    ]


def overhead(series: Series, workers: int) -> Series:
    """Return the seconds of a study per trial beyond those in which its workers slept."""
    asleep, trials = EACH[workers] * ASLEEP, EACH[workers] * workers
    return dataclasses.replace(series, seconds=[(seconds - asleep) / trials for seconds in series.seconds])


def fit(folder: Path, workers: int, lap: Lap) -> None:
    """Search with short trials of the real objective."""
    from mitoflow.config.params import SharedWithTrials
    from mitoflow.tuning.trial import Trial

    trial = Trial.of(folder / "patches", SharedWithTrials(base_width=4).model_dump() | {"seed": 1})
    with cluster(folder, workers) as address:
        while True:
            with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
                search(folder, partial(trial, Path(checkpoints)), TRIALS, address)
            lap(3600 * TRIALS)


def simulate(folder: Path, workers: int, lap: Lap) -> None:
    """Search with trials that sleep."""
    from distributed import LocalCluster

    threads = {"n_workers": workers, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**threads, dashboard_address="127.0.0.1:0") as scheduler:
        while True:
            search(folder, sleep, EACH[workers] * workers, scheduler.scheduler_address)
            lap(EACH[workers] * workers)


def sleep(number: int, values: dict[str, Any], crops: Any, check: Any) -> list[dict[str, float]]:
    """Return the sampled value as the score."""
    time.sleep(ASLEEP)
    return [{"val_dice": float(values["augment_strength"])}]


class NoReports:
    """A callback of the study that does nothing."""

    def trial_started(self, number: int, values: dict[str, Any]) -> None: ...

    def rung_ended(self, number: int, crops: int, fitted: Any) -> None: ...

    def trial_ended(self, number: int, pruned: str | None) -> None: ...


def search(folder: Path, objective: Any, trials: int, address: str) -> None:
    """Run a new study of one rung whose depth is always 2, so that all trials have the same work."""
    from mitoflow.config import params
    from mitoflow.tuning import halving, optuna_study

    depth = params.Depths(low=2, start=2, high=2)
    settings = params.Tune(trials=trials, reduction=max(2, trials), budget=trials * CROPS, depth=depth)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        study = optuna_study.open_study(f"sqlite:///{own}/study.db", "study")
        searching = halving.Search(study, settings, params.SAMPLED, settings.budget, NoReports())
        searching.on_cluster(objective, address=address)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """Start a Dask scheduler and that many workers, each a process with its share of the cores."""
    scheduler_file = folder / f"scheduler-of-{workers}.json"
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    with ExitStack() as processes:

        def start(*command: str) -> None:
            dask = [sys.executable, "-m", "dask", *command, "--host", "127.0.0.1", "--no-dashboard"]
            process = subprocess.Popen(dask, env=environment, stderr=subprocess.DEVNULL)
            processes.callback(process.kill)

        start("scheduler", "--port", "0", "--scheduler-file", str(scheduler_file))
        while not scheduler_file.exists() or not scheduler_file.read_text().endswith("}"):
            time.sleep(0.1)
        address = json.loads(scheduler_file.read_text())["address"]
        for _ in range(workers):
            start("worker", address, "--nthreads", "1", "--no-nanny")
        from distributed import Client

        with Client(address) as client:
            client.wait_for_workers(workers)
        yield str(address)
