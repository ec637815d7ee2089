"""``edgetl finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import FLOATS, PATH, RATE, SIZE, emit_json, json_option

__all__ = ["finetune"]


@click.command(short_help="Fine-tune a pretrained backbone on a folder of pictures.")
@click.argument("data")
@click.option("--out", type=PATH, help="Run folder to write.  [default: models/runs/NAME]")
@click.option(
    "--backbone",
    default="timm/mobilenetv4_conv_small",
    show_default=True,
    help="torchvision name, timm/NAME, small_cnn or package.module:function.",
)
@click.option(
    "--weights",
    default="default",
    show_default=True,
    help="default (download), none (random), FILE.pth or FILE.safetensors.",
)
@click.option("--head", default="linear", show_default=True, help="linear, mlp:W or flatten-mlp:W.")
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Before the last layer, 0 to 1.")
@click.option(
    "--strategy", default="lp-ft", show_default=True, help="probe, last:N, full, or lp-ft (probe, then full)."
)
@click.option("--epochs", type=int, default=10, show_default=True, help="Passes over the training pictures.")
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--optimizer", default="adamw", show_default=True, help="adamw or sgd.")
@click.option("--lr", type=float, help="Peak rate of the head.  [default: by optimizer]")
@click.option(
    "--layer-decay",
    type=float,
    default=0.85,
    show_default=True,
    help="Factor on the rate from block to block, downwards.",
)
@click.option("--weight-decay", type=float, default=0.02, show_default=True)
@click.option("--label-smoothing", type=float, default=0.1, show_default=True)
@click.option(
    "--batchnorm",
    default="frozen",
    show_default=True,
    help="frozen (pretrained statistics stay) or train (they follow the batches).",
)
@click.option(
    "--warmup", type=float, default=0.1, show_default=True, help="Share of the steps in which the rate rises."
)
@click.option(
    "--augment", default="standard", show_default=True, help="none, light (crop, colour) or standard (also mirrored)."
)
@click.option(
    "--select-fraction",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of train on which the best epoch is chosen; 0 keeps the last.",
)
@click.option(
    "--patience",
    type=int,
    default=0,
    show_default=True,
    help="Stop early after so many epochs without gain; needs --select-fraction.",
)
@click.option("--size", type=SIZE, help="Input, pixels.  [default: the weights' own]")
@click.option("--mean", type=FLOATS, help="Per channel.  [default: the weights' own]")
@click.option("--std", type=FLOATS, help="Per channel.  [default: the weights' own]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=int, default=0, show_default=True, help="Processes that decode and augment.")
@click.option("--config", "config_file", type=PATH, help="YAML of these settings; options typed here win.")
@click.option(
    "--val-fraction",
    type=RATE,
    default="20%",
    show_default=True,
    help="Validation share where the folder has no split.",
)
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, exactly where it was.")
@click.option("--force", is_flag=True, help="Replace what is in --out.")
@json_option
@click.pass_context
def finetune(
    ctx: click.Context,
    /,
    data: str,
    out: Path | None,
    config_file: Path | None,
    val_fraction: float,
    allow_leakage: bool,
    resume: bool,
    force: bool,
    json_out: str | None,
    **settings: Any,
) -> None:
    """Fine-tune a pretrained backbone on DATA.

    DATA is a folder root/{train,val}/class/picture or root/class/picture, a CSV table path,label[,split], or
    the built-in digits.
    """
    import json

    from edgetl.cli.display import Display, open_data, percent
    from edgetl.finetune import finetune as run_stage
    from edgetl.finetune.run_folder import RunFolder, read_config

    source = Path(data).resolve()
    out = out or Path("models/runs") / (source.name if source.is_dir() else source.stem)
    RunFolder(out).check_free(resume=resume, force=force)
    config = _config(ctx, settings, config_file, out if resume else None)
    if resume:  # the pictures are split as they were, unless told otherwise
        saved = read_config(out / "config.yaml")[1]
        val_fraction = val_fraction if _is_typed(ctx, "val_fraction") else saved.val_fraction
        allow_leakage = allow_leakage or saved.allow_leakage
    with Display(json_to_stdout=json_out == "-") as display:
        dataset = open_data(display, data, val_fraction=val_fraction, allow_leakage=allow_leakage)
        checkpoint = run_stage(dataset, config, out, reporter=display, resume=resume, force=force)
    metrics = json.loads((checkpoint.root / "metrics.json").read_text(encoding="utf-8"))
    val = metrics["val"]
    display.console.print(
        f"{checkpoint.root}: val top-1 {percent(val['top1'])}, macro F1 {percent(val['macro_f1'])} "
        f"on {val['pictures']} pictures"
    )
    _write_report(display, checkpoint.root, metrics)
    display.note(f"next: edgetl export {checkpoint.root} --int8")
    emit_json(json_out, {"run": str(checkpoint.root), **metrics})


def _write_report(display: Any, run: Path, metrics: dict[str, Any]) -> None:
    """Writes the run's report.html; where what it takes is not installed, the run is complete without it."""
    import csv

    from edgetl.errors import MissingExtraError
    from edgetl.finetune.run_folder import RunFolder, read_config
    from edgetl.report import check_report, finetune_report, write_report

    folder = RunFolder(run)
    try:
        check_report()
    except MissingExtraError as missing:
        display.note(f"{folder.report.name} was not written: {missing}")
        return
    with folder.history.open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    write_report(folder.report, finetune_report(metrics, history, read_config(folder.config)[0].to_dict()))


def _config(ctx: click.Context, settings: dict[str, Any], config_file: Path | None, resumed: Path | None) -> Any:
    """Returns the settings in force: defaults, below a file or the resumed run, below options typed."""
    from edgetl.finetune import FinetuneConfig
    from edgetl.finetune.run_folder import read_config, read_settings

    typed = {name: value for name, value in settings.items() if _is_typed(ctx, name)}
    base: dict[str, Any] = {}
    if resumed is not None:
        base = read_config(resumed / "config.yaml")[0].to_dict()
    if config_file is not None:
        base = {**base, **read_settings(config_file)}
    return FinetuneConfig.from_dict({**base, **typed}, str(config_file or "options"))


def _is_typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
