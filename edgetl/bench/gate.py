"""Limits that a model must keep, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetl.bench.compare import Comparison, compare_runs
from edgetl.bench.result import Entry, Result
from edgetl.bench.verdict import Check
from edgetl.errors import InputError

__all__ = [
    "Limits",
    "answer_checks",
    "baseline_checks",
    "check_comparable",
    "drop_check",
    "fp32_checks",
    "latency_check",
    "recall_checks",
    "ways_that_differ",
]

_ROUNDING = 1e-9  # fractions of few pictures: rounding decides nothing
_ENGINES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Limits:
    """What a model must keep; None and empty ask for nothing.

    Attributes:
        max_regression: Largest rise of latency, a fraction.
        max_drop: Largest loss of top-1, a fraction.
        min_recall: Smallest recall by class, fractions.
    """

    max_regression: float | None = None
    max_drop: float | None = None
    min_recall: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_regression is not None and not 0 < self.max_regression <= 10:
            raise InputError("--max-regression must be above 0 %, and no more than 1000 %")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise InputError("--max-drop must be 0pt to 100pt")
        for label, recall in self.min_recall.items():
            if not 0 <= recall <= 1:
                raise InputError(f"--min-recall {label}: must be 0 % to 100 %")

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return self.max_regression is None and self.max_drop is None and not self.min_recall


def latency_check(model: str, found: Comparison, floor: float, limit: float) -> Check:
    """Judges a rise of latency.

    It fails where the rise is above the limit, differs significantly, and is more than noise; it is undecided where
    noise alone could reach the limit, or where a rise above it may be noise.

    Args:
        model: For people.
        found: The model against its reference.
        floor: What noise alone reaches in an A/A run, a fraction; half of the model's own interval counts as well.
        limit: Largest rise, a fraction.
    """
    over = found.ratio > 1 + limit
    noise = max(floor, math.sqrt(found.high / found.low) - 1)
    if over and found.differs and noise <= found.ratio - 1:
        ok: bool | None = False
    elif over or noise > limit:
        ok = None
    else:
        ok = True
    text = found.text
    if ok is None:
        text += (
            f"; noise reaches {noise:.1%} here: give more --processes or --seconds, a quieter machine, or a larger "
            "--max-regression"
        )
    return Check(model, "latency", found.ratio - 1, limit, ok, text)


def drop_check(model: str, top1: float | None, reference: float | None, limit: float) -> Check:
    """Judges a loss of top-1 on the same pictures."""
    if top1 is None or reference is None:
        return Check(
            model, "top-1 drop", None, limit, None, "top-1 was not measured: give --data with this model's classes"
        )
    drop = reference - top1
    text = f"top-1 {reference:.2%} -> {top1:.2%} ({(top1 - reference) * 100:+.2f} points)"
    return Check(model, "top-1 drop", drop, limit, drop <= limit + _ROUNDING, text)


def recall_checks(entry: Entry, limits: Mapping[str, float]) -> list[Check]:
    """Judges the recall of classes.

    Raises:
        InputError: The model does not know a class.
    """
    report = entry.report.get("classification")
    rows = {row["label"]: row for row in report["per_class"]} if report else {}
    checks: list[Check] = []
    for label, limit in limits.items():
        if report and label not in rows:
            known = ", ".join(list(rows)[:8]) + (", ..." if len(rows) > 8 else "")
            raise InputError(f"--min-recall {label}: {entry.bundle} has no such class; it knows {known}")
        row = rows.get(label)
        if row is None or row["support"] == 0:
            text, measured, ok = "recall was not measured: no picture of this class was judged", None, None
        else:
            measured = float(row["recall"])
            ok = measured >= limit - _ROUNDING
            text = f"{measured:.1%} of {row['support']} pictures found"
        checks.append(Check(entry.name, f"recall of {label}", measured, limit, ok, text))
    return checks


def answer_checks(entries: Sequence[Entry]) -> list[Check]:
    """Returns a failing check for each model that answers with NaN or infinity, whatever the limits are."""
    return [
        Check(e.name, "answers", None, None, False, f"{e.report['non_finite']} answers are NaN or infinity")
        for e in entries
        if e.report.get("non_finite")
    ]


def fp32_checks(result: Result, limit: float) -> list[Check]:
    """Judges each variant's loss of top-1 against the FP32 of its own bundle.

    Raises:
        InputError: A bundle's FP32 was not measured.
    """
    checks = []
    if all(entry.variant == "fp32" for entry in result.entries):
        raise InputError("--max-drop compares variants with FP32, and there is nothing else here: export --int8")
    for entry in result.entries:
        own = [e for e in result.entries if (e.bundle, e.digest, e.variant) == (entry.bundle, entry.digest, "fp32")]
        if not own:
            raise InputError(f"--max-drop compares {entry.name} with its FP32: add --variant fp32")
        if entry.variant != "fp32":
            checks.append(drop_check(entry.name, entry.accuracy["top1"], own[0].accuracy["top1"], limit))
    return checks


def baseline_checks(result: Result, baseline: Result, limits: Limits, where: str) -> list[Check]:
    """Judges a result against an earlier one of the same machine.

    Args:
        result: Now.
        baseline: Then.
        limits: To keep.
        where: The baseline's file, for people.

    Raises:
        InputError: The two cannot be compared: another machine, other pictures, or no model in common.
    """
    check_comparable(result.host, result.settings, baseline, limits, where)
    checks = []
    asked = result.settings.get("variants")
    for now, then in _pairs(result, baseline, where):
        if now is None and asked and then.variant not in asked:
            continue
        if now is None:
            text = f"is in {where} and was not measured now; if it is gone for good, measure the baseline again"
            checks.append(Check(then.name, "presence", None, None, None, text))
            continue
        if limits.max_regression is not None and then.samples_ns:
            checks.append(_rise(now, then, limits.max_regression))
        if limits.max_drop is not None:
            checks.append(drop_check(now.name, now.accuracy["top1"], then.accuracy["top1"], limits.max_drop))
    if limits.max_regression is not None:
        checks += [
            Check(when, "conditions", None, None, False, reason)
            for when, side in (("this run", result), (where, baseline))
            for reason in side.conditions.invalid
        ]
    return checks


def check_comparable(
    host: Mapping[str, Any], settings: Mapping[str, Any], baseline: Result, limits: Limits, where: str
) -> None:
    """Refuses a baseline that says nothing about what is or will be measured here; can be asked before measuring.

    Args:
        host: `edgetl.bench.conditions.fingerprint`.
        settings: `edgetl.bench.stage.settings_to_dict`.
        baseline: Then.
        limits: That shall be kept.
        where: The baseline's file, for people.

    Raises:
        InputError: It is of another machine, another way of measuring, or other pictures.
    """
    if limits.max_regression is not None:
        _same_machine(host, baseline.host, where)
        _same_ways(_ways(host, settings), _ways(baseline.host, baseline.settings), where)
    if limits.max_drop is not None and _pictures(settings) != _pictures(baseline.settings):
        raise InputError(f"{where}: was judged on other pictures than now: give the same --data and --split")


def _same_machine(host: Mapping[str, Any], then: Mapping[str, Any], where: str) -> None:
    if host["machine"] is None:
        raise InputError(
            f"{where}: nothing here tells whether it is of this machine (no /etc/machine-id, as in many containers): "
            "give --against BUNDLE, which measures both sides here"
        )
    if host["machine"] != then["machine"]:
        raise InputError(
            f"{where}: was measured on another machine ({then['cpu']}); latencies of two machines say nothing about a "
            "model: give --against BUNDLE, which measures both sides here"
        )


def ways_that_differ(one: Result, other: Result) -> list[str]:
    """Returns what makes latencies of two results two things: threads, a board's power mode, an engine's version."""
    ways = [_ways(result.host, result.settings) for result in (one, other)]
    return [name for name in {**ways[0], **ways[1]} if ways[0].get(name) != ways[1].get(name)]


def _ways(host: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    engines = {name: version for name, version in host["versions"].items() if name in _ENGINES}
    mode = (host.get("jetson") or {}).get("power_mode")
    return {"--threads": settings["threads"], "power mode": mode, **engines}


def _same_ways(now: Mapping[str, Any], then: Mapping[str, Any], where: str) -> None:
    for name in {**now, **then}:
        if now.get(name) != then.get(name):
            raise InputError(
                f"{where}: was measured with {name} {then.get(name)}, now it is {now.get(name)}: their latencies say "
                "nothing about a model; measure the baseline again, or give --against BUNDLE"
            )


def _rise(now: Entry, then: Entry, limit: float) -> Check:
    if not now.samples_ns:
        why = "; ".join(now.notes) or "no engine runs it"
        return Check(now.name, "latency", None, limit, None, f"was timed then, and not now: {why}")
    return latency_check(now.name, compare_runs(now.samples_ns, then.samples_ns), 0.0, limit)


def _pictures(settings: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(data["digest"], data["split"]) for data in settings["data"]}


def _pairs(result: Result, baseline: Result, where: str) -> list[tuple[Entry | None, Entry]]:
    """Returns the baseline's entries, each with the same model now; where both have one bundle, its name is free."""
    single = all(len({entry.bundle for entry in side.entries}) == 1 for side in (result, baseline))

    def key(entry: Entry) -> tuple[str, str]:
        return "" if single else entry.bundle, entry.variant

    by_engine = {(*key(entry), entry.engine): entry for entry in result.entries}
    unrun = {key(entry): entry for entry in result.entries if not entry.engine}
    pairs = [(by_engine.get((*key(e), e.engine), unrun.get(key(e))), e) for e in baseline.entries]
    if not any(now for now, _ in pairs):
        raise InputError(f"{where}: has no model in common with this run; it has {_names(baseline)}")
    return pairs


def _names(result: Result) -> str:
    return ", ".join(entry.name for entry in result.entries)
