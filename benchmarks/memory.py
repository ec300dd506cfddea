"""Does the memory of a process with a loaded model stay flat while it predicts again and again?

Three processes, each with the same small stacks: a script that calls `predict`, the page, to which a browser uploads
files, and the server, which gets TIFF files over HTTP.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Series, resident_mib
from benchmarks.table import Row

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

COMMAND = "python -m benchmarks memory"
CALLS = (1, 50, 100, 200)  # after which the memory is shown
GROWTH = 1.02  # goal: the memory after the last of these calls, over that after the second
DEPTHS = (3, 5)  # slices of the stacks, which take turns
SIDE = 128  # pixels of a slice
PATIENCE = 300  # seconds for an answer

#: Yields the resident memory of a process in MiB after each call; begins with a folder that `write_project` wrote.
Calls = Callable[[Path], Generator[float, None, None]]


def rows(_: int) -> list[Row]:
    """Return a row for each kind of call; a second round would find the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        return [row(what, calls, folder) for what, calls in KINDS.items()]


def row(what: str, calls: Calls, folder: Path) -> Row:
    """Call as often as `CALLS` says, and return the row with the memory after some of the calls."""
    cells = {"what": f"memory after {', '.join(map(str, CALLS))} {what}", "baseline": f"after {CALLS[1]}"}
    cells |= {"goal": f"≤ {GROWTH:g} ×", "command": f"`{COMMAND}`"}
    try:
        memory, seconds = measure(calls, folder, CALLS[-1])
    except ModuleNotFoundError as error:
        print(f"benchmarks: {what} are left out: {error}", file=sys.stderr)
        return Row(cells | {"mitoflow": "left out", "ratio": "", "met": "", "peak memory": ""}, {})
    growth = memory[-1] / memory[CALLS[1] - 1]
    cells |= {
        "mitoflow": f"{', '.join(f'{memory[count - 1]:,.0f}' for count in CALLS)} MiB",
        "ratio": f"**{growth:.3f} ×**",
        "met": "yes" if growth <= GROWTH else "no",
        "peak memory": f"{max(memory):,.0f} MiB",
    }
    return Row(cells, {what: Series(1, seconds, max(memory), memory)})


def measure(calls: Calls, folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Return the resident memory in MiB after each of `count` calls, and the seconds that each of them took."""
    memory, seconds = [], []
    with closing(calls(folder)) as after_each:
        for _ in range(count):
            start = time.perf_counter()
            memory.append(next(after_each))
            seconds.append(time.perf_counter() - start)
    return memory, seconds


def write_project(folder: Path) -> None:
    """Write a project with an untrained U-Net and stacks, ``3.tif`` and ``5.tif``."""
    from mitoflow.data.phantom import make_phantom
    from mitoflow.inference.settings import Settings
    from mitoflow.io.tiff import write_stack
    from mitoflow.models import unet

    (folder / "params.yaml").touch()
    unet.save_model(unet.build_unet(4, 16), folder / "unet.keras")
    Settings(bit_depth=8, divisor=16, tile=1024, overlap=128, threshold=0.5).write(folder / "inference.yaml")
    for depth in DEPTHS:
        write_stack(folder / f"{depth}.tif", make_phantom((depth, SIDE, SIDE), seed=0)[0])


def predictions(folder: Path) -> Generator[float, None, None]:
    """Predict in this process, with one loaded model."""
    from mitoflow.inference.prediction import predict
    from mitoflow.inference.request import Request
    from mitoflow.tracking import model_lookup

    model = model_lookup.find(str(folder / "unet.keras"))
    for depth in itertools.cycle(DEPTHS):
        predict(Request(str(folder / f"{depth}.tif"), folder / "mask.tif", overwrite=True), model, lambda _: None)
        yield resident_mib(os.getpid())


def requests(folder: Path) -> Generator[float, None, None]:
    """Send TIFF files to the server."""
    with serving(folder, "serve") as (process, port):
        for depth in itertools.cycle(DEPTHS):
            client = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            tiff = (folder / f"{depth}.tif").read_bytes()
            client.request("POST", "/invocations", tiff, {"Content-Type": "image/tiff"})
            answer = client.getresponse()
            if answer.status != 200:
                raise RuntimeError(answer.read().decode())
            answer.read()
            client.close()
            yield resident_mib(process)


def uploads(folder: Path) -> Generator[float, None, None]:
    """Upload files to the page, one after the other, as a user does who stays on it."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with browser(folder) as page, serving(folder, "app") as (process, port):
        page.get(f"http://127.0.0.1:{port}")
        wait = WebDriverWait(page, PATIENCE, ignored_exceptions=(Exception,))
        for depth in itertools.cycle(DEPTHS):
            wait.until(lambda _: page.find_elements(By.CSS_SELECTOR, "input[type=file]"))
            page.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(folder / f"{depth}.tif"))
            shown = f"slice {depth // 2} is mitochondria"
            wait.until(lambda _, text=shown: text in page.find_element(By.TAG_NAME, "body").text)
            yield resident_mib(process)


KINDS: dict[str, Calls] = {
    "calls of predict": predictions,
    "TIFF files to the server": requests,
    "uploads to the page": uploads,
}


@contextmanager
def serving(folder: Path, command: str) -> Iterator[tuple[int, int]]:
    """Run `mitoflow serve` or `mitoflow app`; yield its process ID and its port once it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "mitoflow.cli", command, "--model", "unet.keras", "--port", str(port)]
    with (folder / "log").open("wb") as log, subprocess.Popen(arguments, cwd=folder, stdout=log, stderr=log) as process:
        try:
            wait_for_port(port, process, folder / "log")
            yield process.pid, port
        finally:
            process.terminate()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(log.read_text(encoding="utf-8"))
        time.sleep(0.1)


@contextmanager
def browser(folder: Path) -> Iterator[WebDriver]:
    """Run a browser without a window; raises ModuleNotFoundError where there is none."""
    import shutil

    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        raise ModuleNotFoundError("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'browser'}")
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield page
    finally:
        page.quit()
