"""Rows of the table of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.measure import Interval, Series, quartiles, ratio

HEADER = ("what", "mitoflow", "baseline", "ratio", "goal", "met", "peak memory", "command")


@dataclass(frozen=True)
class Row:
    """A question and its answer.

    Attributes
    ----------
    cells
        By the names in `HEADER`.
    series
        What it was computed from.
    """

    cells: dict[str, str]
    series: Mapping[str, Series]


def compare(
    what: str, unit: str, series: Mapping[str, Series], theirs: str, baseline: str, goal: float, command: str
) -> Row:
    """Return how many times faster ``series["mitoflow"]`` is than ``series[theirs]``, which `baseline` describes.

    The baseline that was left out has an empty row.
    """
    ours = series["mitoflow"]
    cells = {"what": what, "mitoflow": _rates(ours, unit), "goal": f"≥ {goal:g} ×", "command": f"`{command}`"}
    if theirs not in series:
        empty = {"baseline": f"{baseline}: left out", "ratio": "", "met": "", "peak memory": _memory(ours)}
        return Row(cells | empty, {"mitoflow": ours})
    times = ratio(ours, series[theirs])
    cells |= {
        "baseline": f"{baseline}: {_rates(series[theirs], unit)}",
        "ratio": f"**{_digits(times.median)} ×** [{_digits(times.low)}, {_digits(times.high)}]",
        "met": "yes" if times.median >= goal else "no",
        "peak memory": f"{_memory(ours)}; baseline {_memory(series[theirs])}",
    }
    return Row(cells, {"mitoflow": ours, theirs: series[theirs]})


def limit(what: str, ours: Series, seconds: float, command: str) -> Row:
    """Return how long something takes that must not take longer than `seconds`."""
    time = quartiles(ours.seconds)
    return Row(
        {
            "what": what,
            "mitoflow": f"{_interval(time)} s",
            "baseline": "",
            "ratio": "",
            "goal": f"≤ {seconds:g} s",
            "met": "yes" if time.median <= seconds else "no",
            "peak memory": _memory(ours),
            "command": f"`{command}`",
        },
        {"mitoflow": ours},
    )


def share(what: str, series: Mapping[str, Series], logged: Interval, goal: float, command: str) -> Row:
    """Return which share of the time of a training its logging takes."""
    return Row(
        {
            "what": what,
            "mitoflow": f"{_interval(quartiles(series['logging'].seconds))} s a training",
            "baseline": f"the training: {_interval(quartiles([1 / rate for rate in series['training'].rates]))} s",
            "ratio": f"**{logged.median:.2%}** [{logged.low:.2%}, {logged.high:.2%}]",
            "goal": f"≤ {goal:.0%}",
            "met": "yes" if logged.median <= goal else "no",
            "peak memory": f"{_memory(series['logging'])}; training {_memory(series['training'])}",
            "command": f"`{command}`",
        },
        series,
    )


def markdown(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *([row.cells[name] for name in HEADER] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rates(series: Series, unit: str) -> str:
    return f"{_interval(quartiles(series.rates))} {unit}"


def _interval(interval: Interval) -> str:
    return f"{_digits(interval.median)} ({_digits(interval.low)} to {_digits(interval.high)})"


def _memory(series: Series) -> str:
    return f"{series.peak_mib:,.0f} MiB"


def _digits(value: float) -> str:
    """Return three digits that mean something, and all of a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
