"""``edgetl predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import PATH, emit_json, json_option

__all__ = ["predict"]


@click.command(short_help="Classify pictures with a bundle, as a device app does.")
@click.argument("bundle", type=PATH)
@click.argument("pictures", nargs=-1, required=True, type=PATH)
@click.option("--variant", help="Graph to run.  [default: the one this machine serves best]")
@click.option("--engine", default="auto", show_default=True, help="auto, tensorrt, tensorrt-rtx, cuda or cpu.")
@click.option("--plans", type=PATH, help="Folder of plans that edgetl compile --out made.")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to list for each picture.")
@json_option
def predict(
    bundle: Path,
    pictures: Sequence[Path],
    variant: str | None,
    engine: str,
    plans: Path | None,
    top: int,
    json_out: str | None,
) -> None:
    """Classify PICTURES (files, or folders of them) with BUNDLE."""
    import edgetl
    from edgetl.artifacts import printable
    from edgetl.cli.display import Display
    from edgetl.dataset import pictures_in
    from edgetl.errors import PictureError

    results: list[dict[str, Any]] = []
    with (
        Display(json_to_stdout=json_out == "-") as display,
        edgetl.load(bundle, engine=engine, variant=variant, plans=plans, on_progress=display.progress) as classify,
    ):
        display.note(f"{classify.variant} on {classify.engine}: {classify.reason}")
        paths = [path for name in pictures for path in pictures_in(name)]
        failed: list[PictureError] = []
        for number, path in enumerate(paths, start=1):
            try:
                answer = classify(path)
            except PictureError as error:
                failed.append(error)
                continue
            best = answer.top(top)
            results.append(
                {
                    "path": printable(path),
                    "label": answer.label,
                    "confidence": answer.confidence,
                    "top": [{"label": label, "confidence": score} for label, score in best],
                }
            )
            display.progress("pictures", number, len(paths))
    for result in results if json_out != "-" else []:
        rest = ", ".join(f"{entry['label']} {entry['confidence']:.1%}" for entry in result["top"])
        click.echo(f"{result['path']}: {'none of the classes; nearest ' if result['label'] is None else ''}{rest}")
    if results or not failed:
        emit_json(json_out, results)
    for problem in failed[:-1]:
        click.echo(f"edgetl: {problem}", err=True)
    if failed:  # the others have had their answers
        raise failed[-1]
