"""Contenders measured alternately, each in a process of its own.

A contender is a function that repeats the same piece of work without end and calls its `Lap` after each piece. It has a
process to itself, because precision policies, thread pools and peak memory belong to a process, and it waits in the
lap until its turn comes again, so that other load on the machine affects all contenders.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

PATIENCE = 10.0  # seconds within which a contender must end


class Lap:
    """The end of a piece of work: reports its time and waits for the next turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._start = connection, time.perf_counter()

    def __call__(self, work: float) -> None:
        """End a piece of `work`, in the unit of the question, and begin the next one when it is asked for."""
        self._connection.send(Piece(work, time.perf_counter() - self._start, _peak_mib()))
        try:
            self._connection.recv()
        except EOFError:
            raise SystemExit from None  # the other side has all it wants
        self._start = time.perf_counter()


Candidate = Callable[[Lap], object]


@dataclass(frozen=True)
class Piece:
    """A piece of work: how much, how long it took, and the peak memory of the process until then."""

    work: float
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Series:
    """What a contender did, without its first piece, in which libraries were imported and graphs compiled.

    Attributes
    ----------
    work
        Of a piece, in the unit of the question.
    seconds
        Of each piece.
    peak_mib
        Largest resident set of the process, or of one that it started, in MiB.
    resident_mib
        Resident set after each piece, where that is the question.
    """

    work: float
    seconds: list[float]
    peak_mib: float
    resident_mib: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Work a second, for each piece."""
        return [self.work / seconds for seconds in self.seconds]


@dataclass(frozen=True)
class Interval:
    """A median and what it lies between."""

    median: float
    low: float
    high: float


def quartiles(values: list[float]) -> Interval:
    """Return the median and the quartiles around it."""
    if len(values) == 1:
        return Interval(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Interval(median, low, high)


def ratio(ours: Series, theirs: Series) -> Interval:
    """Return how many times faster we are: the median of the rounds, between the smallest and the largest of them.

    Each round gives one ratio, in which slow moments of the machine cancel. The range of n independent values covers
    their median with probability ``1 - 2**(1 - n)``, for any distribution: 94 % for 5 rounds.
    """
    ratios = [our / their for our, their in zip(ours.rates, theirs.rates, strict=True)]
    return Interval(statistics.median(ratios), min(ratios), max(ratios))


def alternate(contenders: Mapping[str, Candidate], rounds: int) -> dict[str, Series]:
    """Let the contenders work in turn, `rounds` times each after a first piece that does not count.

    One that lacks an optional library is left out, and a line on stderr says so.

    Raises
    ------
    RuntimeError
        A contender failed; its traceback is on stderr.
    """
    running: dict[str, _Process] = {}
    try:
        for name, contender in contenders.items():
            process = _Process(name, contender)
            first = process.wait()
            if isinstance(first, ModuleNotFoundError):
                print(f"benchmarks: {name} is left out: {first}", file=sys.stderr)
                process.end()
            else:
                running[name] = process
        for turn in range(rounds):
            # In alternating order, so that none always follows the same one.
            for process in sorted(running.values(), key=lambda each: each.name, reverse=bool(turn % 2)):
                process.work()
        return {name: process.series() for name, process in running.items()}
    finally:
        for process in running.values():
            process.end()


@dataclass
class _Process:
    """A contender at work in a fresh interpreter."""

    name: str
    contender: Candidate
    pieces: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_contend, args=(self.contender, theirs), name=self.name, daemon=True)
        self._process.start()
        theirs.close()

    def work(self) -> None:
        self._connection.send("next")
        piece = self.wait()
        assert isinstance(piece, Piece)
        self.pieces.append(piece)

    def wait(self) -> Piece | ModuleNotFoundError:
        try:
            answer: Piece | ModuleNotFoundError = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} failed") from None
        return answer

    def series(self) -> Series:
        return Series(self.pieces[0].work, [each.seconds for each in self.pieces], self.pieces[-1].peak_mib)

    def end(self) -> None:
        self._connection.close()
        self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()


def _contend(contender: Candidate, connection: Connection) -> None:
    try:
        contender(Lap(connection))
    except ModuleNotFoundError as error:
        connection.send(error)


def _peak_mib() -> float:
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":  # which counts in bytes
        return max(own, started) / 2**20
    # On Linux ru_maxrss starts with what the parent held when it made this process; this does not.
    return max(_status_mib("self", "VmHWM"), started / 2**10)


def resident_mib(process: int) -> float:
    """Return the resident set of a process; on Linux alone."""
    return _status_mib(process, "VmRSS")


def _status_mib(process: int | str, name: str) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) / 2**10
