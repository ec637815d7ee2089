"""``edgetl select``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import COUNTS, PATH, RATE, emit_json, json_option

__all__ = ["select"]


class _Milliseconds(click.ParamType[float]):
    """``5ms`` as a number of milliseconds."""

    name = "ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number."""
        if isinstance(value, float):
            return value
        try:
            number = float(str(value).removesuffix("ms"))
        except ValueError:
            number = 0.0
        if not str(value).endswith("ms") or number <= 0:
            self.fail(f'"{value}" must be milliseconds, like 5ms', param, ctx)
        return number


@click.command(short_help="Rank backbones for your pictures before training.")
@click.argument("data")
@click.option(
    "--candidate",
    "names",
    multiple=True,
    help="BACKBONE or BACKBONE=WEIGHTS; repeatable.  [default: eight for devices]",
)
@click.option("--candidates", "file", type=PATH, help="YAML list of backbone, weights, size, mean, std.")
@click.option("--sizes", type=COUNTS, default=(), help="Inputs at which each is tried.  [default: the weights' own]")
@click.option("--latency-budget", type=_Milliseconds(), help="Median latency in INT8 that must not be exceeded.")
@click.option("--device", default="local", show_default=True, help="Where to time: local, ssh://USER@HOST or a board.")
@click.option("--boards", type=PATH, help="File that names boards.  [default: boards.yaml]")
@click.option("--wheelhouse", type=PATH, help="Folder of wheels for the board.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Of timing in each of 3 processes.")
@click.option("--val-fraction", type=RATE, default="20%", show_default=True, help="As in finetune.")
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
@json_option
@click.pass_context
def select(
    ctx: click.Context,
    /,
    data: str,
    names: tuple[str, ...],
    file: Path | None,
    sizes: tuple[int, ...],
    latency_budget: float | None,
    device: str,
    boards: Path | None,
    wheelhouse: Path | None,
    seconds: float,
    val_fraction: float,
    allow_leakage: bool,
    json_out: str | None,
) -> None:
    """Rank backbones for DATA by a cross-validated probe on their features, and time them in INT8.

    Only training pictures are looked at, and nothing is trained.
    """
    from edgetl.bench.boards import boards_named
    from edgetl.cli.display import Display, open_data, percent
    from edgetl.errors import GateError
    from edgetl.selection import DEFAULTS, candidate_named, candidates_in, crossed
    from edgetl.selection import select as run_stage

    chosen = [*(candidate_named(name) for name in names), *(candidates_in(file) if file is not None else [])]
    [where] = boards_named([device], boards)
    with Display(json_to_stdout=json_out == "-") as display:
        dataset = open_data(display, data, val_fraction=val_fraction, allow_leakage=allow_leakage)
        ranking = run_stage(
            dataset,
            crossed(chosen or DEFAULTS, sizes),
            reporter=display,
            budget_ms=latency_budget,
            seconds=seconds,
            measure=None if where is None else _on_board(display, where, wheelhouse),
        )
    front = {row.candidate.name for row in ranking.front}
    rows = [
        (
            row.candidate.name,
            percent(row.probe_top1),
            f"{row.logme:.3f}",
            "" if row.latency_ms is None else f"{row.latency_ms:.2f}",
            f"{row.parameters / 1e6:.1f}",
            "yes" if row.candidate.name in front else "",
        )
        for row in ranking.rows
    ]
    display.table(
        f"{data}: {len(rows)} candidates, timed on {device}",
        ("candidate", "probe", "LogME", "INT8 ms", "M parameters", "Pareto front"),
        rows,
    )
    emit_json(json_out, {"device": device, **ranking.to_dict()})
    if ranking.choice is None:
        timed = [row.latency_ms for row in ranking.rows if row.latency_ms is not None]
        fastest = f"; the fastest takes {min(timed):.2f} ms" if timed else ""
        raise GateError(f"no candidate is within {latency_budget:g} ms{fastest}: try smaller --sizes, or allow more")
    display.note(f"next: {ranking.choice.candidate.command(data, *_split_options(ctx))}")


def _split_options(ctx: click.Context) -> list[str]:
    """Returns what was typed of how the pictures are split: without it others would be trained on."""
    options = []
    if ctx.get_parameter_source("val_fraction") is click.core.ParameterSource.COMMANDLINE:
        options += ["--val-fraction", f"{100 * ctx.params['val_fraction']:g}%"]
    return [*options, *(["--allow-leakage"] if ctx.params["allow_leakage"] else [])]


def _on_board(display: Any, board: Any, wheelhouse: Path | None) -> Any:
    """Returns what times bundles on a board."""
    from edgetl.bench import Result
    from edgetl.bench.luggage import Job
    from edgetl.bench.remote import bench_on_boards
    from edgetl.cli.devices import Task, bench_options
    from edgetl.errors import EngineError

    def measure(contenders: Any, config: Any) -> Result:
        job = Job(contenders, bench_options(Task(contenders, None, config, wheelhouse)), None, wheelhouse)
        [outcome] = bench_on_boards([board], job, say=lambda name, line: display.note(f"{name}: {line}"))
        if outcome.result is None:
            raise EngineError(f"{board.name}: {outcome.problem}")
        return Result.from_dict(outcome.result)

    return measure
