"""A gate's verdict: for people, for readers of JUnit and for a job's summary."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.bench.result import Result

__all__ = ["Check", "Verdict", "junit", "markdown"]


@dataclass(frozen=True)
class Check:
    """One limit on one model.

    Attributes:
        model: Which, for people.
        what: ``latency``, ``top-1 drop``, ``recall of CLASS`` or ``conditions``.
        measured: Fraction; None where it could not be measured.
        limit: Fraction.
        ok: Whether it holds; None where the measurement cannot tell, which does not pass.
        text: The finding in words.
    """

    model: str
    what: str
    measured: float | None
    limit: float | None
    ok: bool | None
    text: str

    @property
    def state(self) -> str:
        """``holds``, ``fails`` or ``undecided``."""
        return {True: "holds", False: "fails", None: "undecided"}[self.ok]


@dataclass(frozen=True)
class Verdict:
    """Every check of a gate.

    Attributes:
        checks: In the order they are shown.
        against: What was compared with, for people.
        notes: What a reader should know beside it, the noise floor for example.
    """

    checks: Sequence[Check]
    against: str = ""
    notes: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether every check holds, and there is one: a gate that looks at nothing does not pass."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def text(self) -> str:
        """One line."""
        bad = [check for check in self.checks if not check.ok]
        if not self.checks:
            return "there was nothing to check"
        if not bad:
            return f"{len(self.checks)} checks hold"
        return f"{len(bad)} of {len(self.checks)} checks do not hold: {bad[0].model}: {bad[0].text}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        checks = [{**asdict(check), "state": check.state} for check in self.checks]
        return {"ok": self.ok, "against": self.against, "checks": checks, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Reads the JSON form."""
        checks = [Check(**{key: value for key, value in check.items() if key != "state"}) for check in data["checks"]]
        return cls(checks, data["against"], data["notes"])


Judged = Sequence[tuple[Result, Verdict]]


def junit(judged: Judged) -> str:
    """Returns JUnit XML, one suite for each device; a check that is undecided counts as a failure."""
    root = ET.Element("testsuites")
    for result, verdict in judged:
        failures = sum(not check.ok for check in verdict.checks)
        counts = {"tests": len(verdict.checks), "failures": failures, "errors": 0, "skipped": 0}
        name = "edgetl bench" if result.device == "local" else f"edgetl bench on {result.device}"
        suite = ET.SubElement(root, "testsuite", {"name": _xml(name), **{key: str(n) for key, n in counts.items()}})
        for check in verdict.checks:
            case = ET.SubElement(suite, "testcase", classname=_xml(check.model), name=_xml(check.what))
            if check.ok:
                ET.SubElement(case, "system-out").text = _xml(check.text)
            else:
                ET.SubElement(case, "failure", message=_xml(check.text), type=check.state).text = _xml(check.text)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


_MARKS = {"holds": "✅ holds", "fails": "❌ **fails**", "undecided": "⚠️ **undecided**"}


def markdown(judged: Judged) -> str:
    """Returns the page for a job's summary."""
    return "\n".join(_page(result, verdict) for result, verdict in judged)


def _page(result: Result, verdict: Verdict) -> str:
    host = result.host
    gpu = f", {', '.join(host['gpus'])}" if host.get("gpus") else ""
    where = "" if result.device == "local" else f" on {_cell(result.device)}"
    lines = [
        f"## edgetl bench{where}: {'passed' if verdict.ok else 'failed'}",
        "",
        *([f"Against {_cell(verdict.against)}.", ""] if verdict.against else []),
        "| model | check | measured | limit | |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {_cell(c.model)} | {_cell(c.what)} | {_cell(c.text)} | {_share(c.limit)} | {_MARKS[c.state]} |"
            for c in verdict.checks
        ),
        "",
        *(f"- {_cell(note)}" for note in (*verdict.notes, *result.conditions.invalid, *result.conditions.warnings)),
        "",
        f"Measured on {_cell(host['board'] or host['cpu'])}, {host['cores']} cores{_cell(gpu)}; {result.created}.",
    ]
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value * 100:g} %"


def _cell(text: str) -> str:
    """Labels and paths are the user's: they must not end a table's cell, nor become markup."""
    for char in "\\`*_[]<>|":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())


def _xml(text: str) -> str:
    """XML 1.0 has no control characters, not even escaped."""
    return "".join(c if c.isprintable() or c in "\t\n" else "�" for c in text.encode("utf-8", "replace").decode())
