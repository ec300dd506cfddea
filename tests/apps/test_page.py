"""The page of `mitoflow app` in a real browser: upload, slider, slices, download, bad file."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import tifffile
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from mitoflow.config.params import Instances
from mitoflow.inference import instances
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from tests.parts import PATIENCE, free_port, until, write_model
from tests.services import open_in_imagej

pytestmark = pytest.mark.e2e

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
    (folder / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "temporary")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/_stcore/health"), (folder / "log").read_text)
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


def focused(browser: WebDriver, name: str) -> str:
    """Return an attribute of the element that has the keyboard focus, or "" where it has none."""
    return browser.switch_to.active_element.get_attribute(name) or ""


def press(browser: WebDriver, *keys: str) -> None:
    """Press keys; they go where the keyboard focus is."""
    ActionChains(browser).send_keys(*keys).perform()


def go_to(browser: WebDriver, label: str) -> None:
    """Press Tab until a slider has the focus."""
    for _ in range(50):
        if focused(browser, "aria-label") == label:
            return
        press(browser, Keys.TAB)
    pytest.fail(f"the keyboard does not reach {label}")


def at_rest(browser: WebDriver) -> None:
    """Wait until the script has run and no element of an earlier run is left."""
    app = browser.find_element(By.CSS_SELECTOR, "[data-testid=stApp]")
    until(
        lambda: (
            app.get_attribute("data-test-script-state") == "notRunning"
            and not browser.find_elements(By.CSS_SELECTOR, "[data-stale=true]")
        ),
        lambda: browser.page_source,
    )


def shown_share(browser: WebDriver) -> tuple[int, float]:
    """Return which slice the page shows, and the percentage of it that is mitochondria."""
    caption = re.search(r"([\d.]+)% of slice (\d+) is mitochondria", shown(browser, "is mitochondria"))
    assert caption
    return int(caption[2]), float(caption[1])


def download(browser: WebDriver, folder: Path, label: str) -> Path:
    """Click a button once, and return the one file that appears in an empty folder."""
    folder.mkdir()
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    button = f"//*[@data-testid='stDownloadButton']//button[contains(., '{label}')]"
    browser.find_element(By.XPATH, button).click()

    def is_there() -> bool:
        errors = browser.find_elements(By.CSS_SELECTOR, "[data-testid=stDownloadButtonError]")
        assert not errors, errors[0].text
        return [path.suffix for path in folder.iterdir()] in ([".tif"], [".csv"])

    until(is_there, lambda: list(folder.iterdir()))
    return next(folder.iterdir())


def test_a_slider_shows_another_slice(page: WebDriver, folder: Path) -> None:
    predictor = Predictor.load(folder / "unet.keras", folder / "inference.yaml")
    text = shown(page, "Model: unet", "the model does not say what its training images look like")
    assert "Traceback" not in text
    shares = 100 * (predictor.probabilities(STACK) >= predictor.settings.threshold).mean((1, 2))
    assert shown_share(page) == (2, pytest.approx(shares[2], abs=0.02))
    assert (
        len(page.find_elements(By.CSS_SELECTOR, "[data-testid=stImage] img, [data-testid=stImageContainer] img")) == 2
    )

    go_to(page, "Slice")
    for z in (3, 4):  # the keyboard focus stays on the slider while the page changes
        press(page, Keys.ARROW_RIGHT)
        shown(page, f"slice {z} is mitochondria")
        at_rest(page)
        assert shown_share(page) == (z, pytest.approx(shares[z], abs=0.02))
    assert len(page.find_elements(By.CSS_SELECTOR, "[data-testid=stSlider]")) == 2


def test_the_threshold_changes_the_mask_that_is_downloaded(page: WebDriver, folder: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(folder / "unet.keras", folder / "inference.yaml")
    probability = predictor.probabilities(STACK)
    go_to(page, "Threshold")
    before = float(focused(page, "value"))
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    threshold = float(focused(page, "value"))
    assert threshold == pytest.approx(before + 0.02)
    shown(page, f"at threshold {threshold:.2f}")
    z, percentage = shown_share(page)
    assert percentage == pytest.approx(100 * (probability[z] >= threshold).mean(), abs=0.02)
    mask = download(page, tmp_path / "mask", "Mask")
    table = download(page, tmp_path / "table", "Table")
    assert (mask.name, table.name) == ("cell_mitochondria.tif", "cell_mitochondria.csv")

    expected = np.where(probability >= threshold, 255, 0)
    np.testing.assert_array_equal(tifffile.imread(mask), expected)
    lineage = ome.read_lineage(mask)
    assert (lineage["model"], lineage["threshold"], lineage["input"]) == ("unet.keras", f"{threshold:g}", "cell.tif")
    with table.open() as rows:
        volumes = [int(row["volume_voxels"]) for row in csv.DictReader(rows)]
    labels = instances.separate(expected > 0, Instances())
    assert volumes == np.bincount(labels.ravel())[1:].tolist() != []


def test_the_mask_opens_in_imagej(page: WebDriver, tmp_path: Path) -> None:
    mask = download(page, tmp_path / "mask", "Mask")
    opened = open_in_imagej(mask)
    assert opened.shape == (1, 5, 1, 64, 80)
    assert (opened.voxel_size, opened.unit) == ((1, 1, 1), "pixel"), "that of the upload is unknown"
    np.testing.assert_array_equal(opened.pixels.reshape(STACK.shape), tifffile.imread(mask))


@pytest.mark.parametrize("label", ["Mask", "Table"])
def test_a_click_while_the_page_changes_gives_a_file(page: WebDriver, tmp_path: Path, label: str) -> None:
    for count, key in enumerate((Keys.ARROW_LEFT, Keys.ARROW_RIGHT) * 3):
        go_to(page, "Threshold")
        press(page, key * 3)
        download(page, tmp_path / str(count), label)


def test_what_fails_is_no_traceback_on_the_page(page: WebDriver, folder: Path) -> None:
    """The probabilities on disk are damaged while the page shows them; the log says what failed."""
    for chunk in folder.glob("temporary/mitoflow-*/*_probability.ome.zarr/0/*/*/*"):
        chunk.write_bytes(b"damaged")
    go_to(page, "Slice")
    press(page, Keys.ARROW_LEFT)
    until(lambda: page.find_elements(By.CSS_SELECTOR, "[data-testid=stException]"), lambda: page.page_source)
    text = page.find_element(By.CSS_SELECTOR, "[data-testid=stException]").text
    assert text
    assert not re.search("Traceback|\\.py|zarr|/", text)
    assert "Traceback" in (folder / "log").read_text()


def test_a_bad_file_is_one_line(page: WebDriver, folder: Path) -> None:
    upload(page, folder / "broken.tif")
    text = shown(page, "broken.tif: found")
    assert "Traceback" not in text
    assert "/tmp" not in text
