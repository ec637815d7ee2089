"""What every chart shares: its size, colours that follow the page's light or dark mode, and SVG fit for a page.

matplotlib draws in colours that stand for names; in the SVG they become the page's own CSS variables. Text stays
text, in the page's font, so its width is estimated and never measured.
"""

from __future__ import annotations

import functools
import io
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

from edgetl.artifacts import printable
from edgetl.quiet import quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FONT", "ID_MARK", "SERIES", "WIDTH", "canvas", "colour", "drawn", "fitted", "svg_from_figure", "width_of"]

P = ParamSpec("P")

WIDTH = 360.0  # of every chart, in its own units: about the pixels of a phone
FONT = 11.0
SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")
ID_MARK = "edgetl-id-"  # stands before every id, so that a page can make them unique

_NAMES = ("ink", "muted", "line", "paper", "bad", *SERIES)
_COLOURS = {name: f"#0e1f{number:02x}" for number, name in enumerate(_NAMES)}
_VARIABLES = {code: f"var(--{name})" for name, code in _COLOURS.items()}
# Widths of letters over the font's size, by DejaVu Sans, the widest among the fonts of today's systems.
_WIDTHS = {**dict.fromkeys("fijltI.,:;'|!()[] -", 0.4), **dict.fromkeys("mwMWQ@%…→", 1.0)}
_SMALL, _CAPITAL, _FULL = 0.63, 0.75, 1.0


def colour(name: str) -> str:
    """Returns the colour that stands for one of the page's: ``ink muted line paper bad s0 ... s5``."""
    return _COLOURS[name]


def drawn(function: Callable[P, str]) -> Callable[P, str]:
    """Runs a chart under settings of its own: not the user's matplotlibrc, and without remarks on fonts."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> str:
        with quiet("matplotlib"):
            import matplotlib

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update(
                    {
                        "svg.fonttype": "none",
                        "svg.hashsalt": "edgetl",
                        "font.size": FONT,
                        "text.parse_math": False,
                        "text.color": colour("ink"),
                        "axes.unicode_minus": False,
                        "path.simplify": True,
                    }
                )
                return function(*args, **kwargs)

    return inside


def canvas(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """Returns a figure `WIDTH` wide, and bare axes inside the margins; all in the chart's units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, colors=colour("muted"), labelsize=FONT, pad=5)
    axes.set_axisbelow(True)
    return figure, axes


def width_of(text: str, size: float = FONT) -> float:
    """Returns about how wide a text will be, in whatever font the reader's system has."""
    return size * sum(map(_width, text))


def _width(letter: str) -> float:
    known = _WIDTHS.get(letter)
    if known is not None:
        return known
    if unicodedata.east_asian_width(letter) in "WF":
        return _FULL
    return _CAPITAL if letter.isupper() else _SMALL


def fitted(text: str, width: float, size: float = FONT) -> str:
    """Returns a text as one line that fits, its middle left out where it does not."""
    text = " ".join(printable(text).split())
    if width_of(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and width_of(_shortened(text, keep), size) > width:
        keep -= 1
    return _shortened(text, keep)


def _shortened(text: str, keep: int) -> str:
    head = keep // 2
    return f"{text[:head].rstrip()}…{text[len(text) - (keep - head) :].lstrip()}"


def svg_from_figure(figure: Figure, label: str) -> str:
    """Returns a figure as an ``<svg>`` element to stand in a page; ``label`` tells what it shows."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = file.getvalue().partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r' style="([^"<>]*)"', lambda match: f' style="{_styled(match[1])}"', body)
    body = re.sub(r' transform="rotate\(-?0 [^"<>]*\)"', "", body)
    body = re.sub(r'(?<= )id="(?=[^"<>]*")', f'id="{ID_MARK}', body)
    body = re.sub(r'xlink:href="#', f'href="#{ID_MARK}', body).replace("xlink:href=", "href=")
    body = body.replace('clip-path="url(#', f'clip-path="url(#{ID_MARK}')
    body = re.sub(r"\s*\n\s*", " ", body)
    height = figure.get_figheight() * 72
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{_attribute(label)}">{body}'


def _styled(style: str) -> str:
    """Returns a style in the page's font and colours; grey tints and black are matplotlib's own, for what is unset."""
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    return re.sub(r"#0e1f[0-9a-f]{2}", lambda match: _VARIABLES.get(match[0], match[0]), style)


def _attribute(text: str) -> str:
    for plain, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(plain, written)
    return text
