"""Compensated rounding: never worse on its own measure than rounding to the nearest, by much better on average."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.quantize.rounding import round_rows


def problem(seed, groups=1, outputs=4, taps=12):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(groups, outputs, taps))
    scale = np.abs(rows).max(axis=2) / 127 * 8  # coarse, so that rounding matters
    samples = np.einsum("nt,gts->gns", rng.normal(size=(200, taps)), rng.normal(size=(groups, taps, taps)))
    return rows, scale, np.einsum("gnt,gns->gts", samples, samples) / 200


def error_of(integers, rows, scale, second):
    error = integers * scale[:, :, None] - rows
    return np.einsum("got,gts,gos->", error, second, error)


def nearest(rows, scale):
    return np.clip(np.round(rows / scale[:, :, None]), -127, 127)


@pytest.mark.parametrize("taps", [1, 9, 127, 128, 129, 300])
def test_errors_of_answers_shrink(taps):
    gains = []
    for seed in range(5):
        rows, scale, second = problem(seed, taps=taps)
        ours = error_of(round_rows(rows, scale, second), rows, scale, second)
        gains.append(ours / error_of(nearest(rows, scale), rows, scale, second))
    assert max(gains) <= 1.0 + 1e-9
    if taps > 1:
        assert np.mean(gains) < 0.75


@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 5), st.integers(1, 20))
def test_integers_are_int8_and_symmetric_whatever_comes(seed, groups, outputs, taps):
    rows, scale, second = problem(seed, groups, outputs, taps)
    found = round_rows(rows, scale, second)
    assert found.dtype == np.int8
    assert found.shape == rows.shape
    assert found.min() >= -127
    assert np.isfinite(found).all()


def test_uncorrelated_inputs_leave_rounding_to_the_nearest():
    rows, scale, _ = problem(3, groups=2, taps=10)
    second = np.broadcast_to(np.eye(10), (2, 10, 10)).copy()
    assert np.array_equal(round_rows(rows, scale, second), nearest(rows, scale))


def test_dead_inputs_are_no_trouble():
    rows, scale, second = problem(4)
    second[:, 3] = second[:, :, 3] = 0.0
    assert np.isfinite(round_rows(rows, scale, second)).all()
    assert np.array_equal(round_rows(rows, scale, np.zeros_like(second)), nearest(rows, scale))


def test_groups_are_independent():
    rows, scale, second = problem(5, groups=3)
    together = round_rows(rows, scale, second)
    for g in range(3):
        assert np.array_equal(together[g : g + 1], round_rows(rows[g : g + 1], scale[g : g + 1], second[g : g + 1]))


def test_the_caller_keeps_its_weight():
    rows, scale, second = problem(6)
    before = rows.copy()
    round_rows(rows, scale, second)
    assert np.array_equal(rows, before)
