"""Short names for bundles, and values as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from edgetl.report.units import NOTHING

__all__ = ["colour_of", "facts_from", "in_words", "listed", "short_names"]

_COLOURS = {"fp32": "s0", "fp16": "s3", "int8": "s1"}


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Returns for each path of a bundle its last parts, as few as tell it from the others."""
    every = list(dict.fromkeys(paths))
    found = {}
    for path in every:
        parts = PurePath(path).parts or (path,)
        for number in range(1, len(parts) + 1):
            others = [p for p in every if p != path and PurePath(p).parts[-number:] == parts[-number:]]
            if not others:
                break
        found[path] = "/".join(parts[-number:]).removesuffix(".edgetl") or path
    return found if len(set(found.values())) == len(found) else {path: path for path in every}


def colour_of(variant: str) -> str:
    """Returns the colour that a variant has in every chart, by its precision."""
    return _COLOURS.get(variant.partition("-")[0], "s4")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Returns names with commas between; of many, the first."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def in_words(value: Any) -> str:
    """Returns a value of JSON as text."""
    if value is None or value == [] or value == {} or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(in_words(inner) for inner in value)
    return str(value)


def facts_from(data: Mapping[str, Any], leave_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Returns names and values, without those that are not known."""
    told = [(name.replace("_", " "), in_words(value)) for name, value in data.items() if name not in leave_out]
    return [(name, value) for name, value in told if value != NOTHING]
