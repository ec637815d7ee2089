"""ONNX Runtime on Arm: integer kernels take int8 activations, and want them before and behind."""

from edgetl.quantize.targets.rules import CPU_CARRIED, CPU_GATED, WEIGHTED, Target

__all__ = ["ARM"]

ARM = Target(
    "arm",
    signed=True,
    symmetric=False,
    weighted=WEIGHTED,
    carried=CPU_CARRIED,
    gated=CPU_GATED,
    outputs=True,
    residual_only=False,
    half=False,
    first_depth=0,
)
