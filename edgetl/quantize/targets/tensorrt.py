"""TensorRT: layers quantize their inputs, the builder fuses the rest; what is not INT8 is FP16."""

from edgetl.quantize.targets.rules import WEIGHTED, Target

__all__ = ["TENSORRT"]

TENSORRT = Target(
    "tensorrt",
    signed=True,
    symmetric=True,
    weighted=WEIGHTED,
    carried=frozenset(),
    gated=frozenset(),
    outputs=False,
    residual_only=True,
    half=True,
    first_depth=0,
)
