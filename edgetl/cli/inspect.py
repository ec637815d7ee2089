"""``edgetl inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetl.cli.options import RATE, emit_json, json_option

__all__ = ["inspect"]


@click.command(short_help="Describe a bundle, a run, a plan, a collection of pictures, or a backbone.")
@click.argument("thing")
@click.option("--blocks", is_flag=True, help="List a backbone's blocks, as last:N counts them.")
@click.option(
    "--layers", is_flag=True, help="List the layers of a bundle's graph, what INT8 costs each, and what stays in float."
)
@click.option(
    "--val-fraction", type=RATE, default="20%", show_default=True, help="Of pictures in a folder without a split."
)
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
@json_option
def inspect(
    thing: str, blocks: bool, layers: bool, val_fraction: float, allow_leakage: bool, json_out: str | None
) -> None:
    """Describe THING: a bundle, a run, a TensorRT plan, a folder or table of pictures, or a backbone's name."""
    from edgetl.cli.display import Display
    from edgetl.cli.layers import show_plan
    from edgetl.dataset import located

    path = Path(thing)
    with Display(json_to_stdout=json_out == "-") as display:
        if path.suffix in (".plan", ".json") and path.is_file():
            report = show_plan(display, path)
        elif (path / "manifest.json").exists() or path.suffix == ".edgetl":
            report = _bundle(display, path, layers)
        elif (path / "config.yaml").exists():
            report = _run(display, path)
        elif path.exists() or thing == "digits" or located(thing):
            report = _data(display, thing, val_fraction=val_fraction, allow_leakage=allow_leakage)
        else:
            report = _backbone(display, thing, blocks)
    emit_json(json_out, report)


def _bundle(display: Any, path: Path, layers: bool) -> dict[str, Any]:
    from edgetl.bundle import open_bundle
    from edgetl.cli.layers import show_layers

    bundle = open_bundle(path)
    bundle.verify()
    spec = bundle.spec
    names = ", ".join(spec.labels[:8]) + (" ..." if len(spec.labels) > 8 else "")
    display.console.print(f"{path}: {spec.backbone}, head {spec.head}, {len(spec.labels)} classes: {names}")
    display.console.print(_preprocess_line(spec.preprocess))
    display.variants(bundle.variants)
    for variant in bundle.variants:
        display.note(f"{variant.name}: {variant.reason}")
    report = dict(bundle.manifest)
    display.fidelity(bundle)
    if layers:
        report["layers"] = show_layers(display, bundle)
    return report


def _preprocess_line(p: Any) -> str:
    resize = f"short side to {p.resize_to}, centre" if p.mode == "shortest" else p.mode
    return f"pictures: {resize} {p.size[0]} x {p.size[1]} {p.color}, {p.interpolation}, mean {p.mean}, std {p.std}"


def _run(display: Any, path: Path) -> dict[str, Any]:
    import json

    from edgetl.finetune import open_run

    checkpoint, source = open_run(path)
    metrics: dict[str, Any] = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    val = metrics["val"]
    spec = checkpoint.spec
    display.console.print(f"{path}: {spec.backbone}, head {spec.head}, trained on {source.name}")
    display.console.print(_preprocess_line(spec.preprocess))
    rows = [
        (row["label"], f"{row['precision']:.1%}", f"{row['recall']:.1%}", f"{row['f1']:.1%}", str(row["support"]))
        for row in val["per_class"]
    ]
    display.table(
        f"val: top-1 {val['top1']:.1%}, macro F1 {val['macro_f1']:.1%}, ECE {val['ece']:.1%}",
        ("class", "precision", "recall", "F1", "pictures"),
        rows,
    )
    return {"spec": spec.to_dict(), **metrics}


def _data(display: Any, source: str, **options: Any) -> dict[str, Any]:
    from collections import Counter

    from edgetl.cli.display import open_data

    dataset = open_data(display, source, **options)
    counts = Counter((item.label, item.split) for item in dataset.items)
    splits = ("train", "val", "test")
    rows = [(name, *(str(counts[i, split]) for split in splits)) for i, name in enumerate(dataset.classes)]
    display.table(f"{source}: {len(dataset.items)} pictures", ("class", *splits), rows)
    for path, note in dataset.audit.notes:
        display.console.print(f"{path}: {note}")
    return {"source": source, "classes": list(dataset.classes), "digest": dataset.digest, **dataset.audit.to_dict()}


def _backbone(display: Any, name: str, list_blocks: bool) -> dict[str, Any]:
    from edgetl.backbones import blocks, default_preprocess, feature_extractor, feature_shape, skeleton, unfriendly
    from edgetl.errors import BackboneError, InputError

    try:
        full = skeleton(name)
    except BackboneError as error:
        raise InputError(f"{name}: no such bundle, run or folder, and as a backbone: {error}") from None
    preprocess = default_preprocess(name)
    extractor = feature_extractor(full)
    shape = feature_shape(extractor, preprocess)
    parameters = sum(p.numel() for p in extractor.parameters())
    depth = blocks(extractor)
    display.console.print(
        f"{name}: {parameters / 1e6:.2f} M parameters in {len(depth)} blocks, feature map "
        f"{shape[0]} x {shape[1]} x {shape[2]}",
    )
    display.console.print(_preprocess_line(preprocess))
    warnings = unfriendly(extractor)
    for warning in warnings:
        display.note(f"warning: {warning}")
    rows = [(block.name, sum(p.numel() for p in block.parameters())) for block in depth]
    if list_blocks:
        table = [(str(len(rows) - i), label, f"{count:,}") for i, (label, count) in enumerate(rows)]
        display.table(
            "blocks, input first; last:N trains those numbered up to N", ("N", "block", "parameters"), table, text=2
        )
    return {
        "backbone": name,
        "parameters": parameters,
        "feature_map": list(shape),
        "preprocess": preprocess.to_dict(),
        "warnings": warnings,
        "blocks": [{"name": label, "parameters": count} for label, count in rows],
    }
