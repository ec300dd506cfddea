"""What validation chooses, and shapes of several stacks, scored together."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile

from mitoflow.config.params import Instances, Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.network_input import UNLABELLED
from mitoflow.data.pairs import read_pairs
from mitoflow.evaluation import boundary, curves, instance_scores, metrics, protocols, results, scoring
from mitoflow.evaluation.bootstrap import Interval
from mitoflow.inference.predictor import Predictor
from mitoflow.inference.settings import Settings
from mitoflow.instances import components, labelling
from mitoflow.instances.separation import separate
from mitoflow.io import tiff
from mitoflow.io.spacing import Spacing, known_voxel_size, ome_metadata

BOOTSTRAP = {"block": 2, "resamples": 200, "seed": 0}


def compare(truth: np.ndarray, mask: np.ndarray) -> protocols.Shapes:
    return protocols.compare_shapes(truth, mask, Instances(), None)


def balls(*centres: tuple[int, int, int], radius: float) -> np.ndarray:
    z, y, x = np.ogrid[:12, :48, :64]
    held = [(z - c) ** 2 + (y - b) ** 2 + (x - a) ** 2 <= radius**2 for c, b, a in centres]
    return np.any(held, axis=0).astype(np.uint8)


def test_shapes_of_all_stacks_are_scored_together():
    truth = balls((6, 12, 12), (6, 12, 40), (4, 36, 20), radius=5)
    masks = [balls((6, 12, 12), (6, 12, 41), radius=5), balls((6, 12, 12), (6, 12, 40), (4, 36, 20), radius=6)]
    shapes = [compare(truth, mask) for mask in masks]
    scores = results.score_shapes(shapes, ["a"] * 12 + ["b"] * 12, **BOOTSTRAP)

    assert scores["instance_f1_50"].value == pytest.approx(10 / 11)  # 5 of 6 found, none invented
    boundaries = boundary.count(np.concatenate([truth, truth]), np.concatenate(masks)).sum(0)
    assert scores["boundary_f1"].value == metrics.boundary_f1(boundaries)
    assert scores["error_near_boundary"].value == metrics.error_near_boundary(boundaries)
    matched = np.concatenate([stack.matching.iou for stack in shapes])
    assert scores["panoptic_quality"].value == pytest.approx(matched.sum() / 5.5)
    assert scores["instance_f1_75"].value == pytest.approx(2 * (matched > 0.75).sum() / 11)
    assert (matched > 0.75).sum() == 1  # that which was neither moved nor blown up
    for interval in scores.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_shapes_in_a_box_that_was_looked_at_are_those_of_the_box_cut_out():
    truth, mask = balls((6, 12, 12), (6, 30, 40), radius=8), balls((6, 15, 12), (6, 30, 43), radius=8)
    box = np.s_[2:9, 8:34, 10:44]
    partial, within = np.full_like(truth, UNLABELLED), np.zeros_like(mask)
    partial[box], within[box] = truth[box], mask[box]
    shapes, cut = compare(partial, within), compare(truth[box], mask[box])
    assert np.array_equal(shapes.boundary[2:9], cut.boundary)
    assert np.array_equal(shapes.off_boundary[2:9], cut.off_boundary)
    assert not np.delete(shapes.boundary, np.s_[2:9], axis=0).any()
    assert not np.delete(shapes.off_boundary, np.s_[2:9], axis=0).any()


def test_instances_do_not_reach_from_stack_to_stack():
    through = np.ones((4, 16, 16), np.uint8)
    shapes = [compare(through, through) for _ in range(2)]
    assert sum(stack.matching.true_instances for stack in shapes) == 2
    together = compare(np.concatenate([through] * 2), np.concatenate([through] * 2))
    assert together.matching.true_instances == 1


def test_specks_and_holes_are_no_mitochondria():
    truth = balls((6, 12, 12), radius=5)
    mask = truth | balls((6, 40, 56), radius=2)
    mask[6, 12, 12] = 0
    matching = compare(truth, mask).matching
    assert (matching.true_instances, matching.predicted_instances, matching.iou.tolist()) == (1, 1, [1])


@pytest.mark.parametrize(
    ("spacing", "criteria", "count"),
    [
        ({"z": 20.0, "y": 20.0, "x": 20.0}, Instances(), 2),  # a ball of 257 voxels is 0.0021 µm³
        ({"z": 12.0, "y": 12.0, "x": 12.0}, Instances(), 1),  # and 0.0004 µm³ here
        ({"z": 12.0, "y": 12.0, "x": 12.0}, Instances(smallest_um3=0), 3),
        ({}, Instances(), 1),
        ({}, Instances(smallest_voxels=257), 2),
    ],
)
def test_predict_score_and_evaluate_count_alike(
    spacing: Spacing, criteria: Instances, count: int, tmp_path: Path
) -> None:
    mask = balls((6, 12, 12), radius=5.9) | balls((6, 36, 40), radius=4) | balls((6, 40, 56), radius=1)
    assert np.bincount(components.label(mask).ravel())[1:].tolist() == [847, 257, 7]
    tifffile.imwrite(tmp_path / "mask.tif", mask, ome=True, metadata=ome_metadata("zyx", spacing))
    labels = np.zeros(mask.shape, np.uint32)
    labelling.label_instances(mask, labels, criteria, spacing, lambda _: None)
    scores = scoring.score(*[str(tmp_path / "mask.tif")] * 2, criteria)
    matching = protocols.compare_shapes(mask, mask, criteria, known_voxel_size(spacing, len(mask))).matching
    assert [int(labels.max()), scores["instances"], matching.predicted_instances] == [count] * 3


def test_no_mitochondria_at_all_score_one_and_their_instances_are_not_known():
    empty = np.zeros((4, 8, 8), np.uint8)
    scores = results.score_shapes([compare(empty, empty)], ["a"] * 4, **BOOTSTRAP)
    assert {name: interval.value for name, interval in scores.items()} == dict.fromkeys(scores, 1.0)
    assert scores["instance_f1_50"] == Interval(1, 0, 1)
    assert instance_scores.match(components.label(empty), components.label(empty)).objects().shape == (0, 4)


def test_a_median_is_chosen_on_what_it_is_in_use(small_dataset: Path, tmp_path: Path):
    """The maps of the slices before validation are in the medians of the first ones, as in the whole stack."""
    pairs = read_pairs(small_dataset / "train")
    cut = Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    validation = write_store(tmp_path / "patches", pairs, cut, {"phantom": Conventions(8, "nonzero")}).validation
    inputs = keras.Input((None, None, 1))
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5, median=5)
    sharp = keras.layers.Conv2D(1, 1, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-0.5))
    predictor = Predictor(keras.Model(inputs, sharp(inputs)), settings)
    histogram = curves.ProbabilityHistogram()
    for stack, held in validation.ranges.items():
        image = pairs[stack].image
        for z, probability in zip(held, predictor.stream(image.slice, range(image.shape[0]), held), strict=True):
            histogram.add(validation.mask(stack, z), probability)
    wanted = curves.best_threshold([histogram])
    choice = protocols.choose(predictor, validation, [5], [pair.image for pair in pairs])
    assert choice.threshold == wanted
    assert choice.dice == metrics.dice(histogram.counts_at(wanted).sum(0))


def test_blank_slices_count_as_empty_where_the_threshold_is_chosen(tmp_path: Path) -> None:
    """A network that marks everything, and a stack whose last slices are padding: in use their masks are empty."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 64, 64), np.uint8)
    images[6:] = 0
    masks = np.ones_like(images)
    masks[6:] = 0
    for kind, array in (("images", images), ("masks", masks)):
        tiff.write_stack(tmp_path / "train/set" / kind / "s.tif", array)
    cut = Patch(size=64, step=64, validation_fraction=0.5, gap=2, normalization="range")
    pairs = read_pairs(tmp_path / "train")
    validation = write_store(tmp_path / "patches", pairs, cut, {"set": Conventions(8, "nonzero")}).validation
    inputs = keras.Input((None, None, 1))
    sure = keras.layers.Conv2D(1, 1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.9))
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5)
    predictor = Predictor(keras.Model(inputs, sure(inputs)), settings)
    assert protocols.choose(predictor, validation, [1], [pair.image for pair in pairs]).dice == 1


