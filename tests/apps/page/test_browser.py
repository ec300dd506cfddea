"""The page of `mitoflow app` in a real browser: look, correct, download; errors in one line."""

from __future__ import annotations

import contextlib
import csv
import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from mitoflow import __version__, cli
from mitoflow.apps.page.strokes import Stroke
from mitoflow.data import fingerprint
from mitoflow.data.masks import NOT_LOOKED_AT
from mitoflow.inference import model_files
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.io import ome
from tests.data.test_fingerprint import draw
from tests.parts import free_port, until
from tests.services import open_in_imagej
from tests.tiny_model import write_model

pytestmark = pytest.mark.e2e

SETTINGS = Settings(bit_depth=8, divisor=2, tile=96, overlap=16, threshold=0.5, context=1, contacts=True)
# Smooth, so that the mask has a few plain mitochondria, which are measured quickly.
STACK = np.stack([(255 * draw(seed, size=160, noise=0)).astype(np.uint8) for seed in range(5)])[:, :144]
KINDS = ("mask", "instances", "table", "totals", "overlay")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a model, some images, and what the shell makes of the first one."""
    folder = tmp_path_factory.mktemp("page")
    write_model(folder, SETTINGS, STACK)
    predictor = Predictor.load(folder / "unet.keras", folder / "inference.yaml")
    threshold = float(np.quantile(predictor.probabilities(STACK), 0.85))
    replace(predictor.settings, threshold=threshold).write(folder / "inference.yaml")
    patches = [plane[y : y + 128, x : x + 128] / 255 for plane in STACK for y in (0, 16) for x in (0, 32)]
    fingerprint.measure(patches, {}).write(folder / model_files.DOMAIN)
    tifffile.imwrite(folder / "cell.tif", STACK)
    tifffile.imwrite(folder / "bright.tif", np.tile(255 - STACK, (1, 2, 2)))  # small slices do not show it
    for z in (0, 1):
        tifffile.imwrite(folder / f"slice_{z}.tif", STACK[z])
    tifffile.imwrite(folder / "large.tif", np.tile(STACK[:1], (60, 4, 4)))
    (folder / "broken.tif").write_bytes(b"II*\x00 and then nothing of use")
    return folder


@pytest.fixture(scope="module")
def shell(folder: Path) -> dict[str, Path]:
    """What `mitoflow predict` writes of the stack."""
    made = folder / "shell"
    made.mkdir()
    (table, overlay), mask = (made / "mask.csv", made / "mask.png"), made / "mask.tif"
    options = ["--instances", "--table", table, "--overlay", overlay, "--model", "unet.keras"]
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli.mitoflow, ["predict", *map(str, ["cell.tif", mask, *options])])
    assert done.exit_code == 0, done.output
    files = (mask, made / "mask_instances.tif", table, made / "mask_totals.csv", overlay)
    return dict(zip(KINDS, files, strict=True))


class Page:
    """The page, open in a browser."""

    def __init__(self, browser: WebDriver, port: int) -> None:
        self.browser, self.port = browser, port

    def find(self, what: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, what)

    def click(self, what: str) -> None:
        self.find(what).click()

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    @property
    def text(self) -> str:
        return str(self.find("body").text)

    def shows(self, *texts: str) -> str:
        until(lambda: all(text in self.text for text in texts), lambda: f"{texts} not in: {self.text}")
        return self.text

    def upload(self, *paths: Path) -> None:
        self.find("#files").send_keys("\n".join(map(str, paths)))

    def is_still(self) -> None:
        """Wait until the caption is that of what is shown: it follows a moment after a change."""
        self.run("document.getElementById('caption').textContent = ''")
        self.run("document.getElementById('slice').dispatchEvent(new Event('input'))")
        until(lambda: self.find("#caption").text, lambda: self.text)

    def share(self) -> float:
        """Return the percentage of the slice that is mitochondria, as the page says it."""
        self.is_still()
        found = re.search(r"([\d.]+) % of", self.find("#caption").text)
        assert found
        return float(found[1])

    def press(self, what: str, *keys: str) -> None:
        element = self.find(what)
        self.run("arguments[0].focus()", element)
        element.send_keys(*keys)

    def drag(self, *points: tuple[int, int]) -> None:
        """Press the mouse at a point of the picture, counted from its middle, and release it at the last one."""
        chain = ActionChains(self.browser, duration=20)
        chain.move_to_element_with_offset(self.find("#view"), *points[0]).click_and_hold()
        for point in points[1:]:
            chain.move_to_element_with_offset(self.find("#view"), *point)
        chain.release().perform()

    @property
    def zoom(self) -> float:
        return float(self.find("#view").get_attribute("data-zoom") or 0)

    def pixels(self, *boxes: tuple[int, int, int, int]) -> list[np.ndarray]:
        """Return parts of the picture, each (Y, X, 4) uint8, from x, y, width and height."""
        script = """return arguments[0].map((box) =>
            [...document.getElementById("view").getContext("2d").getImageData(...box).data])"""
        read = self.run(script, boxes)
        return [np.array(each, np.uint8).reshape(box[3], box[2], 4) for each, box in zip(read, boxes, strict=True)]

    def download(self, folder: Path, *links: str, stem: str = "cell") -> dict[str, Path]:
        """Click links, one right after the other, and return the files that come by their links."""
        folder.mkdir()
        self.browser.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": False}
        )
        for link in links:
            self.click(f"#{link}")
        endings = {"mask": ".tif", "instances": "_instances.tif", "table": ".csv", "totals": "_totals.csv"}
        endings |= {"overlay": ".png", "training": ".tif"}
        names = {}
        for link in links:
            kind, _, rest = link.partition("-")
            what = "training" if kind == "training" else "corrected" if rest else "mitochondria"
            names[link] = f"{stem}_{what}{endings[kind]}"

        def found() -> dict[str, Path]:
            return {link: folder / name for link, name in names.items() if (folder / name).exists()}

        until(lambda: len(found()) == len(links), lambda: f"{list(folder.iterdir())} {self.text}")
        assert len(list(folder.iterdir())) == len(links)
        return found()

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    @property
    def result(self) -> dict[str, Any]:
        """What the server says of the stack that is shown."""
        key = self.run("return new URLSearchParams(location.hash.slice(1)).get('shown')")
        return dict(self.ask("GET", f"/api/results/{key}")[1])


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[int]:
    """The port of a page that runs."""
    port = free_port()
    command = [sys.executable, "-m", "mitoflow.cli", "app", "--model", "unet.keras", "--port", str(port)]
    (folder / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "temporary")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/health"), (folder / "log").read_text)
        yield port
    finally:
        process.terminate()
        process.wait(30)
    assert not list((folder / "temporary").glob("mitoflow-*")), "what was kept is removed"


def _answers(address: str) -> bool:
    try:
        return bool(urlopen(address, timeout=5).status == 200)
    except (URLError, OSError):
        return False


@pytest.fixture
def page(browser: WebDriver, server: int) -> Page:
    """The first screen."""
    browser.get("about:blank")
    browser.get(f"http://127.0.0.1:{server}")
    page = Page(browser, server)
    page.shows("What the model knows")
    return page


@pytest.fixture
def cell(page: Page, folder: Path) -> Page:
    """The page with the stack."""
    page.upload(folder / "cell.tif")
    page.shows("of slice 2 is mitochondria")
    return page


@pytest.fixture(scope="module")
def probability(folder: Path) -> np.ndarray:
    return Predictor.load(folder / "unet.keras", folder / "inference.yaml").probabilities(STACK)


@pytest.fixture(scope="module")
def threshold(folder: Path) -> float:
    return Settings.read(folder / "inference.yaml").threshold


def test_the_first_screen_says_what_the_model_is_worth(page: Page) -> None:
    page.shows("unet", "It was not evaluated", "Drop a stack, several files or a folder", "it is not tissue")
    assert page.find("#choose").is_displayed()


def test_slices_and_threshold_by_keyboard(cell: Page, probability: np.ndarray, threshold: float) -> None:
    shares = 100 * (probability >= threshold).mean((1, 2))
    assert cell.share() == pytest.approx(shares[2], abs=0.006)
    cell.press("#slice", Keys.ARROW_RIGHT)
    cell.shows("of slice 3 is")
    assert cell.share() == pytest.approx(shares[3], abs=0.006)
    cell.press("#view", Keys.PAGE_UP)
    cell.shows("of slice 4 is")
    cell.press("#threshold", Keys.ARROW_LEFT)
    assert cell.share() == pytest.approx(100 * (probability[4] >= threshold - 0.01).mean(), abs=0.006)
    cell.click("#reset-threshold")
    assert cell.share() == pytest.approx(shares[4], abs=0.006)


def test_zoom_and_pan_show_the_image_as_it_is(cell: Page) -> None:
    """With two panes and a mask that is transparent both show the same, down to single pixels of the image."""
    whole = cell.zoom
    cell.click("#beside")
    until(lambda: cell.zoom < whole)
    fitted = cell.zoom
    cell.run("opacity.value = 0; opacity.dispatchEvent(new Event('input'))")
    ActionChains(cell.browser).scroll_from_origin(ScrollOrigin.from_element(cell.find("#view")), 0, -600).perform()
    until(lambda: cell.zoom > 2 * fitted, lambda: f"{cell.zoom}, {fitted}")
    cell.press("#view", "+", Keys.ARROW_LEFT, Keys.ARROW_UP)
    cell.drag((-300, 0), (-220, 50))
    cell.is_still()
    width, box = cell.run("return view.width / 2"), (200, 300, 120, 90)
    left, right = cell.pixels(box, (box[0] + int(width), *box[1:]))
    np.testing.assert_array_equal(left, right)
    assert len(np.unique(left[..., 0])) > 10
    changes = np.flatnonzero(np.any(np.diff(left[..., 0].astype(int), axis=1) != 0, axis=0))
    assert np.diff(changes).min() >= int(cell.zoom), "pixels of the image are squares"
    cell.press("#view", "0")
    cell.click("#beside")
    until(lambda: cell.zoom == pytest.approx(whole, rel=0.01), lambda: f"{cell.zoom}, {whole}")


def test_two_fingers_zoom(cell: Page) -> None:
    before = cell.zoom
    box = cell.run("return view.getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *places: float) -> None:
        points = [{"x": x + place, "y": y, "id": number} for number, place in enumerate(places)]
        cell.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", -50, 50)
    for place in range(60, 160, 10):
        touch("touchMove", -place, place)
    touch("touchEnd")
    until(lambda: cell.zoom > 2 * before, lambda: f"{cell.zoom}, {before}")


@pytest.mark.parametrize("mode", ["fill", "instances", "probability"])
def test_the_views_show_mask_instances_and_probability(cell: Page, mode: str) -> None:
    cell.run("opacity.value = 0; opacity.dispatchEvent(new Event('input'))")
    cell.is_still()
    box = (500, 400, 200, 100)
    (plain,) = cell.pixels(box)
    cell.run("opacity.value = 1; opacity.dispatchEvent(new Event('input'))")
    cell.click(f"[value={mode}]")

    def colours() -> int:
        (now,) = cell.pixels(box)
        return len(np.unique(now[np.any(now != plain, axis=2)], axis=0))

    fewest = {"fill": 1, "instances": 1, "probability": 10}[mode]
    until(lambda: colours() >= fewest, lambda: f"{colours()} colours")


def test_the_files_are_those_of_the_shell_and_each_click_brings_one(
    cell: Page, shell: dict[str, Path], tmp_path: Path
) -> None:
    files = cell.download(tmp_path / "files", *KINDS)
    for kind in ("mask", "instances"):
        np.testing.assert_array_equal(tifffile.imread(files[kind]), tifffile.imread(shell[kind]))
        assert tifffile.imread(files[kind]).any()
    lineage = ome.read_lineage(files["instances"])
    assert lineage == ome.read_lineage(shell["instances"])
    assert lineage["instances"].endswith("; contacts by the network")
    for kind in ("table", "totals", "overlay"):
        assert files[kind].read_bytes() == shell[kind].read_bytes()
    opened = open_in_imagej(files["mask"])
    assert opened.shape == (1, *STACK.shape[:1], 1, *STACK.shape[1:])
    np.testing.assert_array_equal(opened.pixels.reshape(STACK.shape), tifffile.imread(files["mask"]))


def test_the_threshold_is_that_of_the_files(cell: Page, probability: np.ndarray, tmp_path: Path) -> None:
    for count, key in enumerate((Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)):
        cell.press("#threshold", key)
        files = cell.download(tmp_path / str(count), "mask", "overlay")
    threshold = float(ome.read_lineage(files["mask"])["threshold"])
    assert threshold == cell.run("return +document.getElementById('threshold').value")
    np.testing.assert_array_equal(tifffile.imread(files["mask"]), np.where(probability >= threshold, 255, 0))


def test_corrections_are_painted_undone_and_downloaded(
    cell: Page, probability: np.ndarray, threshold: float, tmp_path: Path
) -> None:
    before = cell.share()
    cell.click("[value=brush]")
    cell.drag((-200, -100), (0, 50), (150, -30))
    cell.click("[value=eraser]")
    cell.drag((-200, 120), (200, 130))
    until(lambda: len(cell.result["stack"]["strokes"]) == 2)
    assert cell.share() != before
    cell.drag((0, -200), (10, -190))
    until(lambda: len(cell.result["stack"]["strokes"]) == 3)
    cell.press("#view", Keys.CONTROL + "z")
    cell.shows("2 strokes")
    until(lambda: len(cell.result["stack"]["strokes"]) == 2)

    strokes = [Stroke.read(each, STACK.shape) for each in cell.result["stack"]["strokes"]]
    assert [(each.z, each.radius, each.erases, len(each.points) > 1) for each in strokes] == [
        (2, 6, False, True),
        (2, 6, True, True),
    ]
    predicted = np.where(probability >= threshold, 255, 0).astype(np.uint8)
    expected = predicted.copy()
    for stroke in strokes:
        stroke.draw(expected[2])
    files = cell.download(tmp_path / "corrected", "mask-corrected", "table-corrected", "mask", "training-corrected")
    np.testing.assert_array_equal(tifffile.imread(files["mask-corrected"]), expected)
    for_training = np.full_like(expected, NOT_LOOKED_AT)
    for_training[2] = expected[2]
    np.testing.assert_array_equal(tifffile.imread(files["training-corrected"]), for_training)
    np.testing.assert_array_equal(tifffile.imread(files["mask"]), predicted)
    assert (expected > predicted).any()
    assert (expected < predicted).any()
    for kind in ("mask-corrected", "training-corrected"):
        corrected = ome.read_lineage(files[kind])["corrected"]
        where = f"in 2 strokes on the page of mitoflow {__version__}"
        assert corrected.startswith(f"by hand, {where}, run by {getpass.getuser()}, 20")
    with files["table-corrected"].open() as rows:
        assert len(list(csv.DictReader(rows))) > 0

    # A reload keeps stack and corrections; all of them can be taken back, and brought again.
    cell.browser.refresh()
    cell.shows("of slice 2 is mitochondria", "2 strokes")
    assert cell.share() == pytest.approx(100 * (expected[2] > 0).mean(), abs=0.006)
    cell.click("#undo")
    cell.click("#undo")
    assert cell.share() == before
    assert "Corrected mask" not in cell.text
    cell.click("#redo")
    until(lambda: len(cell.result["stack"]["strokes"]) == 1)


def test_the_browser_paints_the_voxels_that_the_server_marks(page: Page) -> None:
    rng = np.random.default_rng(0)
    strokes = [
        Stroke(0, int(radius), bool(radius % 2), tuple((int(x), int(y)) for x, y in rng.integers(-20, 120, (4, 2))))
        for radius in (0, 1, 2, 5, 8, 13)
    ]
    expected = np.full((90, 110), 7, np.uint8)
    for stroke in strokes:
        stroke.draw(expected)
    script = """
        const [strokes, done] = arguments;
        import("/static/strokes.js").then(({ mark }) => {
          done([1, 2].map((step) => {
            const [width, height] = [Math.ceil(110 / step), Math.ceil(90 / step)];
            const tile = { x0: 0, y0: 0, step, width, height, marks: new Uint8Array(width * height) };
            for (const stroke of strokes) mark(stroke, tile);
            return [...tile.marks];
          }));
        });"""
    fine, coarse = page.browser.execute_async_script(script, [each.as_dict() for each in strokes])
    values = np.array([7, 255, 0], np.uint8)
    np.testing.assert_array_equal(values[np.reshape(fine, (90, 110))], expected)
    np.testing.assert_array_equal(values[np.reshape(coarse, (45, 55))], expected[::2, ::2])


def test_several_files_are_one_stack_or_many(page: Page, folder: Path) -> None:
    slices = [folder / f"slice_{z}.tif" for z in (0, 1)]
    page.upload(*slices)
    page.shows("2 images, from slice_0.tif to slice_1.tif")
    page.click("#as-one")
    page.shows("2 slices of 160 x 144 pixels", "of slice 1 is mitochondria")
    page.click("#new")
    page.upload(*slices)
    page.shows("2 images")
    page.click("#as-many")
    page.shows("160 x 144 pixels", "of the slice is mitochondria")
    until(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#results button")) == 3)


def test_an_inverted_stack_offers_to_invert(page: Page, folder: Path, tmp_path: Path) -> None:
    page.upload(folder / "bright.tif")
    page.shows("of slice 2 is mitochondria", "the other way round")
    page.click("#invert")
    page.shows("bright_inverted.tif", "of slice 2 is mitochondria")
    until(lambda: page.result["origin"] == "inverted" and page.result["state"] == "done")
    assert "the other way round" not in page.text
    files = page.download(tmp_path / "files", "mask", stem="bright_inverted")
    # Inverted twice, it is a stack that the shell sees alike.
    tifffile.imwrite(tmp_path / "dark.tif", 255 - tifffile.imread(folder / "bright.tif"))
    names = [str(tmp_path / name) for name in ("dark.tif", "mask.tif")]
    with contextlib.chdir(folder):
        CliRunner().invoke(cli.mitoflow, ["predict", *names, "--model", "unet.keras"], catch_exceptions=False)
    np.testing.assert_array_equal(tifffile.imread(files["mask"]), tifffile.imread(tmp_path / "mask.tif"))


def test_another_voxel_size_is_given_and_the_corrections_stay(cell: Page) -> None:
    cell.shows("voxel size unknown")
    cell.click("[value=brush]")
    cell.drag((-20, 0), (20, 10))
    until(lambda: len(cell.result["stack"]["strokes"]) == 1)
    first = cell.result
    cell.find("#other-voxel-size").send_keys("30,4," + Keys.ENTER)
    cell.shows("--voxel-size: found 30,4,")
    assert cell.result == first
    cell.find("#other-voxel-size").send_keys("5" + Keys.ENTER)
    cell.shows("voxel size z 30, y 4, x 5 nm")
    again = cell.result
    assert again["key"] != first["key"]
    assert again["stack"]["strokes"] == first["stack"]["strokes"]


def test_a_zarr_is_not_sent_and_the_page_says_what_takes_it(page: Page, tmp_path: Path) -> None:
    ome.create_multiscale(tmp_path / "cell.zarr", STACK.shape, STACK.dtype, 1)
    page.find("#folder").send_keys(str(tmp_path / "cell.zarr"))
    page.shows("cell.zarr is a Zarr", "use mitoflow predict cell.zarr OUTPUT")


def test_a_prediction_is_cancelled_and_the_next_one_runs(page: Page, folder: Path) -> None:
    page.upload(folder / "large.tif")
    page.shows("Predicting large.tif")
    page.click("#cancel")
    page.shows("large.tif was cancelled")
    page.click("#cancel")
    page.shows("What the model knows")
    page.upload(folder / "cell.tif")
    page.shows("of slice 2 is mitochondria")


def test_the_example_is_said_to_be_drawn(page: Page) -> None:
    page.click("#example")
    page.shows("It was drawn by mitoflow. It is not tissue", "of slice 4 is mitochondria")


def test_it_fits_a_phone(page: Page, folder: Path) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.run("return document.documentElement.scrollWidth") <= 400
        drop = page.run("const d = document.getElementById('drop'); return d.scrollHeight - d.clientHeight")
        assert drop <= 0, "all of it is within its frame"
        page.upload(folder / "cell.tif")
        page.shows("of slice 2 is")
        width, height = page.run("return [view.clientWidth, view.clientHeight]")
        assert page.run("return document.documentElement.scrollWidth") <= 400
        assert width == 400
        assert height > 350
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_bad_file_is_one_line(page: Page, folder: Path) -> None:
    page.upload(folder / "broken.tif")
    text = page.shows("broken.tif: found")
    assert "Traceback" not in text
    assert str(folder) not in text
    page.click("#new")
    page.upload(folder / "params.yaml")
    page.shows("params.yaml: found the ending .yaml, expected a TIFF, PNG, MRC, DM3, DM4 or HDF5; save it as TIFF")


def test_names_are_text_and_no_markup(page: Page, folder: Path) -> None:
    path = folder / "<img src=x onerror=document.title='run'>.tif"
    tifffile.imwrite(path, STACK[0])
    page.upload(path)
    page.shows(path.name, "of the slice is mitochondria")
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.browser.title != "run"


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}], ids=str
)
def test_other_sites_change_nothing(page: Page, headers: dict[str, str]) -> None:
    assert page.ask("POST", "/api/example", **headers) == (
        403,
        {"error": "this address is not for other sites; open the page by its own"},
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/results/nobody", "", 404),
        ("POST", "/api/results", "[1]", 400),
        ("POST", "/api/results", '{"name": "a.tif", "files": [{"name": "a.tif"}]}', 400),
        ("POST", "/api/results", '{"name": "a.tif", "files": [{"name": "a.tif", "size": 9000000000}]}', 422),
        ("POST", "/api/results", '{"name": "a.tif", "files": [{"name": "../a.tif", "size": 1}]}', 422),
        ("POST", "/api/results", " " * (2**20 + 1), 413),
    ],
)
def test_a_request_that_cannot_be_answered_is_one_line(
    page: Page, method: str, path: str, body: str, status: int
) -> None:
    found, answer = page.ask(method, path, body)
    assert found == status, answer
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]


def test_what_fails_is_no_traceback_on_the_page(cell: Page, folder: Path) -> None:
    """The probabilities on disk are damaged while the page shows them; the log says what failed."""
    damage = folder.glob(f"temporary/mitoflow-*/{cell.result['key']}/mask_probability.ome.zarr/0/*/*/*")
    for chunk in damage:
        chunk.write_bytes(b"damaged")
    cell.press("#slice", Keys.ARROW_LEFT)
    text = cell.shows("the page failed; the log of `mitoflow app` says why")
    assert "Traceback" not in text
    assert "Traceback" in (folder / "log").read_text()
