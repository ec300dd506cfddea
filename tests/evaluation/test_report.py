"""The reports: their content, no resources from other hosts, and equal bytes for equal results."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mitoflow.data.set_descriptions import SetDescription, write_sets
from mitoflow.data.validation import Finding, Findings, check_dataset
from mitoflow.evaluation import figures, metrics, report
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.evaluation.curves import ProbabilityHistogram
from mitoflow.evaluation.protocols import Choice
from mitoflow.evaluation.results import ProtocolScores, Results
from mitoflow.evaluation.verdict import Check, Verdict
from mitoflow.io import tiff


class Page(HTMLParser):
    """A page as its elements, its visible text, and the parts of it that have an id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if attributes.get("id")]

    def picture(self, name: str) -> Image.Image:
        """The PNG of the element with this id."""
        (uri,) = (attributes["href"] for _, attributes in self.elements if attributes.get("id") == name)
        return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def assert_self_contained(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed"}
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href"):
            address = attributes.get(key) or "#"
            assert address.startswith(("#", "data:image/png;base64,")), address[:80]
            assert not address[1:] or address[0] != "#" or address[1:] in page.ids, address
    assert set(re.findall(r"url\((..)", page.source)) <= {"#p"}  # clip paths of the charts
    assert "@import" not in page.source


@dataclass(frozen=True)
class Case:
    """What a report on a model is made of."""

    results: Results
    origin: report.Origin
    worst: report.PredictedSlice
    median: report.PredictedSlice

    def write(self, path: Path, verdict: Verdict | None = None) -> Page:
        shown = {"phantom": (self.worst, self.median)}
        report.write_evaluation_report(path, self.results, self.origin, shown, verdict)
        return Page(path)


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 96, 128), np.uint8)
    truth[:, 20:50, 30:70] = 1
    probability = np.clip(truth * 0.8 + rng.normal(0.1, 0.1, truth.shape), 0, 1)
    probability[4, 20:50, 30:55] = 0.05  # missed
    probability[2, 70:80, 100:110] = 0.95  # added
    histogram = ProbabilityHistogram()
    for pair in zip(truth, probability, strict=True):
        histogram.add(*pair)
    counts = histogram.counts_at(0.5)
    image = rng.integers(40, 200, truth.shape).astype(np.uint8)
    of_pixels = metrics.scores_of("pixels").items()
    scores = {name: Interval(float(score(counts.sum(0))), 0.81234, 0.98765) for name, score in of_pixels}

    def shown(row: int) -> report.PredictedSlice:
        return report.PredictedSlice(
            "stack<1>", row, image[row], truth[row], (probability[row] >= 0.5).astype(np.uint8)
        )

    results = Results(
        choice=Choice(threshold=0.5, median=1, dice=0.9),
        whole_slice=ProtocolScores(0.5, scores),
        patch_wise=ProtocolScores(0.5, scores),
        single_slice=None,
        datasets=["phantom"] * 6,
        stacks=["stack<1>"] * 4 + ["b"] * 2,
        z=[0, 1, 2, 3, 0, 1],
        counts=counts,
        boundaries=np.zeros((6, 6), np.int64),
        shapes={
            "boundary_f1": Interval(0.9012, 0.8877, 0.9155),
            "error_near_boundary": Interval(0.62345, 0.6, 0.65432),
            "instance_f1_50": Interval(0.75, 0.4321, 0.9876),
            "instance_f1_75": Interval(0.5, 0.2, 0.8),
            "panoptic_quality": Interval(0.6789, 0.5, 0.8),
        },
        true_instances=31,
        predicted_instances=47,
        curve=histogram.precision_recall(),
        reliability=histogram.reliability(),
    )
    origin = report.Origin(
        dataset="phantom",
        history=[
            {"loss": 1 / e, "dice": 1 - 1 / e, "val_loss": 2 / e, "val_dice": 0.9 - abs(e - 3)} for e in range(1, 6)
        ],
        lineage={"data": "4b7a1d2f"},
        params={
            "evaluate": {"orthoplanes": True, "threshold": "chosen"},
            "instances": {"smallest_um3": 0.001, "smallest_voxels": 500},
            "train": {"learning_rate": 0.001},
        },
    )
    return Case(results, origin, *map(shown, report.worst_and_median(counts)))


