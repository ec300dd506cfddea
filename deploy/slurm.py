"""Run `mitoflow tune` or `mitoflow predict` on workers that are SLURM jobs; docs/cluster.md says how.

    python deploy/slurm.py --jobs 8 --gpus 1 tune
    python deploy/slurm.py --jobs 4 predict cell.ome.zarr mask.ome.zarr

The scheduler runs in this process, and ends with it; so do the jobs. Whatever SLURM wants to know besides is for
dask-jobqueue's own file, ~/.config/dask/jobqueue.yaml.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from dask_jobqueue import SLURMCluster

BEFORE_THE_END = 5  # minutes before SLURM ends a job in which its worker leaves, which counts as no failure


def cluster(
    cores: int, gpus: int, memory: str, hours: int, partition: str | None, interface: str | None
) -> SLURMCluster:
    """Start a scheduler, and no jobs yet; each job will be one worker, which does one thing at a time."""
    return SLURMCluster(
        queue=partition,
        cores=cores,
        processes=1,
        memory=memory,
        walltime=f"{hours:02}:00:00",
        interface=interface,
        scheduler_options={"dashboard_address": None},
        job_extra_directives=[f"--gres=gpu:{gpus}"] if gpus else [],
        job_script_prologue=["export TF_CPP_MIN_LOG_LEVEL=3"],
        worker_extra_args=["--nthreads", "1", "--no-dashboard", "--lifetime", f"{60 * hours - BEFORE_THE_END}m"],
    )


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Jobs that work at a time.")
@click.option("--cores", type=click.IntRange(min=1), default=8, show_default=True, help="Cores of a job.")
@click.option(
    "--gpus", type=click.IntRange(0, 1), default=0, show_default=True, help="GPUs of a job; a trial uses one."
)
@click.option("--memory", default="32 GB", show_default=True, help="Memory of a job.")
@click.option("--hours", type=click.IntRange(min=1), default=4, show_default=True, help="After which SLURM ends a job.")
@click.option("--partition", help="Where jobs run, if not in the default partition.")
@click.option("--interface", help="Network interface of the scheduler and the workers, such as ib0.")
@click.option("--script", is_flag=True, help="Print the script of a job, and do nothing.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(jobs: int, script: bool, command: Sequence[str], **wanted: object) -> None:
    """Run `mitoflow COMMAND --dask ...`, where COMMAND is tune, or predict with its arguments."""
    with cluster(**wanted) as workers:  # type: ignore[arg-type]
        if script:
            click.echo(workers.job_script())
            return
        workers.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # a job that ended is followed by another
        click.echo("waiting for the first job", err=True)
        workers.wait_for_workers(1)  # mitoflow waits for a minute, which a queue knows nothing of
        mitoflow = Path(sys.executable).with_name("mitoflow")
        done = subprocess.run([mitoflow, *command, "--dask", workers.scheduler_address], check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