@pytest.mark.parametrize(("given", "taken"), [(0.001, 1 / 256), (0.4, 102 / 256), (0.999, 255 / 256)])
def test_a_fixed_threshold_is_the_nearest_one_from_which_not_everything_is_mitochondrion(given: float, taken: float):
    histogram = curves.ProbabilityHistogram()
    histogram.add(np.array([[1, 0]]), np.array([[0.9999, 0.0]]))
    choice = protocols._best_with(1, {"set": histogram}, given)
    assert (choice.threshold, choice.dice) == (taken, 1)


@pytest.mark.parametrize("medians", [[1, 3, 5], [5, 3, 1]])
def test_of_equal_medians_the_first_is_chosen(tmp_path: Path, medians: list[int]) -> None:
    """In a stack whose slices are all the same, no median changes anything."""
    slices = np.full((8, 64, 64), 64, np.uint8)
    slices[:, 16:32, 16:32] = 192
    for kind, array in (("images", slices), ("masks", (slices > 128).astype(np.uint8))):
        tiff.write_stack(tmp_path / "train/set" / kind / "s.tif", array)
    cut = Patch(size=64, step=64, validation_fraction=0.5, gap=2, normalization="range")
    pairs = read_pairs(tmp_path / "train")
    validation = write_store(tmp_path / "patches", pairs, cut, {"set": Conventions(8, "nonzero")}).validation
    inputs = keras.Input((None, None, 1))
    bright = keras.layers.Conv2D(1, 1, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-0.5))
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5)
    choice = protocols.choose(Predictor(keras.Model(inputs, bright(inputs)), settings), validation, medians)
    assert (choice.median, choice.dice) == (medians[0], 1)


