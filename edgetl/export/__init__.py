"""From a trained network, or a user's own ONNX file, to a bundle that proves what it is worth."""

from edgetl.export.onnx import check_agreement, onnx_from_module
from edgetl.export.pipeline import (
    ExportConfig,
    Reporter,
    check_original,
    export_onnx_file,
    export_original,
    export_run,
    original_name,
)

__all__ = [
    "ExportConfig",
    "Reporter",
    "check_agreement",
    "check_original",
    "export_onnx_file",
    "export_original",
    "export_run",
    "onnx_from_module",
    "original_name",
]
