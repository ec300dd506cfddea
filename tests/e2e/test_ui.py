"""`make ui` in a real browser: the pages of MLflow."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.parts import free_port

from .conftest import Project, copy_project

PATIENCE = 90  # seconds for a page; two workers share the machine


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(finished_project, tmp_path_factory.mktemp("ui") / "project")


@pytest.fixture(scope="module")
def address(project: Project) -> Iterator[str]:
    port = free_port()
    log = (project.folder / "ui.log").open("w")
    server = subprocess.Popen(
        ["mitoflow", "ui", "--port", str(port)],
        cwd=project.folder,
        env=project.environment(),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + PATIENCE
    while not _answers(address):
        assert server.poll() is None, project.read("ui.log")
        assert time.monotonic() < deadline, project.read("ui.log")
        time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(30)


def _answers(address: str) -> bool:
    try:
        return urlopen(f"{address}/health", timeout=5).status == 200
    except (URLError, OSError):
        return False


def shown(browser: WebDriver, *texts: str) -> str:
    """Wait until the page shows all texts, and return everything that it shows."""

    def text() -> str:
        return browser.find_element(By.TAG_NAME, "body").text

    def all_there(_: WebDriver) -> bool:
        return all(wanted in text() for wanted in texts)

    try:
        WebDriverWait(browser, PATIENCE, ignored_exceptions=(Exception,)).until(all_there)
    except TimeoutException:
        pytest.fail(f"not all of {texts} are shown in:\n{text()}")
    return text()


@pytest.fixture(scope="module")
def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder}/mlflow.db")


@pytest.fixture(scope="module")
def experiment(client: MlflowClient) -> str:
    return str(client.get_experiment_by_name("mitoflow").experiment_id)


def test_the_address_that_is_printed_opens_the_view_for_model_training(
    browser: WebDriver, address: str, project: Project
) -> None:
    (line,) = [line for line in project.read("ui.log").splitlines() if line.startswith("MLflow: ")]
    page = line.removeprefix("MLflow: ")
    assert page.startswith(f"{address}/#/experiments/")
    browser.get(page)
    shown(browser, "validate phantom", "train phantom", "Run Name")
    assert "workflowType=machine_learning" in browser.current_url


def test_trials_nest_under_the_tuning_run(browser: WebDriver, address: str, experiment: str) -> None:
    browser.get(f"{address}/#/experiments/{experiment}/runs")
    page = shown(browser, "validate phantom", "patch phantom", "tune phantom", "train phantom", "evaluate phantom")
    assert "trial 1" not in page
    row = browser.find_element(By.XPATH, "//div[@role='row'][.//a[normalize-space()='tune phantom']]")
    row.find_element(By.XPATH, ".//button[contains(@class, 'expander') or .//*[name()='svg']]").click()
    shown(browser, "trial 1", "trial 2", "trial 3")


def test_runs_compare(browser: WebDriver, address: str, experiment: str, client: MlflowClient) -> None:
    trials = [run for run in client.search_runs([experiment]) if run.info.run_name[:8] in ("trial 1:", "trial 2:")]
    assert len(trials) == 2
    ids = ",".join(f'"{run.info.run_id}"' for run in trials)
    browser.get(f'{address}/#/compare-runs?runs=[{ids}]&experiments=["{experiment}"]')
    rates = [run.data.params["train.learning_rate"] for run in trials]
    shown(browser, "Comparing 2 Runs", "trial 1", "trial 2", "learning_rate", "augment_strength", *rates)


def test_the_description_of_an_evaluation_leads_to_its_training_and_on_to_the_study(
    browser: WebDriver, address: str, experiment: str, client: MlflowClient
) -> None:
    champion = client.get_model_version_by_alias("mitoflow", "champion")
    browser.get(f"{address}/#/experiments/{experiment}/runs/{champion.run_id}")
    shown(browser, "Training: train phantom")
    browser.get(browser.find_element(By.LINK_TEXT, "train phantom").get_attribute("href"))  # a click opens another tab
    shown(browser, "validation Dice", "Study: tune phantom")
    browser.get(browser.find_element(By.LINK_TEXT, "tune phantom").get_attribute("href"))
    shown(browser, "best of 4 trials")
    assert "workflowType=machine_learning" in browser.current_url


def test_the_registry_shows_the_champion(browser: WebDriver, address: str) -> None:
    browser.get(f"{address}/#/models/mitoflow")
    shown(browser, "Version 1", "champion", "Promoted: there was")  # which a column of MLflow's table cuts off
    browser.get(f"{address}/#/models/mitoflow/versions/1")
    shown(browser, "Promoted: there was no champion", "at least 0.3")


def test_the_report_opens(browser: WebDriver, address: str, experiment: str, client: MlflowClient) -> None:
    champion = client.get_model_version_by_alias("mitoflow", "champion")
    browser.get(f"{address}/#/experiments/{experiment}/runs/{champion.run_id}/artifacts/evaluate/report.html")
    shown(browser, "report.html")

    def in_frame(_: WebDriver) -> bool:
        browser.switch_to.default_content()
        for frame in browser.find_elements(By.TAG_NAME, "iframe"):
            browser.switch_to.frame(frame)
            if "Dice" in browser.find_element(By.TAG_NAME, "body").text:
                return True
            browser.switch_to.default_content()
        return False

    WebDriverWait(browser, PATIENCE, ignored_exceptions=(Exception,)).until(in_frame, "the report is not shown")
    report = browser.find_element(By.TAG_NAME, "body").text
    for text in ("IoU", "Accuracy", "Worst slice", "there was no champion"):
        assert text.lower() in report.lower(), text
    pictures = browser.find_elements(By.CSS_SELECTOR, "svg image")
    assert len(pictures) == 8  # image, truth, prediction and errors of the worst and of the median slice
    for picture in pictures:
        decoded = browser.execute_async_script(
            """const [picture, done] = arguments, image = new Image();
            image.onload = () => done(image.naturalWidth); image.onerror = () => done(0);
            image.src = picture.getAttribute("href");""",
            picture,
        )
        assert decoded > 0
