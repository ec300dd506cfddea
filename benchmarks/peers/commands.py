"""The commands of a tool, run one after another, with their time and the peak memory of all their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

INTERVAL = 0.25  # seconds from one look at the progress to the next
MEMORY_INTERVAL = 2.0  # the same for the memory: to add up pages takes a while
PATIENCE = 10.0  # seconds in which a process that is stopped ends by itself


class CannotRunError(Exception):
    """A tool could not be installed or run; the message is the reason."""


class Commands:
    """Runs commands in a folder, and knows how much memory they took at most.

    Parameters
    ----------
    folder
        Where they run; `commands.log` there has all that they print.
    variables
        Environment variables, in addition to those of this process.

    Attributes
    ----------
    peak_mib
        Largest memory of a command and of all processes that it started, by a look every `MEMORY_INTERVAL` seconds.
        Pages that several processes share count once: it is the sum of the proportional set sizes.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / "commands.log"
        self.log.touch()
        self.peak_mib = 0.0
        self._variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}

    def run(self, *command: str | Path, progress: Callable[[], int] = int, **variables: str) -> list[float]:
        """Run a command to its end.

        Parameters
        ----------
        command
            A program and its arguments.
        progress
            Counts what is done, such as epochs, while the command runs.
        variables
            Further environment variables.

        Returns
        -------
        The seconds from its start to each step of `progress` that was seen, then to its end.

        Raises
        ------
        CannotRunError
            It does not start, or ends with an error.
        """
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            environment = {**self._variables, **variables}
            try:
                process = subprocess.Popen(
                    command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                raise CannotRunError(f"{command[0]}: {error.strerror}") from None
            try:
                reached = self._watch(process, progress)
            finally:
                _end(process)
        if process.returncode:
            raise CannotRunError(f"{Path(command[0]).name} ended with {process.returncode}: {self._last_line()}")
        return reached

    def _watch(self, process: subprocess.Popen[bytes], progress: Callable[[], int]) -> list[float]:
        """Wait for the end of a process; note its memory, and return the times as `run` does."""
        start = looked = time.monotonic()
        reached, done = [], progress()
        while process.poll() is None:
            if time.monotonic() - looked > MEMORY_INTERVAL:
                self.peak_mib, looked = max(self.peak_mib, memory_mib(process.pid)), time.monotonic()
            now = progress()
            reached += [time.monotonic() - start] * (now - done)
            done = max(now, done)
            time.sleep(INTERVAL)
        return [*reached, time.monotonic() - start]

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def memory_mib(process_id: int) -> float:
    """Return the memory of a process and of all that it started; 0 where it has ended."""
    total = 0
    try:
        parent = psutil.Process(process_id)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in processes:
        try:
            total += process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return float(total / 2**20)


def epochs_within(seconds: float, reached: Sequence[float]) -> int:
    """Return how many epochs a command can train in `seconds`, its start included; at least 1.

    Parameters
    ----------
    seconds
        The budget.
    reached
        When a shorter run had trained each of its epochs, in seconds from its start; two or more.
    """
    if len(reached) < 2:
        raise CannotRunError(
            f"{len(reached)} epochs were seen in the run that measures their length, expected 2 or more"
        )
    each = (reached[-1] - reached[0]) / (len(reached) - 1)
    return max(1, 1 + int((seconds - reached[0]) / each))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop all processes of a command that was interrupted, and what it left running."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(PATIENCE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def configuration_lines(*texts: str) -> int:
    """Return the lines of configuration files that say something: no blank lines, comments or lone brackets."""
    lines = (line.strip() for text in texts for line in text.splitlines())
    return sum(1 for line in lines if line and not line.startswith("#") and line.strip("{}[](),"))
