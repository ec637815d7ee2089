"""A report as one self-contained HTML file: no script, no network, nothing beside it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from edgetl.artifacts import printable, write_text
from edgetl.errors import InputError, require
from edgetl.report.blocks import Page
from edgetl.report.drawing import ID_MARK

__all__ = ["check_report", "html_from_page", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"
# What HTML has no place for, a lone carriage return among it.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def check_report(path: Path | None = None) -> None:
    """Says early what would keep a report from being written.

    Args:
        path: The file to be; None asks only for what reports are made with.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        InputError: The file cannot be written there.
    """
    for module in ("jinja2", "matplotlib"):
        require(module, "report")
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path}: is a folder; --html names the file to write")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{path}: cannot be written ({parent} is no folder that can be written to)")


def write_report(path: Path, html: str) -> None:
    """Writes a page whole or not at all.

    Raises:
        InputError: It cannot be written there.
    """
    write_text(path, html)


def html_from_page(page: Page) -> str:
    """Returns a page as HTML, everything in it escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    require("jinja2", "report")
    import jinja2
    from markupsafe import Markup

    numbers = itertools.count()

    def drawing(svg: str) -> Markup:
        """Gives a chart's parts ids of their own among all the charts of the page."""
        return Markup(svg.replace(ID_MARK, f"c{next(numbers)}-"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = drawing
    css = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    html = environment.get_template("page.html").render(page=page, css=css)
    return printable(html).translate(_CONTROLS)
