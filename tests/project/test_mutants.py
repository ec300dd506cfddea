"""The table that `make mutants` writes."""

from __future__ import annotations

from pathlib import Path

from tests.mutants import BEGIN, END, write

RESULTS = """
    mitoflow.evaluation.metrics.x_count__mutmut_1: killed
    mitoflow.evaluation.metrics.x_count__mutmut_2: survived
    mitoflow.evaluation.bootstrap.xǁIntervalǁas_dict__mutmut_10: killed
    mitoflow.evaluation.bootstrap.x_simultaneous_level__mutmut_1: no tests
    mitoflow.evaluation.bootstrap.x__rings__mutmut_3: timeout
    mitoflow.evaluation.bootstrap.x__rings__mutmut_4: suspicious
    mitoflow.evaluation.bootstrap.x__rings__mutmut_5: segfault
"""


def test_mutants_are_counted_by_module_and_what_no_test_runs_is_not_killed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}old\n{END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        write(page, RESULTS.splitlines())
    assert page.read_text(encoding="utf-8") == (
        f"before\n\n{BEGIN}\n"
        "| module | mutants | killed | survived | no tests | timeout | other | share killed |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|\n"
        "| mitoflow.evaluation.metrics | 2 | 1 | 1 | 0 | 0 | 0 | 50.0 % |\n"
        "| mitoflow.evaluation.bootstrap | 5 | 1 | 0 | 1 | 1 | 2 | 20.0 % |\n"
        "| all | 7 | 2 | 1 | 1 | 1 | 2 | 28.6 % |\n"
        f"\n{END}\nafter\n"
    )
