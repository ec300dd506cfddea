"""Progress on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

CODE = "from mitoflow.core.progress import progress_bar\nfor _ in progress_bar(range(3), desc='predict'): pass"


def test_a_log_has_lines() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    first, last = done.stderr.split("\n")[:-1]
    assert first.startswith("predict:   0%")
    assert last.startswith("predict: 100%")
    assert "\r" not in done.stderr


def test_a_log_gets_a_line_now_and_then() -> None:
    code = "from mitoflow.core import progress; import time\nprogress.INTERVAL = 0.2\n" + CODE.replace(
        "range(3), desc='predict'): pass", "range(40)): time.sleep(0.05)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 4 <= done.stderr.count("\n") <= 14  # two seconds, and more on a busy machine


def test_a_terminal_has_a_bar() -> None:
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    subprocess.run([sys.executable, "-c", CODE], stderr=terminal, check=True)
    os.close(terminal)
    seen = os.read(main, 10_000).decode()
    os.close(main)
    assert seen.count("\rpredict: ") == 2
    assert seen.count("\n") == 1
