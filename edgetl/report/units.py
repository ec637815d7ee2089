"""Figures as a reader sees them: with a unit, and no more digits than mean something. What is None was not measured."""

from __future__ import annotations

__all__ = ["NOTHING", "count", "decibels", "megabytes", "milliseconds", "percent", "plain", "points", "ratio"]

NOTHING = "–"


def percent(value: float | None) -> str:
    """Returns a fraction as percent."""
    return NOTHING if value is None else f"{value * 100:.1f} %"


def points(value: float | None) -> str:
    """Returns a difference of fractions as points, signed."""
    if value is None:
        return NOTHING
    return f"{value * 100:+.2f} pt".replace("-", "−") if abs(value) >= 0.5e-4 else "0.00 pt"


def milliseconds(value: float | None) -> str:
    """Returns three significant digits, and at most three decimals."""
    if value is None:
        return NOTHING
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f} ms"


def megabytes(value: float | None) -> str:
    """Returns bytes as megabytes (10^6)."""
    return NOTHING if value is None else f"{value / 1e6:,.{0 if value >= 1e8 else 2 if value < 1e7 else 1}f} MB"


def decibels(value: float | None) -> str:
    """Returns dB; what is equal to the last bit says so."""
    if value is None:
        return NOTHING
    return "exact" if value >= 300 else f"{value:.1f} dB".replace("-", "−")


def ratio(value: float | None) -> str:
    """Returns a ratio as a factor."""
    return NOTHING if value is None else f"{value:.2f}×"


def count(number: int, one: str, many: str = "") -> str:
    """Returns a number with its noun: ``count(1, "picture")``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def plain(value: float) -> str:
    """Returns a number for an axis: without needless zeros and never in powers of ten."""
    return f"{value:,.4f}".rstrip("0").rstrip(".") if value else "0"
