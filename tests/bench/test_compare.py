"""Comparisons on samples whose truth is known; the rank test against scipy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgetl.bench.compare import BLOCK, block_ratios, compare, corrected, signed_rank_p
from edgetl.errors import InputError


def moody(rng, calls, slower=1.0, processes=3):
    """Two sides called in turn on a machine whose mood wanders and bursts; ``slower`` is planted in the first."""
    ours, theirs = [], []
    for _ in range(processes):
        steps = rng.normal(0, 0.01, calls)
        mood = np.exp(np.cumsum(steps) * 0.3) * np.where(rng.random(calls) < 0.02, 3.0, 1.0)
        base = 1e6 * rng.uniform(0.97, 1.03)
        ours.append((base * mood * slower * rng.lognormal(0, 0.03, calls)).astype(int).tolist())
        theirs.append((base * mood * rng.lognormal(0, 0.03, calls)).astype(int).tolist())
    return ours, theirs


def test_equal_sides_rarely_differ():
    rng = np.random.default_rng(0)
    told = [compare(*moody(rng, 300), seed=i).differs for i in range(200)]
    assert sum(told) <= 16  # 5 % of 200, and three standard errors of it


@pytest.mark.parametrize("slower", [1.05, 0.95])
def test_a_planted_difference_is_found_with_its_size(slower):
    rng = np.random.default_rng(1)
    found = [compare(*moody(rng, 300, slower), seed=i) for i in range(50)]
    assert all(c.differs for c in found)
    assert np.median([c.ratio for c in found]) == pytest.approx(slower, rel=0.005)
    assert sum(c.low <= slower <= c.high for c in found) >= 42
    assert ("slower" if slower > 1 else "faster") in found[0].text


def test_no_difference_is_said_in_words():
    side = [[1_000_000 + i % 7 for i in range(200)]] * 2
    found = compare(side, side)
    assert found.text == "no significant difference (ratio 1.000, 95 % interval 1.000 to 1.000)"
    assert (found.p, found.differs) == (1.0, False)
    assert found.to_dict()["blocks"] == 2 * (200 // BLOCK)


def test_a_burst_on_one_call_of_a_pair_moves_nothing():
    rng = np.random.default_rng(2)
    ours, theirs = moody(rng, 300)
    ours[0][7] *= 1000
    assert compare(ours, theirs).ratio == pytest.approx(1, abs=0.02)


def test_blocks_lie_within_a_process():
    ours, theirs = [[2] * 30, [4] * 60], [[1] * 30, [1] * 60]
    with pytest.raises(InputError, match=r"90 pairs make 3 blocks of 25, 6 are needed: give more --seconds"):
        block_ratios(ours, theirs)
    np.testing.assert_array_equal(block_ratios(ours, theirs, block=10), [2.0] * 3 + [4.0] * 6)


def test_samples_that_were_not_taken_in_turn_are_refused():
    with pytest.raises(InputError, match="not taken in turn"):
        compare([[1] * 500], [[1] * 499])


@given(st.lists(st.integers(-20, 20), min_size=15, max_size=60).filter(lambda v: len({abs(x) for x in v if x}) > 2))
@settings(deadline=None)
def test_the_rank_test_is_scipys(values):
    values = np.array(values, float)
    expected = stats.wilcoxon(values, correction=True, method="approx", zero_method="wilcox").pvalue
    assert signed_rank_p(values) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_many_comparisons_are_corrected_as_holm_did():
    assert corrected([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected([]) == []
    assert corrected([0.9, 0.8]) == [1.0, 1.0]
