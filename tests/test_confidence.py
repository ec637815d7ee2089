"""Temperature and threshold, by hand and on answers whose truth is known."""

import numpy as np
import pytest

from edgetl.confidence import (
    confidence_report,
    fit_temperature,
    left_out,
    log_odds,
    passes,
    rejection_report,
    threshold_for,
)
from edgetl.metrics import expected_calibration_error, softmax
from edgetl.runtime.prediction import predictions


def drawn(count, temperature, seed=0):
    """Logits that are too sure by a factor, and labels drawn from what they should say."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (count, 5))
    shares = np.cumsum(softmax(honest), axis=1)
    labels = (rng.random((count, 1)) * shares[:, -1:] > shares).sum(axis=1)
    return (honest * temperature).astype(np.float32), labels


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_factor_that_was_put_in_is_found(factor):
    logits, labels = drawn(4000, factor)
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=0.06)


def test_scaled_answers_are_as_sure_as_they_are_right():
    logits, labels = drawn(3000, 3.0)
    found = confidence_report(logits, labels)
    assert found["ece_before"] == expected_calibration_error(logits, labels) > 0.15
    assert found["ece_after"] < 0.03


def test_few_pictures_move_little_and_certainty_has_an_end():
    sure = np.array([[4.0, 0.0], [0.0, 4.0]])
    right = np.array([0, 1])
    assert 0.5 < fit_temperature(sure, right) < 1
    assert fit_temperature(np.tile(sure, (500, 1)), np.tile(right, 500)) < 0.5
    assert confidence_report(sure[:1], right[:1])["ece_after"] is None


def test_a_class_left_out():
    logits = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert left_out(logits, np.array([1, 0])).tolist() == [[1.0, 3.0], [5.0, 6.0]]


def test_log_odds_are_those_of_the_confidence():
    logits = np.random.default_rng(0).normal(0, 2, (50, 4))
    found = log_odds(logits, 2.0)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), softmax(logits / 2).max(axis=1), rtol=1e-5)
    assert log_odds(np.array([[3.0, 1.0]]))[0] == pytest.approx(2)


def test_log_odds_tell_apart_what_a_confidence_of_one_does_not():
    wide = np.array([[100.0, 0, 0], [200.0, 0, 0], [3e38, 0, 0]], np.float32)
    assert (softmax(wide).max(axis=1) == 1).all()
    found = log_odds(wide, 0.05)
    assert (np.diff(found) > 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("share", "accepted"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.74, 2), (1.0, 4)])
@pytest.mark.parametrize("width", [1, 1000])
def test_no_more_pass_than_may(share, accepted, width):
    logits = width * np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]))
    limit = threshold_for(logits, 1.0, share)
    assert passes(logits, 1.0, limit).sum() == accepted
    assert (limit is None) == (share == 1)


def test_equal_answers_are_all_refused_or_all_taken():
    same = np.tile([[2.0, 0.0]], (10, 1))
    assert not passes(same, 1.0, threshold_for(same, 1.0, 0.5)).any()


def test_the_device_rejects_what_the_export_counted():
    wide = np.random.default_rng(0).normal(0, 60, (400, 3)).astype(np.float32)  # confidences of 1.0 in float32
    limit = threshold_for(wide, 0.5, 0.1)
    answers = predictions(wide, ("a", "b", "c"), 0.5, limit)
    assert sum(answer.label is not None for answer in answers) == 40


def test_rates_of_rejection_are_measured_on_the_other_half():
    logits, labels = drawn(2000, 1.0)
    unknown = np.random.default_rng(1).normal(0, 1.0, (101, 5)).astype(np.float32)
    for given in (unknown, None):
        found = rejection_report(logits, labels, given, 0.1)
        assert found["pictures"] == (2000 if given is None else 101)
        assert found["false_accept_measured"] == pytest.approx(0.1, abs=0.05)
        assert 0.1 < found["wrong_and_rejected"] + found["right_and_rejected"] < 0.9
        assert found["confidence"] == pytest.approx(1 / (1 + np.exp(-found["min_log_odds"])))
    # Pictures that stand for themselves alone: what was seen would all be refused, what was not seen passes.
    pair = np.array([[0.0, 0, 0], [9.0, 0, 0]], np.float32)
    assert rejection_report(logits[:, :3], labels % 3, pair, 0.0)["false_accept_measured"] == 0.5
    alone = rejection_report(logits[:1], labels[:1], unknown[:1], 0.0)
    assert alone["false_accept_measured"] is alone["right_and_rejected"] is None