@pytest.fixture
def page(case: Case, tmp_path: Path) -> Page:
    return case.write(tmp_path / "report.html")


def test_evaluation_report_has_the_given_results(page, case):
    dice = case.results.whole_slice.intervals["dice"].value
    accuracy = case.results.whole_slice.intervals["accuracy"].value
    assert f"{dice:.4f}" in page.text
    assert "95 % interval 0.8123 – 0.9877" in page.text
    assert f"{100 * accuracy:.2f} %" in page.text
    assert "6 slices of 2 stacks" in page.text
    assert "Worst slice: stack<1>, z = 4" in page.text
    assert "The weights of epoch 3" in page.text
    assert "4b7a1d2f" in page.text
    assert "train.learning_rate 0.001" in page.text


def test_evaluation_report_has_boundaries_instances_and_slices(page, case):
    assert "Boundary F1 at 2 px 0.9012 0.8877 – 0.9155" in page.text
    assert "Errors within 2 px of the boundary 62.34 % 60.00 – 65.43" in page.text
    assert "Instance F1 at IoU 0.5 0.7500 0.4321 – 0.9876" in page.text
    assert "Instance F1 at IoU 0.75 0.5000" in page.text
    assert "Panoptic quality 0.6789" in page.text
    assert "62.3 % of the wrong pixels" in page.text
    assert "31 in the truth and 47 in the prediction" in page.text
    low, median = np.quantile(metrics.dice(case.results.counts), [0, 0.5])
    assert f"lowest {low:.4f}" in page.text
    assert f"half below {median:.4f}" in page.text


def test_histogram_beside_the_curve_counts_the_slices_with_mitochondria():
    counts = np.array([[90, 10, 10, 0]] * 3 + [[50, 50, 50, 0]] + [[0, 0, 0, 100]] * 5)
    chart = figures.dice_along_z_chart({"": figures.SliceScores(counts, ["a"] * 9, worst=3, median=0)})
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*z\n"[^>]*fill: var\(--first\)', chart)
    lengths = [float(end) - float(start) for start, end in bars]
    assert lengths == pytest.approx([lengths[0], 3 * lengths[0]])  # one slice of 0.5, three of 0.9, none of the empty


def test_evaluation_report_needs_nothing_from_elsewhere(page):
    assert_self_contained(page)
    repeated = {name for name in page.ids if page.ids.count(name) > 1}
    assert all(re.fullmatch("[mp][0-9a-f]{10}", name) for name in repeated)  # equal markers of several charts


def test_report_on_several_sets_shows_each_of_them(case, tmp_path):
    one = case.results
    alone = ProtocolScores(0.5, {name: Interval(0.4321, 0.4, 0.5) for name in one.whole_slice.intervals})
    other = dataclasses.replace(one, datasets=["liver"] * 6, single_slice=alone)
    both = dataclasses.replace(
        other,
        datasets=["phantom"] * 6 + ["liver"] * 6,
        stacks=[*one.stacks] * 2,
        z=[*one.z] * 2,
        counts=np.concatenate([one.counts] * 2),
        choice=dataclasses.replace(one.choice, sets={"phantom": 0.8765}),
        sets={"phantom": one, "liver": other},
    )
    shown = dict.fromkeys(("phantom", "liver"), (case.worst, case.median))
    report.write_evaluation_report(tmp_path / "report.html", both, case.origin, shown)
    page = Page(tmp_path / "report.html")
    assert_self_contained(page)
    dice = f"{one.whole_slice.intervals['dice'].value:.4f}"
    assert "Mitochondria in the test parts of 2 sets 12 slices of 4 stacks" in page.text
    assert re.search(rf"phantom 6 {dice} 0.8123 – 0.9877 .* {dice} 0.8765 liver 6 {dice} .* 0.4321 – Mean", page.text)
    for name in ("phantom", "liver"):
        assert {f"{kind}-{name}-image" for kind in ("worst", "median")} <= {*page.ids}
        assert f"{name}, worst slice: stack<1>, z = 4" in page.text
        assert f"{name}: Dice 0." in page.source  # the title of its panel


