"""What the benchmarks share: the file of rows that they write, and how a figure is held against its limit."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetl import host
from edgetl.artifacts import write_json

__all__ = ["Row", "Rows", "check", "kit_folder", "say"]

Row = dict[str, Any]


class Rows:
    """Rows in a file that is written whenever one is added, so that a script goes on where it was stopped.

    Args:
        path: The file; what it holds of an earlier run of the same kind is kept.
        quick: Whether the figures mean nothing.
        checks_of: Returns what rows say.
        same_cpu: Whether rows of another processor are dropped.
    """

    def __init__(
        self, path: Path, quick: bool, checks_of: Callable[[list[Row]], list[Row]], *, same_cpu: bool = False
    ) -> None:
        self._path, self._quick, self._checks_of = path, quick, checks_of
        self.rows: list[Row] = []
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["quick"] == quick and not (same_cpu and saved["host"]["cpu"] != host.facts()["cpu"]):
                self.rows = saved["rows"]

    def add(self, *rows: Row) -> None:
        """Writes rows that belong together, and shows them without their lists."""
        self.rows += rows
        for row in rows:
            print(json.dumps({k: v for k, v in row.items() if not isinstance(v, list)}), flush=True)
        result = {"format_version": 1, "quick": self._quick, "host": host.facts(), "rows": self.rows}
        write_json(self._path, {**result, "checks": self._checks_of(self.rows)})

    def say(self) -> None:
        """Shows what all rows say."""
        say(self._checks_of(self.rows))


def check(name: str, value: float, limit: float, *, at_least: bool = False) -> Row:
    """Returns one line of the verdict."""
    ok = bool(value >= limit if at_least else value <= limit)
    return {"name": name, "value": value if isinstance(value, int) else float(value), "limit": limit, "ok": ok}


def say(checks: Sequence[Row]) -> None:
    """Shows the verdict."""
    for line in checks:
        print(f"{'ok  ' if line['ok'] else 'MISS'} {line['name']}: {line['value']:.4g} (limit {line['limit']:g})")


def kit_folder(parser: argparse.ArgumentParser, holds: str) -> Path:
    """Returns the folder of weights and pictures; without one the script ends.

    Args:
        parser: That says so.
        holds: What it must hold, in words.
    """
    if "EDGETL_KIT" not in os.environ:
        parser.error(f"EDGETL_KIT must name the folder with {holds}")
    return Path(os.environ["EDGETL_KIT"]).resolve()
