"""Comparisons on samples whose truth is known; the rank tests against scipy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgetl.bench.compare import (
    compare,
    compare_all,
    compare_runs,
    compare_with_both,
    corrected,
    rank_sum_p,
    signed_rank_p,
)
from edgetl.errors import InputError


def moody(rng, calls, slower=1.0, processes=3, own=0.0):
    """Two sides called in turn on a machine whose mood wanders and bursts.

    ``slower`` is planted in the first; ``own`` is how much each process favours one of them by chance.
    """
    ours, theirs = [], []
    for _ in range(processes):
        steps = rng.normal(0, 0.01, calls)
        mood = np.exp(np.cumsum(steps) * 0.3) * np.where(rng.random(calls) < 0.02, 3.0, 1.0)
        base = 1e6 * rng.uniform(0.97, 1.03)
        favour = np.exp(rng.normal(0, own))
        ours.append((base * mood * slower * favour * rng.lognormal(0, 0.03, calls)).astype(int).tolist())
        theirs.append((base * mood * rng.lognormal(0, 0.03, calls)).astype(int).tolist())
    return ours, theirs


@pytest.mark.parametrize(("processes", "own"), [(3, 0.0), (3, 0.01), (6, 0.01), (1, 0.0)])
def test_equal_sides_rarely_differ(processes, own):
    """Even where every process favours one side a little, which blocks of calls alone would call a difference."""
    rng = np.random.default_rng(0)
    told = [compare(*moody(rng, 200, processes=processes, own=own), seed=i).differs for i in range(200)]
    assert sum(told) <= 16  # 5 % of 200, and three standard errors of it


@pytest.mark.parametrize("slower", [1.05, 0.95])
def test_a_planted_difference_is_found_with_its_size(slower):
    rng = np.random.default_rng(1)
    found = [compare(*moody(rng, 300, slower, processes=6, own=0.007)) for _ in range(50)]
    assert all(c.differs for c in found)
    assert np.median([c.ratio for c in found]) == pytest.approx(slower, rel=0.005)
    assert sum(c.low <= slower <= c.high for c in found) >= 44
    assert ("slower" if slower > 1 else "faster") in found[0].text


def test_the_interval_is_students_over_the_medians_of_processes():
    ours = [[100 + k] * 40 for k in (0, 10, 20)]
    found = compare(ours, [[100] * 40] * 3)
    logs = np.log([1.0, 1.1, 1.2])
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert (found.low, found.high) == pytest.approx((np.exp(low), np.exp(high)), rel=1e-3)
    assert found.ratio == pytest.approx(np.exp(logs.mean()))
    assert found.processes == 3


def test_no_difference_is_said_in_words():
    side = [[1_000_000 + i % 7 for i in range(200)]] * 2
    found = compare(side, side)
    assert found.text == "no significant difference (ratio 1.000, 95 % interval 1.000 to 1.000)"
    assert (found.p, found.differs) == (1.0, False)
    assert found.to_dict()["text"] == found.text


def test_a_burst_on_one_call_of_a_pair_moves_nothing():
    rng = np.random.default_rng(2)
    ours, theirs = moody(rng, 300)
    quiet = compare(ours, theirs).ratio
    ours[0][7] *= 1000
    assert compare(ours, theirs).ratio == pytest.approx(quiet, abs=0.001)


def test_samples_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="not taken in turn"):
        compare([[1] * 500], [[1] * 499])
    with pytest.raises(InputError, match=r"fewer than 20 calls .* give more --seconds"):
        compare([[1] * 19] * 3, [[1] * 19] * 3)
    with pytest.raises(InputError, match="fewer than 20 calls"):
        compare([], [])


def test_runs_of_one_machine_are_compared_by_their_processes():
    rng = np.random.default_rng(3)
    told = []
    for _ in range(100):  # each process at a speed of its own, as seen on real machines
        ours, theirs = ([rng.lognormal(0, 0.01, 50) * 1e6 * rng.lognormal(0, 0.04) for _ in range(4)] for _ in "ab")
        told.append(compare_runs(ours, theirs))
    assert sum(not c.low <= 1 <= c.high for c in told) <= 11
    slow = compare_runs([[2_000_000 + k * 1000] * 30 for k in range(5)], [[1_000_000 + k * 500] * 30 for k in range(5)])
    assert slow.ratio == pytest.approx(2, rel=1e-3)
    assert slow.differs
    with pytest.raises(InputError, match="--processes 3 or more"):
        compare_runs([[1] * 50], [[1] * 50] * 3)


def test_many_sides_are_compared_with_one_and_their_p_corrected():
    rng = np.random.default_rng(4)
    theirs = [rng.lognormal(0, 0.01, 200) for _ in range(3)]
    sides = [[process * rng.lognormal(0, 0.02, 200) for process in theirs] for _ in range(5)]
    found = compare_all(sides, theirs)
    assert [c.p for c in found] == corrected([compare(side, theirs).p for side in sides])


def test_both_copies_of_a_reference_give_less_noise_and_no_bias():
    """Call times are skewed: the mean of two copies' calls would make the third seem faster."""
    rng = np.random.default_rng(5)

    def sides():
        return [[1e6 * (1 + rng.exponential(0.05, 150)) * rng.lognormal(0, 0.007) for _ in range(6)] for _ in range(3)]

    both, one = [], []
    for _ in range(150):
        ours, first, second = sides()
        both.append(np.log(compare_with_both(ours, first, second).ratio))
        one.append(np.log(compare(ours, first).ratio))
    assert abs(np.mean(both)) < 0.0012  # four standard errors
    assert np.std(both) < 0.95 * np.std(one)


