"""``edgetl bench``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from edgetl.cli.options import COUNTS, PATH, RATE, RECALL, emit_html, emit_json, html_option, json_option

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
    from edgetl.cli.devices import Task, measured_on
    from edgetl.cli.display import Display
    from edgetl.cli.gating import Gate, Reports
    from edgetl.cli.judging import Judge
    from edgetl.cli.results import show_results, show_verdict
    from edgetl.errors import EngineError, GateError
    from edgetl.report import bench_report

    config = BenchConfig(tuple(variants), tuple(engines), processes, seconds, threads, fps, batches, energy)
    limits = Limits(max_regression, max_drop, dict(min_recall))
    reports = Reports(junit, markdown)
    gate = Gate(limits, against, None if baseline is None else str(baseline))
    where = boards_named(devices, boards)
    gate.check(bundles, reports, config, where)
    gate = replace(gate, earlier=None if baseline is None else read_result(baseline))
    with Display(json_to_stdout=json_out == "-") as display, ExitStack() as stack:
        judge = Judge(display, split, val_fraction, allow_leakage)
        contenders = judge.contenders(bundles, data)
        gate.check_models(contenders, config, here=where == [None])
        reference = None
        if against is not None:
            from edgetl.bench.revision import bundle_at
            from edgetl.bundle import open_bundle

            name, path = stack.enter_context(bundle_at(against))
            reference = replace(contenders[0], name=name, path=path)  # the same pictures for both
            open_bundle(path)
        measured, lost = measured_on(display, where, Task(contenders, reference, config, wheelhouse), gate)
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
