"""What charts draw: where names go, what is best, and SVG that follows the page's colours."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.report.charts import Bar, Line, Spread, bars, curves, matrix, spreads
from edgetl.report.drawing import FONT, WIDTH, fitted, width_of
from edgetl.report.naming import in_words, short_names
from edgetl.report.pareto import Point, front, scatter
from edgetl.report.placing import Box, places, spaced
from edgetl.report.units import decibels, megabytes, milliseconds, percent, plain, points, ratio


def test_the_front_is_what_no_other_beats():
    found = front([Point("a", 2, 90, "s1"), Point("b", 1, 80, "s1"), Point("c", 3, 85, "s1"), Point("d", 4, 95, "s1")])
    assert found == [1, 0, 3]
    assert front([Point("x", 1, 80, "s1"), Point("y", 1, 90, "s1"), Point("z", 1, 90, "s1")]) == [1]
    assert front([]) == []


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 100)), min_size=1, max_size=30))
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(pairs):
    made = [Point(str(i), x, y, "s1") for i, (x, y) in enumerate(pairs)]
    best = [made[i] for i in front(made)]
    for point in made:
        assert point in best or any(b.ms <= point.ms and b.percent >= point.percent for b in best)
    for a, b in itertools.pairwise(best):
        assert a.ms < b.ms
        assert a.percent < b.percent


@given(st.lists(st.tuples(st.floats(20, 340), st.floats(20, 280)), max_size=14), st.floats(20, 120))
def test_names_cover_neither_each_other_nor_points(at, width):
    frame = Box(0, 0, 360, 300)
    found = [box for box in places(at, [width] * len(at), 13, frame, 5) if box is not None]
    assert all(box.within(frame) for box in found)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(found, 2))
    assert not any(box.overlaps(Box(x - 5, y - 5, x + 5, y + 5)) for box in found for x, y in at)


def test_two_names_always_find_room():
    assert None not in places([(100, 100), (101, 101)], [80, 80], 13, Box(0, 0, 360, 300), 5)


@given(st.lists(st.floats(0, 100), max_size=20), st.floats(1, 20))
def test_spaced_names_keep_their_order_and_their_distance(wanted, gap):
    found = spaced(wanted, gap, 0, 100)
    room = min(gap, 100 / max(1, len(wanted) - 1))
    ordered = sorted(found)
    assert all(b - a >= room - 1e-6 for a, b in itertools.pairwise(ordered))
    assert all(-1e-6 <= value <= 100 + 1e-6 for value in found)
    assert found == sorted(found) or wanted != sorted(wanted)


def test_names_are_cut_in_the_middle_and_fit():
    assert fitted("short", 100) == "short"
    cut = fitted("a very long name of a variant int8-tensorrt", 100)
    assert width_of(cut) <= 100
    assert cut.startswith("a ver")
    assert "…" in cut
    assert cut.endswith("rt")
    assert width_of("漢字") == pytest.approx(2 * FONT)
    assert width_of(fitted("漢" * 90, 100)) <= 100


CHARTS = {
    "bars": lambda name: bars([Bar(name, [(1.0, "s1"), (2.0, "s2")], "3 ms"), Bar(name, [(-1.0, "s1")], "−1")], name),
    "no bars": lambda name: bars([], name),
    "spreads": lambda name: spreads([Spread(name, np.linspace(1, 2, 99), "s1", "p50")], "ms", name),
    "one value": lambda name: spreads([Spread(name, np.array([3.0]), "s1", "p50")], "ms", name),
    "far apart": lambda name: spreads([Spread(name, np.geomspace(0.1, 900, 200), "s1", "p50")], "ms", name),
    "scatter": lambda name: scatter([Point(name, 1, 90, "s1"), Point(name, 2, 95, "s0")], name),
    "one point": lambda name: scatter([Point(name, 1, 100, "s1")], name),
    "zero": lambda name: scatter([Point(name, 0.5, 0, "s1"), Point(name, 0.4, 0, "s1")], name),
    "curves": lambda name: curves([Line(name, [1, 2], [3, 4], "s1")], "x", "y", name, parts=[(1, name)]),
    "one epoch": lambda name: curves([Line(name, [1], [3], "s1")], "x", "y", name, parts=[(0.5, name)]),
    "batches": lambda name: curves([Line(name, [1, 8], [3, 4], "s1", True)], "x", "y", name, ticks=[1, 8]),
    "matrix": lambda name: matrix(np.eye(3, dtype=np.int64), [name, name, ""], name),
    "large matrix": lambda name: matrix(np.eye(64, dtype=np.int64), [name] * 64, name),
}


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("name", ["int8-x86", '<a href="x">&$\\frac$', "漢字" * 40])
def test_a_chart_is_an_svg_in_the_pages_own_colours(chart, name):
    svg = CHARTS[chart](name)

    assert svg.startswith(f'<svg viewBox="0 0 {WIDTH:g} ')
    assert svg.rstrip().endswith("</svg>")
    assert svg.count("<svg") == 1
    assert "<a " not in svg
    assert not set(re.findall(r"#[0-9a-f]{6}", svg)) - {"#000000"}, "a colour that no mode changes"
    assert "font-family" not in svg
    assert "http" not in svg
    assert "nan" not in svg


def test_charts_do_not_depend_on_the_users_matplotlib(tmp_path):
    import matplotlib

    chart = CHARTS["curves"]
    plain_svg = chart("x")
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.facecolor": "red", "font.size": 30}):
        assert chart("x") == plain_svg
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.9178), "91.8 %"), (percent(None), "–"), (points(0.0046), "+0.46 pt"), (points(-0.02), "−2.00 pt"),
        (points(-1e-9), "0.00 pt"), (milliseconds(0.5217), "0.522 ms"), (milliseconds(12.34), "12.3 ms"),
        (milliseconds(1234.5), "1234 ms"), (megabytes(1_153_769), "1.15 MB"), (megabytes(74_375_168), "74.4 MB"),
        (megabytes(3_000_000_000), "3,000 MB"), (decibels(300.0), "exact"), (decibels(24.25), "24.2 dB"),
        (ratio(0.5), "0.50×"), (plain(1000.0), "1,000"), (plain(0.25), "0.25"), (plain(0.0), "0"),
        (in_words([1.5, None, True, {"a": 1}]), "1.5, –, yes, a 1"),
    ],
)  # fmt: skip
def test_figures_have_units_and_no_needless_digits(text, expected):
    assert text == expected


def test_bundles_are_named_as_short_as_tells_them_apart():
    assert short_names(["/a/x.edgetl", "/b/y.edgetl"]) == {"/a/x.edgetl": "x", "/b/y.edgetl": "y"}
    assert set(short_names(["/a/x.edgetl", "/b/x.edgetl"]).values()) == {"a/x", "b/x"}
    assert short_names(["x.edgetl", "x"]) == {"x.edgetl": "x.edgetl", "x": "x"}
    assert short_names([]) == {}
