"""``edgetl finetune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import FLOATS, PATH, RATE, SIZE, SectionedCommand, emit_json, json_option

__all__ = ["finetune"]


class _Rate(click.ParamType[float | str]):
    """A learning rate, or ``auto``."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Returns it."""
        try:
            return value if value == "auto" else float(value)
        except ValueError:
            return self.fail(f'"{value}" must be a number or auto', param, ctx)


_SECTIONS = {
    "Network": ("recipe", "backbone", "weights", "head", "dropout", "head_init", "size", "mean", "std", "decode"),
    "What is trained": ("strategy", "batchnorm", "views", "epochs", "select_fraction", "patience"),
    "Steps": (
        "batch_size", "optimizer", "momentum", "lr", "schedule", "warmup", "max_gradient_norm", "layer_decay",
        "weight_decay", "ema",
    ),
    "Loss": ("label_smoothing", "l1", "l2", "l2_sp", "imbalance", "teacher", "teacher_weight", "teacher_temperature"),
    "Pictures": ("augment", "mix", "val_fraction", "allow_leakage", "download", "source_data"),
    "Judging": ("robustness", "compare_scratch", "loggers"),
    "Machine": ("precision", "compile", "devices", "nodes", "workers", "seed"),
}  # fmt: skip
# What a recipe's source stage takes from the transfer.
_SHARED = ("backbone", "precision", "compile", "devices", "nodes", "workers", "seed")