@pytest.mark.slow
def test_error_picture_shows_each_kind_of_error_once_per_pixel(page, case):
    truth, prediction = case.worst.truth, case.worst.prediction
    classes = np.asarray(page.picture("worst-errors"))
    assert np.array_equal(classes == 1, truth & prediction == 1)
    assert np.array_equal(classes == 2, prediction > truth)
    assert np.array_equal(classes == 3, truth > prediction)
    shown = page.picture("worst-errors").convert("RGBA")
    y, x = np.argwhere(truth > prediction)[0]
    assert shown.getpixel((int(x), int(y))) == figures.ERRORS[2]
    y, x = np.argwhere((truth | prediction) == 0)[0]
    assert shown.getpixel((int(x), int(y)))[3] == 0


@pytest.mark.slow
def test_same_results_give_the_same_bytes(case, page, tmp_path):
    case.write(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("promoted", "message"), [(True, "Version 7 is the champion"), (False, "Version 7 stays a challenger")]
)
def test_verdict_or_its_absence_is_shown(promoted, message, case, page, tmp_path):
    assert "Not decided yet The registry could not be reached." in page.text
    verdict = Verdict(version=7, promoted=promoted, reason="there was no champion")
    assert f"{message} There was no champion." in case.write(tmp_path / "verdict.html", verdict).text
    verdict = dataclasses.replace(verdict, checks=(Check("megabytes", "23.4", "at most 20", False),))
    assert "megabytes 23.4 at most 20 failed" in case.write(tmp_path / "verdict.html", verdict).text


