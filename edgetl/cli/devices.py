"""Where ``edgetl bench`` measures: here, on boards, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetl.bench import BenchConfig, Contender, Limits, Result, Verdict
    from edgetl.bench.boards import Board
    from edgetl.cli.display import Display
    from edgetl.cli.gating import Gate

__all__ = ["Task", "bench_options", "measured_on"]


@dataclass(frozen=True)
class Task:
    """What is measured on every device."""

    contenders: Sequence[Contender]
    reference: Contender | None
    config: BenchConfig
    wheelhouse: Path | None


def measured_on(
    display: Display, where: Sequence[Board | None], task: Task, gate: Gate
) -> tuple[list[tuple[Result, Verdict | None]], list[str]]:
    """Returns what each device gave, in order, and what went wrong; boards run at once, this machine after them."""
    from edgetl.bench import Result, Verdict
    from edgetl.errors import EdgetlError

    found: dict[int, tuple[Result, Verdict | None]] = {}
    lost = []
    numbers = [number for number, board in enumerate(where) if board is not None]
    if numbers:
        from edgetl.bench.luggage import Job
        from edgetl.bench.remote import bench_on_boards

        job = Job(task.contenders, [*bench_options(task), *_limits(task, gate.limits)], task.reference, task.wheelhouse)
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


def _here(display: Display, task: Task, gate: Gate) -> tuple[Result, Verdict | None]:
    from edgetl.bench import bench, bench_against

    if task.reference is not None:
        return bench_against(task.contenders[0], task.reference, task.config, gate.limits, on_progress=display.progress)
    result = bench(task.contenders, task.config, on_progress=display.progress)
    return result, gate.judge(result)


def bench_options(task: Task) -> list[str]:
    """Returns the options of ``edgetl bench`` for the same measurement on a board."""
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
    return options


def _limits(task: Task, limits: Limits) -> list[str]:
    """Returns the options of a gate against a reference: that is judged on the board."""
    options: list[str] = []
    if task.reference is None:
        return options
    for name, limit in (("--max-regression", limits.max_regression), ("--max-drop", limits.max_drop)):
        options += [] if limit is None else [name, f"{limit * 100!r}%"]
    for label, recall in limits.min_recall.items():
        options += ["--min-recall", f"{label}={recall * 100!r}%"]
    return options
