"""What ``edgetl inspect`` says of single layers: of a bundle's graph, and of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetl.bundle import Bundle
    from edgetl.cli.display import Display

__all__ = ["layer_costs", "show_layers", "show_plan"]

_SM = 86  # of the GPU that plans are built for where there is none: Ampere, as in a Jetson Orin


def layer_costs(bundle: Bundle) -> list[dict[str, Any]]:
    """Returns what INT8 costs each weighted layer, and why it stays in float where it does.

    Keys: ``name, op, weight, shape, alone_db, multiply_adds, in_float`` (reasons by target); None where nobody asked.
    """
    from edgetl.quantize import TARGETS, Graph, load_onnx, place

    graph = Graph(load_onnx(bundle.root / bundle.variant("fp32").file))
    path = bundle.root / "calibration.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    decisions = record.get("decisions", {"layers": (), "spared": {}})
    costs = {cost["layer"]: cost for cost in decisions["layers"]}
    in_float = {
        t.name: dict(place(graph, t, record["keyed_by"]["keep_fp16"], decisions["spared"].get(t.name, ())).spared)
        for t in (TARGETS if record else ())
    }
    return [
        {
            "name": node.name,
            "op": node.op_type,
            "weight": node.input[1],
            "shape": list(graph.shape(node.input[1]) or ()),
            "alone_db": costs.get(node.name, {}).get("sqnr_db"),
            "multiply_adds": costs.get(node.name, {}).get("share"),
            "in_float": {target: layers[node.name] for target, layers in in_float.items() if node.name in layers},
        }
        for node in graph.nodes
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and graph.is_constant(node.input[1])
    ]


def show_layers(display: Display, bundle: Bundle) -> list[dict[str, Any]]:
    """Prints what INT8 costs each layer, what stays in float, and what the TensorRT builder makes of it."""
    from edgetl.quantize import TARGETS

    built = _built(display, bundle)
    found = [{**layer, "tensorrt_input": built.get(layer["name"])} for layer in layer_costs(bundle)]
    rows = [
        (
            f["name"],
            f["op"],
            f["weight"],
            "x".join(map(str, f["shape"])),
            "" if f["alone_db"] is None else f"{f['alone_db']:.1f}",
            "" if f["multiply_adds"] is None else f"{f['multiply_adds']:.1%}",
            f["tensorrt_input"] or "",
            _reasons(f["in_float"], len(TARGETS)),
        )
        for f in found
    ]
    columns = (
        "name", "op", "weight", "shape", "dB if alone in INT8", "multiply-adds", "TensorRT takes", "in float, for",
    )  # fmt: skip
    display.table("layers", columns, rows, text=3)
    if (bundle.root / "calibration.json").exists() and all(f["alone_db"] is None for f in found):
        display.note("no layer was tried alone: none had to stay in float for its cost, or --no-mixed let none")
    return found


def _built(display: Display, bundle: Bundle) -> dict[str, str]:
    """Builds the INT8 graph by TensorRT-RTX, which needs no GPU, and returns what each layer takes."""
    from edgetl.cli.compile import show_islands
    from edgetl.compile import PlanSettings, build_plan, product_named
    from edgetl.errors import MissingExtraError

    variant = next((v for v in bundle.variants if v.name == "int8-tensorrt"), None)
    if variant is None:
        return {}
    product = product_named("tensorrt-rtx")
    try:
        built = build_plan(
            bundle.read(variant), variant.file, product, PlanSettings(sms=(_SM,)), on_progress=display.progress
        )
    except MissingExtraError:
        display.note("what TensorRT makes of each layer: pip install 'edgetl[rtx]', which builds without a GPU")
        return {}
    report = built.report
    display.note(
        f"{variant.name} by TensorRT-RTX for SM {_SM}: {len(report.layers)} kernels, "
        f"{report.conversions} of them only convert"
    )
    show_islands(display, variant.name, report.islands)
    return dict(report.weighted)


def _reasons(in_float: dict[str, str], targets: int) -> str:
    """Returns why a layer stays in float, and on which targets if not on all."""
    reasons: dict[str, list[str]] = {}
    for target, reason in in_float.items():
        reasons.setdefault(reason, []).append(target)
    return "; ".join(
        reason if len(names) == targets else f"{reason} ({', '.join(names)})" for reason, names in reasons.items()
    )


def show_plan(display: Display, path: Path) -> dict[str, Any]:
    """Prints what is known of a plan: for what it was built, and its kernels."""
    from edgetl.cli.compile import show_islands
    from edgetl.compile import read_record

    record = read_record(path)
    key, report = record["key"], record["report"]
    sms = ", ".join(map(str, key["sms"]))
    display.console.print(
        f"{path}: {record['variant']} by {key['product']} {key['version']} for SM {sms}, {key['system']} "
        f"{key['processor']}, {record['bytes'] / 1e6:.2f} MB, sha256 {record['sha256'][:12]}"
    )
    rows = [
        (
            layer["kind"],
            ", ".join(_tensor(t) for t in layer["inputs"]),
            ", ".join(_tensor(t) for t in layer["outputs"]),
            ", ".join(layer["onnx"]),
        )
        for layer in report["layers"]
    ]
    display.table("kernels", ("kind", "takes", "makes", "of the graph's nodes"), rows, text=4)
    show_islands(display, record["variant"], report["islands"])
    return record


def _tensor(tensor: dict[str, Any]) -> str:
    return f"{tensor['dtype']} {'x'.join('N' if size < 0 else str(size) for size in tensor['shape'])}"
