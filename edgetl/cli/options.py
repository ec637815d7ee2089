"""Option types and options that commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "COUNTS", "FLOATS", "PATH", "RATE", "RECALL", "SIZE", "SMS", "SectionedCommand", "emit_html", "emit_json",
    "html_option", "json_option",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class _Rate(click.ParamType[float]):
    """``1pt`` or ``5%`` as a fraction; a bare number is ambiguous and refused."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the fraction."""
        if isinstance(value, float):
            return value
        for unit in ("pt", "%"):
            if str(value).endswith(unit):
                try:
                    return float(str(value)[: -len(unit)]) / 100
                except ValueError:
                    break
        return self.fail(f'"{value}" needs a number and a unit, like 1pt or 5%', param, ctx)


class _Size(click.ParamType[tuple[int, int]]):
    """``224`` or ``HEIGHTxWIDTH``, pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Returns (height, width)."""
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if len(sides) in (1, 2) and all(side.isdecimal() and int(side) > 0 for side in sides):
            return int(sides[0]), int(sides[-1])
        return self.fail(f'"{value}" must be a number of pixels, like 224 or 192x256 (height x width)', param, ctx)


class _Floats(click.ParamType[tuple[float, ...]]):
    """Comma-separated numbers, one for each channel."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Returns the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            return self.fail(f'"{value}" must be numbers with commas between, like 0.485,0.456,0.406', param, ctx)


class _Sms(click.ParamType[tuple[int, ...]]):
    """Comma-separated compute capabilities: ``86,89`` or ``8.6,8.9``."""

    name = "SM,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns them without points, each once, ascending."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip().replace(".", "") for part in str(value).split(",")]
        if all(part.isdecimal() for part in parts):
            return tuple(sorted({int(part) for part in parts}))
        return self.fail(f'"{value}" must be compute capabilities with commas between, like 86,89', param, ctx)


class _Recall(click.ParamType[tuple[str, float]]):
    """``CLASS=95%``; the class may hold equals signs of its own."""

    name = "CLASS=RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Returns the class and the fraction."""
        if isinstance(value, tuple):
            return value
        label, equals, rate = str(value).rpartition("=")
        if not equals or not label:
            return self.fail(f'"{value}" must be a class and a rate, like scratch=95%', param, ctx)
        return label, RATE.convert(rate, param, ctx)


class _Counts(click.ParamType[tuple[int, ...]]):
    """Comma-separated numbers: ``1,8,32``."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns them, each once, ascending."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if all(part.isdecimal() for part in parts):
            return tuple(sorted({int(part) for part in parts}))
        return self.fail(f'"{value}" must be numbers with commas between, like 1,8,32', param, ctx)


RATE, SIZE, FLOATS, SMS, RECALL, COUNTS = _Rate(), _Size(), _Floats(), _Sms(), _Recall(), _Counts()


class SectionedCommand(click.Command):
    """A command with so many options that its help needs headings.

    Args:
        sections: Heading -> names of parameters; what is in none stands last, under Options.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, section by section."""
        rows: dict[str, list[tuple[str, str]]] = {name: [] for name in (*self._sections, "Options")}
        place = {name: heading for heading, names in self._sections.items() for name in names}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows[place.get(param.name or "", "Options")].append(record)
        for heading, members in rows.items():
            with formatter.section(heading):
                formatter.write_dl(members)


def json_option(function: F) -> F:
    """Adds ``--json FILE|-``."""
    return click.option("--json", "json_out", metavar="FILE|-", help="Write the result as JSON; - is standard output.")(
        function
    )


def emit_json(target: str | None, data: Any) -> None:
    """Writes a command's result where ``--json`` says, if it was given."""
    if target is None:
        return
    if target == "-":
        import json

        click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from edgetl.artifacts import write_json

    write_json(Path(target), data)


def html_option(function: F) -> F:
    """Adds ``--html FILE``; what would keep the file from being written is said before anything is measured."""
    return click.option(
        "--html",
        "html_out",
        type=PATH,
        callback=_checked_html,
        help="Write a report as one self-contained page.",
    )(function)


def _checked_html(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not ctx.resilient_parsing:
        from edgetl.report import check_report

        check_report(value)
    return value


def emit_html(target: Path | None, report: Callable[[], str]) -> None:
    """Writes a command's report where ``--html`` says, if it was given; it is made only then."""
    if target is not None:
        from edgetl.report import write_report

        write_report(target, report())
