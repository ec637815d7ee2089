"""Thresholds against distributions whose answers are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.quantize.observe import BINS, Observation
from edgetl.quantize.thresholds import METHODS, range_of

RNG = np.random.default_rng(0)
SIZE = 100_000
DATA = {
    "laplace": RNG.laplace(size=SIZE),
    "half-normal": np.abs(RNG.normal(size=SIZE)),
    "ReLU": np.maximum(RNG.normal(-0.5, 1, SIZE), 0),
    "mostly zeros": np.maximum(RNG.normal(-1.5, 1, SIZE), 0),
    "saturated at 6": np.clip(RNG.normal(2, 3, SIZE), 0, 6),
    "uniform": RNG.uniform(-1, 1, SIZE),
    "log-normal": RNG.lognormal(0, 1, SIZE),
    "one spike": np.append(RNG.normal(0, 0.1, SIZE), 50.0),
}


def observed(values):
    observation = Observation()
    values = values.astype(np.float32)
    observation.add(values, float(values.min()), float(values.max()))
    return observation


def threshold(values, method):
    return max(np.abs(range_of(observed(values), method)))


def squared_error(values, limit):
    """What int8 with 127 positive levels makes of values, computed on the values themselves."""
    scale = limit / 127
    return np.square(np.clip(np.round(values / scale), -127, 127) * scale - values).mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DATA)
def test_a_range_never_exceeds_what_was_seen(name, method):
    values = DATA[name].astype(np.float32)
    low, high = range_of(observed(values), method)
    assert values.min() <= low <= high <= values.max()
    assert 0 < max(-low, high) <= np.abs(values).max()


@pytest.mark.parametrize("name", DATA)
def test_max_covers_everything(name):
    values = DATA[name].astype(np.float32)
    assert range_of(observed(values), "max") == (values.min(), values.max())


@pytest.mark.parametrize("name", DATA)
def test_percentile_agrees_with_numpy_within_a_bin(name):
    magnitudes = np.abs(DATA[name].astype(np.float32))
    expected = np.percentile(magnitudes, 99.99, method="inverted_cdf")
    assert threshold(DATA[name], "percentile") == pytest.approx(expected, abs=float(magnitudes.max()) / BINS * 1.001)


@pytest.mark.parametrize("name", DATA)
def test_mse_is_as_good_as_trying_every_threshold(name):
    values = DATA[name]
    peak = np.abs(values).max()
    best = min(squared_error(values, candidate) for candidate in np.linspace(peak / 150, peak, 150))
    assert squared_error(values, threshold(values, "mse")) <= 1.03 * best


def test_mse_clips_a_long_tail_and_keeps_a_short_one():
    assert 0.5 < threshold(DATA["laplace"], "mse") / np.abs(DATA["laplace"]).max() < 0.9
    assert threshold(DATA["uniform"], "mse") >= 0.98


def test_zeros_of_relu_do_not_move_mse():
    """Zero is exact at every threshold, so that any number of zeros leaves the best one where it was."""
    values = DATA["half-normal"]
    assert threshold(np.concatenate([values, np.zeros(20 * SIZE)]), "mse") == threshold(values, "mse")


def test_entropy_clips_a_laplace_distribution():
    values = np.random.default_rng(0).laplace(size=1_000_000)
    peak = np.abs(values).max()
    assert peak > 13
    assert 0.6 * peak < threshold(values, "entropy") < 0.9 * peak


@pytest.mark.parametrize("name", ["uniform", "saturated at 6"])
def test_entropy_keeps_what_has_no_tail(name):
    assert threshold(DATA[name], "entropy") >= 0.97 * np.abs(DATA[name]).max()


def test_zeros_of_relu_do_not_move_entropy():
    values = DATA["laplace"]
    assert threshold(np.concatenate([values, np.zeros(20 * SIZE)]), "entropy") == threshold(values, "entropy")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [5.0, -3.0, 1e-6])
def test_a_constant_tensor_is_covered(method, value):
    low, high = range_of(observed(np.full(1000, value)), method)
    assert low == high == pytest.approx(np.float32(value), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_only(method):
    assert range_of(observed(np.zeros(1000)), method) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_extremes_without_a_sample_are_taken_as_they_are(method):
    assert range_of(Observation(low=-2.0, high=1.0), method) == (-2.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    repeats=st.integers(1, 1000),
)
def test_any_values_give_an_ordered_range_within_the_extremes(method, values, repeats):
    array = np.repeat(np.array(values, np.float32), repeats)
    low, high = range_of(observed(array), method)
    peak = np.abs(array).max()
    assert low <= high
    assert -peak <= low
    assert high <= peak
    assert max(-low, high) > 0 or peak == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_thresholds_scale_with_the_values(method, factor):
    for name in ("laplace", "ReLU"):
        assert threshold(DATA[name] * factor, method) == pytest.approx(threshold(DATA[name], method) * factor, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_sample_of_hardly_anything_but_zeros_cuts_nothing(method, others):
    """The extremes come from every value, the sample from few: what it did not meet is no reason to cut."""
    observation = Observation()
    sample = np.zeros(SIZE, np.float32)
    sample[:others] = 1.0
    observation.add(sample, 0.0, 10.0)
    assert range_of(observation, method) == (0.0, 10.0)