def test_what_nobody_looked_at_is_in_no_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 64, 128), np.uint8)
    mask = np.where(rng.random(image.shape) < 0.3, 255, 0).astype(np.uint8)
    tiff.write_stack(tmp_path / "left/images/s.tif", image)
    mask[:, :, 64:] = 128
    tiff.write_stack(tmp_path / "left/masks/s.tif", mask)
    inputs = keras.Input((None, None, 1))
    bright = keras.layers.Conv2D(1, 1, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-0.5))
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5, median=3, normalization="range")
    predictor = Predictor(keras.Model(inputs, bright(inputs)), settings)
    measured = protocols.measure(
        predictor, read_pairs(tmp_path), {"left": Conventions(8, "partial")}, 64, Instances(smallest_voxels=0)
    )["left"]
    (stack,) = measured.stacks
    left = np.s_[:, :, :64]
    expected = metrics.count(mask[left] == 255, stack.mask[left])
    assert expected.any(axis=0).all()
    np.testing.assert_array_equal(metrics.count(stack.truth, stack.mask), expected)
    np.testing.assert_array_equal(measured.whole_slice.counts_at(0.5), expected)
    assert stack.single_slice is not None
    assert stack.single_slice.sum() == stack.patch_wise.sum() == expected.sum()
    assert not stack.mask[:, :, 64:].any()


