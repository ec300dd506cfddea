"""The page of `mitoflow app` in a real browser: upload, slider, slices, download, bad file."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import tifffile
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from mitoflow.inference import instances
from mitoflow.inference.predictor import Predictor, Settings
from mitoflow.io import ome
from tests.parts import PATIENCE, free_port, until, write_model

SETTINGS = Settings(bit_depth=8, divisor=2, tile=48, overlap=16, threshold=0.5, context=1)
STACK = np.random.default_rng(0).integers(0, 256, (5, 64, 80), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_model(folder, SETTINGS, STACK)
    tifffile.imwrite(folder / "cell.tif", STACK)
    (folder / "broken.tif").write_bytes(b"II*\x00 and then nothing of use")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, browser: WebDriver) -> Iterator[WebDriver]:
    """The page, open in the browser, with a stack uploaded."""
    port = free_port()
    command = [sys.executable, "-m", "mitoflow.cli", "app", "--model", "unet.keras", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/_stcore/health"), (folder / "log").read_text)
        browser.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder / "home")}
        )
        browser.get(f"http://127.0.0.1:{port}")
        upload(browser, folder / "cell.tif")
        shown(browser, "Threshold", "slice 2 is mitochondria")
        yield browser
    finally:
        process.terminate()
        process.wait(30)


def _answers(address: str) -> bool:
    try:
        return bool(urlopen(address, timeout=5).status == 200)
    except (URLError, OSError):
        return False


def upload(browser: WebDriver, path: Path) -> None:
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "input[type=file]"), lambda: browser.page_source)
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))


def shown(browser: WebDriver, *texts: str) -> str:
    def text() -> str:
        return str(browser.find_element(By.TAG_NAME, "body").text)

    found = WebDriverWait(browser, PATIENCE, ignored_exceptions=(Exception,))
    found.until(lambda _: all(wanted in text() for wanted in texts), f"not all of {texts} are shown")
    return text()


def slider(browser: WebDriver, label: str) -> WebElement:
    return browser.find_element(By.XPATH, f"//*[@data-testid='stSlider'][contains(., '{label}')]//input[@type='range']")


def move(browser: WebDriver, label: str, key: str, times: int) -> None:
    """Move a slider with the keyboard."""
    for _ in range(times):
        slider(browser, label).send_keys(key)


def share(text: str) -> float:
    """Return the share of mitochondria that the page tells."""
    return float(text.partition("% of slice")[0].split()[-1])


def download(browser: WebDriver, folder: Path, label: str, name: str) -> Path:
    """Click until the file is there: while the page is drawn anew a click is lost, and a person clicks again."""
    home = folder / "home"

    def clicked() -> bool:
        button = next(b for b in browser.find_elements(By.TAG_NAME, "button") if label in b.text)
        button.click()
        time.sleep(5)
        return (home / name).exists()

    until(clicked, lambda: f"{list(home.glob('*'))}")
    return home / name


def test_a_stack_is_looked_at(page: WebDriver, folder: Path) -> None:
    predictor = Predictor.load(folder / "unet.keras", folder / "inference.yaml")
    text = shown(page, "Model: unet", "the model does not say what its training images look like")
    assert "Traceback" not in text
    chosen = round(predictor.settings.threshold, 2)
    probability = predictor.probabilities(STACK)
    assert share(text) == pytest.approx(100 * (probability[2] >= chosen).mean(), abs=0.02)
    assert (
        len(page.find_elements(By.CSS_SELECTOR, "[data-testid=stImage] img, [data-testid=stImageContainer] img")) == 2
    )

    move(page, "Slice", Keys.ARROW_RIGHT, 1)
    assert share(shown(page, "slice 3 is mitochondria")) == pytest.approx(
        100 * (probability[3] >= chosen).mean(), abs=0.02
    )


def test_a_threshold_is_moved_and_the_mask_taken_home(page: WebDriver, folder: Path) -> None:
    before = share(shown(page, "is mitochondria"))
    move(page, "Threshold", Keys.ARROW_RIGHT, 2)
    until(lambda: share(shown(page, "is mitochondria")) < before, lambda: "the share stays")
    threshold = float(slider(page, "Threshold").get_attribute("value") or "nan")
    time.sleep(1)  # the last step of the slider may still be on its way
    mask = download(page, folder, "Mask", "cell_mitochondria.tif")
    table = download(page, folder, "Table", "cell_mitochondria.csv")

    predictor = Predictor.load(folder / "unet.keras", folder / "inference.yaml")
    expected = np.where(predictor.probabilities(STACK) >= threshold, 255, 0)
    np.testing.assert_array_equal(tifffile.imread(mask), expected)
    lineage = ome.read_lineage(mask)
    assert (lineage["model"], lineage["threshold"], lineage["input"]) == ("unet.keras", f"{threshold:.2f}", "cell.tif")
    with table.open() as rows:
        volumes = [int(row["volume_voxels"]) for row in csv.DictReader(rows)]
    labels = np.zeros(expected.shape, np.uint32)
    instances.Separation(lambda region: expected[region] > 0, expected.shape).write(labels.__setitem__)
    assert volumes == np.bincount(labels.ravel())[1:].tolist() != []


def test_a_bad_file_is_one_line(page: WebDriver, folder: Path) -> None:
    upload(page, folder / "broken.tif")
    text = shown(page, "broken.tif: found")
    assert "Traceback" not in text
    assert "/tmp" not in text