def test_a_process_in_trouble_decides_nothing():
    rng = np.random.default_rng(6)
    theirs = [rng.lognormal(0, 0.01, 100) for _ in range(6)]
    ours = [process * rng.lognormal(0, 0.01, 100) for process in theirs]
    ours[3] = ours[3] * 2.5
    found = compare(ours, theirs)
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert found.high - found.low < 0.03
    from scipy.stats import trim_mean

    medians = [np.median(np.log(a / b)) for a, b in zip(ours, theirs, strict=True)]
    assert np.log(found.ratio) == pytest.approx(trim_mean(medians, 0.2))


def test_the_trimmed_interval_is_yuens():
    """Worked by hand: six values, one cut at either end, four kept, winsorized to 0.01 ... 0.04."""
    values = np.array([0.00, 0.01, 0.02, 0.03, 0.04, 0.50])
    found = compare([np.full(40, np.exp(v)) for v in values], [np.full(40, 1.0)] * 6)
    winsorized = np.array([0.01, 0.01, 0.02, 0.03, 0.04, 0.04])
    error = winsorized.std(ddof=1) * np.sqrt(5 / (4 * 3))
    assert np.log(found.ratio) == pytest.approx(0.025)
    assert np.log(found.high) == pytest.approx(0.025 + stats.t.ppf(0.975, 3) * error, rel=1e-3)


@given(st.lists(st.integers(-20, 20), min_size=15, max_size=60).filter(lambda v: len({abs(x) for x in v if x}) > 2))
@settings(deadline=None)
def test_the_rank_test_is_scipys(values):
    values = np.array(values, float)
    expected = stats.wilcoxon(values, correction=True, method="approx", zero_method="wilcox").pvalue
    assert signed_rank_p(values) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=20),
    st.lists(st.integers(0, 9), min_size=3, max_size=20),
)
def test_the_rank_sum_test_is_scipys(ours, theirs):
    if len({*ours, *theirs}) < 2:
        return
    expected = stats.mannwhitneyu(ours, theirs, method="asymptotic").pvalue
    got = rank_sum_p(np.array(ours, float), np.array(theirs, float))
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_many_comparisons_are_corrected_as_holm_did():
    assert corrected([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected([]) == []
    assert corrected([0.9, 0.8]) == [1.0, 1.0]
