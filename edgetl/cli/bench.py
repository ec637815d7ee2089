"""``edgetl bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetl.cli.options import COUNTS, PATH, RATE, RECALL, emit_html, emit_json, html_option, json_option

if TYPE_CHECKING:
    from edgetl.bench import BenchConfig, Contender, Limits, Result, Verdict
    from edgetl.bundle import Bundle
    from edgetl.cli.display import Display
    from edgetl.dataset import Dataset

__all__ = ["bench"]


@click.command(short_help="Compare bundles: accuracy, latency, size, memory, energy; gate them in CI.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE[=DATA]...")
@click.option("--data", help="Pictures for bundles that name none of their own.")
@click.option(
    "--split",
    type=click.Choice(["val", "test", "all"]),
    help="Pictures of DATA to judge on.  [default: val; all, if DATA is itself a val/ or test/ folder]",
)
@click.option("--val-fraction", type=RATE, help="Where DATA has no split.  [default: as the bundle was exported]")
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
@click.option("--variant", "variants", multiple=True, help="Only these variants; repeatable.")
@click.option(
    "--engine", "engines", multiple=True, default=("auto",), show_default=True,
    help="auto, tensorrt, tensorrt-rtx, cuda or cpu; repeatable.",
)  # fmt: skip
@click.option(
    "--processes", type=int, default=3, show_default=True,
    help="Fresh processes in which latency is measured; twice as many with --against.",
)  # fmt: skip
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Of measuring in each process.")
@click.option("--threads", type=int, default=1, show_default=True, help="Per model while latency is measured.")
@click.option("--fps", type=float, help="Also measure latency at this rate of a camera, idle between pictures.")
@click.option("--batch", "batches", type=COUNTS, default=(), help="Also measure throughput in batches of these sizes.")
@click.option("--energy", is_flag=True, help="Also measure energy per picture, idle power subtracted.")
@click.option(
    "--against", metavar="BUNDLE|REV:PATH",
    help="Measure BUNDLE against another, or itself at a git revision, in turn, with an A/A run for the noise.",
)  # fmt: skip
@click.option("--baseline", type=PATH, help="Result of an earlier run on this machine (its --json) to compare with.")
@click.option("--max-regression", type=RATE, help="Exit 1 if latency rises by more, for example 5%.")
@click.option(
    "--max-drop", type=RATE,
    help="Exit 1 if top-1 falls by more, for example 0.5pt; without --against or --baseline: below FP32's.",
)  # fmt: skip
@click.option("--min-recall", type=RECALL, multiple=True, help="Exit 1 if a class is found less often; repeatable.")
@click.option("--junit", type=PATH, help="Write the gate's checks as JUnit XML.")
@click.option("--markdown", type=PATH, help="Append the gate's checks as Markdown, for $GITHUB_STEP_SUMMARY.")
@html_option
@json_option
def bench(
    bundles: Sequence[str],
    data: str | None,
    split: str | None,
    val_fraction: float | None,
    allow_leakage: bool,
    variants: Sequence[str],
    engines: Sequence[str],
    processes: int,
    seconds: float,
    threads: int,
    fps: float | None,
    batches: tuple[int, ...],
    energy: bool,
    against: str | None,
    baseline: Path | None,
    max_regression: float | None,
    max_drop: float | None,
    min_recall: Sequence[tuple[str, float]],
    junit: Path | None,
    markdown: Path | None,
    html_out: Path | None,
    json_out: str | None,
) -> None:
    """Compare every variant of the BUNDLEs on this machine.

    All of them are alive in one process and timed in turn, so that their ratio means something; the first is
    the reference. Accuracy is measured on the validation split of DATA, split as when the bundle was exported.

    With a limit it is a gate: exit code 0 where every check holds, 1 where one does not.
    """
    from edgetl.bench import BenchConfig, Limits, read_result
    from edgetl.cli.display import Display
    from edgetl.cli.results import show_results, show_verdict
    from edgetl.errors import GateError
    from edgetl.report import bench_report

    config = BenchConfig(tuple(variants), tuple(engines), processes, seconds, threads, fps, batches, energy)
    limits = Limits(max_regression, max_drop, dict(min_recall))
    gate = _Gate(limits, against, None if baseline is None else str(baseline))
    gate.check(bundles, [name for name, path in (("--junit", junit), ("--markdown", markdown)) if path is not None])
    earlier = None if baseline is None else read_result(baseline)
    with Display(json_to_stdout=json_out == "-") as display:
        judge = _Judge(display, split, val_fraction, allow_leakage)
        result, verdict = gate.run(judge.contenders(bundles, data), config, judge, data, earlier, display)
    show_results(display, result)
    if verdict is not None:
        show_verdict(display, verdict)
    whole = result.to_dict() | ({} if verdict is None else {"gate": verdict.to_dict()})
    emit_json(json_out, whole)
    emit_html(html_out, lambda: bench_report([whole]))
    if verdict is not None:
        _write_verdict(verdict, result, junit, markdown)
        if not verdict.ok:
            raise GateError(verdict.text)


@dataclass(frozen=True)
class _Gate:
    """What is compared with what, and the limits."""

    limits: Limits
    against: str | None
    baseline: str | None

    def check(self, bundles: Sequence[str], outputs: Sequence[str]) -> None:
        """Refuses options that contradict each other, before anything is measured."""
        from edgetl.errors import InputError

        if self.against is not None and self.baseline is not None:
            raise InputError("--against and --baseline are two references: give one")
        if self.against is not None and len(bundles) != 1:
            raise InputError(f"--against compares one BUNDLE with its reference, {len(bundles)} were given")
        if self.limits.max_regression is not None and self.against is None and self.baseline is None:
            raise InputError("--max-regression needs something to compare with: --against BUNDLE or --baseline FILE")
        if self.baseline is not None and self.limits.max_regression is None and self.limits.max_drop is None:
            raise InputError("--baseline needs a limit: --max-regression 5% or --max-drop 0.5pt")
        if outputs and self.limits.empty and self.against is None:
            raise InputError(f"{outputs[0]} reports a gate's checks: give a limit, --max-drop 0.5pt for example")

    def run(
        self,
        contenders: Sequence[Contender],
        config: BenchConfig,
        judge: _Judge,
        data: str | None,
        earlier: Result | None,
        display: Display,
    ) -> tuple[Result, Verdict | None]:
        """Measures, and judges where there is something to judge."""
        from edgetl.bench import Verdict, baseline_checks, bench, bench_against, fp32_checks, recall_checks
        from edgetl.bench.revision import bundle_at

        if self.against is not None:
            with bundle_at(self.against) as (name, path):
                reference = judge.contender(name, path, data)
                return bench_against(contenders[0], reference, config, self.limits, on_progress=display.progress)
        result = bench(contenders, config, on_progress=display.progress)
        if self.limits.empty:
            return result, None
        checks = [check for entry in result.entries for check in recall_checks(entry, self.limits.min_recall)]
        if earlier is not None and self.baseline is not None:
            checks = [*baseline_checks(result, earlier, self.limits, self.baseline), *checks]
        elif self.limits.max_drop is not None:
            checks = [*fp32_checks(result, self.limits.max_drop), *checks]
        return result, Verdict(checks, self.baseline or "")


def _write_verdict(verdict: Verdict, result: Result, junit: Path | None, markdown: Path | None) -> None:
    from edgetl.artifacts import write_text

    if junit is not None:
        write_text(junit, verdict.junit())
    if markdown is not None:  # a job's summary is a file that several steps add to
        before = markdown.read_text(encoding="utf-8") if markdown.is_file() else ""
        write_text(markdown, before + verdict.markdown(result))


def _bundle_and_data(text: str, data: str | None) -> tuple[str, str | None]:
    """Splits BUNDLE=DATA; a path may hold an equals sign of its own."""
    if Path(text).exists():
        return text, data
    path, _, own = text.rpartition("=")
    return (path, own) if path else (text, data)


class _Judge:
    """Opens the data that each bundle is judged on: split as at its export, so that no training picture counts."""

    def __init__(self, display: Display, split: str | None, val_fraction: float | None, allow_leakage: bool) -> None:
        self._display = display
        self._split = split
        self._val_fraction = val_fraction
        self._allow_leakage = allow_leakage
        self._opened: dict[tuple[str, float, bool], Dataset] = {}

    def contenders(self, bundles: Sequence[str], data: str | None) -> list[Contender]:
        """Returns every bundle with its data."""
        from edgetl.bundle import open_bundle

        pairs = [_bundle_and_data(name, data) for name in bundles]
        for path, _ in pairs:
            open_bundle(path)  # a wrong path is told before pictures are read
        return [self.contender(path, Path(path), source) for path, source in pairs]

    def contender(self, name: str, path: Path, source: str | None) -> Contender:
        """Returns one bundle with its data."""
        from edgetl.bench import Contender
        from edgetl.bundle import open_bundle

        return Contender(name, path, *(self._data_for(open_bundle(path), source) if source else (None,)))

    def _data_for(self, bundle: Bundle, source: str) -> tuple[Dataset, str]:
        from edgetl.cli.display import open_data
        from edgetl.dataset import VAL_FRACTION

        made = bundle.manifest["provenance"]
        fraction = self._val_fraction or made.get("val_fraction") or VAL_FRACTION
        key = (source, fraction, self._allow_leakage or bool(made.get("allow_leakage")))
        if key not in self._opened:
            self._opened[key] = open_data(self._display, source, val_fraction=key[1], allow_leakage=key[2])
        dataset, split = self._opened[key], self._split or _whole_or_val(source)
        if dataset.digest != made.get("dataset_digest") and split != "all":
            self._display.note(
                f"{bundle.root}: {source} is not, or no longer, the data it was exported with; if it was trained on "
                f"any of these pictures, the {split} figures flatter it"
            )
        return dataset, split


def _whole_or_val(source: str) -> str:
    """A folder val/ or test/ beside train/ is a split already."""
    folder = Path(source)
    return "all" if folder.name in ("val", "test") and (folder.parent / "train").is_dir() else "val"
