"""edgetl.metrics, against numbers worked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgetl.metrics import (
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    flip_rate,
    macro_f1,
    softmax,
    sqnr_db,
    top1,
)

# Decisions 0, 0, 1, 1, 2 for the true classes 0, 1, 1, 1, 2.
LOGITS = np.array([[3, 1, 0], [2, 1, 0], [0, 5, 1], [0, 2, 1], [1, 0, 4]], np.float32)
LABELS = np.array([0, 1, 1, 1, 2])


def test_softmax_by_hand():
    probabilities = softmax(np.array([[0.0, math.log(3)], [5.0, 5.0]], np.float32))

    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)


def test_softmax_of_large_logits_does_not_overflow():
    np.testing.assert_array_equal(softmax(np.array([[1e4, -1e4], [-3e38, 0]], np.float32)), [[1, 0], [0, 1]])


@given(npst.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)))
def test_softmax_is_a_distribution_in_the_same_order(logits):
    probabilities = softmax(logits)

    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    best = np.take_along_axis(probabilities, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(best, probabilities.max(axis=1))


def test_top1_by_hand():
    assert top1(LOGITS, LABELS) == 4 / 5
    assert top1(LOGITS, np.array([1, 1, 0, 0, 0])) == 0.0


def test_flip_rate_counts_changed_decisions_not_changed_numbers():
    other = LOGITS.copy()
    other[0] = [1, 3, 0]
    other[1] += 7

    assert flip_rate(other, LOGITS) == 1 / 5
    assert flip_rate(LOGITS, LOGITS) == 0.0


def test_sqnr_by_hand():
    reference = np.array([3.0, 4.0], np.float32)  # power 25

    assert sqnr_db(reference + np.float32([0.5, 0.0]), reference) == pytest.approx(20.0)  # 25 / 0.25 = 100
    assert sqnr_db(np.zeros(2, np.float32), reference) == pytest.approx(0.0)
    assert sqnr_db(reference * 11, reference) == pytest.approx(-20.0)  # noise is ten times as high


def test_sqnr_has_finite_ends():
    silence, sound = np.zeros(3, np.float32), np.ones(3, np.float32)

    assert sqnr_db(sound, sound) == 300.0
    assert sqnr_db(silence, silence) == 300.0
    assert sqnr_db(sound, silence) == -300.0
    assert sqnr_db(np.float32([1, np.inf, 1]), sound) == -300.0
    assert sqnr_db(np.float32([1, np.nan, 1]), sound) == -300.0


FLOATS = npst.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(FLOATS, FLOATS)
def test_sqnr_is_finite_and_within_its_ends(values, reference):
    assert -300.0 <= sqnr_db(values, reference) <= 300.0


def test_confusion_matrix_has_truth_in_rows():
    matrix = confusion_matrix(np.array([0, 0, 1, 1, 2]), LABELS, 4)

    np.testing.assert_array_equal(matrix, [[1, 0, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


def test_macro_f1_by_hand():
    # Class 0: precision 1/2, recall 1, F1 2/3. Class 1: precision 1, recall 2/3, F1 4/5. Class 2: F1 1.
    assert macro_f1(LOGITS, LABELS) == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)


def test_macro_f1_leaves_out_classes_that_do_not_occur():
    logits = np.array([[5, 0, 0], [0, 5, 0]], np.float32)
    assert macro_f1(logits, np.array([0, 1])) == pytest.approx(1.0)


def test_ece_by_hand():
    # Confidences 0.75, 0.75 (one of two right: gap 0.25) and 0.9 (right: gap 0.1), in different bins of ten.
    logits = np.log(np.array([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9]]))
    labels = np.array([0, 1, 1])

    assert expected_calibration_error(logits, labels, bins=10) == pytest.approx((2 * 0.25 + 1 * 0.1) / 3, abs=1e-6)


def test_ece_nets_out_within_a_bin():
    # 0.8 right and 0.8 wrong, and three more right: 4 of 5 right at 0.8 is perfect calibration.
    logits = np.log(np.full((5, 2), [0.8, 0.2]))

    assert expected_calibration_error(logits, np.array([0, 0, 0, 0, 1])) == pytest.approx(0.0, abs=1e-6)


def test_ece_of_certainty():
    certain = np.array([[1e4, 0.0], [1e4, 0.0]], np.float32)

    assert expected_calibration_error(certain, np.array([0, 0])) == 0.0
    assert expected_calibration_error(certain, np.array([1, 1])) == 1.0


def test_report_by_hand():
    report = classification_report(LOGITS, LABELS, ["cat", "dog", "owl"])

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["pictures"], report["top1"]) == (5, 0.8)
    assert report["macro_precision"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert report["macro_recall"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)
    assert report["ece"] == pytest.approx(expected_calibration_error(LOGITS, LABELS))
    assert report["confusion_matrix"] == [[1, 0, 0], [1, 2, 0], [0, 0, 1]]
    assert report["per_class"][1] == {
        "label": "dog",
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "support": 3,
    }


def test_report_shows_a_class_that_does_not_occur_and_leaves_it_out_of_means():
    report = classification_report(np.pad(LOGITS, ((0, 0), (0, 1)), constant_values=-9), LABELS, list("abcd"))

    assert report["per_class"][3] == {"label": "d", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert report["macro_recall"] == pytest.approx((1 + 2 / 3 + 1) / 3)