@click.command(cls=SectionedCommand, sections=_SECTIONS, short_help="Fine-tune a pretrained backbone on your pictures.")
@click.argument("data")
@click.option("--recipe", help="A recipe's name, or a file like it; other options win.")
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
    "--head-init", default="auto", show_default=True, help="zero, xavier, he or ridge (closed form), of the last layer."
)
@click.option("--size", type=SIZE, help="Input, pixels.  [default: the weights' own]")
@click.option("--mean", type=FLOATS, help="Per channel.  [default: the weights' own]")
@click.option("--std", type=FLOATS, help="Per channel.  [default: the weights' own]")
@click.option(
    "--decode",
    default="reduced",
    show_default=True,
    help="reduced (large JPEGs are halved while they are decoded, here and on the device) or full.",
)
@click.option(
    "--strategy",
    default="lp-ft",
    show_default=True,
    help="probe (head only), last:N (blocks), gradual (from the top), full, or lp-ft (probe, then full).",
)
@click.option(
    "--batchnorm",
    default="frozen",
    show_default=True,
    help="frozen (pretrained statistics stay) or train (they follow the batches).",
)
@click.option(
    "--views", type=int, default=4, show_default=True, help="Of last:N: augmented views that are kept; 0 keeps none."
)
@click.option("--epochs", type=int, default=10, show_default=True, help="Passes over the training pictures.")
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
@click.option("--batch-size", type=int, default=32, show_default=True, help="Of all devices together.")
@click.option("--optimizer", default="adamw", show_default=True, help="adamw, adam, sgd, rmsprop or adagrad.")
@click.option("--momentum", type=float, default=0.9, show_default=True, help="Of sgd and rmsprop.")
@click.option("--lr", type=_Rate(), help="Peak rate of the head; auto finds one.  [default: by optimizer]")
@click.option("--schedule", default="cosine", show_default=True, help="cosine, constant, step, step:N or one-cycle.")
@click.option(
    "--warmup", type=float, default=0.1, show_default=True, help="Share of the steps in which the rate rises."
)
@click.option(
    "--max-gradient-norm",
    type=float,
    default=1.0,
    show_default=True,
    help="Larger gradients are scaled down to it, but for a probe's; 0 clips nothing.",
)
@click.option(
    "--layer-decay",
    type=float,
    default=0.85,
    show_default=True,
    help="Factor on the rate from block to block, downwards.",
)
@click.option("--weight-decay", type=float, default=0.02, show_default=True)
@click.option("--ema", type=float, default=0.0, show_default=True, help="Decay of averaged weights, like 0.999.")
@click.option("--label-smoothing", type=float, default=0.1, show_default=True)
@click.option("--l1", type=float, default=0.0, show_default=True, help="Penalty on absolute weights.")
@click.option("--l2", type=float, default=0.0, show_default=True, help="Penalty on squared weights.")
@click.option("--l2-sp", type=float, default=0.0, show_default=True, help="Penalty on the way from pretrained weights.")
@click.option(
    "--imbalance",
    default="auto",
    show_default=True,
    help="auto, none, weights (in the loss) or sampling (small classes more often).",
)
@click.option("--teacher", help="A run whose answers are learned too.")
@click.option("--teacher-weight", type=float, default=0.5, show_default=True, help="The teacher's share of the loss.")
@click.option("--teacher-temperature", type=float, default=2.0, show_default=True)
@click.option(
    "--augment", default="standard", show_default=True, help="none, light (crop, colour) or standard (also mirrored)."
)
@click.option("--mix", default="none", show_default=True, help="mixup, cutmix or both.")
@click.option(
    "--val-fraction",
    type=RATE,
    default="20%",
    show_default=True,
    help="Validation share where the folder has no split.",
)
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
@click.option("--download", is_flag=True, help="Get what cifar10:DIR and its like name, if it is not there.")
@click.option("--source-data", help="Pictures of a recipe's source stage.  [default: as the recipe says]")
@click.option("--logger", "loggers", multiple=True, help="Beside history.csv: tensorboard, mlflow, wandb; repeatable.")
@click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or fp16; auto is fp32 on a CPU.")
@click.option("--compile", is_flag=True, help="Let torch.compile make steps faster, after a minute of compiling.")
@click.option("--devices", type=int, default=1, show_default=True, help="GPUs, or processes, on each node.")
@click.option("--nodes", type=int, default=1, show_default=True, help="Machines.")
@click.option("--workers", type=int, help="Processes that decode.  [default: 0 on a CPU, up to 8 for a GPU]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--robustness", is_flag=True, help="Judge the result on corrupted pictures too.")
@click.option("--compare-scratch", is_flag=True, help="Train from random weights too: what did the transfer buy?")
@click.option("--out", type=PATH, help="Run folder to write.  [default: models/runs/NAME]")
@click.option("--config", "config_file", type=PATH, help="YAML of these settings; options typed here win.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, exactly where it was.")
@click.option("--force", is_flag=True, help="Replace what is in --out.")
@json_option
@click.pass_context
def finetune(
    ctx: click.Context,
    /,
    data: str,
    recipe: str | None,
    out: Path | None,
    config_file: Path | None,
    val_fraction: float,
    allow_leakage: bool,
    download: bool,
    source_data: str | None,
    resume: bool,
    force: bool,
    json_out: str | None,
    **settings: Any,
) -> None:
    """Fine-tune a pretrained backbone on DATA.

    DATA is a folder root/{train,val}/class/picture or root/class/picture, a CSV table path,label[,split], the built-in
    digits, or cifar10:DIR, cifar100:DIR, mnist:DIR, fashion-mnist:DIR with the published files in DIR.
    """
    import json

    from edgetl.cli.display import Display, open_data, percent
    from edgetl.errors import InputError
    from edgetl.finetune import finetune as run_stage
    from edgetl.finetune import node_rank, open_recipe, take_part
    from edgetl.finetune.run_folder import RunFolder, read_config

    chosen = open_recipe(recipe) if recipe is not None else None
    out = out or Path("models/runs") / _name_of(data)
    if resume and chosen is not None and chosen.source is not None:
        resume = out.exists()  # else it was stopped in the source stage, which goes on by itself
    RunFolder(out).check_free(resume=resume, force=force)
    typed = {name: value for name, value in settings.items() if _is_typed(ctx, name)}
    if resume:  # the pictures are split as they were, unless told otherwise
        saved = read_config(out / "config.yaml")[1]
        val_fraction = val_fraction if _is_typed(ctx, "val_fraction") else saved.val_fraction
        allow_leakage = allow_leakage or saved.allow_leakage
    config = _config(typed, chosen, config_file, out if resume else None)
    source = None
    if chosen is not None and chosen.source is not None and "weights" not in typed:
        source = _Source(chosen, source_data or chosen.source.data_beside(data), out)
    with Display(json_to_stdout=json_out == "-") as display:
        if download:
            _fetch(data, source)
        opened = {"val_fraction": val_fraction, "allow_leakage": allow_leakage}
        dataset = open_data(display, data, **opened)
        if source is not None:
            if config.nodes > 1:
                raise InputError(
                    f"--recipe {source.recipe.name} trains its source network first, on one machine: run it there with "
                    f"--nodes 1, then give every machine --weights {source.out}/checkpoint.safetensors"
                )
            theirs = open_data(display, source.data, **opened)
            source.check_apart(theirs, dataset, allow_leakage=allow_leakage)
            config = source.trained(theirs, config, display, force=force)
        if config.nodes > 1 and node_rank() > 0:
            take_part(dataset, config, out, reporter=display, resume=resume, force=force)
            display.note("this machine's part is done; the run is on the one with NODE_RANK 0")
            return
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


