"""INT8 by calibration: ranges are observed once, and written as explicit Q/DQ for each target."""

from edgetl.quantize.calibration import Calibration
from edgetl.quantize.graph import Graph, load_onnx, save_onnx
from edgetl.quantize.placement import place
from edgetl.quantize.stage import Calibrator, QuantizeConfig, calibrate, known_patterns, write_fp16, write_int8
from edgetl.quantize.targets import TARGETS

__all__ = [
    "TARGETS",
    "Calibration",
    "Calibrator",
    "Graph",
    "QuantizeConfig",
    "calibrate",
    "known_patterns",
    "load_onnx",
    "place",
    "save_onnx",
    "write_fp16",
    "write_int8",
]
