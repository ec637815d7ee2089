"""What people see: progress, tables and notes. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from edgetl.backbones import WeightsReport
    from edgetl.bundle import Bundle, Variant
    from edgetl.dataset import Dataset

__all__ = ["Display", "open_data", "percent", "points"]

_SAMPLES = 3
_NOTES = 10
_PLAIN_EVERY_S = 15.0


def _console(*, stderr: bool) -> Console:
    """A terminal decides its width; a file or a pipe gets whole tables and unbroken lines."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    return console


class Display:
    """The reporter of every stage.

    Args:
        json_to_stdout: Whether standard output belongs to JSON; tables then go to standard error.
    """

    def __init__(self, *, json_to_stdout: bool = False) -> None:
        self.console = _console(stderr=json_to_stdout)
        self._errors = _console(stderr=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> Display:
        if self._errors.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._errors,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._tasks.clear()

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Moves a bar, or without a terminal says a line now and then; a total of 0 is unknown."""
        if self._progress is None:
            self._plain(stage, done, total, text)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None, text=text)
        self._progress.update(self._tasks[stage], completed=done, total=total or None, text=text)

    def _plain(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if stage not in self._told:
            self._told[stage] = now
        elif now - self._told[stage] > _PLAIN_EVERY_S:
            self._told[stage] = now
            of_total = f"/{total}" if total else ""
            print(f"{stage}: {done}{of_total} {text}".rstrip(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Says a line."""
        self._errors.print(text)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, wrap: bool = False
    ) -> None:
        """Prints a table; the first ``text`` columns are words, the others figures, aligned to the right.

        With ``wrap`` the last column is a sentence, which may take several lines.
        """
        table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0, 0, 1), box=box.SIMPLE_HEAD)
        for number, column in enumerate(columns):
            sentence = wrap and number == len(columns) - 1
            side: Literal["left", "right"] = "left" if number < text or sentence else "right"
            table.add_column(column, justify=side, no_wrap=not sentence, overflow="fold" if sentence else "ellipsis")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def weights(self, report: WeightsReport) -> None:
        """Says what a file of weights gave the network."""
        by_order = sum(match.how == "order" for match in report.matched)
        rows = [
            ("matched", str(len(report.matched)), f"{by_order} of them by order and shape" if by_order else "by name"),
            ("left in the file", str(len(report.left)), _examples(report.left)),
            ("missing, as initialized", str(len(report.missing)), _examples(report.missing)),
        ]
        table = Table(title="weights", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
        for column in ("tensors", "count", "which"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._errors.print(table)

    def variants(self, variants: Sequence[Variant]) -> None:
        """Prints what an export measured."""
        rows = [
            (
                v.name,
                f"{v.bytes / 1e6:.2f}",
                percent(v.metrics.get("top1")),
                points(v.metrics.get("top1_drop")),
                percent(v.metrics.get("flip_rate")),
                "" if v.name == "fp32" or v.metrics.get("sqnr_db") is None else f"{v.metrics['sqnr_db']:.1f}",
                _ratio(v.metrics.get("latency_ratio")),
                {True: "yes", False: "no", None: ""}[v.recommended],
            )
            for v in variants
        ]
        columns = ("variant", "MB", "top-1", "drop", "flips", "SQNR dB", "latency x fp32", "recommended")
        self.table("variants", columns, rows)

    def fidelity(self, bundle: Bundle, reports: Mapping[str, Any] | None = None, root: str = "") -> None:
        """Says what became of FP32's decisions, and which layers stay in float for their cost.

        Args:
            bundle: That was judged.
            reports: With the paths of pictures; without them the bundle's own, which has none.
            root: Of the data, which paths in it begin at.
        """
        from edgetl.bench import fidelity_text

        for name, report in (bundle.manifest["proof"].get("fidelity", {}) if reports is None else reports).items():
            if name.startswith("int8"):
                for line in fidelity_text(name, _named(report, root)):
                    self.console.print(line)
        spared = (bundle.manifest["provenance"].get("int8") or {}).get("spared", {})
        for target, layers in spared.items():
            if layers:
                self.console.print(f"int8-{target}: left in float for their cost: {', '.join(layers)}")

    def confidence(self, bundle: Bundle) -> None:
        """Says what the confidence of the variant that most will run is worth, and what is given no label."""
        for name, report in bundle.manifest["proof"].get("confidence", {}).items():
            if name != "fp32":
                continue
            after = "" if report["ece_after"] is None else f", {percent(report['ece_after'])} after"
            self.console.print(
                f"confidence: divided by a temperature of {report['temperature']:.2f}; calibration error "
                f"{percent(report['ece_before'])} before{after}"
            )
            unknown = report.get("unknown")
            if unknown is not None:
                measured, lost = unknown["false_accept_measured"], unknown["right_and_rejected"]
                self.console.print(
                    f"below {percent(unknown['confidence'])} confidence a picture has no label, so that at most "
                    f"{percent(unknown['false_accept'])} of {unknown['source']} pass"
                )
                if measured is not None:
                    self.console.print(
                        f"on pictures held out from that, {percent(measured)} passed, and {percent(lost)} of the "
                        "validation pictures were right and had none"
                    )


def _named(report: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Returns a fidelity report whose pictures are named by their paths inside the data."""
    flips = [
        {**flip, "picture": _relative(Path(flip["picture"]), Path(root))} if "picture" in flip else flip
        for flip in report["worst_flips"]
    ]
    return {**report, "worst_flips": flips}


def _relative(path: Path, root: Path) -> str:
    root = root.resolve()
    root = root.parent if root.is_file() else root
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:_SAMPLES]) + (" ..." if len(names) > _SAMPLES else "")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Returns a fraction as percent, or nothing where it was not measured."""
    return "" if value is None else f"{value * 100:.1f} %"


def points(value: float | None) -> str:
    """Returns a difference of fractions as points, signed."""
    return "" if value is None else f"{value * 100:+.2f} pt"


def open_data(display: Display, source: str, **options: Any) -> Dataset:
    """Opens a data set with progress, and says what was found: always what was left out."""
    from edgetl.dataset import open_dataset

    dataset = open_dataset(
        source, on_progress=lambda done, total: display.progress("looking at pictures", done, total), **options
    )
    counts = {split: len(dataset.split(split)) for split in ("train", "val", "test")}
    parts = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    display.note(f"{dataset.root}: {len(dataset.classes)} classes, {parts}")
    for path, reason in dataset.audit.bad:
        display.note(f"  left out: {path}: {reason}")
    for path, note in dataset.audit.notes[:_NOTES]:
        display.note(f"  note: {path}: {note}")
    if len(dataset.audit.notes) > _NOTES:
        display.note(f"  and {len(dataset.audit.notes) - _NOTES} notes more; see edgetl inspect {dataset.root}")
    return dataset
