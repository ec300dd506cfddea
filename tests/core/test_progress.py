"""Progress on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest

CODE = "from mitoflow.core.progress import progress_bar\nfor _ in progress_bar(range(3), desc='predict'): pass"


SLOW = CODE.replace("range(3), desc='predict'): pass", "range(40), desc='predict'): time.sleep(0.05)")


def in_a_log(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr
    return done.stderr.splitlines()


def test_a_log_has_no_lines_about_short_work() -> None:
    assert in_a_log(CODE) == []


@pytest.mark.slow
def test_a_log_gets_a_line_now_and_then() -> None:
    lines = in_a_log(f"from mitoflow.core import progress; import time\nprogress.INTERVAL = 0.2\n{SLOW}")
    assert 4 <= len(lines) <= 14  # two seconds, and more on a busy machine
    assert not any("  0%" in line for line in lines)
    assert lines[-1].startswith("predict: 100%")


def test_a_terminal_has_a_bar() -> None:
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    subprocess.run([sys.executable, "-c", CODE], stderr=terminal, check=True)
    os.close(terminal)
    seen = os.read(main, 10_000).decode()
    os.close(main)
    assert seen.count("\rpredict: ") == 2
    assert seen.count("\n") == 1
