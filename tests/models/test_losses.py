"""Losses and the Dice metric, from logits, with and without weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from mitoflow.data.network_input import UNLABELLED
from mitoflow.evaluation import metrics
from mitoflow.models import losses

NAMES = ["bce", "bce_dice"]


@pytest.fixture
def batch() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Truth and logits, both (3, 8, 8, 1), and owned pixels, (3, 8, 8); the last image has no foreground."""
    rng = np.random.default_rng(5)
    truth = (rng.random((3, 8, 8, 1)) < [[[[0.5]]], [[[0.2]]], [[[0.0]]]]).astype(np.float32)
    logits = rng.normal(scale=2, size=truth.shape).astype(np.float32)
    owned = np.ones((3, 8, 8), np.float32)
    owned[:, 6:] = owned[:, :, 5:] = 0
    return truth, logits, owned


def expected(name: str, truth: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """The losses once more, by their definitions, in float64."""
    g, p = truth.astype(float), 1 / (1 + np.exp(-logits.astype(float)))
    bce = -np.mean(g * np.log(p) + (1 - g) * np.log(1 - p))
    dice = (2 * (p * g).sum() + 1) / ((p**2).sum() + (g**2).sum() + 1)
    return float(bce + 1 - dice if name == "bce_dice" else bce)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_its_definition(name, batch):
    truth, logits, _ = batch
    assert float(losses.LOSSES[name]()(truth, logits)) == pytest.approx(expected(name, truth, logits), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [3, 4])
def test_loss_of_weighted_pixels_is_the_loss_of_those_pixels_alone(name, rank, batch):
    truth, logits, owned = batch
    weight = owned if rank == 3 else owned[..., None]
    loss = float(losses.LOSSES[name]()(truth, logits, weight))
    assert loss == pytest.approx(expected(name, truth[:, :6, :5], logits[:, :6, :5]), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_pixels_that_nobody_looked_at_are_in_no_loss_and_no_dice(name, weighted, batch):
    truth, logits, owned = batch
    partial = truth.copy()
    partial[:, 4:] = UNLABELLED
    weights = [owned] if weighted else []
    labelled = (truth[:, :4, :5], logits[:, :4, :5]) if weighted else (truth[:, :4], logits[:, :4])
    loss = losses.OfLabelledPixels(losses.LOSSES[name]())
    assert float(loss(partial, logits, *weights)) == pytest.approx(expected(name, *labelled), rel=1e-5)
    watched, alone = losses.Dice(), losses.Dice()
    watched.update_state(partial, logits, *weights)
    alone.update_state(*labelled)
    assert 0 < float(watched.result()) == float(alone.result()) < 1


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_nobody_looked_at_teaches_nothing(name, batch):
    tf = pytest.importorskip("tensorflow")
    variable = tf.Variable(batch[1])
    with tf.GradientTape() as tape:
        value = losses.OfLabelledPixels(losses.LOSSES[name]())(np.full_like(batch[0], UNLABELLED), variable)
    assert float(value) == 0
    assert not tape.gradient(value, variable).numpy().any()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_finite_differences(name, batch):
    tf = pytest.importorskip("tensorflow")
    truth, logits, owned = batch
    loss = losses.LOSSES[name]()
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = loss(truth, variable, owned)
    gradient = tape.gradient(value, variable).numpy()
    assert not gradient[:, 6:].any() and not gradient[:, :, 5:].any()

    step, inner_truth, inner = 1e-5, truth[:, :6, :5], logits[:, :6, :5].astype(float)
    for at in [(0, 0, 0, 0), (1, 5, 4, 0), (2, 3, 1, 0)]:
        nudge = np.zeros_like(inner)
        nudge[at] = step
        slope = (expected(name, inner_truth, inner + nudge) - expected(name, inner_truth, inner - nudge)) / (2 * step)
        assert gradient[at] == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_sure_and_wrong_logits_give_a_finite_loss(name):
    truth = np.array([1, 0], np.float32).reshape(1, 1, 2, 1)
    logits = np.array([-500, 500], np.float32).reshape(1, 1, 2, 1)
    assert float(losses.LOSSES[name]()(truth, logits)) == pytest.approx(500, abs=1.5)


def test_empty_batch_pulls_probability_down():
    tf = pytest.importorskip("tensorflow")
    truth, logits = tf.zeros((1, 4, 4, 1)), tf.Variable(tf.zeros((1, 4, 4, 1)))
    bce_dice, bce = losses.BinaryCrossentropyDice(), losses.binary_crossentropy()
    with tf.GradientTape() as tape:
        soft_dice = bce_dice(truth, logits) - bce(truth, logits)
    assert (tape.gradient(soft_dice, logits).numpy() > 0).all()


def test_dice_over_batches_is_that_of_the_numpy_counts(batch):
    truth, logits, owned = batch
    metric = losses.Dice()
    for i in range(len(truth)):
        metric.update_state(truth[i : i + 1], logits[i : i + 1], owned[i : i + 1])
    counts = metrics.count(truth[..., 0], logits[..., 0] > 0, owned.astype(bool))
    assert float(metric.result()) == pytest.approx(float(metrics.dice(counts.sum(0))), abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 1.0  # 0/0: nothing there and nothing predicted


def test_logit_zero_is_foreground():
    metric = losses.Dice()
    metric.update_state(np.ones((1, 1, 2, 1)), np.array([0.0, -0.1]).reshape(1, 1, 2, 1))
    assert float(metric.result()) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", NAMES)
def test_fit_reports_the_dice_of_the_weighted_pixels(name, batch):
    truth, logits, owned = batch
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Activation("linear")])
    model.compile(loss=losses.LOSSES[name](), weighted_metrics=[losses.Dice()])
    result = model.evaluate(logits, truth, sample_weight=owned, batch_size=3, verbose=0, return_dict=True)
    counts = metrics.count(truth[..., 0], logits[..., 0] > 0, owned.astype(bool))
    assert result["dice"] == pytest.approx(float(metrics.dice(counts.sum(0))), abs=1e-6)
    assert result["loss"] == pytest.approx(expected(name, truth[:, :6, :5], logits[:, :6, :5]), rel=1e-5)


def test_of_several_output_channels_the_first_is_scored(batch):
    truth, logits, owned = batch
    first, all_three = losses.Dice(), losses.Dice()
    first.update_state(truth, logits, owned)
    all_three.update_state(truth, np.concatenate([logits, -logits, logits + 1], axis=-1), owned)
    assert float(all_three.result()) == float(first.result())


@pytest.mark.parametrize("made", [losses.BinaryCrossentropyDice(), losses.Dice()])
def test_both_classes_are_known_to_keras_by_name(made):
    config = keras.saving.serialize_keras_object(made)
    assert config["registered_name"].startswith("mitoflow>")
    assert isinstance(keras.saving.deserialize_keras_object(config), type(made))


@pytest.mark.parametrize("name", NAMES)
def test_contacts_count_where_they_are_known(name, batch):
    truth, logits, owned = batch
    contacts, others = np.full_like(truth, UNLABELLED), logits[::-1].copy()
    contacts[:, :, :4] = truth[::-1, :, :4]
    loss = losses.OfMaskAndContacts(losses.LOSSES[name]())
    both = loss(np.concatenate([truth, contacts], -1), np.concatenate([logits, others], -1), owned)
    of_mask = expected(name, truth[:, :6, :5], logits[:, :6, :5])
    of_contacts = expected(name, contacts[:, :6, :4], others[:, :6, :4])
    assert float(both) == pytest.approx(of_mask + of_contacts, rel=1e-5)


def test_dice_of_a_truth_with_contacts_is_that_of_the_mask(batch):
    truth, logits, owned = batch
    alone, both = losses.Dice(), losses.Dice()
    alone.update_state(truth, logits, owned)
    both.update_state(np.concatenate([truth, 1 - truth], -1), np.concatenate([logits, logits], -1), owned)
    assert float(both.result()) == float(alone.result())
