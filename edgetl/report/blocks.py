"""What a page is made of: plain values that the templates lay out. Everything in them is text, and is escaped there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

__all__ = [
    "Block",
    "Chart",
    "Facts",
    "Fold",
    "Gallery",
    "Grid",
    "Notes",
    "Page",
    "Section",
    "Table",
    "Thumbnail",
    "Tone",
    "Toned",
]

Tone: TypeAlias = Literal["good", "bad", "doubt", "plain"]


@dataclass(frozen=True)
class Toned:
    """A table's cell that says how things are; colour alone never says it."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Chart:
    """A chart with what is seen in it.

    Attributes:
        title: Above it.
        svg: Of `edgetl.report.charts`: the one thing that is not escaped.
        caption: What it shows and how to read it.
        keys: Colours and what they mean, where names cannot stand in the chart.
    """

    kind: ClassVar = "chart"
    title: str
    svg: str
    caption: str
    keys: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Table:
    """A table; the first ``words`` columns are text, the others figures."""

    kind: ClassVar = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Toned]]
    words: int = 1
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Notes:
    """Lines that a reader should know."""

    kind: ClassVar = "notes"
    lines: Sequence[str]
    tone: Tone = "plain"
    title: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values; ``large`` ones are what the page is about."""

    kind: ClassVar = "facts"
    pairs: Sequence[tuple[str, str]]
    title: str = ""
    large: bool = False


@dataclass(frozen=True)
class Thumbnail:
    """A picture whose decision changed; ``uri`` is empty where it could not be shown, and ``why`` says why."""

    name: str
    path: str
    uri: str
    why: str
    before: str
    now: str


@dataclass(frozen=True)
class Gallery:
    """Small pictures with what was decided on them."""

    kind: ClassVar = "gallery"
    title: str
    pictures: Sequence[Thumbnail]
    caption: str


@dataclass(frozen=True)
class Grid:
    """Blocks side by side where there is room."""

    kind: ClassVar = "grid"
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Fold:
    """Blocks that are opened on demand."""

    kind: ClassVar = "fold"
    title: str
    blocks: Sequence[Block]
    aside: str = ""
    opened: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with blocks."""

    kind: ClassVar = "section"
    title: str
    blocks: Sequence[Block]
    level: int = 2


Block: TypeAlias = "Chart | Table | Notes | Facts | Gallery | Grid | Fold | Section"


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Of the document.
        lede: What it is about, in a sentence.
        blocks: From top to bottom.
        made: When and by what, for the foot.
    """

    title: str
    lede: str
    blocks: Sequence[Block]
    made: str = ""