@dataclass(frozen=True)
class _Source:
    """The network that a recipe trains first.

    Attributes:
        recipe: Which.
        data: Its pictures, as a user would name them.
        run: Of the transfer; the source's own lies beside it.
    """

    recipe: Any
    data: str
    run: Path

    @property
    def out(self) -> Path:
        """The source's run."""
        return self.run.with_name(f"{self.run.name}.source")

    def check_apart(self, source: Any, target: Any, *, allow_leakage: bool) -> None:
        """Refuses the target's own pictures: they would be learned twice, or judged on what was seen.

        Published collections may share a few pictures, as their own splits do: everybody's figures are on them as
        they are.
        """
        from edgetl.dataset import original_of
        from edgetl.errors import DatasetError

        seen = {item.sha256 for item in source.items}
        if seen == {item.sha256 for item in target.items}:
            raise DatasetError(f"{source.root}: holds the same pictures as {target.root}; name others by --source-data")
        shared = next((item for item in target.split("val") if item.sha256 in seen), None)
        published = original_of(self.data) is not None and original_of(target.root) is not None
        if shared is not None and not allow_leakage and not published:
            raise DatasetError(
                f"{shared.path}: is a validation picture, and among the source's in {source.root}, where it would be "
                "learned; take it out of one, or allow it with --allow-leakage"
            )

    def trained(self, dataset: Any, config: Any, display: Any, *, force: bool) -> Any:
        """Trains it, unless that was done before, and returns the transfer's settings with its weights."""
        from dataclasses import replace

        from edgetl.finetune import finetune_source

        stage = replace(self.recipe.source.settings, **{name: getattr(config, name) for name in _SHARED})
        weights = finetune_source(dataset, stage, self.out, reporter=display, force=force)
        return replace(config, weights=str(weights))


def _fetch(data: str, source: _Source | None) -> None:
    """Downloads what is published of the pictures; where nothing is, that is said of the target's."""
    from edgetl.dataset import original_of
    from edgetl.finetune import fetch_original

    named = [data] if source is None else [data, source.data]
    for name in [name for name in named if original_of(name) is not None] or named[:1]:
        fetch_original(name)


def _name_of(data: str) -> str:
    """Returns the run's name where --out gives none."""
    from edgetl.dataset import located

    place = located(data)
    if place is not None:
        return place[0]
    source = Path(data).resolve()
    return source.name if source.is_dir() else source.stem


def _write_report(display: Any, run: Path, metrics: dict[str, Any]) -> None:
    """Writes the run's report.html; where what it takes is not installed, the run is complete without it."""
    from edgetl.errors import MissingExtraError
    from edgetl.finetune.run_folder import RunFolder, read_config
    from edgetl.report import check_report, finetune_report, write_report

    folder = RunFolder(run)
    try:
        check_report()
    except MissingExtraError as missing:
        display.note(f"{folder.report.name} was not written: {missing}")
        return
    settings = read_config(folder.config)[0].to_dict()
    write_report(folder.report, finetune_report(metrics, folder.read_history(), settings, folder.read_stability()))


def _config(typed: dict[str, Any], recipe: Any, config_file: Path | None, resumed: Path | None) -> Any:
    """Returns the settings in force: defaults, below a recipe, below a file or the resumed run, below options typed."""
    from edgetl.finetune import FinetuneConfig
    from edgetl.finetune.run_folder import read_config, read_settings

    base: dict[str, Any] = dict(recipe.settings) if recipe is not None else {}
    if resumed is not None:
        base = read_config(resumed / "config.yaml")[0].to_dict()
    if config_file is not None:
        base = {**base, **read_settings(config_file)}
    return FinetuneConfig.from_dict({**base, **typed}, str(config_file or "options"))


def _is_typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
