"""The fidelity report against counting by hand."""

import json

import numpy as np
import pytest

from edgetl.bench import drop_interval, fidelity_report, fidelity_text

CLASSES = ("bolt", "nut", "screw")


def logits_of(decisions, sure=4.0):
    return (np.eye(3, dtype=np.float32)[list(decisions)] * sure).astype(np.float32)


@pytest.fixture
def report():
    reference = logits_of([0, 0, 1, 1, 2, 2])
    reference[3] *= 2  # the surest
    now = logits_of([0, 1, 1, 0, 2, 2])
    labels = np.array([0, 0, 1, 1, 2, 1])
    return fidelity_report(now, reference, labels, CLASSES, [f"{i}.jpg" for i in range(6)])


def test_flips_and_drop_are_counted(report):
    assert report["pictures"] == 6
    assert report["flip_rate"] == pytest.approx(2 / 6)
    assert report["top1_drop"]["value"] == pytest.approx(2 / 6)
    assert report["top1_drop"]["low"] <= 2 / 6 <= report["top1_drop"]["high"]


def test_the_worst_flips_are_those_that_fp32_was_surest_of(report):
    assert [flip["picture"] for flip in report["worst_flips"]] == ["3.jpg", "1.jpg"]
    assert (report["worst_flips"][0]["reference"], report["worst_flips"][0]["now"]) == ("nut", "bolt")
    assert report["worst_flips"][0]["reference_confidence"] > report["worst_flips"][1]["reference_confidence"]


def test_classes_that_changed_are_listed_the_greatest_loss_first(report):
    assert [(row["label"], row["flips"]) for row in report["per_class"]] == [("bolt", 1), ("nut", 1)]
    assert report["per_class"][0]["recall_reference"] == 1.0
    assert report["per_class"][0]["recall"] == 0.5
    assert report["per_class"][1]["recall_reference"] == pytest.approx(2 / 3)


def test_confidence_falls_where_logits_shrink():
    reference = logits_of([0, 1, 2])
    report = fidelity_report(reference / 2, reference, np.array([0, 1, 2]), CLASSES, list("abc"))
    assert report["flip_rate"] == 0
    assert report["confidence"]["shift"] < -0.05
    assert report["confidence"]["largest_fall"] == pytest.approx(-report["confidence"]["shift"], rel=1e-5)
    assert report["ece"]["now"] > report["ece"]["reference"]  # right, and less sure of it


def test_without_labels_nothing_is_said_of_accuracy():
    reference = logits_of([0, 1, 2])
    report = fidelity_report(reference, reference, None, CLASSES, list("abc"))
    assert report["top1_drop"] is None
    assert report["ece"] is None
    assert report["per_class"] == report["worst_flips"] == []
    assert len(fidelity_text("int8", report)) == 1


def test_it_is_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_interval_is_that_of_a_bootstrap_over_pictures():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 300)
    reference = logits_of(np.where(rng.random(300) < 0.9, labels, (labels + 1) % 3))
    now = logits_of(np.where(rng.random(300) < 0.85, labels, (labels + 2) % 3))
    low, high = drop_interval(now, reference, labels)
    lost = (reference.argmax(1) == labels).astype(int) - (now.argmax(1) == labels)
    means = [lost[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.008)
    assert drop_interval(reference, reference, labels)[0] < 0 < drop_interval(reference, reference, labels)[1]


def test_few_pictures_of_which_none_is_lost_prove_little():
    """Of 50 pictures, a true loss of 3 % shows none in one case of five."""
    reference = np.eye(2, dtype=np.float32)[np.arange(50) % 2]
    low, high = drop_interval(reference, reference, np.arange(50) % 2)
    assert -0.06 < low < -0.01
    assert 0.01 < high < 0.06


def test_the_text_names_pictures_and_classes(report):
    text = "\n".join(fidelity_text("int8-tensorrt", report))
    assert "int8-tensorrt: 33.3% of 6 decisions changed" in text
    assert "top-1 drop +33.33 pt" in text
    assert "bolt: recall 100.0% -> 50.0% (1 flips)" in text
    assert "3.jpg: nut (" in text
