#!/usr/bin/env python3
"""Quantizes one ONNX file by one method of one peer tool, in a process of its own.

    python peer.py TOOL METHOD model.onnx pictures.npy out.onnx --json report.json [--target tensorrt|x86]

``onnxruntime``: ``quantize_static`` by minmax, entropy or percentile, set for the target as ONNX Runtime recommends.
``modelopt``: NVIDIA ModelOpt's ``quantize`` by max or entropy; it knows one target, TensorRT.
The model has one input, uint8 (N, H, W, C) with a dynamic batch, and an output ``logits``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Pictures = NDArray[np.uint8]

METHODS = {
    "onnxruntime": {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"},
    "modelopt": {"max": "max", "entropy": "entropy"},
}
PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "modelopt": ("nvidia-modelopt", "onnxruntime", "onnx")}
BATCH = 8


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Feeds ONNX Runtime's calibration equal batches: its histograms stack them, so a short last one would fail."""

    def __init__(self, name: str, pictures: Pictures) -> None:
        size = next(n for n in range(BATCH, 0, -1) if len(pictures) % n == 0)
        self._feeds = [{name: pictures[i : i + size]} for i in range(0, len(pictures), size)]
        self.set_range(0, len(self._feeds))

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Limits what follows to some batches (``CalibStridedMinMax`` asks for this)."""
        self._left = iter(self._feeds[start_index:end_index])

    def get_next(self) -> dict[str, Pictures] | None:
        """Returns the next batch, None behind the last."""
        return next(self._left, None)


def classifier(model: onnx.ModelProto) -> str:
    """Returns the name of the layer that makes the logits (its bias may be an Add of its own)."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers["logits"]
    while node.op_type not in ("Gemm", "MatMul", "Conv"):
        node = makers[node.input[0]]
    return str(node.name)


def with_onnxruntime(source: Path, pictures: Pictures, out: Path, method: str, target: str) -> None:
    """Quantizes by ONNX Runtime; ``x86`` takes its defaults (uint8 activations), ``tensorrt`` symmetric int8."""
    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)  # shape inference and basic optimization, as the documentation asks
    model = onnx.load(prepared)
    # Histograms take in one batch after the other, as in ONNX Runtime's TensorRT examples. Otherwise the activations of
    # all pictures are held at once, and entropy has one threshold to choose from. The option works for every method.
    options: dict[str, Any] = {"CalibStridedMinMax": 1}
    arguments: dict[str, Any] = {}
    if target == "tensorrt":
        # Q/DQ only before what has INT8 kernels, biases in float: TensorRT fuses the rest. A skip is quantized where a
        # convolution reads it too; quantizing both inputs of Add breaks its fusion, and cost accuracy.
        types = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
        options |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        options |= {"OpTypesToExcludeOutputQuantization": types, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}}
        arguments = {"op_types_to_quantize": types, "nodes_to_exclude": [classifier(model)]}
    quantize_static(
        prepared,
        out,
        Batches(model.graph.input[0].name, pictures),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8 if target == "tensorrt" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod[method],
        extra_options=options,
        **arguments,
    )


def with_modelopt(source: Path, pictures: Pictures, out: Path, method: str) -> None:
    """Quantizes by ModelOpt, its placement left alone: preprocessing and classifier stay in float by its own rules."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_method=method,
        calibration_data={onnx.load(source).graph.input[0].name: pictures},  # one at a time, as the batch is dynamic
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",  # the default, FP16, would be judged with INT8
        output_path=str(out.resolve()),
        log_level="WARNING",
    )


def main() -> None:
    """Reads the arguments, quantizes and reports."""
    parser = argparse.ArgumentParser(description="Quantizes one ONNX file by one method of one peer tool.")
    parser.add_argument("tool", choices=METHODS)
    parser.add_argument("method", help="; ".join(f"{tool}: {', '.join(names)}" for tool, names in METHODS.items()))
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, help="uint8 (N, H, W, C)")
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="report to write")
    parser.add_argument("--target", choices=("tensorrt", "x86"), default="tensorrt")
    a = parser.parse_args()
    if a.method not in METHODS[a.tool]:
        parser.error(f"{a.tool} has the methods {', '.join(METHODS[a.tool])}")
    if a.tool == "modelopt" and a.target != "tensorrt":
        parser.error("modelopt quantizes for TensorRT only")
    if a.tool == "modelopt":
        import modelopt.onnx.quantization  # noqa: F401  before the clock starts
    pictures = np.load(a.pictures, mmap_mode="r")
    with tempfile.TemporaryDirectory() as folder:  # both tools write beside the model
        source = Path(shutil.copy(a.model, folder))
        began = time.perf_counter()
        if a.tool == "onnxruntime":
            with_onnxruntime(source, pictures, a.out, METHODS[a.tool][a.method], a.target)
        else:
            with_modelopt(source, pictures, a.out, METHODS[a.tool][a.method])
        seconds = time.perf_counter() - began
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    versions = {package: version(package) for package in PACKAGES[a.tool]}
    report = {"tool": a.tool, "method": a.method, "versions": versions, "seconds": seconds}
    report |= {"peak_bytes": int(peak[1]) * 1024, "pictures": len(pictures)}
    a.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