def test_large_slice_is_shown_smaller_and_the_report_says_so(case, tmp_path):
    side = report.LONGEST_SIDE + 1
    large = report.PredictedSlice(
        "a", 0, np.zeros((80, side), np.uint16), np.zeros((80, side), np.uint8), np.ones((80, side), np.uint8)
    )
    page = dataclasses.replace(case, worst=large).write(tmp_path / "large.html")
    assert page.picture("worst-image").size == (-(-side // 2), 40)
    assert "one pixel in 2" in page.text
    assert f"{80 * side:,} pixels added" in page.text


@given(hnp.arrays(np.int64, (5, 4), elements=st.integers(0, 3)))
def test_worst_and_median_split_the_slices_with_mitochondria(counts):
    worst, median = report.worst_and_median(counts)
    held = counts[:, :3].any(axis=1)
    if held.any():
        scores, dice = metrics.dice(counts[held]), metrics.dice(counts)
        assert held[worst] and dice[worst] == scores.min()
        assert held[median]
        assert (scores < dice[median]).sum() <= held.sum() / 2
        assert (scores > dice[median]).sum() <= held.sum() / 2


@given(hnp.arrays(bool, (6, 9)), st.integers(1, 6))
def test_no_square_holds_more_than_the_enlarged_one(marked, side):
    y, x = report._busiest_square(marked, side)
    squares = np.lib.stride_tricks.sliding_window_view(marked, (side, side)).sum((2, 3))
    assert squares[y, x] == squares.max()


def test_outline_runs_along_the_inside_of_a_mask():
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 3:9] = 1  # touches the border on the right, where it has no outline
    uri = figures.mask_png(mask).removeprefix("data:image/png;base64,")
    classes = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    assert np.array_equal(classes > 0, mask == 1)
    assert np.array_equal(classes[3:6, 4:9], np.ones((3, 5)))
    assert (classes == 2).sum() == mask.sum() - 15


@pytest.mark.slow
def test_pictures_have_the_same_bytes_again_and_show_the_errors(case):
    shown = {"lab": (case.worst, case.median)}
    pictures, again = (report.pictures(case.results, case.origin.history, shown) for _ in range(2))
    assert pictures == again
    names = ["worst slice", "median slice", "Dice along z", "precision and recall", "learning curves"]
    assert list(pictures) == names
    assert all(Image.open(io.BytesIO(png)).format == "PNG" for png in pictures.values())
    two_sets = report.pictures(case.results, case.origin.history, {"lab": shown["lab"], "vnc": shown["lab"]})
    assert list(two_sets)[:4] == ["lab worst slice", "lab median slice", "vnc worst slice", "vnc median slice"]


def test_panels_show_image_truth_prediction_and_errors():
    image = np.full((20, 30), 100, np.uint8)
    truth, prediction = (np.zeros((20, 30), np.uint8) for _ in range(2))
    truth[5:15, 5:15], prediction[5:15, 8:20] = 1, 1
    page = np.asarray(Image.open(io.BytesIO(figures.panels_png(image, truth, prediction))))
    assert page.shape == (20, 4 * 30 + 3 * figures.GAP, 3)
    grey, left, right, errors = (page[:, place * (30 + figures.GAP) :][:, :30] for place in range(4))
    changed = [(panel != grey).any(axis=2) for panel in (left, right, errors)]
    for found, expected in zip(changed, (truth, prediction, truth | prediction), strict=True):
        assert np.array_equal(found, expected == 1)
    right, added, missed = ({tuple(errors[y, x])} for y, x in ((10, 10), (10, 17), (10, 6)))
    assert len(right | added | missed) == 3


def test_charts_take_their_colours_from_the_page(case):
    results = case.results
    charts = [
        figures.precision_recall_chart(results.curve, 0.5),
        figures.reliability_chart(results.reliability),
        figures.dice_along_z_chart({"": figures.SliceScores(results.counts, results.stacks, 4, 0)}),
        figures.learning_chart(case.origin.history, best_epoch=2),
    ]
    for chart in charts:
        assert chart.startswith("<svg")
        assert "var(--first)" in chart
        assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", chart)


def write_dataset(data: Path) -> None:
    rng = np.random.default_rng(1)
    for part in ("train", "test"):
        mask = np.zeros((5, 64, 80), np.uint8)
        mask[:, 10:30, 20:60] = 255
        tiff.write_stack(data / part / "lab" / "images" / "a.tif", rng.integers(0, 255, mask.shape, dtype=np.uint8))
        tiff.write_stack(data / part / "lab" / "masks" / "a.tif", mask)
    write_sets(data, {"lab": SetDescription()})


def test_validation_report_of_good_data_shows_slices_and_stacks(tmp_path):
    write_dataset(tmp_path / "data")
    findings = check_dataset(tmp_path / "data", near_duplicate=0.99)
    samples = {part: report.sample_slices(tmp_path / "data" / part, {"lab": "nonzero"}) for part in ("train", "test")}
    report.write_validation_report(tmp_path / "report.html", findings, samples)
    page = Page(tmp_path / "report.html")
    assert_self_contained(page)
    assert "No errors and no warnings" in page.text
    assert "5 × 64 × 80" in page.text
    assert "15.62 %" in page.text
    assert [sample.z for sample in samples["train"]] == [0, 2, 4]
    assert "lab/a, z = 2, 15.62 % mitochondria" in page.text


def test_samples_of_several_sets_are_of_each_of_them(tmp_path):
    write_dataset(tmp_path)
    for name in ("b", "c", "d"):
        shutil.copytree(tmp_path / "train/lab", tmp_path / "train" / name)
    rules = dict.fromkeys(("lab", "b", "c", "d"), "nonzero")
    samples = report.sample_slices(tmp_path / "train", rules)
    assert [(sample.stack, sample.z) for sample in samples] == [(f"{name}/a", 2) for name in ("b", "c", "d", "lab")]


def test_validation_report_of_bad_data_lists_every_finding(tmp_path):
    error = Finding("data/train/lab/images/<a>.tif", "an image without mask", "data/train/lab/masks/<a>.tif", "add it")
    warning = Finding("data/test", "no mitochondrion in b", "some foreground", "look at the masks")
    report.write_validation_report(tmp_path / "report.html", Findings([error], [warning]), {})
    page = Page(tmp_path / "report.html")
    assert "1 error: the pipeline stops here" in page.text
    line = "data/train/lab/images/<a>.tif found an image without mask, expected data/train/lab/masks/<a>.tif; add it"
    assert line in page.text
    assert "found no mitochondrion in b, expected some foreground; look at the masks" in page.text
    assert "stacks" not in page.ids


def test_samples_of_a_part_with_fewer_slices_are_all_of_them(tmp_path):
    write_dataset(tmp_path)
    samples = report.sample_slices(tmp_path / "train", {"lab": "nonzero"}, number=9)
    assert [sample.z for sample in samples] == [0, 1, 2, 3, 4]
