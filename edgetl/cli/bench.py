"""``edgetl bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetl.cli.options import COUNTS, PATH, RATE, RECALL, emit_html, emit_json, html_option, json_option

if TYPE_CHECKING:
    from edgetl.bench import BenchConfig, Contender, Limits, Result, Verdict
    from edgetl.bench.boards import Board
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
@click.option(
    "--device", "devices", multiple=True, default=("local",), show_default=True,
    help="Where to measure: local, ssh://user@host[:port] or a board of boards.yaml; repeatable.",
)  # fmt: skip
@click.option("--boards", type=PATH, help="File that names boards.  [default: boards.yaml, if there is one]")
@click.option("--wheelhouse", type=PATH, help="Wheels that fit the boards.  [default: downloaded here, and kept]")
@click.option("--history", type=PATH, help="Append the result to this file; edgetl history draws it.")
@click.option("--junit", type=PATH, help="Write the gate's checks as JUnit XML.")
@click.option("--markdown", type=PATH, help="Append the gate's checks as Markdown, for $GITHUB_STEP_SUMMARY.")
@html_option
@click.option("--quiet", is_flag=True, help="Say how it goes, and leave the result to --json and the other files.")
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
    devices: Sequence[str],
    boards: Path | None,
    wheelhouse: Path | None,
    history: Path | None,
    junit: Path | None,
    markdown: Path | None,
    quiet: bool,
    html_out: Path | None,
    json_out: str | None,
) -> None:
    """Compare every variant of the BUNDLEs on this machine.

    All of them are alive in one process and timed in turn, so that their ratio means something; the first is
    the reference. Accuracy is measured on the validation split of DATA, split as when the bundle was exported.

    With a limit it is a gate: exit code 0 where every check holds, 1 where one does not.
    """
    from edgetl.bench import BenchConfig, Limits, read_result
    from edgetl.bench.boards import boards_named
    from edgetl.bench.history import append_history
    from edgetl.cli.display import Display
    from edgetl.cli.results import show_results, show_verdict
    from edgetl.errors import EngineError, GateError
    from edgetl.report import bench_report

    config = BenchConfig(tuple(variants), tuple(engines), processes, seconds, threads, fps, batches, energy)
    limits = Limits(max_regression, max_drop, dict(min_recall))
    reports = _Reports(junit, markdown)
    gate = _Gate(limits, against, None if baseline is None else str(baseline))
    where = boards_named(devices, boards)
    gate.check(bundles, reports, config, where)
    gate = replace(gate, earlier=None if baseline is None else read_result(baseline))
    with Display(json_to_stdout=json_out == "-") as display, ExitStack() as stack:
        judge = _Judge(display, split, val_fraction, allow_leakage)
        contenders = judge.contenders(bundles, data)
        gate.check_models(contenders, config)
        reference = None
        if against is not None:
            from edgetl.bench.revision import bundle_at
            from edgetl.bundle import open_bundle

            name, path = stack.enter_context(bundle_at(against))
            reference = replace(contenders[0], name=name, path=path)  # the same pictures for both
            open_bundle(path)
        measured, lost = _on_devices(display, where, _Task(contenders, reference, config, wheelhouse), gate)
    for result, verdict in () if quiet else measured:
        show_results(display, result)
        if verdict is not None:
            show_verdict(display, verdict)
    found = [result.to_dict() | ({"gate": v.to_dict()} if v is not None and v.checks else {}) for result, v in measured]
    emit_json(json_out, found[0] if len(where) == 1 and found else found)
    emit_html(html_out, lambda: bench_report(found))
    judged = [(result, v) for result, v in measured if v is not None and not limits.empty]
    reports.write(judged)
    if history is not None:
        for result, _ in measured:
            append_history(history, result)
    if lost:
        raise EngineError(f"{len(lost)} of {len(where)} devices gave no result: {'; '.join(lost)}")
    bad = [verdict for _, verdict in judged if not verdict.ok]
    if bad:
        raise GateError(bad[0].text)


@dataclass(frozen=True)
class _Task:
    """What is measured on every device."""

    contenders: Sequence[Contender]
    reference: Contender | None
    config: BenchConfig
    wheelhouse: Path | None


def _on_devices(
    display: Display, where: Sequence[Board | None], task: _Task, gate: _Gate
) -> tuple[list[tuple[Result, Verdict | None]], list[str]]:
    """Returns what each device gave, in order, and what went wrong; boards run at once, this machine after them."""
    from edgetl.bench import Result, Verdict
    from edgetl.errors import EdgetlError

    found: dict[int, tuple[Result, Verdict | None]] = {}
    lost = []
    numbers = [number for number, board in enumerate(where) if board is not None]
    if numbers:
        from edgetl.bench.remote import Job, bench_on_boards

        job = Job(task.contenders, _options(task, gate.limits), task.reference, task.wheelhouse)
        boards = [board for board in where if board is not None]
        say = _saying(display)
        for number, outcome in zip(numbers, bench_on_boards(boards, job, say=say), strict=True):
            if outcome.result is None:
                lost.append(f"{outcome.board.name}: {outcome.problem}")
                continue
            result = Result.from_dict(outcome.result)
            told = outcome.result.get("gate")
            found[number] = result, gate.judge(result) if told is None else Verdict.from_dict(told)
    for number, board in enumerate(where):
        if board is None:
            try:
                found[number] = _here(display, task, gate)
            except EdgetlError as error:
                if len(where) == 1:
                    raise
                lost.append(f"local: {error}")
    return [found[number] for number in sorted(found)], lost


def _saying(display: Display) -> Callable[[str, str], None]:
    return lambda board, line: display.note(f"{board}: {line}")


def _here(display: Display, task: _Task, gate: _Gate) -> tuple[Result, Verdict | None]:
    from edgetl.bench import bench, bench_against

    if task.reference is not None:
        return bench_against(task.contenders[0], task.reference, task.config, gate.limits, on_progress=display.progress)
    result = bench(task.contenders, task.config, on_progress=display.progress)
    return result, gate.judge(result)


def _options(task: _Task, limits: Limits) -> list[str]:
    """Returns the options for the same measurement on a board; a gate against a reference is judged there."""
    config = task.config
    options = ["--processes", str(config.processes), "--seconds", str(config.seconds), "--threads", str(config.threads)]
    for name in config.variants:
        options += ["--variant", name]
    for name in config.engines:
        options += ["--engine", name]
    if config.fps is not None:
        options += ["--fps", str(config.fps)]
    if config.batches:
        options += ["--batch", ",".join(map(str, config.batches))]
    if config.energy:
        options.append("--energy")
    if task.reference is None:
        return options
    for name, limit in (("--max-regression", limits.max_regression), ("--max-drop", limits.max_drop)):
        options += [] if limit is None else [name, f"{limit * 100!r}%"]
    for label, recall in limits.min_recall.items():
        options += ["--min-recall", f"{label}={recall * 100!r}%"]
    return options


@dataclass(frozen=True)
class _Reports:
    """Files that a gate writes."""

    junit: Path | None
    markdown: Path | None

    def write(self, judged: Sequence[tuple[Result, Verdict]]) -> None:
        """Writes them."""
        from edgetl.artifacts import write_text
        from edgetl.bench.gate import junit, markdown
        from edgetl.errors import InputError

        if self.junit is not None:
            write_text(self.junit, junit(judged))
        if self.markdown is not None:  # a job's summary is a file that several steps add to
            try:
                with self.markdown.open("a", encoding="utf-8") as file:
                    file.write(markdown(judged))
            except OSError as error:
                raise InputError(f"{self.markdown}: cannot be written ({error.strerror})") from None


@dataclass(frozen=True)
class _Gate:
    """What is compared with what, and the limits."""

    limits: Limits
    against: str | None
    baseline: str | None
    earlier: Result | None = None

    def check(
        self, bundles: Sequence[str], reports: _Reports, config: BenchConfig, where: Sequence[Board | None]
    ) -> None:
        """Refuses options that contradict each other, before anything is measured."""
        from edgetl.errors import InputError

        if self.against is not None and self.baseline is not None:
            raise InputError("--against and --baseline are two references: give one")
        if self.against is not None and len(bundles) != 1:
            raise InputError(f"--against compares one BUNDLE with its reference, {len(bundles)} were given")
        if self.limits.max_regression is not None and self.against is None and self.baseline is None:
            raise InputError("--max-regression needs something to compare with: --against BUNDLE or --baseline FILE")
        if self.against is not None and len(config.engines) > 1:
            raise InputError("--against measures on one engine: give --engine once")
        if self.baseline is not None and len(where) > 1:
            raise InputError("--baseline is of one machine: give one --device")
        if self.baseline is not None and self.limits.max_regression is None and self.limits.max_drop is None:
            raise InputError("--baseline needs a limit: --max-regression 5% or --max-drop 0.5pt")
        if reports != _Reports(None, None) and self.limits.empty:
            raise InputError(
                "--junit and --markdown report a gate's checks: give a limit, --max-drop 0.5pt for example"
            )

    def check_models(self, contenders: Sequence[Contender], config: BenchConfig) -> None:
        """Refuses what the bundles already tell cannot be judged."""
        from edgetl.bundle import open_bundle
        from edgetl.errors import InputError

        absent = config.variants and "fp32" not in config.variants
        if absent and self.limits.max_drop is not None and self.against is None and self.baseline is None:
            raise InputError("--max-drop compares variants with their FP32: add --variant fp32")
        for contender in contenders:
            labels = open_bundle(contender.path).spec.labels
            for label in self.limits.min_recall:
                if label not in labels:
                    known = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
                    raise InputError(f"--min-recall {label}: {contender.name} has no such class; it knows {known}")
        if contenders[0].dataset is None and (self.limits.max_drop is not None or self.limits.min_recall):
            raise InputError("--max-drop and --min-recall judge on pictures: give --data")

    def judge(self, result: Result) -> Verdict | None:
        """Judges a result that was not measured against a reference; None where there is nothing to judge."""
        from edgetl.bench import Verdict, answer_checks, baseline_checks, fp32_checks, recall_checks

        if self.limits.empty:
            return None
        checks = [check for entry in result.entries for check in recall_checks(entry, self.limits.min_recall)]
        checks += answer_checks(result.entries)
        if self.earlier is not None and self.baseline is not None:
            checks = [*baseline_checks(result, self.earlier, self.limits, self.baseline), *checks]
        elif self.limits.max_drop is not None:
            checks = [*fp32_checks(result, self.limits.max_drop), *checks]
        return Verdict(checks, self.baseline or "")


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
