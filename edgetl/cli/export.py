"""``edgetl export``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import PATH, RATE, emit_html, emit_json, html_option, json_option

__all__ = ["export"]


@click.command(short_help="Export a run, or your own ONNX file, to a bundle with FP32, FP16 and INT8.")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, help="Bundle to write.  [default: models/bundles/NAME.edgetl]")
@click.option("--int8", is_flag=True, help="Also make the INT8 forms for TensorRT, x86 and Arm.")
@click.option("--fp16/--no-fp16", default=True, show_default=True, help="Make the FP16 form.")
@click.option("--data", help="Pictures to calibrate and judge on.  [default: the run's own]")
@click.option("--spec", "spec_file", type=PATH, help="spec.json that describes SOURCE, if that is an .onnx file.")
@click.option("--calib-images", type=int, default=300, show_default=True, help="Training pictures for the calibration.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    help="Thresholds by max, percentile, mse, entropy, or auto: the best for each group of tensors.",
)
@click.option(
    "--repair/--no-repair",
    default=True,
    show_default=True,
    help="Change rounding, biases and channels where that helps INT8.",
)
@click.option(
    "--mixed/--no-mixed", default=True, show_default=True, help="Leave layers in float where INT8 costs too much."
)
@click.option("--calibration", type=PATH, help="calibration.json of the same export, to be used again.")
@click.option("--max-drop", type=RATE, default="1pt", show_default=True, help="Largest loss of top-1 against FP32.")
@click.option(
    "--false-accept",
    type=RATE,
    help="Give pictures of none of the classes no label; this share of them may pass, like 5%.",
)
@click.option("--unknown", type=PATH, help="Folder of such pictures.  [default: each class plays it in turn]")
@click.option(
    "--exemplars",
    type=int,
    default=30,
    show_default=True,
    help="Training pictures of each class whose embeddings go along, for learning on the device; 0 for none.",
)
@click.option(
    "--keep-fp16",
    multiple=True,
    metavar="PATTERN",
    help="Layers, weights or tensors to leave in float (* and ?); repeatable.",
)
@click.option(
    "--with-original", is_flag=True, help="Also write OUT.original.edgetl: the pretrained network with its own head."
)
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@html_option
@json_option
def export(
    source: Path,
    out: Path | None,
    int8: bool,
    fp16: bool,
    data: str | None,
    spec_file: Path | None,
    calib_images: int,
    method: str,
    repair: bool,
    mixed: bool,
    calibration: Path | None,
    max_drop: float,
    false_accept: float | None,
    unknown: Path | None,
    exemplars: int,
    keep_fp16: tuple[str, ...],
    with_original: bool,
    allow_leakage: bool,
    force: bool,
    html_out: Path | None,
    json_out: str | None,
) -> None:
    """Export SOURCE, a run of edgetl finetune or an .onnx file with --spec and --data."""
    from edgetl.bundle import check_free
    from edgetl.cli.display import Display
    from edgetl.cli.layers import layer_costs
    from edgetl.errors import InputError
    from edgetl.export import (
        ExportConfig,
        check_original,
        export_onnx_file,
        export_original,
        export_run,
        original_name,
    )
    from edgetl.quantize import QuantizeConfig
    from edgetl.report import export_report

    quantize = QuantizeConfig(method, calib_images, keep_fp16, repair, mixed)
    config = ExportConfig(
        int8,
        fp16,
        quantize,
        max_drop,
        calibration=calibration,
        false_accept=false_accept,
        unknown=unknown,
        exemplars=exemplars,
    )
    out = out or Path("models/bundles") / f"{source.stem}.edgetl"
    check_free(out, force=force)
    if calibration is not None and not int8:
        raise InputError("--calibration is of INT8: give --int8 too")
    if source.suffix != ".onnx" and spec_file is not None:
        raise InputError("--spec describes an .onnx file; a run has its own")
    fidelity: list[Mapping[str, Any]] = []
    with Display(json_to_stdout=json_out == "-") as display:
        options: dict[str, Any] = {"reporter": display, "force": force, "on_fidelity": fidelity.append}
        if source.suffix == ".onnx":
            if with_original:
                raise InputError("--with-original goes with a run: an .onnx file has no pretrained network beside it")
            spec, dataset = _own_model(display, source, spec_file, data, allow_leakage)
            bundles = [export_onnx_file(source, spec, dataset, config, out, **options)]
        else:
            if with_original:
                check_original(source, original_name(out), force=force)
            dataset = _run_data(display, source, data, allow_leakage)
            bundles = [export_run(source, dataset, config, out, **options)]
            if with_original:
                display.note("the original, with its own head:")
                bundles.append(export_original(source, dataset, config, original_name(out), **options))
    for bundle, reports in zip(bundles, fidelity, strict=True):
        display.fidelity(bundle, reports, dataset.root)
        display.confidence(bundle)
        display.console.print(f"{bundle.root}: written, digest {bundle.digest[:12]}")
    emit_json(json_out, [{"bundle": str(bundle.root), **bundle.manifest} for bundle in bundles])
    targets = [] if html_out is None else [html_out, html_out.with_suffix(f".original{html_out.suffix}")]
    for bundle, reports, target in zip(bundles, fidelity, targets, strict=False):
        emit_html(target, partial(export_report, bundle.manifest, reports, layer_costs(bundle)))


def _run_data(display: Any, source: Path, data: str | None, allow_leakage: bool) -> Any:
    from edgetl.cli.display import open_data
    from edgetl.finetune import open_run

    _, own = open_run(source)
    return open_data(
        display, data or own.name, val_fraction=own.val_fraction, allow_leakage=allow_leakage or own.allow_leakage
    )


def _own_model(
    display: Any, source: Path, spec_file: Path | None, data: str | None, allow_leakage: bool
) -> tuple[Any, Any]:
    """Returns the spec and the data of somebody's own .onnx file."""
    from edgetl.cli.display import open_data
    from edgetl.errors import InputError
    from edgetl.spec import ModelSpec

    if spec_file is None or data is None:
        raise InputError(f"{source}: an .onnx file needs --spec spec.json (what it expects) and --data (pictures)")
    spec = ModelSpec.from_file(spec_file)
    return spec, open_data(display, data, allow_leakage=allow_leakage)