def test_the_threshold_is_that_of_the_mean_over_sets(small_dataset: Path, tmp_path: Path) -> None:
    """A small set, in which mitochondria are brighter, has as much to say as a large one."""
    (large,) = read_pairs(small_dataset / "train")
    images, masks = (np.stack([*stack.slices()]) for stack in (large.image, large.mask))
    for kind, array in (("images", np.minimum(images, 155) + 100), ("masks", masks)):
        tiff.write_stack(tmp_path / "train/small" / kind / "s.tif", array[:8, :64, :64].astype(np.uint8))
    shutil.copytree(small_dataset / "train/phantom", tmp_path / "train/phantom")
    pairs = read_pairs(tmp_path / "train")
    rules = {pair.dataset: Conventions(8, "nonzero") for pair in pairs}
    cut = Patch(size=64, step=64, validation_fraction=0.5, gap=2)
    validation = write_store(tmp_path / "patches", pairs, cut, rules).validation
    inputs = keras.Input((None, None, 1))
    dark = keras.layers.Conv2D(
        1, 1, kernel_initializer=keras.initializers.Constant(-9), bias_initializer=keras.initializers.Constant(4)
    )
    settings = Settings(bit_depth=8, divisor=4, tile=64, overlap=16, threshold=0.5)
    predictor = Predictor(keras.Model(inputs, dark(inputs)), settings)
    histograms = {name: curves.ProbabilityHistogram() for name in ("phantom", "small")}
    for stack, held in validation.ranges.items():
        for z in held:
            probability = predictor.probabilities(validation.image(stack, z)[None])[0]
            histograms[validation.datasets[stack]].add(validation.mask(stack, z), probability)
    choice = protocols.choose(predictor, validation, [1])
    scores = {name: each.dice() for name, each in histograms.items()}
    place = int(256 * choice.threshold)
    assert (
        choice.dice == np.mean([each[place] for each in scores.values()]) == np.mean([*scores.values()], axis=0).max()
    )
    assert choice.sets == {name: each[place] for name, each in scores.items()}
    pooled = curves.ProbabilityHistogram()
    for stack, held in validation.ranges.items():
        for z in held:
            pooled.add(validation.mask(stack, z), predictor.probabilities(validation.image(stack, z)[None])[0])
    assert choice.threshold != curves.best_threshold([pooled])


def test_slices_between_those_that_nobody_looked_at_have_profiles() -> None:
    """Two balls, seen in two slices each; as 3-D objects all would be too small to count, and any mask perfect."""
    truth = balls((6, 12, 12), (6, 12, 40), radius=5)
    truth[[z for z in range(len(truth)) if z not in (5, 7)]] = 2
    mask = np.where(truth == 2, 0, balls((6, 12, 12), (6, 36, 20), radius=5)).astype(np.uint8)
    matching = protocols.compare_shapes(truth, mask, Instances(smallest_voxels=200), None).matching
    assert (matching.true_instances, matching.predicted_instances, len(matching.iou)) == (4, 4, 2)
    truth[6] = balls((6, 12, 12), (6, 12, 40), radius=5)[6]
    box = protocols.compare_shapes(truth, mask, Instances(smallest_voxels=100), None).matching
    assert box.true_instances == 2, "what was looked at is a box of three slices"


def test_instances_of_a_truth_with_labels_are_its_labels_and_contacts_divide_the_prediction() -> None:
    """Two mitochondria of 10 x 20 pixels side by side, which form a bar without a neck."""
    labels = np.zeros((1, 24, 60), np.uint16)
    labels[:, 7:17, 10:30], labels[:, 7:17, 30:50] = 8, 9
    mask = (labels > 0).astype(np.uint8)
    line = np.zeros(mask.shape, bool)
    line[:, :, 29:31] = True

    def matched(**options: np.ndarray) -> tuple[int, int, list[float]]:
        found = protocols.compare_shapes(mask, mask, Instances(smallest_voxels=10), None, **options).matching
        return found.true_instances, found.predicted_instances, found.iou.tolist()

    assert matched() == (1, 1, [1])
    assert matched(labels=labels) == (2, 1, [])
    assert matched(labels=labels, contacts=line) == (2, 2, [1, 1])
    assert matched(contacts=line) == (1, 2, [])


def test_instances_of_a_prediction_are_those_of_predict_where_contacts_lie_in_a_hole() -> None:
    """A gap between two mitochondria that is closed at both ends, and that the network calls a contact: a line."""
    bar = np.zeros((1, 24, 60), np.uint8)
    bar[:, 7:17, 10:50] = 1
    line = np.zeros(bar.shape, bool)
    line[:, :, 29:31] = True
    mask = bar.copy()
    mask[:, 8:16, 29:31] = 0
    criteria = Instances(smallest_voxels=10)
    delivered = separate(mask, criteria, contacts=line)
    assert delivered.max() == 2
    matching = protocols.compare_shapes(bar, mask, criteria, None, labels=delivered, contacts=line).matching
    assert (matching.true_instances, matching.predicted_instances, matching.iou.tolist()) == (2, 2, [1, 1])
