"""ONNX Runtime on x86: integer kernels (VNNI) take uint8 activations, and want them before and behind."""

from edgetl.quantize.targets.rules import CPU_CARRIED, CPU_GATED, WEIGHTED, Target

__all__ = ["X86"]

X86 = Target(
    "x86",
    signed=False,
    symmetric=False,
    weighted=WEIGHTED,
    carried=CPU_CARRIED,
    gated=CPU_GATED,
    outputs=True,
    residual_only=False,
    half=False,
    first_depth=28,  # 3 x 3 of three channels sums 27: with SiLU or HardSwish behind it, float is faster
)
